"""Reads command-line words of the form `option=value` with Hydra's own parser, and lists the values of a sweep."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, ValueType

from ..backbones import custom
from ..config import ConfigError, Model, Prompts
from ..messages import nearest, shortened
from ..runs import Settings
from .schemas import EXPERIMENT, GROUPS, names, schemas

CUSTOM, SOURCE, REVISION = "custom", "model.backbone.source", "model.backbone.revision"
MOST_RUNS = 100_000  # the most runs of one command line
ELEMENT = r"(?<![^,(])[\w.+-]+(?![^,)])"  # a value, or one of several that a sweep lists


def parsed(words: Sequence[str]) -> list[Override]:
    """The words as Hydra parses them. Raises ConfigError for what is not supported: deletions, packages, hydra.*."""
    words = opened_presets(opened_model(words))
    for word in words:
        if word.startswith("~"):
            raise ConfigError(f"{shortened(word)!r}: an option cannot be taken away; give it another value")
        if "=" not in word:
            raise ConfigError(f"{shortened(word)!r} is not of the form option=value")
    overrides = []
    for word in words:
        try:
            overrides.append(OverridesParser.create().parse_override(as_text(word)))
        except Exception as error:  # raised by Hydra's parser, or by the parser generator under it
            key = shortened(word.partition("=")[0])
            raise ConfigError(
                f"cannot read {shortened(word)!r}: letters beyond ASCII and signs need {key}='…'"
            ) from error
    for override in overrides:
        if re.split(r"[./\[]", override.key_or_group)[0] == "hydra":
            raise ConfigError(
                f"{shortened(override.input_line)!r}: Hydra's own settings, launchers and plugins cannot be chosen"
            )
        if override.package is not None:
            raise ConfigError(f"{shortened(override.input_line)!r}: a config group has one place, leave the @… away")
    return overrides


def opened_model(words: Sequence[str]) -> list[str]:
    """The words with `model=custom model.backbone.source=FOLDER_OR_HUB_ID` as what these two stand for.

    What is read from the source comes first, and the user's other words have the last say. Raises ConfigError if the
    source is not given, or is no pipeline of a known class.
    """
    models = [word.partition("=")[2] for word in words if word.startswith("model=")]
    if any(CUSTOM in names_.split(",")[:-1] or names_.endswith(f",{CUSTOM}") for names_ in models):
        raise ConfigError("model=custom is one model, of one source: it cannot be part of a sweep over models")
    if not models or models[-1] != CUSTOM:
        return list(words)
    given = {key: _unquoted(value) for key, _, value in (word.partition("=") for word in words)}
    source, revision = given.get(SOURCE), given.get(REVISION)
    if not source:
        raise ConfigError("model=custom needs a pipeline: model.backbone.source=FOLDER, or owner/name on the hub")
    found = custom.options(source, None if revision in (None, "null") else revision, names("model"))
    rest = [word for word in words if word.partition("=")[0] not in ("model", SOURCE, REVISION)]
    own = {word.partition("=")[0].lstrip("+") for word in rest}
    read = [f"{key}={_text(value)}" for key, value in found.items() if key.lstrip("+") not in own]
    return [*read, *rest]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def as_text(word: str) -> str:
    """The word with quotes around what Hydra would read as a number or a truth value, if its field is for text:
    `results=2024_10` is no number."""
    key, _, value = word.partition("=")
    if not is_text(key.lstrip("+")) or set(value) & set("'\"$"):
        return word
    return f"{key}={re.sub(ELEMENT, _quoted_number, value)}"


def _quoted_number(element: re.Match[str]) -> str:
    text = element[0]
    if text.lower() not in ("true", "false"):
        try:
            float(text)
        except ValueError:
            return text
    return f"'{text}'"


def is_text(key: str) -> bool:
    """Whether a single value's field holds text and nothing else; a method's fields are not looked at."""
    first, *rest = key.split(".")
    kind: Any = {"model": Model, "prompts": Prompts}.get(first)
    for name in rest if kind else (first, *rest):
        hints = get_type_hints(kind or Settings) if kind is None or dataclasses.is_dataclass(kind) else {}
        kind = hints.get(name)
    return kind in (str, str | None)


def opened_presets(words: Sequence[str]) -> list[str]:
    """The words with presets of the user's own opened; what is read from them comes first, as from a named preset."""
    opened = {word: opened_preset(word) for word in words}
    return [*(own for word in words for own in opened[word] if opened[word] != [word]),
            *(word for word in words if opened[word] == [word])]  # fmt: skip


def opened_preset(word: str) -> list[str]:
    """The words that `method=FILE.yaml`, a preset of the user's own, stands for; any other word as it is.

    Raises ConfigError if the file is missing, or is no preset.
    """
    key, _, name = word.partition("=")
    if key != "method" or not name.endswith(".yaml"):
        return [word]
    try:
        data = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        base, *_ = data.pop("defaults")
        if base not in schemas():
            raise ValueError(f"its defaults begin with {base!r}, which is no method")
        return [
            f"method={base.removeprefix('_')}",
            *(f"method.{field}={_text(value)}" for field, value in data.items()),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{shortened(word)!r} is no preset of a method: {shortened(error)}") from error


def _text(value: Any) -> str:
    """A plain value as Hydra's grammar has it; `${` in it stands for nothing else."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'").replace("${", "\\${") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def is_choice(override: Override) -> bool:
    """Whether an override chooses from a group by name."""
    return override.key_or_group in (*GROUPS, EXPERIMENT) and not isinstance(override.value(), dict)


def chosen(override: Override) -> str:
    """The name that an override chooses from its group. Raises ConfigError for an unknown name."""
    group, name = override.key_or_group, override.value()
    if group != EXPERIMENT and override.type is not OverrideType.CHANGE:
        raise ConfigError(f"{shortened(override.input_line)!r}: choose by {group}=…, without +")
    if not isinstance(name, str) or name not in names(group):
        raise ConfigError(f"unknown {group} {shortened(name)!r}: {nearest(name, names(group))}")
    return name


def swept(override: Override) -> list[Override]:
    """One override for each value of a sweep, the value as Hydra parsed it. Raises ConfigError if there is none."""
    values: list[Any]
    if isinstance(override._value, Glob):
        values = override._value.filter(list(names(override.key_or_group)))
    elif override.is_discrete_sweep():
        values = list(itertools.islice(override.sweep_iterator(), MOST_RUNS + 1))
    else:
        raise ConfigError(f"{shortened(override.input_line)!r} has no list of values: use a,b,c or range(…)")
    if not values:
        raise ConfigError(f"{shortened(override.input_line)!r} is a sweep over no value")
    single = [dataclasses.replace(override, value_type=ValueType.ELEMENT, _value=value) for value in values]
    return [dataclasses.replace(o, input_line=f"{o.get_key_element()}={o.get_value_element_as_str()}") for o in single]


def room(override: Override) -> str:
    """The first name of an override's key: its top-level section of the config."""
    return re.split(r"[.\[]", override.key_or_group)[0]


def is_plain(override: Override) -> bool:
    """Whether an override changes a single value in one top-level section and refers to no other value."""
    key, text = override.key_or_group, repr(override.value())
    return override.type is OverrideType.CHANGE and key not in GROUPS and "[" not in key and "${" not in text


def identity(overrides: Sequence[Override]) -> tuple[tuple[str, str], ...]:
    """A key that tells one set of values from another."""
    return tuple((override.key_or_group, repr(override.value())) for override in overrides)
