"""A model from any diffusers pipeline folder or hub repository of a known class: what conf/model/ would say about it.

Family, sizes and dtype are read from the pipeline's own files: model_index.json, the configs of its parts, the header
of its transformer's weights; for what they do not say, the pipeline call's defaults hold.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
from huggingface_hub import hf_hub_download
from safetensors import safe_open

from ..config import NAME, ConfigError
from ..messages import nearest, shortened
from . import FAMILIES
from .family import Family
from .weights import INDEX

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names
USUAL = "bfloat16"  # where the weights do not say, as on the hub, whose weights are not loaded to look
FOR_EACH_TOKEN = {"wan": "wan_ti2v", "wan_i2v": "wan_ti2v_image"}  # the same classes with a timestep for each token
FPS = {"wan": 16, "wan_i2v": 16, "cogvideox": 8, "vchitect": 8}  # of the released models; no file says
PRESET = "wan"  # which says nothing of a transformer
USUAL_FPS = 24  # of all others
SAMPLING = {
    "height": "height", "width": "width", "num_frames": "frames", "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
}  # fmt: skip  # argument of the pipeline call -> field of Sampling
TEXT = ("max_text_seq_length", "max_sequence_length")  # a transformer's fields for the length of its prompts
PIECE = 2**20  # bytes of a large file's beginning, middle and end that count in a fingerprint
VAE_CELL = ("scale_factor_spatial", "spatial_compression_ratio")  # a VAE's fields for its pixels per latent cell


def options(source: str, revision: str | None, taken: Iterable[str]) -> dict[str, Any]:
    """The options that describe a pipeline: name -> value. `model` is the preset whose other options they override;
    names with a leading + are new keys, as on a command line.

    source: a folder, or owner/name on the hub. revision: of a hub repository; None for its newest. taken: names of
    models, which the new one must not have.

    Raises ConfigError if there is no such pipeline, or if its class or one of its parts is not known here.
    """
    files = _Files(source, revision)
    index = files.json(INDEX)
    name, family = _family(source, index)
    transformer, vae = files.json("transformer/config.json"), files.json("vae/config.json")
    _check_parts(source, family, index, vae)
    declared = {} if files.folder else _declared(family, transformer)
    guider = files.json("guider/guider_config.json") if index.get("guider") else {}
    return {
        "model": PRESET,
        "model.backbone.family": name,
        "model.backbone.name": _name(source, taken),
        "model.backbone.source": files.source,
        "model.backbone.revision": files.revision(),
        **{f"+model.backbone.call.{key}": value for key, value in _call(index, family, transformer).items()},
        **{f"+model.backbone.transformer.{key}": value for key, value in declared.items()},
        **{f"model.sampling.{field}": value for field, value in _sampling(family, transformer, guider).items()},
        "model.sampling.flow_shift": None,
        "model.numerics.dtype": files.dtype(),
        "model.numerics.vae_tiling": False,
        "model.fps": FPS.get(name, USUAL_FPS),
        **{f"model.download.{field}": None for field in ("gigabytes", "obtain", "twin")},
    }


class _Files:
    """The files of a pipeline in a folder, or on the hub, where the commit is that of the first file."""

    def __init__(self, source: str, revision: str | None) -> None:
        self.folder = Path(source) if Path(source).is_dir() else None
        self.source = os.path.normpath(source) if self.folder else source
        self._commit = revision
        if self.folder is None and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
            raise ConfigError(
                f"model.backbone.source={shortened(source)}: no such folder, and no owner/name on the hub"
                f"{_like(source)}"
            )
        if self.folder is not None and not (self.folder / INDEX).is_file():
            raise ConfigError(f"{shortened(source)} is no diffusers pipeline folder: it has no {INDEX}")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file as a dictionary; empty if a folder has none. Raises ConfigError if it cannot be had or read."""
        try:
            if self.folder is None:
                path = Path(hf_hub_download(self.source, name, revision=self._commit))
                if name == INDEX:
                    self._commit = path.parent.name  # …/snapshots/<commit>/model_index.json
            else:
                path = self.folder / name
                if not path.is_file():
                    return {}
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{shortened(self.source)}: {name} is damaged: {shortened(error)}") from error
        except Exception as error:  # the hub's client raises the errors of whichever transport it uses
            raise ConfigError(
                f"{shortened(self.source)}: {name} is neither here nor to be had from the hub ({type(error).__name__});"
                " give a copy: model.backbone.source=FOLDER"
            ) from error
        if not isinstance(data, dict):
            raise ConfigError(f"{shortened(self.source)}: {name} is damaged: no dictionary")
        return data

    def revision(self) -> str | None:
        """The commit on the hub; of a folder, a fingerprint of its files, so that other weights are another recipe."""
        return self._commit if self.folder is None else fingerprint(self.folder)

    def dtype(self) -> str:
        """The dtype of most of the transformer's weights."""
        found = sorted((self.folder / "transformer").glob("*.safetensors")) if self.folder else []
        if not found:
            return USUAL
        with safe_open(found[0], framework="numpy") as weights:
            kinds = Counter(weights.get_slice(key).get_dtype() for key in weights.keys())  # noqa: SIM118
        return DTYPES.get(kinds.most_common(1)[0][0], USUAL)


