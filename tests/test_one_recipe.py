"""Several runs of one recipe, as a sweep over prompts or seeds has them: nothing of any of them is dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pcbench import cli, plan
from pcbench.job import Job, distinct, jobs_of
from pcbench.launch import shards
from pcbench.launch.progress import Watch

from .launch_parts import TINY, jobs

SWEEPS = {
    "prompts": (["prompts=smoke,held_out", "prompts.limit=2"], 4),
    "seeds": (["prompts.limit=1", "prompts.seeds=[0],[1],[2]"], 3),
    "both": (["prompts=smoke,held_out", "prompts.limit=2", "prompts.seeds=[0],[1,2]"], 12),
}


@pytest.fixture(params=SWEEPS)
def sweep(request, tmp_path: Path) -> tuple[list[Job], int]:
    """The jobs, and the samples of each of the two recipes, the reference and a method."""
    words, count = SWEEPS[request.param]
    return jobs(["-m", "model=tiny_wan", "method=none,fora", *words], tmp_path), count


def test_every_recipe_is_there_once_with_the_samples_of_all_its_runs(sweep):
    whole, count = sweep
    found = distinct(whole)
    assert [job.run.label for job in found] == ["none", "fora"]
    wanted = {sample for job in whole for sample in job.run.samples}
    assert all(set(job.run.samples) == wanted and len(job.run.samples) == count for job in found)


def test_every_sample_is_in_a_shard_and_counted_and_planned(sweep):
    whole, count = sweep
    parts = shards.units(whole)
    assert (len(parts), {unit.videos for unit in parts}) == (count, {2})
    own = [shards.take([job.run for job in whole], shards.Shard(number, 2)) for number in (1, 2)]
    taken = {(run.label, *sample) for runs in own for run in runs for sample in run.samples}
    assert taken == {(job.run.label, *sample) for job in whole for sample in job.run.samples}
    assert [len(job.run.samples) for job, _ in plan.priced(whole)] == [count, count]
    launch = SimpleNamespace(machines=list)
    assert Watch(whole, launch).count().total == 2 * count


def test_two_results_folders_are_two_recipes(tmp_path):
    (job, *_) = jobs(["-m", "model=tiny_wan", "method=fora", "prompts.limit=1"], tmp_path)
    other = replace(job.run, results=tmp_path / "other")
    assert len(distinct([job, *jobs_of([other])])) == 4


def test_the_table_at_the_end_is_of_all_of_them(tmp_path, capsys):
    words = [*TINY, "method=fora", "prompts=smoke,held_out", "prompts.limit=1", f"results={tmp_path}"]
    assert cli.main(words) == 0
    lines = [line.strip(" │").split() for line in capsys.readouterr().out.splitlines()]
    rows = [(line[0], line[-1]) for line in lines if "│" in line and line[0] in {"none", "fora"}]
    assert rows == [("none", "2"), ("fora", "2")]
