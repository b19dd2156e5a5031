"""What methods keep of blocks, as it is, rounded, or on the CPU: every method that keeps any, under each storage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import warnings

import pytest
import torch

from methods import Cache, ReplayConfig, apply
from methods.engine import kept_tensors
from methods.engine.kept_tensors import STORAGES, KeptTensors, tensors_in
from pcbench import cli
from pcbench.compose import names

from .contract_parts import DISTINCT, PRESETS, uncached
from .families import SMALL as FAMILIES

KEEPERS = {
    name: PRESETS[name] for name in DISTINCT if isinstance(PRESETS[name], Cache) and PRESETS[name].keeps_blocks
} | {"replay_stack": ReplayConfig(actions="FFrFrrFrr", reuse="stack")}
ROUNDED = {"bfloat16": 2**-7, "float8": 0.1}  # largest error to expect, as a share of the exact latents' norm


@functools.cache
def ran(preset: str, family: str, storage: str) -> tuple[torch.Tensor, list[str]] | str:
    """Final latents and what each step did; or why the family is refused."""
    pipe, _ = uncached(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            handle = apply(pipe, dataclasses.replace(KEEPERS[preset], kept=storage), **FAMILIES[family].options)
        except ValueError as error:
            return str(error)
        with handle:
            latents = FAMILIES[family].call(pipe)
    return latents, [row.action for row in handle.trace.steps]


@pytest.mark.parametrize("family", ["wan", "hunyuan"])  # two branches of one stream; one branch of two streams
@pytest.mark.parametrize("storage", [name for name in STORAGES if name != "exact"])
@pytest.mark.parametrize("preset", sorted(KEEPERS))
def test_stored_otherwise_a_method_answers_the_same_or_nearly(preset, storage, family):
    exact = ran(preset, family, "exact")
    if isinstance(exact, str):
        pytest.skip(f"refused: {exact}")
    (latents, actions), (stored, did) = exact, ran(preset, family, storage)
    if storage == "cpu":
        assert torch.equal(stored, latents)
        assert did == actions
        return
    assert stored.isfinite().all()
    assert not torch.equal(stored, latents)
    if KEEPERS[preset].APPROACH in ("schedule", "attention"):
        assert did == actions
    if did == actions:
        assert (stored - latents).norm() < ROUNDED[storage] * latents.norm()


def test_methods_of_every_kind_keep_blocks():
    kinds = {type(method).NAME for method in KEEPERS.values()}
    assert {"precisecache", "taylorseer", "pab", "fastercache", "first_block_cache", "dicache", "teacache"} <= kinds


def stored_as(storage: str, **values: torch.Tensor) -> KeptTensors:
    kept = KeptTensors(storage)
    kept.update(values)
    return kept


@pytest.mark.parametrize(("storage", "bits"), [("bfloat16", 8), ("float8", 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_to_so_many_significant_bits(storage, bits, dtype):
    """Within a factor of 2^7 below a token's largest value, where e4m3 has normal numbers, whatever its size."""
    tokens = torch.rand(2, 5, 64, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.01
    tokens = (tokens * 10.0 ** torch.arange(-4, 1)[:, None]).to(dtype)
    back = stored_as(storage, a=tokens)["a"]
    assert back.dtype == dtype
    error = ((back.float() - tokens.float()) / tokens.float()).abs().max()
    assert error <= (2.0**-bits + 2.0**-8) if storage == "float8" or dtype == torch.float32 else error == 0


def test_a_scale_for_each_token_keeps_small_tokens():
    """One scale for all of them loses a token that is 1,000,000 times smaller than the largest."""
    tokens = torch.cat([torch.full((1, 1, 8), 1e6), torch.full((1, 1, 8), 0.9)], dim=1)
    assert torch.allclose(stored_as("float8", a=tokens)["a"], tokens, rtol=0.07)
    whole = KeptTensors("float8")
    whole.SCALED_OVER = None
    whole["a"] = tokens
    assert (whole["a"][0, 1] - 0.9).abs().max() > 0.07 * 0.9


def test_nothing_becomes_zero_or_infinite_and_nan_stays():
    tokens = torch.tensor([[[0.0, 0.0], [1e-30, -1e-30], [3e38, -2e38], [math.nan, 1.0]]])
    back = stored_as("float8", a=tokens)["a"][0]
    assert (back[0] == 0).all()
    assert torch.allclose(back[1:3], tokens[0, 1:3], rtol=0.07, atol=0)
    assert back[3].isnan().any()


def test_nested_values_come_back_in_their_form():
    value = 3, [torch.ones(1, 2, 4), (torch.ones(1, 3, 4), None)]
    for storage in STORAGES:
        kept = KeptTensors(storage)
        kept["a"] = value
        step, (first, (second, nothing)) = kept["a"]
        assert (step, nothing) == (3, None)
        assert torch.equal(first, torch.ones(1, 2, 4))
        assert torch.equal(second, torch.ones(1, 3, 4))


def test_the_next_one_is_fetched_while_one_is_used(monkeypatch):
    """And no more than that is on the device, nor ever a value that was replaced meanwhile."""
    copies = []

    class Counted(kept_tensors._Copy):
        def __init__(self, *args):
            copies.append(self)
            super().__init__(*args)

    monkeypatch.setattr(kept_tensors, "_Copy", Counted)
    kept = stored_as("cpu", **{name: torch.full((1, 4, 8), float(n)) for n, name in enumerate("abc")})
    assert len(copies) == 3
    assert len(list(tensors_in(kept))) == 1  # the last one, on its way
    for turn in range(2):
        for n, name in enumerate("abc"):
            assert (kept[name] == n).all()
            assert len(copies) == 3 + 2 + 3 * turn + n  # one each, and the next
            assert len(list(tensors_in(kept))) == 1
    kept["a"] = torch.full((1, 4, 8), 7.0)  # was on its way
    assert (kept["a"] == 7).all()
    kept.discard("b")  # now on its way
    assert (kept["c"] == 2).all()
    assert "b" not in kept
    assert len(list(tensors_in([kept.on_cpu()]))) == 0 + 2
    kept.clear()
    assert not list(tensors_in(kept))


def test_what_is_stored_again_is_not_rounded_again():
    kept = stored_as("float8", a=torch.rand(1, 4, 8))
    kept["b"] = [kept.packed("a"), kept.packed("a")]
    assert torch.equal(kept["b"][0], kept["a"])
    assert len(list(tensors_in(kept))) == 2  # one tensor and its scales


class RecordingStream:
    """Stands in for a stream of a GPU: notes what waits for what."""

    device = torch.device("cpu")

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.log.append(f"{self.name} has copied")
        return "the copy"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")


def test_the_computing_stream_waits_before_it_reads_a_copy_and_before_its_memory_is_free(monkeypatch):
    log: list[str] = []
    computing, copying = RecordingStream("computing", log), RecordingStream("copying", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    begun = ["copying waits for computing", "copying has copied"]
    copy = kept_tensors._Copy(torch.ones(3), torch.zeros(3), copying)
    assert log == begun  # the host goes on, and so does what computes
    assert (copy.wait() == 1).all()
    assert log == [*begun, "computing waits for the copy"]
    log.clear()
    kept_tensors._Copy(torch.ones(3), torch.zeros(3), copying)  # fetched, never read
    assert log == [*begun, "computing waits for the copy"]


@pytest.mark.parametrize("storage", ["exact", "bfloat16"])
def test_each_of_several_stores_is_counted(storage):
    stores = [KeptTensors(storage) for _ in range(5)]
    for kept in stores:
        kept["a"], kept["b"] = torch.ones(2), [torch.ones(3)]
    assert len(list(tensors_in(stores))) == 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies beside the computation")
def test_on_a_gpu_what_waited_on_the_cpu_is_unchanged():
    kept, tensors = KeptTensors("cpu"), [torch.randn(1, 4096, 1024, device="cuda") for _ in range(6)]
    heavy = torch.randn(4096, 4096, device="cuda")
    for n, tensor in enumerate(tensors):
        kept[n] = tensor * 1
        heavy = heavy @ heavy / heavy.norm()
    for _ in range(3):
        for n, tensor in enumerate(tensors):
            assert torch.equal(kept[n], tensor)
            heavy = heavy @ heavy / heavy.norm()


@pytest.mark.parametrize("method", ["uniform", "dbcache", "precisecache_turbo"])
def test_where_nothing_is_kept_of_blocks_the_option_is_refused(method, capsys):
    assert method in names("method")
    assert cli.main([f"method={method}", "method.kept=float8", "plan=true"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "kept=float8" in line or "cache-dit" in line


@pytest.mark.parametrize(("words", "said"), [
    (["method.kept=float4"], "kept must be one of exact, bfloat16, float8, cpu"),
    (["method.kept=bfloat16", "model.numerics.dtype=bfloat16"], "kept=bfloat16 saves nothing"),
])  # fmt: skip
def test_storages_that_cannot_be_are_refused(words, said, capsys):
    assert cli.main(["method=precisecache_flash", *words, "plan=true"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
