"""How a transformer's tokens are split among processes: by diffusers' context parallelism (Ulysses), and a plan.

Wan has a plan in diffusers. HunyuanVideo has one here: video and text tokens are both split, and the attention mask is
put into the order in which Ulysses gathers them. Open-Sora's transformer splits and switches by itself
(opensora/sequence.py).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

from methods.engine.anatomy import anatomy_for

from ..config import Backbone, ConfigError

TOKENS = ContextParallelInput(split_dim=1, expected_dims=3)
ROTARY = ContextParallelInput(split_dim=0, expected_dims=2, split_output=True)
GATHERED = ContextParallelOutput(gather_dim=1, expected_dims=3)
HUNYUAN, OPENSORA = "HunyuanVideoTransformer3DModel", "STDiT3Transformer3DModel"
PLANS: dict[str, dict[str, Any]] = {  # other classes bring their own
    HUNYUAN: {
        "rope": {0: ROTARY, 1: ROTARY},
        "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS},
        "proj_out": GATHERED,
    }
}


def check(backbone: Backbone, kind: Any, config: dict[str, Any], count: int) -> None:
    """Raise ConfigError if the tokens of a transformer of this class and config cannot be split among `count`."""
    config = dict(anatomy_for(kind, config).config)
    if kind.__name__ not in PLANS and getattr(kind, "_cp_plan", None) is None:
        raise ConfigError(f"{backbone.name}: this family cannot be split over GPUs")
    if config.get("image_condition_type") == "token_replace":
        raise ConfigError(f"{backbone.name}: a first frame that is an image cannot be split over GPUs")
    heads = config["num_attention_heads"]
    if kind.__name__ != OPENSORA and (count - 1) * -(-heads // count) >= heads:
        raise ConfigError(f"{backbone.name}: its {heads} attention heads leave one of {count} GPUs without any")


def spread(transformer: Any, count: int) -> None:
    """Split the transformer's tokens among `count` processes; the shares may be uneven. Before a method is applied."""
    config = ContextParallelConfig(ulysses_degree=count, ulysses_anything=True)
    name = type(transformer).__name__
    transformer.enable_parallelism(config=config, cp_plan=PLANS.get(name))
    if name == HUNYUAN:
        _settle_hunyuan(transformer, count)


def _settle_hunyuan(transformer: Any, count: int) -> None:
    """What a plan cannot say: the text's own attention is whole in every process, and masks are put in order."""
    for module in transformer.context_embedder.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = None
    order = _MaskOrder(count)
    HookRegistry.check_if_exists_or_initialize(transformer.context_embedder).register_hook(order, "cp_text")
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(_OrderMask(order), "cp_input---mask")


class _MaskOrder(ModelHook):
    """Hook of HunyuanVideo's text embedder, to know the number of text tokens; orders a mask for all blocks of a call.

    A block's mask (B, 1, 1, N) is of all video tokens, then all text tokens. Ulysses gathers each process's tokens in
    turn, its video and then its text.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.text = count, 0
        self.mask: torch.Tensor | None = None  # the call's, and its ordered form
        self.ordered: torch.Tensor | None = None

    def post_forward(self, module: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
        self.text = output.shape[1]
        return output

    def order(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask as Ulysses gathers the tokens."""
        if self.mask is not mask:
            streams = mask.split([mask.shape[-1] - self.text, self.text], dim=-1)
            shares = zip(*(stream.tensor_split(self.count, dim=-1) for stream in streams), strict=True)
            self.mask, self.ordered = mask, torch.cat([part for share in shares for part in share], dim=-1)
        assert self.ordered is not None
        return self.ordered


class _OrderMask(ModelHook):
    """Hook of a HunyuanVideo block, which is called with its mask in the fourth place."""

    def __init__(self, order: _MaskOrder) -> None:
        super().__init__()
        self.order = order

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, text, timestep, mask, *rest = args
        return (hidden, text, timestep, self.order.order(mask), *rest), kwargs
