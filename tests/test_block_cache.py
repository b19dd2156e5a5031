"""BlockCache against equations (5)-(6) done by hand on recorded block inputs and outputs."""

from __future__ import annotations

import pytest
import torch

from methods import PreciseCacheConfig, apply
from methods.engine.kept_tensors import tensors_in
from methods.precisecache import PreciseCache

from .families import FAMILIES

RATE, L = 0.5, 2
FLASH = {"alpha": 0.0, "downsample_factor": (2, 2, 2), "block_cache_rate": RATE, "block_cache_steps": L}


def recorded(family: str, **fields):
    """Latents, trace, the rule as it ended, paths, and (branch, step, block) -> (video, text, output) of each block."""
    kind = FAMILIES[family]
    pipe = kind.pipeline()
    seen, rules = {}, []
    method = PreciseCacheConfig(**{**FLASH, **fields})
    original = PreciseCacheConfig.rule

    def rule(self):
        rules.append(original(self))
        return rules[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreciseCacheConfig, "rule", rule)
        with apply(pipe, method, **kind.options) as handle:
            root = pipe.transformer._diffusers_hook.hooks["training_free_cache"]

            def note(path):
                def hook(module, args, kwargs, output):
                    denoiser = root.denoiser
                    if denoiser.call is not None:
                        hidden = kwargs.get("hidden_states", args[0] if args else None)
                        second = "audio_hidden_states" if family == "ltx2" else "encoder_hidden_states"
                        text = kwargs.get(second, args[1] if len(args) > 1 else None)
                        key = denoiser.branch.name, denoiser.index, path
                        seen[key] = hidden, text, output

                return hook

            hooks = [
                block.module.register_forward_hook(note(block.path), with_kwargs=True)
                for block in root.anatomy.blocks(pipe.transformer)
            ]
            latents = kind.call(pipe)
            paths = [block.path for block in root.anatomy.blocks(pipe.transformer)]
            for hook in hooks:
                hook.remove()
    return latents, handle.trace, rules[0], seen, paths


def test_the_cycle_is_one_refresh_and_l_cached_steps():
    *_, trace = recorded("wan")[:2]
    phases = [row.details.get("blocks") for row in trace.steps]
    assert phases[:9] == ["full", "full", "refresh", "cached", "cached", "refresh", "cached", "cached", "refresh"]
    assert [row.action for row in trace.steps[:6]] == ["full"] * 3 + ["partial"] * 2 + ["full"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("ranking", ["absolute", "relative"])
def test_the_blocks_that_add_least_are_cached(family, ranking):
    _, trace, _, seen, paths = recorded(family, block_ranking=ranking)
    branches = {branch for branch, _, _ in seen}
    assert len(branches) == FAMILIES[family].branches
    for branch in branches:
        sizes = {}
        for path in paths:
            before, _, output = seen[branch, 2, path]
            after = output[0] if isinstance(output, tuple) else output
            sizes[path] = float((after - before).norm() / (before.norm() if ranking == "relative" else 1))
        least = sorted(sorted(sizes, key=sizes.get)[: round(RATE * len(paths))])
        assert trace.steps[2].details["cached_blocks"][branch] == least
        assert trace.steps[3].action == "partial"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_cached_block_adds_what_it_added_at_the_refresh(family):
    """Equation (6): F_j = F_{j-1} + D_j, both streams. The hook sits outside ours, so it sees cached answers too."""
    _, trace, _, seen, _ = recorded(family)
    for branch, cached in trace.steps[2].details["cached_blocks"].items():
        for path in cached:
            before, text, output = seen[branch, 2, path]
            later, later_text, answer = seen[branch, 4, path]
            if not isinstance(output, tuple):
                assert torch.equal(answer, later + (output - before))
                continue
            assert torch.equal(answer[0], later + (output[0] - before))
            assert torch.equal(answer[1], later_text + (output[1] - text))


def test_a_cached_block_does_not_run():
    trace = recorded("wan")[1]
    assert [call.skipped for call in trace.steps[3].calls if not call.trial] == [{"blocks.*": 1}] * 2
    assert all(not call.skipped for call in trace.steps[5].calls)


def test_trials_never_meet_the_cache():
    """With every block cached the trials, and so the decisions, are those without BlockCache."""
    kind = FAMILIES["wan"]
    pipe = kind.pipeline()
    trials = {}
    for rate in (0.0, 1.0):
        sizes = []
        hook = pipe.transformer.blocks[0].attn1.register_forward_hook(lambda m, a, o, s=sizes: s.append(o.shape[1]))
        with apply(pipe, PreciseCacheConfig(**{**FLASH, "block_cache_rate": rate})):
            kind.call(pipe)
        hook.remove()
        trials[rate] = sizes.count(3 * 4 * 4)
    assert trials[0.0] == trials[1.0] == 11  # both branches in one call, each step but the first


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_what_is_reused_is_kept(family):
    """Memory of BlockCache: branches x round(rate x blocks) residuals of all tokens, in the model's dtype."""
    _, _, rule, seen, paths = recorded(family)
    assert isinstance(rule, PreciseCache)
    kept = tensors_in([each.on_device() for each in rule.held_inside()])
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    hidden, text, output = next(iter(seen.values()))
    one = (hidden.numel() + (text.numel() if isinstance(output, tuple) else 0)) * hidden.element_size()
    assert held == FAMILIES[family].branches * round(RATE * len(paths)) * one


def test_shared_sets_follow_the_first_branch():
    apart, shared = (
        recorded("hunyuan_true_cfg", block_sets=sets)[1].steps[2].details["cached_blocks"]
        for sets in ("apart", "shared")
    )
    assert shared["cond"] == shared["uncond"] == apart["cond"]


def test_protected_steps_run_every_block():
    trace = recorded("wan", protect_first=6, protect_last=2)[1]
    assert [row.action for row in trace.steps[:6] + trace.steps[-2:]] == ["full"] * 8
    assert trace.partial


def test_stack_reuse_and_block_cache_exclude_each_other():
    with pytest.raises(ValueError, match="BlockCache and reuse=stack"):
        PreciseCacheConfig(block_cache_rate=0.4, reuse="stack")