def _like(source: str) -> str:
    """A hint which folders beside a missing one may have been meant; empty if none is like it."""
    beside = Path(source).parent
    try:
        hint = nearest(Path(source).name, sorted(each.name for each in beside.iterdir() if each.is_dir()))
    except OSError:
        return ""
    return f"; {hint}" if hint.startswith("did you mean") else ""


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of a hash of the folder's files: names, sizes, contents; of files over three MiB, the contents
    of their beginning, middle and end."""
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files.append((name.as_posix(), path.stat().st_size, path.stat().st_mtime_ns))
    return _digest(folder, tuple(files))


@functools.lru_cache(maxsize=64)
def _digest(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Of files by name, size and time of change, which are read once in a process: a sweep asks for every run."""
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{name}\n{size}\n".encode())
        with (folder / name).open("rb") as stream:
            if size <= 3 * PIECE:
                digest.update(stream.read())
                continue
            for place in (0, (size - PIECE) // 2, size - PIECE):
                stream.seek(place)
                digest.update(stream.read(PIECE))
    return digest.hexdigest()[:12]


def _family(source: str, index: dict[str, Any]) -> tuple[str, Family]:
    """The family's name and module, by the pipeline's class, and whether it takes a timestep for each token."""
    kind = index.get("_class_name")
    known = {family.PIPELINE.__name__: name for name, family in FAMILIES.items() if name not in FOR_EACH_TOKEN.values()}
    if kind not in known:
        raise ConfigError(f"{shortened(source)} is a {shortened(kind)}; known pipelines are {', '.join(known)}")
    name = FOR_EACH_TOKEN[known[kind]] if index.get("expand_timesteps") else known[kind]
    return name, FAMILIES[name]


def _check_parts(source: str, family: Family, index: dict[str, Any], vae: dict[str, Any]) -> None:
    """Raise ConfigError for a pipeline of a known class whose parts are not what the family's module expects."""
    own, place = family.TRANSFORMER.__name__, shortened(source)
    kind = (index.get("transformer") or [None, None])[1]
    if kind != own:
        raise ConfigError(f"{place} has a {kind or 'pipeline without a transformer'}; the known one is {own}")
    if not (index.get("vae") or [None])[0] or not vae:
        raise ConfigError(f"{place} has no VAE, without which there are no videos")
    cell = next((vae[name] for name in VAE_CELL if name in vae), 8)
    if cell != family.SPATIAL:
        raise ConfigError(
            f"{place} has latent cells of {cell} pixels a side; those of its kind of model have {family.SPATIAL}"
        )


def _sampling(family: Family, transformer: dict[str, Any], guider: dict[str, Any]) -> dict[str, Any]:
    """Size, steps and guidance: the pipeline call's defaults; where it has none its transformer's or guider's own."""
    parameters = inspect.signature(family.PIPELINE.__call__).parameters
    found = {
        field: parameters[argument].default if argument in parameters else guider.get(argument, 1.0)
        for argument, field in SAMPLING.items()
    }
    if "target_size" in transformer:  # HunyuanVideo-1.5: the side of a square of as many pixels
        size = HunyuanVideo15ImageProcessor().calculate_default_height_width(9, 16, transformer["target_size"])
        found["height"], found["width"] = size
    if found["frames"] is None and "sample_frames" not in transformer:
        found["frames"] = 121  # LTX-2's pipeline
    for field, scale in (("height", 8), ("width", 8), ("frames", 1)):
        if found[field] is None:
            found[field] = transformer[f"sample_{field}"] * scale
    return found


def _call(index: dict[str, Any], family: Family, transformer: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of the pipeline call that follow from the pipeline's parts."""
    call: dict[str, Any] = {}
    parameters = inspect.signature(family.PIPELINE.__call__).parameters
    tokens = next((transformer[name] for name in TEXT if name in transformer), None)
    if tokens is not None and tokens != parameters["max_sequence_length"].default:
        call["max_sequence_length"] = tokens
    if (index.get("transformer_2") or [None])[0]:
        call["guidance_scale_2"] = None  # the pipeline takes the first one's
    return call


def _declared(family: Family, transformer: dict[str, Any]) -> dict[str, Any]:
    """The values of a transformer's config that are not the class's defaults, by which a plan is priced."""
    parameters = inspect.signature(family.TRANSFORMER.__init__).parameters
    plain = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in transformer.items()
        if key in parameters
    }
    return {key: transformer[key] for key, value in plain.items() if value != parameters[key].default}


def _name(source: str, taken: Iterable[str]) -> str:
    """The last part of a source as a name for folders; never that of a model in conf/, whose calibrations it would
    take."""
    last = Path(os.path.abspath(source)).name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")[:56]
    name = name if NAME.fullmatch(name) else "custom"
    return f"{name}-custom" if name in set(taken) else name
