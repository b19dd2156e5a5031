"""How a transformer's tokens are split among processes: by diffusers' context parallelism (Ulysses), and a plan.

Wan has a plan in diffusers. HunyuanVideo has one here: video and text tokens are both split, and the attention mask is
put into the order in which Ulysses gathers them. So has CogVideoX, whose attention is replaced, since diffusers' calls
PyTorch directly. Open-Sora's transformer splits and switches by itself (opensora/sequence.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch.distributed.device_mesh import init_device_mesh

from methods.engine.anatomy import Anatomy, anatomy_for
from methods.engine.processes import share_guidance

from .. import first_frame
from ..config import ConfigError, Recipe
from .family import Family

TOKENS = ContextParallelInput(split_dim=1, expected_dims=3)
ROTARY = ContextParallelInput(split_dim=0, expected_dims=2)
ROTARY_MADE = ContextParallelInput(split_dim=0, expected_dims=2, split_output=True)
GATHERED = ContextParallelOutput(gather_dim=1, expected_dims=3)
HUNYUAN, COGVIDEOX = "HunyuanVideoTransformer3DModel", "CogVideoXTransformer3DModel"
OPENSORA = "STDiT3Transformer3DModel"
STREAMS = {  # video and text, split before the first block
    "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS},
    "proj_out": GATHERED,
}
PLANS: dict[str, dict[str, Any]] = {  # other classes bring their own
    HUNYUAN: {"rope": {0: ROTARY_MADE, 1: ROTARY_MADE}, **STREAMS},
    COGVIDEOX: {"": {"image_rotary_emb": [ROTARY, ROTARY]}, **STREAMS},
}


def check(recipe: Recipe, family: Family, config: dict[str, Any]) -> None:
    """Raise ConfigError if the recipe's transformer, of this family and config, cannot be split as it asks."""
    numerics, name, kind = recipe.numerics, recipe.backbone.name, family.TRANSFORMER
    if numerics.parallel > 1 and getattr(Anatomy.KNOWN.get(kind.__name__), "TWO_HEADS", False):
        raise ConfigError(f"{name}: video and sound were never split over GPUs: leave model.numerics.parallel at 1")
    count = numerics.parallel // 2 if numerics.cfg_parallel else numerics.parallel
    if numerics.cfg_parallel:
        if numerics.parallel % 2:
            raise ConfigError(f"cfg_parallel halves the GPUs: model.numerics.parallel={numerics.parallel} is not even")
        two_calls, scale = family.branches(recipe) == 2, recipe.sampling.guidance_scale
        if not two_calls and not (family.ANATOMY.BATCHED and scale > 1):
            raise ConfigError(f"{name} has one guidance branch as it is called here: leave cfg_parallel at false")
    if count == 1:
        return
    if first_frame.is_taken_by(family.PIPELINE):
        raise ConfigError(f"{name}: image to video was never split over GPUs: leave model.numerics.parallel at 1")
    if kind.__name__ not in PLANS and getattr(kind, "_cp_plan", None) is None:
        raise ConfigError(f"{name}: how to split a {kind.__name__} over GPUs is not known")
    config = dict(anatomy_for(kind, config).config)
    if config.get("image_condition_type") == "token_replace":
        raise ConfigError(f"{name}: a first frame that is an image cannot be split over GPUs")
    heads = config["num_attention_heads"]
    if kind.__name__ != OPENSORA and (count - 1) * -(-heads // count) >= heads:
        raise ConfigError(f"{name}: its {heads} attention heads leave one of {count} GPUs without any")


def spread(transformer: Any, count: int, cfg_parallel: bool = False) -> None:
    """Split the transformer's tokens among `count` processes; the shares may be uneven. Before a method is applied.

    cfg_parallel: among each half of them, one for each guidance branch.
    """
    mesh = None
    if cfg_parallel:
        count //= 2
        names = ("guidance", "ring", "ulysses")
        mesh = init_device_mesh(torch._C._get_accelerator().type, (2, 1, count), mesh_dim_names=names)
        share_guidance(transformer, mesh["guidance"].get_group(), dist.group.WORLD)
    if count > 1:
        _spread_tokens(transformer, count, mesh)


def _spread_tokens(transformer: Any, count: int, mesh: Any) -> None:
    config = ContextParallelConfig(ulysses_degree=count, ulysses_anything=True, mesh=mesh)
    name = type(transformer).__name__
    if name == COGVIDEOX:
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(_CogVideoXAttention())
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


class _CogVideoXAttention:
    """diffusers' CogVideoXAttnProcessor2_0, by way of the function that knows of shared tokens."""

    _attention_backend = None  # diffusers sets both
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        texts = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            for states in (query, key):
                states[:, texts:] = apply_rotary_emb(states[:, texts:], image_rotary_emb, sequence_dim=1)
        parts = {"backend": self._attention_backend, "parallel_config": self._parallel_config}
        attended = dispatch_attention_fn(query, key, value, **parts).flatten(2, 3)
        attended = attn.to_out[1](attn.to_out[0](attended))
        return attended[:, texts:], attended[:, :texts]


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
