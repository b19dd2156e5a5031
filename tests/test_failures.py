"""What fails is recorded, the rest goes on, and the memory is what it was."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from methods.frequency import _mask_on
from pcbench import backbones, cli, stages
from pcbench.failures import FailedError, attempt
from pcbench.job import job_of
from pcbench.sampling import generate

SMALL = [
    "model.sampling.steps=6", "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64",
    "stages=[generate]",
]  # fmt: skip
METHODS = {
    "pab": [],
    "taylorseer": [],
    "precisecache_flash": [],
    "fastercache": [],
    "uniform": ["method.steps=4"],
}


def live_bytes() -> int:
    """Bytes of all storages that a tensor refers to, each once; without the low-pass masks, which are kept by size."""
    _mask_on.cache_clear()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some libraries' objects complain of being looked at
        tensors = [each for each in gc.get_objects() if torch.is_tensor(each)]
    tensors = [each for each in tensors if not isinstance(each, FakeTensor)]  # compiled code keeps some: no bytes
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\na blue box\na green cone\n")
    return f"prompts.file={path}"


def fails_at(monkeypatch, method: str, step: int, error=torch.OutOfMemoryError, seeds=(0,)):
    """Raise in the middle of a transformer call of this method, at this step."""
    inner, kept = generate.denoise, []

    def denoise(pipe, recipe, seed, **prompt):
        def fail(module, args, kwargs):
            activations = torch.ones(300_000)  # noqa: F841  # of a call that needs memory
            counted.append(1)
            if len(counted) == 2 * step + 1:
                failure = error("no room for it")
                kept.append(failure)  # as a logger or a debugger would
                raise failure

        if method != recipe.method.NAME or seed not in seeds:
            return inner(pipe, recipe, seed, **prompt)
        counted: list[int] = []
        hook = pipe.transformer.blocks[1].register_forward_pre_hook(fail, with_kwargs=True)
        try:
            return inner(pipe, recipe, seed, **prompt)
        finally:
            hook.remove()

    monkeypatch.setattr(generate, "denoise", denoise)
    return kept


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loaded", [True, False])
def test_after_a_failed_run_the_next_begins_with_the_memory_of_the_first(
    monkeypatch, tmp_path, capsys, prompts, method, loaded
):
    name = method.partition("_")[0]
    words = [*METHODS[method], *SMALL, prompts, "prompts.limit=1", f"results={tmp_path / 'results'}"]
    backbones.forget()
    gc.collect()
    gc.freeze()  # what is there by now, of other tests too, need not be looked at again
    if loaded:
        assert cli.main(["method=none", *words[len(METHODS[method]) :]]) == 0
    held, inner = [], stages.Sweep.carry_out

    def carry_out(self, share, say=print):
        if share.job.uncached is None:  # a reference, with which a job begins
            held.append(live_bytes())
        return inner(self, share, say) if len(held) == 1 else []

    monkeypatch.setattr(stages.Sweep, "carry_out", carry_out)
    kept = fails_at(monkeypatch, name, step=3)
    code = cli.main(["-m", f"method={method}", "prompts.seeds=[0],[1]", *words])
    out, err = capsys.readouterr()
    assert code == 1, err
    assert len(kept) == 1, out + err
    assert len(held) == 2
    assert held[1] == held[0]
    assert err.count("no room for it") == 1
    assert "Traceback" not in out + err


def test_a_failed_sample_does_not_keep_the_others_from_being_made(monkeypatch, tmp_path, capsys, prompts):
    words = ["method=uniform", "method.steps=4", *SMALL, prompts, "prompts.seeds=[0,7]", f"results={tmp_path}/results"]
    run = cli.run_from(words)
    bad, inner = (run.prompts[1], 7), generate._generate_one

    def generate_one(pipe, run, prompt, seed, files):
        if (prompt, seed) == bad and run.recipe.method.NAME == "uniform":
            monkeypatch.setattr(generate, "denoise", nan)
        try:
            return inner(pipe, run, prompt, seed, files)
        finally:
            monkeypatch.setattr(generate, "denoise", denoise)

    denoise = generate.denoise

    def nan(*args, **kwargs):
        return denoise(*args, **kwargs) * float("nan")

    monkeypatch.setattr(generate, "_generate_one", generate_one)
    assert cli.main(words) == 1
    _, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "failed" in line]
    assert "'a blue box' seed 7: FloatingPointError" in line
    record = json.loads(job_of(run).place.record.read_text())
    assert len(record["samples"]) == 5
    assert record["status"] == "failed"
    assert record["failures"] == [
        {"prompt": "a blue box", "seed": 7, "error": "FloatingPointError: the final latent is not finite"}
    ]
    reference = json.loads(job_of(run.reference).place.record.read_text())
    assert (reference["status"], len(reference["samples"])) == ("ok", 6)
    assert cli.main(words) == 1  # it is tried again, and says so again
    assert "FloatingPointError" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(words) == 0, capsys.readouterr().err
    record = json.loads(job_of(run).place.record.read_text())
    assert (record["status"], record["error"], len(record["samples"])) == ("ok", None, 6)
    assert "failures" not in record


def test_scores_go_on_past_a_sample_that_cannot_be_scored(monkeypatch, tmp_path, capsys, prompts):
    from pcbench.fidelity import stage as fidelity

    inner = fidelity._scored

    def scored(run, files, reference, names):
        if "blue" in files.stem.name:
            raise ValueError("not this one")
        return inner(run, files, reference, names)

    monkeypatch.setattr(fidelity, "_scored", scored)
    words = [
        "method=uniform",
        "method.steps=4",
        *SMALL[:-1],
        "stages=[generate,score]",
        prompts,
        f"results={tmp_path}/r",
    ]
    assert cli.main(words) == 1
    record = json.loads(job_of(cli.run_from(words)).place.record.read_text())
    assert [bool(sample["fidelity"]) for sample in record["samples"]] == [False, True, True]
    assert "score of 'a blue box' seed 0: ValueError: not this one" in record["error"]


def test_a_stage_that_fails_keeps_no_other_from_being_done(monkeypatch, tmp_path, capsys, prompts):
    def fail(run, say):
        raise RuntimeError("the clock stands still")

    monkeypatch.setattr(stages.latency, "profile", fail)
    words = ["method=none", *SMALL[:-1], prompts, "prompts.limit=1", f"results={tmp_path}/r"]
    assert cli.main(words) == 1
    run = cli.run_from(words)
    record = json.loads(job_of(run).place.record.read_text())
    assert (record["status"], len(record["samples"])) == ("failed", 1)
    assert record["error"] == "latency: RuntimeError: the clock stands still"
    assert "the clock stands still" in (job_of(run).place.folder / "error.txt").read_text()


def test_an_indicator_that_is_not_a_number_is_a_warning_and_a_finished_sample(monkeypatch, tmp_path, capsys, prompts):
    """A method that sees NaN computes the step; the video is made, the trace is written, the record says so."""
    from methods import precisecache

    monkeypatch.setattr(
        precisecache, "low_frequency_difference", lambda *args, **kwargs: torch.tensor(float("nan")), raising=True
    )
    words = ["method=precisecache_turbo", *SMALL[:-1], "stages=[generate,latency,score]", "latency.repeats=1", prompts,
             "prompts.limit=1", f"results={tmp_path}/r"]  # fmt: skip
    assert cli.main(words) == 0, capsys.readouterr().err
    record = json.loads(job_of(cli.run_from(words)).place.record.read_text())
    (sample,) = record["samples"]
    assert sample["computed"] == sample["steps"]
    assert any("NaN" in note for note in sample["notes"])
    assert record["latency"] is not None


def test_the_old_models_memory_is_free_before_the_new_one_loads(monkeypatch):
    wan = cli.run_from(["model=tiny_wan", "method=none"])
    other = cli.run_from(["model=tiny_cogvideox", "method=none"])
    gc.disable()
    try:
        pipe = backbones.load(wan.recipe, "cpu")
        with pipe.transformer.cache_context("cond"):  # a registry and its module now refer to each other
            pass
        gone = weakref.ref(pipe.transformer)
        del pipe
        alive = []
        family = backbones.family(other.recipe.backbone)
        inner = family.load
        monkeypatch.setattr(family, "load", lambda *args: alive.append(gone() is not None) or inner(*args))
        backbones.load(other.recipe, "cpu")
        assert alive == [False]
    finally:
        gc.enable()
        backbones.forget()


def test_an_error_that_is_kept_keeps_no_tensors():
    def deepest():
        tensor = torch.ones(1000)
        seen.append(weakref.ref(tensor))

        def closure():
            raise RuntimeError(f"deep in {tensor.shape}")

        closure()

    def outer():
        tensor = torch.ones(1000)
        seen.append(weakref.ref(tensor))
        try:
            deepest()
        except RuntimeError as error:
            kept.append(error)
            raise ValueError("outer") from error

    seen, kept = [], []
    failure = attempt("it", outer)
    assert failure.line == "it: ValueError: outer"
    assert "deepest" in failure.details
    assert kept
    assert [each() for each in seen] == [None, None]


def test_what_a_user_interrupts_is_interrupted():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("it", interrupt)


def test_a_failed_run_raises_an_error_of_its_own(monkeypatch, tmp_path, prompts):
    def fail(*args):
        raise RuntimeError("no such weights")

    monkeypatch.setattr(backbones, "load", fail)
    run = cli.run_from(["method=uniform", "method.steps=4", *SMALL, prompts, f"results={tmp_path}/r"])
    with pytest.raises(FailedError) as caught:
        stages.execute(job_of(run), lambda line: None)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert [failure.what for failure in caught.value.failures] == ["generate", "generate"]
    assert Path(job_of(run).place.record).exists()


@pytest.mark.parametrize("away", ["*.safetensors", "*"])
def test_a_record_never_loses_samples_without_a_word(tmp_path, prompts, capsys, away):
    """Their files are the largest, and are the first to be moved away."""
    words = ["method=uniform", "method.steps=4", *SMALL[:-1], prompts, f"results={tmp_path / 'results'}"]
    assert cli.main([*words, "stages=[generate,score]"]) == 0
    kept = {path: path.read_bytes() for path in tmp_path.glob("results/records/*/*/*.json")}
    folder = next(iter((tmp_path / "results" / "samples").glob("*/*/uniform-*")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [path for path in folder.glob(away) if path.is_file()]
    for path in moved:
        path.rename(elsewhere / path.name)
    for asked in (["stages=[score]", "fidelity=videosys"], ["stages=[generate,score]", "prompts.limit=1"]):
        assert cli.main([*words, *asked]) == 1
        assert "of the record's 3 samples are no longer in" in capsys.readouterr().err
        assert all(path.read_bytes() == text for path, text in kept.items() if "uniform" in path.name)
    for path in moved:
        path.unlink(missing_ok=True)
        (elsewhere / path.name).rename(path)
    assert cli.main([*words, "stages=[score]", "fidelity=videosys"]) == 0
