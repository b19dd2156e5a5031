"""Run by VBench's own interpreter, never imported: scores one dimension on one folder of videos; JSON in, JSON out.

    worker.py REQUEST REPLY     score; REQUEST has dimension, mode, videos, info, prompts, out, device
    worker.py --check REPLY     which dimensions import, and the versions of what is installed

The reply is written completely or not at all. Exit code 0: the reply has the result; 3: it has the error. Whatever
VBench would silently ignore is an error here, or the caller can count it: scores of single videos are returned, and a
failure of the detector, which object_class takes for "no object", is raised.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

DETECTOR = ("object_class", "multiple_objects", "color", "spatial_relationship")
PACKAGES = ("vbench", "torch", "torchvision", "transformers", "numpy", "timm", "pyiqa", "openai-clip")
BPE = "bpe_simple_vocab_16e6.txt.gz"
_libraries: list[Any] = []  # kept alive: an operator disappears with the object that defined it


def import_torchvision() -> bool:
    """Import torchvision; return whether its compiled operators are available.

    PyPI's torchvision is built for CUDA. With a CPU build of torch it cannot load them, and its import fails at the
    first one that it looks up. Declaring them without an implementation lets everything else work.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        import torchvision
    return bool(torchvision.extension._has_ops())


def prepare() -> bool:
    """Put files where VBench's parts look for them, which is not always where VBench says; then import torchvision.

    Returns whether torchvision's compiled operators are available.
    """
    weights, hub = Path(os.environ["VBENCH_CACHE_DIR"]), Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    hub.mkdir(parents=True, exist_ok=True)
    dino = weights / "dino_model" / "dino_vitbase16_pretrain.pth"
    if dino.exists() and not (hub / dino.name).exists():
        (hub / dino.name).symlink_to(dino)  # dino's own code reads torch hub's folder, whatever path it is given
    clip, viclip = importlib.util.find_spec("clip"), weights / "ViCLIP"
    if clip is not None and clip.origin and viclip.is_dir() and not (viclip / BPE).exists():
        shutil.copyfile(Path(clip.origin).parent / BPE, viclip / BPE)  # the same file, instead of a download at import
    return import_torchvision()


def versions() -> dict[str, str]:
    """Versions of those packages in PACKAGES that are installed."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def check() -> dict[str, Any]:
    """What is installed: versions, the prompt suite's file, and for each dimension None or why it cannot be used."""
    operators = prepare()
    from vbench import VBench

    dimensions: dict[str, str | None] = {}
    for name in VBench("cpu", "", os.environ["TORCH_HOME"]).build_full_dimension_list():
        dimensions[name] = None
        try:
            importlib.import_module(f"vbench.{name}")
        except Exception as error:
            dimensions[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if name in DETECTOR and dimensions[name] is None and not operators:
            dimensions[name] = "torchvision has no compiled operators beside this build of torch: no detection"
    suite = Path(importlib.import_module("vbench").__file__ or "").parent / "VBench_full_info.json"
    return {"versions": versions(), "suite": str(suite), "dimensions": dimensions}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """VBench's score for one dimension, the score of every video by file name, and package versions.

    Raises RuntimeError if the detector failed on any frame.
    """
    prepare()
    import numpy
    import torch
    from vbench import VBench

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    name = request["dimension"]
    failures = _watch_detector() if name in DETECTOR else []
    # A device object, not its name: GRiT asks for its type, and the official command line passes one too.
    bench = VBench(torch.device(request["device"]), request["info"], request["out"])
    bench.evaluate(
        videos_path=request["videos"],
        name=name,
        prompt_list=request["prompts"],
        dimension_list=[name],
        local=True,
        mode=request["mode"],
        imaging_quality_preprocessing_mode="longer",
    )
    if failures:
        raise RuntimeError(f"the detector failed on {len(failures)} frames, first with {failures[0]}")
    value, videos = json.loads(Path(request["out"], f"{name}_eval_results.json").read_text())[name]
    by_file = {Path(video["video_path"]).name: video["video_results"] for video in videos}
    return {"score": value, "videos": by_file, "versions": versions()}


def _watch_detector() -> list[str]:
    """A list that collects every exception inside the detector, which object_class's bare `except` would hide."""
    from vbench.third_party.grit_model import DenseCaptioning

    failures: list[str] = []
    real = DenseCaptioning.run_caption_tensor

    def noting(self: Any, image: Any) -> Any:
        try:
            return real(self, image)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
            raise

    DenseCaptioning.run_caption_tensor = noting
    return failures


def main() -> int:
    """Write the reply; return the exit code."""
    try:
        if sys.argv[1] == "--check":
            reply = check()
        else:
            reply = score(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        reply["ok"] = True
    except BaseException as error:
        traceback.print_exc()
        reply = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    partial = Path(f"{sys.argv[2]}.partial")
    partial.write_text(json.dumps(reply), encoding="utf-8")
    os.replace(partial, sys.argv[2])
    return 0 if reply["ok"] else 3


if __name__ == "__main__":
    sys.exit(main())
