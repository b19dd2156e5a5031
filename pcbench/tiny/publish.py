"""Copy trained weights to where the project ships them.

`python -m pcbench.tiny.publish --family wan --vae runs/wan-vae --transformer runs/wan`

Copies the pipeline, the loss curves and the training configs (without `--vae` the VAE's stay as they are), and writes
the weights' fingerprint into the model's YAML. The fingerprint is part of every recipe, so samples of other weights are
never mistaken for samples of these.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from pathlib import Path

from .twins import TWINS

WEIGHTS = Path(__file__).parent / "weights"
CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
LIMIT = 15 << 20  # bytes a family may take in git: 15 MiB
TRAINING_FILES = ("loss.csv", "schedule.json", "mixture.json")


def fingerprint(folder: Path) -> str:
    """Twelve hex digits: a hash of everything in a pipeline folder that determines pixels."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json"}):
        if "training" not in path.relative_to(folder).parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    """Copy, check the size, write the fingerprint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, help="a new VAE's training folder")
    parser.add_argument("--family", choices=TWINS, required=True)
    parser.add_argument("--transformer", type=Path, required=True, help="its training folder")
    args = parser.parse_args()
    name = TWINS[args.family].model()
    target = WEIGHTS / name
    training = target / "training"
    vae_files = {} if args.vae else {path.name: path.read_bytes() for path in training.glob("vae-*")}
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(args.transformer / "pipeline", target)
    training.mkdir()
    for file, content in vae_files.items():
        (training / file).write_bytes(content)
    for part, folder in (("vae", args.vae), ("transformer", args.transformer)):
        for file in TRAINING_FILES:
            if folder and (folder / file).exists():
                shutil.copy(folder / file, training / f"{part}-{file}")
    vae_config = target / "vae" / "config.json"  # in it, diffusers notes the folder from which the VAE was loaded
    vae_config.write_text(re.sub(r'\n\s*"_name_or_path": "[^"]*",', "", vae_config.read_text()))
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > LIMIT:
        raise SystemExit(f"{target} holds {size / 2**20:.1f} MiB, more than {LIMIT >> 20}")
    config = CONF / f"{name}.yaml"
    revision = rf'\g<1>"{fingerprint(target)}"'
    config.write_text(re.sub(r"(?m)^(\s*revision: )\S+", revision, config.read_text()))
    print(f"{target}: {size / 2**20:.1f} MiB, fingerprint {fingerprint(target)}")


if __name__ == "__main__":
    main()
