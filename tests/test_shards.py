"""shard=i/n: a deterministic share of a sweep's samples, for any scheduler."""

from __future__ import annotations

import itertools

import pytest

from pcbench import cli, integrity
from pcbench.job import jobs_of
from pcbench.launch import shards

from .launch_parts import TINY, jobs, made, same
from .plan_parts import planned


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run by one process alone, which has also loaded and priced what the forked ones need."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert cli.main([*TINY, f"results={results}"]) == 0
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_all_samples_once_and_keep_references_with_what_needs_them(tmp_path, count):
    words = ["-m", "model=tiny_wan,tiny_opensora", "method=none,fora", "prompts.limit=3"]
    whole = jobs(words, tmp_path)
    every = sorted((job.id, *sample) for job in whole for sample in job.run.samples)
    taken = []
    for number in range(1, count + 1):
        own = jobs_of(shards.take([job.run for job in whole], shards.Shard(number, count)))
        taken += [(job.id, *sample) for job in own for sample in job.run.samples]
        assert all(set(job.run.samples) == set(job.reference.run.samples) for job in own)
    assert sorted(taken) == every


def test_shards_cost_about_the_same(tmp_path):
    units = shards.units(jobs(["-m", "model=tiny_wan,tiny_opensora", "method=none,fora", "prompts.limit=16"], tmp_path))
    costs = [sum(unit.macs for unit in share) for share in shards.cut(units, 4)]
    assert max(costs) - min(costs) <= 2 * max(unit.macs for unit in units)


def test_the_shards_of_a_run_are_the_run(tmp_path, undisturbed, capsys):
    results = f"results={tmp_path / 'shards'}"
    for number in (1, 2):
        assert cli.main([*TINY, results, f"shard={number}/2"]) == 0
        assert made(capsys.readouterr().out) == 3  # a sample of the reference and of each of two methods
    same(tmp_path / "shards", undisturbed)
    assert cli.main([*TINY, results]) == 0
    assert made(capsys.readouterr().out) == 0


def test_what_is_finished_as_a_whole_is_finished_as_shards(tmp_path):
    """So that no file of it is opened again."""
    assert cli.main([*TINY, f"results={tmp_path}"]) == 0
    whole = jobs(TINY, tmp_path)
    thirds = [jobs_of(shards.take([job.run for job in whole], shards.Shard(number, 3))) for number in (1, 2, 3)]
    assert all(integrity.settled(job) for job in [*whole, *itertools.chain(*thirds)])
    sample = whole[1].run.samples[0]
    whole[1].files(*sample).latent.unlink()
    assert not any(integrity.settled(job) for third in thirds for job in third if job.id == whole[1].id)


def test_lines_for_a_job_array(tmp_path, capsys):
    assert cli.main([*TINY, f"results={tmp_path / 'a b'}", "shards=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    run = [line for line in lines if not line.startswith("#")]
    assert [line.rpartition("shard=")[2].split()[0] for line in run[:3]] == ["1/3", "2/3", "3/3"]
    assert f"'results={tmp_path / 'a b'}'" in run[0]
    assert any("shard=$SLURM_ARRAY_TASK_ID/3" in line and "sbatch --array=1-3" in line for line in lines)
    assert not (tmp_path / "a b").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "''", "1/1000000"])
def test_a_bad_shard_is_one_line(tmp_path, capsys, shard):
    assert cli.main([f"results={tmp_path}", f"shard={shard}"]) == 2
    assert "shard must be i/n with i from 1 to n" in capsys.readouterr().err


def test_a_plan_is_of_the_shard_and_the_stages_that_are_asked_for(tmp_path, capsys):
    words = ("model=wan", "method=uniform", f"results={tmp_path}", "prompts.limit=3", "prompts.seeds=[0,1]")
    whole, half = planned(capsys, *words), planned(capsys, *words, "shard=1/2")
    assert half["totals"]["videos_missing"] == whole["totals"]["videos_missing"] // 2
    for stages in ("score", "latency"):
        assert planned(capsys, *words, f"stages=[{stages}]")["totals"]["videos_missing"] == 0
    assert planned(capsys, *words, "stages=[generate,score]")["timings"] == []
    none, uniform = whole["runs"]
    (timings,) = planned(capsys, *words, "latency.prompts=2", "latency.repeats=5")["timings"]
    assert (timings["model"], timings["calls"]) == ("wan", 2 * 5 * 3)  # the reference for itself, and with the method
    assert timings["pmacs"] == pytest.approx(2 * 5 * (2 * none["pmacs"] + uniform["pmacs"]))
