"""Train the tiny Wan transformer and its text encoder: `python -m pcbench.backbones.tiny.train_wan --vae runs/vae/vae`.

Latents of four kinds are encoded once into a pool, then rectified flow is trained on a mixture of them that moves
from small and cheap to full size. Small latents stay in the mixture to the end: PreciseCache's trial looks at them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import UMT5EncoderModel

from .components import MAX_PROMPT_TOKENS, flow_scheduler, text_encoder, tokenizer, wan_transformer
from .data import random_prompt, random_scene
from .loop import Schedule, train
from .world import all_scenes, render

NULL_PROMPT_SHARE = 0.1  # prompts dropped, for classifier-free guidance
SHIFT = 3.0  # training noise levels lean towards high noise, where layout and motion are decided


@dataclass(frozen=True)
class Kind:
    """One sort of training latent and its share of the steps at the start and at the end of training."""

    pool: str
    frames: int  # latent frames used of each clip; a causal VAE makes a prefix a shorter clip
    batch: int
    first_share: float
    last_share: float


# pool -> (clips, frames, side in pixels)
POOLS = {"full": (1500, 29, 128), "half": (6000, 29, 64), "quarter": (3000, 13, 32)}
KINDS = (
    Kind("full", 8, 8, 0.10, 0.70),
    Kind("half", 8, 32, 0.80, 0.20),
    Kind("quarter", 4, 64, 0.10, 0.10),
)
SHORT = 160  # tokens; below this, plain attention is faster on a CPU than its flash kernel, most of all backwards


@torch.no_grad()
def encode_pool(vae: AutoencoderKLWan, name: str, scale: float) -> dict[str, torch.Tensor]:
    """Normalised latents (N, C, T, H, W) in half precision, and the index of each clip's scene."""
    count, frames, side = POOLS[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    index_of = {scene: index for index, scene in enumerate(all_scenes())}
    mean = torch.tensor(vae.config.latents_mean).view(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(-1, 1, 1, 1)
    latents, scenes, began = [], [], time.monotonic()
    per_call = max(1, (128 // side) ** 2)
    for start in range(0, int(count * scale), per_call):
        drawn = [random_scene(generator) for _ in range(per_call)]
        clips = torch.stack([render(scene, origin, frames, side, side) for scene, origin in drawn]).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            mode = vae.encode(clips).latent_dist.mode().float().cpu()
        latents.append(((mode - mean) / std).half())
        scenes += [index_of[scene] for scene, _ in drawn]
        if start // per_call % 100 == 0:
            print(f"pool {name}: {start}/{count} clips, {time.monotonic() - began:.0f} s", flush=True)
    return {"latents": torch.cat(latents), "scenes": torch.tensor(scenes)}


class PromptedWan(nn.Module):
    """Text encoder and transformer as one trainable module."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.words = tokenizer()
        self.text_encoder = text_encoder(len(self.words))
        self.transformer = wan_transformer(latent_channels)

    def take_weights(self, pipeline: Path) -> None:
        """Start from a saved pipeline's weights instead of random ones. Its VAE must be the one of the pools."""
        text_encoder = UMT5EncoderModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
        transformer = WanTransformer3DModel.from_pretrained(pipeline / "transformer", dtype=torch.float32)
        self.text_encoder.load_state_dict(text_encoder.state_dict())
        self.transformer.load_state_dict(transformer.state_dict())

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Prompt embeddings (B, MAX_PROMPT_TOKENS, width), zero after the end mark as WanPipeline makes them."""
        tokens = self.words(prompts, padding="max_length", max_length=MAX_PROMPT_TOKENS, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.transformer.device), tokens.attention_mask.to(self.transformer.device)
        return self.text_encoder(ids, mask).last_hidden_state * mask[..., None]

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Predicted velocity, noise minus data."""
        embeds = self.embed(prompts)
        return self.transformer(noisy, timestep=sigma * 1000, encoder_hidden_states=embeds, return_dict=False)[0]


def pick_kind(progress: float, generator: torch.Generator) -> Kind:
    """The kind of latent for a step, `progress` of the way through training."""
    shares = torch.tensor([kind.first_share + progress * (kind.last_share - kind.first_share) for kind in KINDS])
    return KINDS[int(torch.multinomial(shares, 1, generator=generator))]


def flow_loss(
    model: PromptedWan, pools: dict[str, dict[str, torch.Tensor]], progress: float, generator: torch.Generator
) -> torch.Tensor:
    """Rectified-flow loss (the paper's equation 1) on one batch."""
    kind = pick_kind(progress, generator)
    pool = pools[kind.pool]
    picks = torch.randint(len(pool["scenes"]), (kind.batch,), generator=generator)
    latents = pool["latents"][picks, :, : kind.frames].float()
    scenes = all_scenes()
    prompts = [random_prompt(scenes[index], generator) for index in pool["scenes"][picks].tolist()]
    dropped = (torch.rand(kind.batch, generator=generator) < NULL_PROMPT_SHARE).tolist()
    prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    sigma = torch.sigmoid(torch.randn(kind.batch, generator=generator) * 1.2)
    sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    noise = torch.randn(latents.shape, generator=generator)
    level = sigma.view(-1, 1, 1, 1, 1)
    device = model.transformer.device
    noisy, target = ((1 - level) * latents + level * noise).to(device), (noise - latents).to(device)
    tokens = latents[0, 0].numel() // 4  # patches of 1 x 2 x 2
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and tokens <= SHORT else contextlib.nullcontext()
    with plain, torch.autocast(device.type, torch.bfloat16):
        velocity = model(noisy, sigma.to(device), prompts)
    return (velocity.float() - target).pow(2).mean()


def main() -> None:
    """Encode the pools, train, save a whole pipeline in diffusers' format (weights in half precision)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/wan"))
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="of Muon; AdamW takes a third")
    parser.add_argument("--continue-from", type=Path, help="a trained pipeline's folder to take first weights from")
    parser.add_argument("--pool-scale", type=float, default=1.0, help="share of the clips to encode")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLWan.from_pretrained(args.vae).to(args.device).eval()
    pools = {}
    for name in POOLS:
        path = args.folder / f"pool-{name}.pt"
        if not path.exists():
            torch.save(encode_pool(vae, name, args.pool_scale), path)
        pools[name] = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    model = PromptedWan(vae.config.z_dim).to(args.device)
    if args.continue_from:
        model.take_weights(args.continue_from)
    schedule = Schedule(
        steps=args.steps,
        learning_rate=args.learning_rate / 3,
        muon_learning_rate=args.learning_rate,
        ema_decay=0.998,
        warmup=100,
    )

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        return flow_loss(model, pools, step / schedule.steps, generator)

    train(model, loss_at, schedule, args.folder)
    pipeline = WanPipeline(
        tokenizer=model.words,
        text_encoder=model.text_encoder.half(),
        vae=vae.half(),
        scheduler=flow_scheduler(),
        transformer=model.transformer.half(),
    )
    pipeline.save_pretrained(args.folder / "pipeline")
    (args.folder / "mixture.json").write_text(
        json.dumps({"pools": POOLS, "kinds": [vars(kind) for kind in KINDS], "shift": SHIFT}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
