"""Train a tiny transformer and its text encoder.

`python -m pcbench.tiny.train_transformer --family wan --folder runs/wan --vae runs/wan-vae/vae`

Latents of several kinds (`Twin.KINDS`) are encoded once into pools; then the family's loss is trained on a mixture of
them that shifts from small and cheap to full size. Small latents stay in the mixture to the end, because PreciseCache's
trials use them.

`--pipeline-only` writes a pipeline with the newest checkpoint's averaged weights and stops; the training may go on at
the same time. `--go-on-from FOLDER`, if there is no checkpoint, begins with the bundled weights in that folder at the
step their curve has reached; only the optimizers' state is lost, so the rate is warmed up again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .data import random_light, random_prompt, random_scene
from .loop import Schedule, Start, published, train, write_atomically
from .twins import TWINS, Kind, Twin
from .world import all_scenes, render

DISTIL_FROM = 0.6  # share of the training after which guidance is taught, where it is an input: prompts come first
NULL_PROMPT_SHARE = 0.1  # share of the prompts that are dropped, for classifier-free guidance
SHORT = 160  # tokens; up to here, plain attention is faster on a CPU than the flash kernel, above all backwards


@torch.no_grad()
def encode_pool(twin: type[Twin], vae: Any, kind: Kind, scale: float) -> dict[str, torch.Tensor]:
    """Normalised latents (N, C, T, H, W) of one kind in half precision, and the index of each clip's scene (N,).

    scale: share of the kind's clips to encode.
    """
    frames, side = kind.frames or twin.FRAMES, kind.side
    generator = torch.Generator().manual_seed(sum(map(ord, kind.name)))
    index_of = {scene: index for index, scene in enumerate(all_scenes())}
    latents, scenes, began = [], [], time.monotonic()
    clips_wanted, per_call = int(kind.clips * scale), max(1, (128 // side) ** 2)
    for start in range(0, clips_wanted, per_call):
        drawn = [(*random_scene(generator), random_light(twin.LIT, generator)) for _ in range(per_call)]
        clips = [render(scene, origin, frames, side, side, light, kind.stride) for scene, origin, light in drawn]
        with torch.autocast(vae.device.type, torch.bfloat16):
            mode = twin.encode(vae, torch.stack(clips).to(vae.device)).mode().float()
        latents.append(twin.normalise(vae, mode).half().cpu())
        scenes += [index_of[scene] for scene, *_ in drawn]
        if start // per_call % 100 == 0:
            print(f"pool {kind.name}: {start}/{clips_wanted} clips, {time.monotonic() - began:.0f} s", flush=True)
    return {"latents": torch.cat(latents), "scenes": torch.tensor(scenes)}


def pool_of(twin: type[Twin], vae: Any, kind: Kind, scale: float, folder: Path) -> dict[str, torch.Tensor]:
    """The pool of one kind: the one in the folder if it was made by this very VAE at this scale, else a new one."""
    digest = hashlib.sha256(json.dumps([asdict(kind), scale]).encode())
    for name, tensor in vae.state_dict().items():
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    path = folder / f"pool-{kind.name}.pt"
    found = torch.load(path, weights_only=True) if path.exists() else {}
    if found.get("made_of") != digest.hexdigest():
        found = encode_pool(twin, vae, kind, scale) | {"made_of": digest.hexdigest()}
        write_atomically(path, functools.partial(torch.save, found))
    return found


def pick_kind(kinds: tuple[Kind, ...], progress: float, generator: torch.Generator) -> Kind:
    """A random kind of latent for a step; `progress` is the share of the training that is done."""
    shares = torch.tensor([kind.first_share + progress * (kind.last_share - kind.first_share) for kind in kinds])
    return kinds[int(torch.multinomial(shares, 1, generator=generator))]


def denoising_loss(
    twin: Twin, pools: dict[str, dict[str, torch.Tensor]], progress: float, generator: torch.Generator
) -> torch.Tensor:
    """The family's denoising loss (mean square) on one batch of a random kind."""
    kind = pick_kind(twin.KINDS, progress, generator)
    pool = pools[kind.name]
    picks = torch.randint(len(pool["scenes"]), (kind.batch,), generator=generator)
    latents = pool["latents"][picks].float()
    scenes = all_scenes()
    prompts = [random_prompt(scenes[index], generator) for index in pool["scenes"][picks].tolist()]
    may_distil = twin.DISTILLED > 0 and progress >= DISTIL_FROM
    distilled = may_distil and bool(torch.rand((), generator=generator) < twin.DISTILLED)
    null_share = NULL_PROMPT_SHARE * twin.DROP_PROMPTS * (not distilled)
    dropped = (torch.rand(kind.batch, generator=generator) < null_share).tolist()
    prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    noise = torch.randn(latents.shape, generator=generator)
    noisy, timestep, target = twin.noisy(latents, noise, generator)
    device = twin.device
    tokens = latents[0, 0].numel() // 4  # patches of 1 x 2 x 2
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and tokens <= SHORT else contextlib.nullcontext()
    with plain, torch.autocast(device.type, torch.bfloat16):
        inputs = noisy.to(device), timestep.to(device), prompts
        prediction, target = twin.guided(*inputs) if distilled else (twin(*inputs), target)
    return (prediction.float() - target.to(device)).pow(2).mean()


def take_bundled(twin: Twin, folder: Path) -> Start:
    """Load a bundled pipeline's trained parts into `twin`; returns the step they have reached, and their curve."""
    for name, part in twin.named_children():
        kind: Any = type(part)
        part.load_state_dict(kind.from_pretrained(folder / name).state_dict())
    return published(folder / "training" / "transformer-loss.csv")


def save_pipeline(twin: Twin, vae: Any, folder: Path) -> None:
    """Write the pipeline in half precision, and a file that says what it was trained on."""
    mixture = {"kinds": [asdict(kind) for kind in twin.KINDS], "shift": twin.SHIFT, "distilled": twin.DISTILLED}
    (folder / "mixture.json").write_text(json.dumps(mixture, indent=1) + "\n")
    twin.pipeline(vae).save_pretrained(folder / "pipeline")


def main() -> None:
    """Encode the pools, train, and save a complete pipeline in diffusers' format (weights in half precision)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=TWINS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="of Muon; AdamW takes a third")
    parser.add_argument("--pool-scale", type=float, default=1.0, help="share of the clips to encode")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--go-on-from", type=Path, help="bundled weights to continue where there is no checkpoint")
    parser.add_argument("--pipeline-only", action="store_true", help="write the newest checkpoint's pipeline and stop")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    family = TWINS[args.family]
    twin = family().to(args.device)
    vae = type(family.new_vae()).from_pretrained(args.vae).to(args.device).eval()
    if args.pipeline_only:
        twin.load_state_dict(torch.load(args.folder / "checkpoint.pt", weights_only=True, map_location="cpu")["ema"])
        return save_pipeline(twin, vae, args.folder)
    pools = {kind.name: pool_of(family, vae, kind, args.pool_scale, args.folder) for kind in twin.KINDS}
    schedule = Schedule(
        steps=args.steps,
        learning_rate=args.learning_rate / 3,
        muon_learning_rate=args.learning_rate,
        ema_decay=0.998,
        warmup=100,
    )

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        return denoising_loss(twin, pools, step / schedule.steps, generator)

    train(twin, loss_at, schedule, args.folder, take_bundled(twin, args.go_on_from) if args.go_on_from else None)
    save_pipeline(twin, vae, args.folder)


if __name__ == "__main__":
    main()
