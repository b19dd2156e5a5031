"""Composes runs one after another from their choices and values. What runs share is composed and checked once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

import methods

from .. import backbones, first_frame
from ..config import Backbone, ConfigError, Prompts, Run
from ..identity import exact
from ..messages import shortened
from ..runs import Settings, anatomy_of, label, preset_of, run_of
from .overrides import MOST_RUNS, chosen, identity, is_choice, is_plain, parsed, room, swept
from .schemas import CONF, EXPERIMENT, GROUPS, choice, groups_set_by, names, preset, refuse_unknown, register_schemas

Choices = tuple[tuple[str, str], ...]  # group and name


@dataclass(frozen=True)
class Request:
    """One run as requested: the name chosen from each config group, and the values set on the composed config."""

    choices: Choices
    values: tuple[Override, ...]


@functools.cache
def _composed(choices: Choices) -> tuple[DictConfig, str]:
    """What Hydra composes from a choice of groups, and its method's name; once in a process, since it takes long.

    A model, a method and prompts are files by themselves: they are put into what the rest composes to, unless an
    experiment sets values of that group.
    """
    own, rest = _files(choices)
    if not own:
        return _composed_by_hydra(choices)
    base, method = _composed(rest)
    config = copy.deepcopy(base)
    with open_dict(config):
        config.update({group: choice(group, name) for group, name in own.items()})
    return config, own.get("method", method)


@functools.cache
def _files(choices: Choices) -> tuple[dict[str, str], Choices]:
    """The choices of a model, a method and prompts that are files by themselves, by group; and all other choices.
    Shared: read them only."""
    fixed = frozenset().union(*(groups_set_by(name) for group, name in choices if group == EXPERIMENT))
    own = {group: name for group, name in choices if group in GROUPS.keys() - fixed and name in names(group)}
    return own, tuple(each for each in choices if each[0] not in own)


def _composed_by_hydra(choices: Choices) -> tuple[DictConfig, str]:
    register_schemas()
    words = [f"{'+' if group == EXPERIMENT else ''}{group}={name}" for group, name in choices]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", words, return_hydra_config=True)
    method = config.hydra.runtime.choices["method"]
    with open_dict(config):
        del config["hydra"]
    return config, method


class Composer:
    """Composes requests and caches what they share: the config of each choice of groups, and typed parts."""

    def __init__(self) -> None:
        self._parts: dict[Any, Any] = {}

    def requests(self, words: Sequence[str], multirun: bool) -> Iterator[Request]:
        """The requests of a command line: one, or in a sweep one for each combination. Raises ConfigError."""
        overrides = parsed(words)
        axes = [[override] for override in overrides]
        for place, override in enumerate(overrides):
            if override.is_sweep_override():
                if not multirun:
                    text = shortened(override.input_line)
                    raise ConfigError(f"{text!r} is a sweep: add -m, or quote a value that has commas in it")
                later = override.key_or_group in {other.key_or_group for other in overrides[place + 1 :]}
                axes[place] = [] if later else swept(override)  # if a key is given twice, the last one counts
        axes = [axis for axis in axes if axis]
        if (count := math.prod(map(len, axes))) > MOST_RUNS:
            raise ConfigError(f"a sweep of {count} runs is more than {MOST_RUNS}: split it")
        for combination in itertools.product(*axes):
            choices = {o.key_or_group: chosen(o) for o in combination if is_choice(o)}
            yield Request(tuple(choices.items()), tuple(o for o in combination if not is_choice(o)))

    def config(self, request: Request) -> DictConfig:
        """The request's config, equal to what `hydra.compose` returns for its words."""
        config = copy.deepcopy(_composed(request.choices)[0])
        _apply(request.values, config)
        refuse_unknown(config)
        return config

    def settings(self, request: Request) -> Settings:
        """The request's options that belong to no group."""
        if not all(map(is_plain, request.values)):
            return self._settings(self.config(request))
        own = tuple(value for value in request.values if room(value) not in GROUPS)
        _, choices = _files(request.choices)  # the files have no say in this
        key = (choices, identity(own))
        if key not in self._parts:
            config, _ = _composed(choices)
            with _set(config, own):
                self._parts[key] = self._settings(config)
        return self._parts[key]

    @staticmethod
    def _settings(config: DictConfig) -> Settings:
        values = {item.name: config[item.name] for item in dataclasses.fields(Settings)}
        return Settings(**{k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in values.items()})

    def part(self, request: Request, group: str) -> tuple[Any, dict[str, Any]]:
        """A group's choice with the values set on it, as a dataclass; and the fields whose values changed."""
        files, rest = _files(request.choices)
        base = choice(group, files[group]) if group in files else _composed(rest)[0][group]
        if not all(map(is_plain, request.values)):  # a value may reach across groups: compose the whole config
            node = self.config(request)[group]
            return _typed(node, group), {key: _plain(node, key) for key in node if node[key] != base[key]}
        own = [value for value in request.values if room(value) == group]
        key = (request.choices, group, identity(own))
        if key not in self._parts:
            below = [dataclasses.replace(o, key_or_group=o.key_or_group.partition(".")[2]) for o in own]
            with _set(base, below) as changed:
                self._parts[key] = _typed(base, group), changed
        return self._parts[key]

    def run(self, request: Request) -> Run:
        """The request's run, checked. Raises RefusedError if its method refuses its backbone."""
        (model, _), (method, changed), (prompts, _) = (self.part(request, group) for group in GROUPS)
        files, rest = _files(request.choices)
        name = label(files.get("method") or _composed(rest)[1], method, changed)
        said = {group for group, _ in request.choices} | {value.key_or_group for value in request.values}
        read = self._read(prompts, model.backbone, asked=bool(said & {"prompts", "prompts.file"}))
        run = run_of(name, model, method, *read, prompts.seeds, self.settings(request))
        return dataclasses.replace(run, preset=preset_of(exact(run.recipe.method), self._presets(run.recipe.backbone)))

    def _presets(self, backbone: Backbone) -> dict[str, methods.Method]:
        """Every preset as it is on a backbone, except those that do not support it or need a value first (replay)."""
        key = ("presets", repr(backbone))
        if key not in self._parts:
            anatomy, self._parts[key] = anatomy_of(backbone), {}
            for name in names("method"):
                with contextlib.suppress(ValueError):
                    self._parts[key][name] = preset(name).for_backbone(anatomy)
        return self._parts[key]

    def _read(self, prompts: Prompts, backbone: Backbone, asked: bool) -> tuple[list[str], dict[str, Path]]:
        """The prompts for a backbone, and their images if it starts from one. asked: they are not just the default."""
        takes_image = first_frame.is_taken_by(backbones.family(backbone).PIPELINE)
        if takes_image and prompts.file == first_frame.DEFAULT and not asked:
            prompts = dataclasses.replace(prompts, file=first_frame.INSTEAD)
        key = ("prompts", prompts.file, prompts.limit, takes_image)
        if key not in self._parts:
            lines, path = prompts.read(CONF / "prompts"), prompts.path(CONF / "prompts")
            assert path is not None
            if takes_image:
                images = first_frame.named(lines, path.parent)
                self._parts[key] = list(images), images
            else:
                first_frame.refuse(lines)
                self._parts[key] = lines, {}
        return self._parts[key]


def _apply(overrides: Sequence[Override], config: DictConfig) -> None:
    for override in overrides:
        key = override.key_or_group
        if isinstance(override.value(), dict) and key in config and config[key] is None:
            config[key] = {}  # OmegaConf fails to merge a dictionary into nothing
            OmegaConf.set_struct(config[key], False)
        ConfigLoaderImpl._apply_overrides_to_config([override], config)


@contextlib.contextmanager
def _set(node: DictConfig, overrides: Sequence[Override]) -> Iterator[dict[str, Any]]:
    """Set values on the node while the body runs; yields the fields that changed. Copying the node takes too long."""
    content = node.__dict__["_content"]
    originals = {key: content[key] for o in overrides if (key := room(o)) in content}
    try:
        for key, child in originals.items():
            content[key] = copy.deepcopy(child)
        _apply(overrides, node)
        yield {key: _plain(node, key) for key, child in originals.items() if content[key] != child}
    finally:
        content.update(originals)


def _plain(node: DictConfig, key: str) -> Any:
    return OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]


def _typed(node: Any, group: str) -> Any:
    value = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
    if not isinstance(value, GROUPS[group]):
        raise ConfigError(f"{group} must be chosen by name: {group}=…")
    return value
