"""LPIPS (Zhang et al. 2018) with the `lpips` package, an optional extra: pip install 'pcbench[lpips]'.

The package contains the calibrated heads; the trunk, AlexNet trained on ImageNet, is a file of torchvision's. It is
never downloaded here, and without it there is no score.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from .psnr_ssim import Values

SHA256 = "7be5be79"  # the beginning of the file's hash, which is part of its published name
TRUNK = f"alexnet-owt-{SHA256}.pth"
URL = f"https://download.pytorch.org/models/{TRUNK}"
CHUNK = 4 * 480 * 640  # pixels of the frames that pass through the network at once


class UnavailableError(RuntimeError):
    """LPIPS cannot be computed here; the message says what is missing and where to get it."""


def lpips(
    video: np.ndarray, reference: np.ndarray, device: str = "cpu", *, spatial: bool = False, size: int | None = None
) -> Values:
    """LPIPS-alex of each frame of two uint8 videos (frames, height, width, 3); lower is closer.

    spatial: average the map at the frames' resolution instead of averaging at each layer's.
    size: resize frames to a square of this many pixels first (bilinear).

    Raises UnavailableError if the package or the trunk's file is missing.
    """
    network = _network(device)
    network.spatial = spatial
    step = max(1, CHUNK // video[0, ..., 0].size)
    values: list[float] = []
    for start in range(0, len(video), step):
        x, y = (_scaled(frames[start : start + step], device, size) for frames in (video, reference))
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            values += network(x, y).mean(dim=(1, 2, 3)).tolist()
    return values


def is_installed() -> bool:
    """Whether the `lpips` package is installed; does not import it."""
    return importlib.util.find_spec("lpips") is not None


def why_unavailable() -> str | None:
    """What is missing for LPIPS, or None. The text contains no local path, because it goes into records."""
    try:
        importlib.import_module("lpips")
    except ModuleNotFoundError:
        return "LPIPS needs the packages lpips and torchvision: pip install 'pcbench[lpips]'"
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        return f"the lpips package does not import ({type(error).__name__}): python -c 'import lpips' says why"
    file = trunk_file()
    if not file.is_file():
        return (
            f"LPIPS needs the file {TRUNK} (233 MB, {URL}) in torch hub's folder of checkpoints: "
            "$TORCH_HOME/hub/checkpoints, by default ~/.cache/torch/hub/checkpoints"
        )
    if not _sha256(file, file.stat().st_size, file.stat().st_mtime_ns).startswith(SHA256):
        return f"{TRUNK} in torch hub's folder of checkpoints is damaged or another file: get it again from {URL}"
    return None


def trunk_file() -> Path:
    """Where the trunk's file is expected."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNK


@functools.lru_cache(maxsize=1)
def _sha256(file: Path, size: int, modified: int) -> str:
    """The hash of a file; size and time of change are part of the cache's key, so a changed file is hashed again."""
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def _scaled(frames: np.ndarray, device: str, size: int | None) -> torch.Tensor:
    """Frames as (n, 3, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels if size is None else interpolate(pixels, (size, size), mode="bilinear", align_corners=False)


@functools.lru_cache(maxsize=1)
def _network(device: str) -> Any:
    if reason := why_unavailable():
        raise UnavailableError(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses an argument that torchvision has deprecated
        return importlib.import_module("lpips").LPIPS(net="alex", verbose=False).to(device).eval()
