"""FasterCache: its schedules, extrapolated attention and made-up branch, and parity with the official scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from methods import apply
from methods.fastercache import FasterCacheConfig

from .conftest import call
from .families import FAMILIES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "fastercache.json").read_text())["runs"]
CONF = Path(__file__).parents[1] / "conf" / "method"
# Official schedules without a preset of their own. Open-Sora-Plan's: scripts/opensora_plan.
SETTINGS = {
    "fastercache_wan": {},
    "opensora_plan": {
        "steps": 150,
        "attention_start": 45,
        "cfg_start": 40,
        "cfg_every": 6,
        "low_until": 130,
        "high_weight": 1.2,
        "high_from": 131,
    },
}
# Both from step 3 on; nothing of it is stretched.
SHORT = {"scale_to_steps": False, "attention_start": 3, "cfg_start": 3}


def preset(name: str) -> FasterCacheConfig:
    if name in SETTINGS:
        return FasterCacheConfig(**SETTINGS[name])
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del fields["defaults"]
    return FasterCacheConfig(**fields)


def reused(handle, what: str) -> str:
    return "".join("r" if what in step.details["reused"] else "F" for step in handle.trace.steps)


def predictions(pipe, config, family="wan", steps=12, **options):
    """What the transformer answered, call by call, and the handle."""
    answers = []
    with apply(pipe, config, **options) as handle:
        forward = pipe.transformer.forward

        def spy(*args, **kwargs):
            out = forward(*args, **kwargs)
            answers.append(out[0])
            return out

        pipe.transformer.forward = spy
        FAMILIES[family].call(pipe, steps=steps)
        pipe.transformer.forward = forward
    return answers, handle


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_official_scripts(name):
    run = GOLDEN[name]
    family = FAMILIES[run["family"]]
    pipe = family.pipeline()
    with apply(pipe, preset(name)) as handle:
        latents = family.call(pipe, steps=run["steps"])
    assert reused(handle, "attention") == run["attention"]
    assert reused(handle, "guidance") == run["guidance"]
    expected = torch.tensor(run["output"]["slice"])
    assert torch.allclose(latents[0, 1, 1, ::5, ::5].flatten(), expected, rtol=1e-5, atol=1e-5)
    assert float(latents.double().norm()) == pytest.approx(run["output"]["norm"], rel=1e-5)
    assert float(latents.double().mean()) == pytest.approx(run["output"]["mean"], abs=1e-6)


def test_the_defect_of_the_published_script_changes_the_video():
    a, b = (torch.tensor(GOLDEN[name]["output"]["slice"]) for name in ("fastercache", "fastercache_as_published"))
    assert (a - b).abs().max() > 1e-3


def test_a_skipped_branch_is_the_other_and_the_grown_difference(pipe):
    """Full, skipped, skipped: the low frequencies grow twice, the high ones once."""
    config = FasterCacheConfig(
        scale_to_steps=False, attention_every=1, cfg_start=6, low_weight=2.0, low_until=99, high_weight=3.0, high_from=7
    )
    answers, handle = predictions(pipe, config, steps=8)
    cond, uncond = answers[0::2], answers[1::2]
    assert reused(handle, "guidance") == "FFFFFrrr"
    spectrum = torch.fft.fft2(uncond[4] - cond[4])
    bins = (torch.fft.fftfreq(16) * 16).round()
    low = bins[:, None] ** 2 + bins**2 <= 3**2  # min(16, 16) // 5 bins
    for step, factors in ((5, (2, 1)), (6, (4, 3)), (7, (8, 9))):
        grown = torch.where(low, factors[0], factors[1]) * spectrum
        assert torch.allclose(uncond[step], cond[step] + torch.fft.ifft2(grown).real, atol=1e-5)
    assert [len(step.calls) for step in handle.trace.steps] == [2] * 5 + [1] * 3


def test_attention_goes_on_along_its_last_two_outputs(pipe):
    """Steps 1, 2 computed, 3 is c1 + 0.5 (c1 - c0), and computed again at 4."""
    config = FasterCacheConfig(
        scale_to_steps=False, attention_start=3, attention_every=4, attention_weight=0.5, cfg_every=1
    )
    seen = []
    with apply(pipe, config) as handle:
        pipe.transformer.blocks[1].attn1.register_forward_hook(lambda *args: seen.append(args[-1]))
        call(pipe, steps=4)
    assert reused(handle, "attention") == "FFrF"
    c0, c1, between, computed = seen[0::2]  # the conditional branch's
    assert torch.allclose(between, c1 + 0.5 * (c1 - c0), atol=1e-6)
    assert not torch.allclose(computed, c1 + 0.5 * (c1 - c0), atol=1e-6)
    c0, c1, between, _ = seen[1::2]  # each branch from its own memory
    assert torch.allclose(between, c1 + 0.5 * (c1 - c0), atol=1e-6)


def test_the_weight_can_grow(pipe):
    config = FasterCacheConfig(
        scale_to_steps=False, attention_start=3, attention_every=5, attention_ramp=4, attention_weight=0.8, cfg_every=1
    )
    seen = []
    with apply(pipe, config):
        pipe.transformer.blocks[0].attn1.register_forward_hook(lambda *args: seen.append(args[-1]))
        call(pipe, steps=4, guidance_scale=1.0)
    c0, c1, first, second = seen
    assert torch.allclose(first, c1 + 0.2 * (c1 - c0), atol=1e-6)
    assert torch.allclose(second, c1 + 0.4 * (c1 - c0), atol=1e-6)


@pytest.mark.parametrize(("match_batch", "attention"), [(True, "FFFrFFrr"), (False, "FFFrrFrr")])
def test_a_full_step_after_a_lone_branch(pipe, match_batch, attention):
    """Step 3 computes the conditional branch's attention alone; step 5 runs both branches."""
    config = FasterCacheConfig(**SHORT, match_batch=match_batch)
    _, handle = predictions(pipe, config, steps=8)
    assert reused(handle, "guidance") == "FFrrFrrr"
    assert reused(handle, "attention") == attention


