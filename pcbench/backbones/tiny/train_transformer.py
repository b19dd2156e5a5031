"""Train a tiny transformer and its text encoder.

`python -m pcbench.backbones.tiny.train_transformer --family wan --folder runs/wan --vae runs/wan-vae/vae`

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
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .data import random_prompt, random_scene
from .loop import Schedule, train
from .twins import TWINS, Twin
from .world import all_scenes, render

NULL_PROMPT_SHARE = 0.1  # prompts dropped, for classifier-free guidance


@dataclass(frozen=True)
class Kind:
    """One sort of training latent and its share of the steps at the start and at the end of training."""

    pool: str
    batch: int
    first_share: float
    last_share: float


# pool -> (clips, whether as long as a full clip or half, side in pixels)
POOLS = {"full": (1500, True, 128), "half": (6000, True, 64), "quarter": (3000, False, 32)}
KINDS = (Kind("full", 8, 0.10, 0.70), Kind("half", 32, 0.80, 0.20), Kind("quarter", 64, 0.10, 0.10))
SHORT = 160  # tokens; below this, plain attention is faster on a CPU than its flash kernel, most of all backwards


@torch.no_grad()
def encode_pool(twin: type[Twin], vae: Any, name: str, scale: float) -> dict[str, torch.Tensor]:
    """Normalised latents (N, C, T, H, W) in half precision, and the index of each clip's scene."""
    count, long, side = POOLS[name]
    frames = twin.FRAMES if long else (twin.FRAMES - 1) // 16 * 8 + 1
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    index_of = {scene: index for index, scene in enumerate(all_scenes())}
    latents, scenes, began = [], [], time.monotonic()
    per_call = max(1, (128 // side) ** 2)
    for start in range(0, int(count * scale), per_call):
        drawn = [random_scene(generator) for _ in range(per_call)]
        clips = torch.stack([render(scene, origin, frames, side, side) for scene, origin in drawn]).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            mode = twin.encode(vae, clips).mode().float()
        latents.append(twin.normalise(vae, mode).half().cpu())
        scenes += [index_of[scene] for scene, _ in drawn]
        if start // per_call % 100 == 0:
            print(f"pool {name}: {start}/{count} clips, {time.monotonic() - began:.0f} s", flush=True)
    return {"latents": torch.cat(latents), "scenes": torch.tensor(scenes)}


def pick_kind(progress: float, generator: torch.Generator) -> Kind:
    """The kind of latent for a step, `progress` of the way through training."""
    shares = torch.tensor([kind.first_share + progress * (kind.last_share - kind.first_share) for kind in KINDS])
    return KINDS[int(torch.multinomial(shares, 1, generator=generator))]


def denoising_loss(
    twin: Twin, pools: dict[str, dict[str, torch.Tensor]], progress: float, generator: torch.Generator
) -> torch.Tensor:
    """The family's denoising loss on one batch."""
    kind = pick_kind(progress, generator)
    pool = pools[kind.pool]
    picks = torch.randint(len(pool["scenes"]), (kind.batch,), generator=generator)
    latents = pool["latents"][picks].float()
    scenes = all_scenes()
    prompts = [random_prompt(scenes[index], generator) for index in pool["scenes"][picks].tolist()]
    dropped = (torch.rand(kind.batch, generator=generator) < NULL_PROMPT_SHARE * twin.DROP_PROMPTS).tolist()
    prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    noise = torch.randn(latents.shape, generator=generator)
    noisy, timestep, target = twin.noisy(latents, noise, generator)
    device = twin.device
    tokens = latents[0, 0].numel() // 4  # patches of 1 x 2 x 2
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and tokens <= SHORT else contextlib.nullcontext()
    with plain, torch.autocast(device.type, torch.bfloat16):
        prediction = twin(noisy.to(device), timestep.to(device), prompts)
    return (prediction.float() - target.to(device)).pow(2).mean()


def main() -> None:
    """Encode the pools, train, save a whole pipeline in diffusers' format (weights in half precision)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=TWINS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="of Muon; AdamW takes a third")
    parser.add_argument("--pool-scale", type=float, default=1.0, help="share of the clips to encode")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    kind = TWINS[args.family]
    twin = kind().to(args.device)
    vae = type(kind.new_vae()).from_pretrained(args.vae).to(args.device).eval()
    pools = {}
    for name in POOLS:
        path = args.folder / f"pool-{name}.pt"
        if not path.exists():
            torch.save(encode_pool(kind, vae, name, args.pool_scale), path)
        pools[name] = torch.load(path, weights_only=True)
    schedule = Schedule(
        steps=args.steps,
        learning_rate=args.learning_rate / 3,
        muon_learning_rate=args.learning_rate,
        ema_decay=0.998,
        warmup=100,
    )

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        return denoising_loss(twin, pools, step / schedule.steps, generator)

    train(twin, loss_at, schedule, args.folder)
    twin.pipeline(vae).save_pretrained(args.folder / "pipeline")
    mixture = {"pools": POOLS, "kinds": [vars(each) for each in KINDS], "shift": twin.SHIFT}
    (args.folder / "mixture.json").write_text(json.dumps(mixture, indent=1) + "\n")


if __name__ == "__main__":
    main()
