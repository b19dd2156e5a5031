"""Run by VBench's or VBench-2.0's own interpreter, never imported: scores one dimension on one folder of videos.

    worker.py REQUEST REPLY             score; REQUEST has package, source, dimension, mode, videos, info, prompts,
                                        images, out, device
    worker.py --check REPLY [SOURCE]    which dimensions import, and the versions of what is installed: VBench's, or
                                        VBench-2.0's with its code in SOURCE

The reply is written completely or not at all. Exit code 0: the reply has the result; 3: it has the error. Whatever
VBench would silently ignore is an error here, or the caller can count it: scores of single videos are returned, and a
failure of the detector, which object_class takes for "no object", is raised.
"""

from __future__ import annotations

import contextlib
import hashlib
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


def prepare_vbench() -> bool:
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


def prepare_vbench2(source: str) -> None:
    """Make VBench-2.0's code in a clone importable, which its official command does by standing in that folder."""
    sys.path.insert(0, source)
    import_torchvision()


def check() -> dict[str, Any]:
    """What is installed: versions, the prompt suite's file, and for each dimension None or why it cannot be used."""
    operators = prepare_vbench()
    from vbench import VBench

    dimensions: dict[str, str | None] = {}
    for name in VBench("cpu", "", os.environ["TORCH_HOME"]).build_full_dimension_list():
        dimensions[name] = _why_not(f"vbench.{name}")
        if name in DETECTOR and dimensions[name] is None and not operators:
            dimensions[name] = "torchvision has no compiled operators beside this build of torch: no detection"
    dimensions["i2v_subject"] = _why_not("vbench2_beta_i2v.i2v_subject")
    suite = Path(importlib.import_module("vbench").__file__ or "").parent / "VBench_full_info.json"
    return {"versions": versions(), "suite": str(suite), "dimensions": dimensions}


def check_vbench2(source: str) -> dict[str, Any]:
    """The same for VBench-2.0. Its version is a hash of its code, which has no other name in a clone."""
    prepare_vbench2(source)
    from vbench2 import VBench2

    scratch = os.path.join(os.environ["TORCH_HOME"], "check")
    names = VBench2("cpu", "", scratch).build_full_dimension_list()
    os.rmdir(scratch)
    dimensions = {name: _why_not(f"vbench2.{name.lower().replace('-', '_')}") for name in names}
    digest = hashlib.sha256()
    for path in sorted(Path(source, "vbench2").rglob("*.py")):
        digest.update(path.read_bytes())
    return {"versions": versions() | {"vbench2": f"code {digest.hexdigest()[:12]}"}, "dimensions": dimensions}


def _why_not(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def score(request: dict[str, Any]) -> dict[str, Any]:
    """The score for one dimension, the score of every video by file name, and package versions.

    Raises RuntimeError if the detector failed on any frame.
    """
    evaluate = _vbench2 if request["package"] == "vbench2" else _vbench_i2v if request["images"] else _vbench
    failures = evaluate(request)
    if failures:
        raise RuntimeError(f"the detector failed on {len(failures)} frames, first with {failures[0]}")
    name = request["dimension"]
    value, videos = json.loads(Path(request["out"], f"{name}_eval_results.json").read_text())[name]
    by_file = {Path(video["video_path"]).name: video["video_results"] for video in videos}
    return {"score": value, "videos": by_file, "versions": versions()}


def _seed() -> None:
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def _vbench(request: dict[str, Any]) -> list[str]:
    """Let VBench write its result; returns what the detector failed with, frame by frame."""
    prepare_vbench()
    import torch
    from vbench import VBench

    _seed()
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
    return failures


def _vbench_i2v(request: dict[str, Any]) -> list[str]:
    """Let VBench-I2V compare each video with its image, which its own class looks for among its own images alone."""
    prepare_vbench()
    import torch
    from vbench2_beta_i2v.utils import init_submodules

    _seed()
    name, out, info = request["dimension"], Path(request["out"]), Path(request["info"])
    entries = [
        {
            "prompt_en": request["prompts"][video],
            "dimension": [name],
            "image_name": image,
            "video_list": [os.path.join(request["videos"], video)],
        }
        for video, image in request["images"].items()
    ]
    info.write_text(json.dumps(entries), encoding="utf-8")
    compute = getattr(importlib.import_module(f"vbench2_beta_i2v.{name}"), f"compute_{name}")
    value, videos = compute(str(info), torch.device(request["device"]), init_submodules([name], local=True)[name])
    out.mkdir()
    (out / f"{name}_eval_results.json").write_text(json.dumps({name: [float(value), videos]}, default=float))
    return []


def _vbench2(request: dict[str, Any]) -> list[str]:
    """Let VBench-2.0 write its result; it has no detector that fails in silence."""
    prepare_vbench2(request["source"])
    import torch
    from vbench2 import VBench2

    _seed()
    name = request["dimension"]
    bench = VBench2(torch.device(request["device"]), request["info"], request["out"])
    bench.evaluate(
        videos_path=request["videos"], name=name, dimension_list=[name], local=True, mode=request["mode"]
    )  # fmt: skip
    return []


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
            reply = check_vbench2(sys.argv[3]) if len(sys.argv) > 3 else check()
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