@pytest.mark.parametrize("name", ["cogvideox_2b", "hunyuan_true_cfg"])
def test_batched_and_separate_branches_are_treated_alike(name):
    family = FAMILIES[name]
    _, handle = predictions(family.pipeline(), FasterCacheConfig(**SHORT), name, steps=8, **family.options)
    assert reused(handle, "guidance") == "FFrrFrrr"
    assert reused(handle, "attention") == "FFFrFFrr"
    assert [sum(each.batch for each in step.calls) for step in handle.trace.steps] == [2, 2, 1, 1, 2, 1, 1, 1]


def test_the_schedule_is_stretched_to_the_number_of_steps(pipe):
    """50 steps in 10: from 18 is from 3.6, so from the fourth step; every third and fifth stays."""
    _, handle = predictions(pipe, FasterCacheConfig(), steps=10)
    assert reused(handle, "attention") == "FFFrrFrrFF"
    assert reused(handle, "guidance") == "FFFrFrrrrF"
    with pytest.warns(UserWarning, match="never hit"):
        predictions(pipe, FasterCacheConfig(scale_to_steps=False), steps=10)


def test_without_guidance_only_attention_is_reused():
    for name in ("hunyuan", "wan"):
        family = FAMILIES[name]
        pipe = family.pipeline()
        with apply(pipe, FasterCacheConfig(**SHORT)) as handle:
            if name == "wan":
                call(pipe, steps=8, guidance_scale=1.0)
            else:
                family.call(pipe, steps=8)
        assert reused(handle, "guidance") == "F" * 8
        assert reused(handle, "attention") == "FFFrrFrr"


def test_no_more_than_two_outputs_of_a_module_are_kept_and_those_while_they_can_be_needed():
    family = FAMILIES["cogvideox_2b"]
    pipe = family.pipeline()
    rules, kept = [], []
    pipe.scheduler.step = _after(pipe.scheduler.step, lambda: kept.append(dict(rules[0]._outputs)))
    with apply(pipe, FasterCacheConfig(**SHORT)) as handle:
        rule = handle.method.rule
        handle.method.rule = lambda: rules.append(rule()) or rules[-1]
        family.call(pipe, steps=12)
    assert kept[-1] == {}  # no step follows
    newest = kept[-2]
    assert len(newest) == 2 * 2  # blocks and guidance branches
    assert all(len(outputs) == 2 for outputs in newest.values())
    for path in {path for path, _ in newest}:
        storages = {
            tensor.untyped_storage().data_ptr()
            for part in ("lead", "other")
            for output in newest[path, part]
            for tensor in output[:1]
        }
        assert len(storages) <= 3  # the branches share what one call gave


def _after(function, then):
    def run(*args, **kwargs):
        result = function(*args, **kwargs)
        then()
        return result

    return run


def test_an_unknown_number_of_steps_is_refused():
    pipe = FAMILIES["wan"].pipeline()
    latents, text = torch.randn(1, 4, 5, 16, 16), torch.randn(1, 8, 16)
    with apply(pipe, FasterCacheConfig()), pytest.raises(ValueError, match="scale_to_steps=false"):
        pipe.transformer(latents, torch.tensor([900]), text)


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_defect_cannot_be_had_where_branches_are_called_apart(name):
    with pytest.raises(ValueError, match="as_published reproduces a defect"):
        apply(FAMILIES[name].pipeline(), FasterCacheConfig(branch="as_published"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"cfg_every": 0}, "cfg_every must be at least 1"),
        ({"attention_every": 2, "attention_phase": 2}, "attention_phase must be in"),
        ({"attention_ramp": -1}, "attention_ramp must be at least 0"),
        ({"radius_ratio": 0.0}, "radius_ratio must be in"),
        ({"branch": "cond"}, "fixed or as_published"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FasterCacheConfig(**options)
