"""Numbers a method must know about a backbone before it works there: published, or measured by `pcbench.calibrate`.

Published numbers are chosen by a transformer's signature: family, layers and width. Measured ones are of one
checkpoint: JSON files in methods/calibrations/, one per method and model, written by the command and never by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .engine.anatomy import Anatomy

FOLDER = Path(__file__).parent / "calibrations"


class NotCalibratedError(ValueError):
    """The method has no numbers for this backbone; the message says how to get them."""


def signature(anatomy: Anatomy) -> str:
    """For example "wan-40x5120": family, transformer layers, width."""
    config = anatomy.config
    width = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    return f"{anatomy.family}-{config.get('num_layers', 0)}x{width}"


def path_of(method: str, model: str) -> Path:
    """Where a measured calibration lives. model: a name as in conf/model/."""
    return FOLDER / f"{method}-{model}.json"


def all_measured(method: str) -> list[dict[str, Any]]:
    """The method's calibrations of all models."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"{method}-*.json"))]


def measured(method: str, anatomy: Anatomy) -> dict[str, Any]:
    """The calibration measured on this model.

    Where the model is not known by name (a pipeline that `apply` gets), it is that of the weights' folder or
    repository, or else the only one of its signature. Raises NotCalibratedError if there is none, or if the model had
    other weights when it was measured.
    """
    alike = (data for data in all_measured(method) if data.get("signature") == signature(anatomy))
    of_this_shape = {data["model"]: data for data in alike}
    if anatomy.model in of_this_shape:
        return _of_these_weights(method, of_this_shape[anatomy.model], anatomy)
    if not anatomy.model:
        place = f"/{anatomy.config.get('_name_or_path', '')}/"
        sources = {name: data.get("source", name).removeprefix("bundled:") for name, data in of_this_shape.items()}
        own = [of_this_shape[name] for name, source in sources.items() if f"/{source.strip('/')}/" in place]
        if len(found := own or list(of_this_shape.values())) == 1:
            return found[0]
    others = f" (there are some of {', '.join(of_this_shape)}, with other weights)" if of_this_shape else ""
    raise NotCalibratedError(
        f"{method} has no published numbers for {anatomy.model or signature(anatomy)} and none were measured{others};"
        f" measure them: python -m pcbench.calibrate method={method} model={anatomy.model or '…'}"
    )


def _of_these_weights(method: str, data: dict[str, Any], anatomy: Anatomy) -> dict[str, Any]:
    if data.get("revision") == anatomy.revision:
        return data
    raise NotCalibratedError(
        f"{method}'s numbers for {anatomy.model} were measured on other weights of this name ({data.get('source')} at"
        f" {data.get('revision')}, not {anatomy.revision}): remove {path_of(method, anatomy.model)}, or give"
        f" these another name by model.backbone.name, and measure: python -m pcbench.calibrate method={method} model=…"
    )
