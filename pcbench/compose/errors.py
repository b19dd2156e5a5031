"""What is wrong with a command line, on one line."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ..messages import message
from .schemas import Top, unknown_option


def one_line(error: BaseException) -> str:
    """What is wrong and what to do about it, on one line."""
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ is not None else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        schema = cause.object_type if dataclasses.is_dataclass(cause.object_type) else Top
        known = [item.name for item in dataclasses.fields(schema)]
        where = "" if schema is Top else getattr(schema, "__name__", "")
        return message(unknown_option(cause.key, where, known))
    if isinstance(cause, OmegaConfBaseException):
        return message(f"{cause.full_key or 'the command line'}: {str(cause.msg or cause).splitlines()[0]}")
    if isinstance(cause, (ValueError, HydraException)):
        return message(str(cause) or type(cause).__name__)
    frames = traceback.extract_tb(cause.__traceback__)[-1:]
    place = f" ({Path(frames[0].filename).name}:{frames[0].lineno})" if frames else ""
    return message(f"unexpected {type(cause).__name__}: {cause}{place}")
