"""The schema of conf/ (a dataclass for its top level and one for each group), and the names of its files."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

import methods

from ..config import ConfigError, Model, Prompts
from ..messages import nearest, shortened
from ..runs import Settings

PACKAGE = Path(__file__).resolve().parents[1]
# conf/ is inside the package if that was built and installed, and next to it in a clone.
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
GROUPS = {"model": Model, "method": methods.Method, "prompts": Prompts}  # the dataclass that each group composes to
EXPERIMENT = "experiment"  # a further group, whose files hold whole runs and sweeps


@dataclass(kw_only=True)
class Top(Settings):
    """A whole config: the settings, and one choice from each group."""

    model: Any = MISSING
    method: Any = MISSING
    prompts: Any = MISSING


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The names that can be chosen from a config group, sorted."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@functools.cache
def preset(name: str) -> methods.Method:
    """The config of conf/method/<name>.yaml, not yet fitted to a backbone."""
    return OmegaConf.to_object(choice("method", name))  # type: ignore[return-value]


@functools.cache
def choice(group: str, name: str) -> DictConfig:
    """What a file of a config group composes to by itself. Shared: read it only."""
    data = OmegaConf.load(CONF / group / f"{name}.yaml")
    assert isinstance(data, DictConfig)
    base = data.pop("defaults")[0]  # the schema or another file of the group, on which this one is merged
    known = {"_model": Model, "_prompts": Prompts, **schemas()}
    node = OmegaConf.structured(known[base]) if base in known else copy.deepcopy(choice(group, base))
    node.merge_with(data)
    OmegaConf.set_struct(node, True)  # as Hydra sets it
    return node


@functools.cache
def groups_set_by(experiment: str) -> frozenset[str]:
    """The groups of which an experiment's file, or one that it builds on, sets values, beside choosing from them."""
    if experiment not in names(EXPERIMENT):
        return frozenset(GROUPS)  # not known
    data = yaml.safe_load((CONF / EXPERIMENT / f"{experiment}.yaml").read_text(encoding="utf-8"))
    bases = [base for base in data.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    return frozenset(GROUPS.keys() & data).union(*map(groups_set_by, bases))


@functools.cache
def register_schemas() -> None:
    """Register every dataclass as a Hydra config node: `_none`, … in group method, `_model`, `_prompts`, `_run`."""
    store = ConfigStore.instance()
    store.store(name="_run", node=Top)
    store.store(group="model", name="_model", node=Model)
    store.store(group="prompts", name="_prompts", node=Prompts)
    for name, config in schemas().items():
        store.store(group="method", name=name, node=config)


@functools.cache
def schemas() -> dict[str, type[methods.Method]]:
    """The config class of every method, by the name of its node."""
    configs = (getattr(methods, name) for name in methods.__all__ if name.endswith("Config"))
    return {f"_{config.NAME}": config for config in configs}


def refuse_unknown(node: Any, name: str = "") -> None:
    """Raise ConfigError for keys that `+` added to a dataclass: OmegaConf would keep them, although nothing reads them.

    `name` is the node's own key, for the message.
    """
    if not isinstance(node, DictConfig):
        return
    schema = OmegaConf.get_type(node) if name else Top
    if dataclasses.is_dataclass(schema):
        known = [item.name for item in dataclasses.fields(schema)]
        if unknown := [str(key) for key in node if key not in known]:
            raise ConfigError(unknown_option(unknown[0], name, known))
        for key in node:
            if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node._get_node(key)):
                refuse_unknown(node._get_node(key), f"{name}.{key}".lstrip("."))


def unknown_option(key: object, where: str, known: Sequence[str]) -> str:
    """The error message for an option that does not exist."""
    return f"unknown option {shortened(key)!r}{f' of {where}' if where else ''}: {nearest(key, known)}"
