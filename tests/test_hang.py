"""When a worker is taken for one that hangs: half an hour without a step, but not while its weights come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pcbench import backbones
from pcbench.compose import run_from
from pcbench.launch import hang


class EndedError(Exception):
    """In the place of the process' end."""


class EnoughError(Exception):
    """The time that is tried is over."""


@pytest.fixture
def two_hours(monkeypatch) -> Callable[[], bool]:
    """Whether this process, which has claimed a sample, is ended in two hours without a step."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 7200:
            raise EnoughError

    def watch() -> bool:
        nonlocal now
        now = 0.0
        try:
            hang._watch(threading.get_ident())
        except EndedError:
            return True
        except EnoughError:
            return False

    monkeypatch.setattr(hang, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    monkeypatch.setattr(hang.claims, "held", lambda: {"a sample"})
    monkeypatch.setattr(hang.os, "_exit", Mock(side_effect=EndedError))
    return watch


def test_a_worker_without_a_step_is_ended(two_hours, capsys):
    assert two_hours()
    assert "pcbench: ended: no step for 1800 s, at " in capsys.readouterr().err


def test_a_worker_whose_weights_come_is_not(two_hours, monkeypatch):
    ended: list[Any] = []
    recipe = run_from(["model=tiny_wan"]).recipe
    monkeypatch.setattr(backbones, "_settle", lambda *_: ended.append(two_hours()))  # on its way to the device
    family = Mock(load=lambda *_: ended.append(two_hours()) or Mock())
    monkeypatch.setattr(backbones, "family", lambda backbone: family)
    backbones.fresh(recipe, "cpu")
    assert ended == [False, True]


def test_a_download_that_fails_does_not_come_for_ever(monkeypatch):
    recipe = run_from(["model=tiny_wan"]).recipe
    monkeypatch.setattr(backbones, "family", lambda backbone: Mock(load=Mock(side_effect=OSError)))
    with pytest.raises(OSError):  # noqa: PT011
        backbones.fresh(recipe, "cpu")
    assert not backbones.weights_are_coming()
