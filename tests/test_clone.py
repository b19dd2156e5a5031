"""What a user's runs write is not git's: a clone is clean after them, and no experiment writes to what is published."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from . import forks

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
SMALL = ["model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64", "model.sampling.steps=4"]


AUTHOR = ["-c", "user.name=test", "-c", "user.email=test", "-c", "commit.gpgsign=false"]
# Twice what a record would say of the code, the second time after a change.
CHANGED = """
from pathlib import Path
from pcbench import provenance
first = provenance.revision()
Path("methods/__init__.py").open("a").write("\\n")
provenance.revision.cache_clear()
print(first["commit"], first["dirty"], provenance.revision()["dirty"])
"""


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    try:
        return [name for name in git(ROOT, "ls-files", "-z").split("\0") if (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")


@pytest.fixture(scope="module")
def clone(tracked, tmp_path_factory) -> Path:
    """A checkout of its own of what git tracks here, as it is now."""
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "-c", "core.compression=0", "add", "--all")
    git(folder, *AUTHOR, "commit", "-qm", "all")
    return folder


def changes(clone: Path) -> str:
    return git(clone, "status", "--porcelain")


def test_a_clone_has_every_file(clone, tracked):
    """.gitignore leaves nothing out that is published or part of the program."""
    assert git(clone, "ls-files", "-z") == "".join(f"{name}\0" for name in sorted(tracked, key=str.encode))
    assert changes(clone) == ""


def test_a_clone_is_clean_after_a_users_runs(clone):
    runs = (
        ["pcbench", "+experiment=demo", "method=precisecache_base", *SMALL, "prompts.limit=1", "latency.repeats=1"],
        ["pcbench", "+experiment=fidelity", "method=teacache", *SMALL, "prompts.limit=1", "fidelity=raw"],
        ["pcbench.benchmark", "model=tiny_wan", *SMALL],
        ["analysis", "tables", "results"],
    )
    for words in runs:
        done = forks.module(words, clone)
        assert done.returncode == 0, done.stderr
    for written in ("results/records", "results/samples", "results/fidelity/records", "results/benchmarks", "tables"):
        assert any((clone / written).iterdir())
    assert changes(clone) == ""


def test_a_record_says_whether_the_code_was_changed(clone):
    done = forks.code(CHANGED, clone)
    git(clone, "checkout", "-q", "methods/__init__.py")
    assert done.stdout.split() == [git(clone, "rev-parse", "HEAD").strip(), "False", "True"], done.stderr


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_experiment_writes_to_what_git_tracks(path, tracked):
    folders = re.findall(r"(?m)^results: (.+)$", path.read_text()) or ["results"]
    for folder in folders:
        record = f"{folder}/records/machine/model/method-id.json"
        assert git(ROOT, "check-ignore", record) == f"{record}\n"
    assert git(ROOT, "ls-files", "results/published/*/samples") == ""
