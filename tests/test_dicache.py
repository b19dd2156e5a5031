"""DiCache against its official forwards, and its probe and line by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from methods import apply, dicache
from methods.dicache import DiCache, DiCacheConfig
from methods.engine.anatomy import anatomy_of

from .conftest import STEPS
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "dicache.json").read_text())["cases"]


@pytest.fixture
def decisions(monkeypatch) -> list[str]:
    """One letter for each call of the transformer: F computed, r reused."""
    made: list[str] = []
    reuses = DiCache._reuses

    def spy(self, *args):
        reuse = reuses(self, *args)
        made.append("r" if reuse else "F")
        return reuse

    monkeypatch.setattr(DiCache, "_reuses", spy)
    return made


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['family']}-{g['threshold']}-{g['steps']}")
def test_parity_with_the_official_code(golden, decisions):
    family = FAMILIES[golden["family"]]
    pipe = family.pipeline()
    config = DiCacheConfig(threshold=golden["threshold"], protect_first=golden["protect_first"])
    with apply(pipe, config) as handle:
        latents = family.call(pipe, steps=golden["steps"])
    assert "".join(decisions) == golden["calls"]
    assert 4 <= handle.trace.reused <= golden["steps"] - 5
    by_branch = (golden["accumulated"][n :: family.branches] for n in range(family.branches))
    for step, *sums in zip(handle.trace.steps[:-1], *by_branch, strict=False):  # official code clears the last
        if step.action == "reuse":
            assert list(step.details["accumulated"].values()) == pytest.approx(sums, rel=1e-4)
    expected = torch.tensor(golden["latents"]["every_41st"])
    torch.testing.assert_close(latents.flatten()[::41], expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().abs().mean()) == pytest.approx(golden["latents"]["absmean"], rel=1e-5)


@pytest.mark.parametrize(
    ("family", "threshold", "gamma_max"),
    [("wan", 0.08, 2.0), ("hunyuan", 0.1, 1.5), ("cogvideox_2b", 0.08, 2.0), ("opensora", 0.08, 2.0)],
)
def test_official_values_of_each_family(family, threshold, gamma_max):
    anatomy = anatomy_of(FAMILIES[family].pipeline().transformer)
    filled = DiCacheConfig().for_backbone(anatomy)
    assert (filled.threshold, filled.gamma_max) == (threshold, gamma_max)
    assert (filled.probe_depth, filled.protect_first, filled.protect_last) == (1, 0.2, 0)
    assert filled.for_backbone(anatomy) == filled
    assert DiCacheConfig(threshold=0.3, gamma_max=1.0).for_backbone(anatomy).gamma_max == 1.0


@pytest.fixture
def seen() -> tuple:
    """A Wan pipeline and, for each call, the stack's input, the first block's output, and what the head reads."""
    pipe, calls = FAMILIES["wan"].pipeline(), []
    first, head = pipe.transformer.blocks[0], pipe.transformer.norm_out
    forward = first.forward

    def spy(tokens, *args, **kwargs):  # below the method's hook: what the block itself says
        calls.append([tokens, forward(tokens, *args, **kwargs)])
        return calls[-1][1]

    first.forward = spy
    head.register_forward_pre_hook(lambda _, args: calls[-1].append(args[0]))
    return pipe, calls


@pytest.mark.parametrize("error", dicache.ERRORS)
@pytest.mark.parametrize("align", [True, False])
def test_probe_and_line_by_hand(error, align, seen):
    (pipe, calls), threshold = seen, {"probe": 0.2, "excess": 0.008}[error]
    config = DiCacheConfig(threshold=threshold, protect_first=3, error=error, align=align, gamma_max=1.2)
    with apply(pipe, config) as handle:
        FAMILIES["wan"].call(pipe)
    change = lambda a, b: float((a - b).abs().mean() / b.abs().mean())  # noqa: E731
    cond, total, known, gammas = calls[0::2], 0.0, [], []
    for i, (tokens, probe, output) in enumerate(cond):
        reuse = False
        if i >= 3:
            moved = change(probe, cond[i - 1][1])
            total += moved if error == "probe" else abs(moved - change(tokens, cond[i - 1][0]))
            reuse = total < threshold
            assert handle.trace.steps[i].details["accumulated"]["cond"] == pytest.approx(total, rel=1e-4)
        if not reuse:
            total = 0.0
            known.append((output - tokens, probe - tokens))
            continue
        (before, probe_before), (last, probe_last) = known[-2:]
        gamma = float((probe - tokens - probe_before).abs().mean() / (probe_last - probe_before).abs().mean())
        gammas.append(gamma)
        expected = tokens + (before + min(max(gamma, 1.0), 1.2) * (last - before) if align else last)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert len(gammas) >= 3
    assert len(known) > 3  # one was computed again
    assert max(gammas) > 1.2  # so that the limit does something


def test_a_probe_that_has_not_moved_is_no_nan():
    """Nothing over nothing: the same call three times, with the line at its beginning."""
    pipe, outputs = FAMILIES["wan"].pipeline(), []
    latent, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    with apply(pipe, DiCacheConfig(threshold=1e9, protect_first=2)) as handle, torch.no_grad():
        for _ in range(4):
            with pipe.transformer.cache_context("cond"):
                same = pipe.transformer(latent, timestep=torch.tensor([500]), encoder_hidden_states=text)
            outputs.append(same[0])
    assert [step.action for step in handle.trace.steps] == ["full", "full", "reuse", "reuse"]
    torch.testing.assert_close(outputs[-1], outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [("wan", 1), ("hunyuan", 2), ("cogvideox_5b", 1), ("opensora", 1)])
def test_a_reused_step_runs_the_probe_alone_and_is_priced_so(name, depth):
    family = FAMILIES[name]
    pipe = family.pipeline()
    with apply(pipe, DiCacheConfig(threshold=1e9, probe_depth=depth, protect_first=2)) as handle:
        family.call(pipe)
    rest = len(anatomy_of(pipe.transformer).blocks(pipe.transformer)) - depth
    assert [step.action for step in handle.trace.steps] == ["full"] * 2 + ["reuse"] * (STEPS - 2)
    for step in handle.trace.steps[2:]:
        assert step.forwards == family.branches
        assert all(sum(call.skipped.values()) == rest for call in step.calls)


@pytest.mark.parametrize(("name", "most"), [("wan", 1), ("hunyuan", 2), ("opensora", 1)])
def test_too_deep_a_probe_is_refused(name, most):
    with pytest.raises(ValueError, match=f"probe_depth can be at most {most}$"):
        apply(FAMILIES[name].pipeline(), DiCacheConfig(probe_depth=3))


@pytest.mark.filterwarnings("ignore:.*never hit")
def test_nan_never_skips(monkeypatch):
    family = FAMILIES["wan"]
    pipe = family.pipeline()
    uncached = family.call(pipe)
    monkeypatch.setattr(dicache, "relative_l1", lambda *_: math.nan)
    with apply(pipe, DiCacheConfig(threshold=1e9)), pytest.warns(UserWarning, match="NaN"):
        assert torch.equal(family.call(pipe), uncached)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"threshold": math.nan}, "threshold must be a finite number"),
        ({"probe_depth": 0}, "probe_depth must be at least 1"),
        ({"error": "delta_y"}, "error must be one of probe, excess"),
        ({"gamma_max": 0.5}, "gamma_max must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        DiCacheConfig(**options)
