"""The wheels: built, installed, run in an empty folder without the clone; and what may hide a part of the program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forks
from tests.test_clone import AUTHOR, git, tracked  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
LIMIT = 30e6  # bytes
TWINS = ("tiny_cogvideox", "tiny_hunyuan", "tiny_opensora")  # in a wheel of their own
TINY = ["model.sampling.steps=5", "model.sampling.frames=5", "model.sampling.height=64", "model.sampling.width=64",
        "prompts.limit=1", "stages=[generate,score]"]  # fmt: skip
PLAN = ["pcbench", "method=uniform", "plan=true"]


def built(project: Path, out: Path) -> Path:
    """The wheel of a project folder, made without a network."""
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(project))
    (wheel,) = out.glob("*.whl")
    return wheel


def pip(command: str, *words: str) -> None:
    """Without a network and without what the wheels depend on, which is here."""
    command_line = [sys.executable, "-m", "pip", command, "--quiet", "--no-index", "--no-deps", *words]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tracked, tmp_path_factory) -> list[Path]:  # noqa: F811
    """pcbench's and that of the other twins, of the files that git tracks, as they are now."""
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    for name in tracked:
        if not name.startswith(("docs/", "results/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    twins = built(source / "pcbench" / "tiny" / "weights", folder / "twins")
    return [built(source, folder / "main"), twins]


@pytest.fixture(scope="module")
def site(wheels, tmp_path_factory) -> Path:
    """Where pcbench's wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-compile", "--target", str(folder), str(wheels[0]))
    return folder


@pytest.fixture
def empty(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(
    words: list[str], folder: Path, path: Path | str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """`python -m …` in a folder, with `path` for PYTHONPATH; by an interpreter of its own, unless it is this one's."""
    if python == sys.executable:
        return forks.module(words, folder, path)
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([python, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_has_the_whole_program_and_no_more(wheels, tracked):  # noqa: F811
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    code = {name for name in tracked if name.startswith(("analysis/", "methods/", "pcbench/"))}
    weights = {name for name in code if name.startswith("pcbench/tiny/weights/")}
    training = {name for name in weights if "/training/" in name}
    others = {name for name in weights if name.endswith(".safetensors") and name.split("/")[3] in TWINS}
    conf = {f"pcbench/{name}" for name in tracked if name.startswith("conf/")}
    expected = {name for name in (code | conf) - training - others if not name.endswith((".md", "/pyproject.toml"))}
    assert len(conf) > 80
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {name for name in zipfile.ZipFile(wheels[1]).namelist() if ".dist-info/" not in name} == others
    assert wheels[0].stat().st_size <= LIMIT


def test_an_installed_wheel_runs_in_an_empty_folder(site, empty):
    git(site, "init", "-q")  # somebody's own repository, whose commit is none of pcbench's
    git(site, *AUTHOR, "commit", "-qm", "theirs", "--allow-empty")
    plan = run(["pcbench", "plan=true"], empty, site)
    assert plan.returncode == 0, plan.stderr
    assert "tiny_wan precisecache" in plan.stdout
    done = run(["pcbench", "method=teacache", *TINY], empty, site)
    assert done.returncode == 0, done.stderr
    assert len(list(empty.glob("results/samples/*/tiny_wan/*/*.mp4"))) == 2
    for path in empty.glob("results/records/*/tiny_wan/*.json"):
        assert {each["commit"] for each in json.loads(path.read_text())["revisions"]} == {None}
    tables = run(["analysis", "tables"], empty, site)
    assert tables.returncode == 0, tables.stderr
    assert "teacache" in (empty / "tables" / "results.md").read_text()
    assert run(["analysis", "audit", "--out", "-"], empty, site).returncode == 0
    report = run(["analysis", "report"], empty, site)
    assert report.returncode == 0, report.stderr
    assert {path.name for path in empty.iterdir()} == {"results", "tables", "report"}


def test_other_twins_come_with_a_wheel_of_their_own(wheels, site, empty, tmp_path):
    words = ["pcbench", "model=tiny_hunyuan", "method=none", *TINY]
    assert run([*words, "plan=true"], empty, site).returncode == 0
    refused = run(words, empty, site)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "install pcbench-twins" in refused.stderr
    pip("install", "--no-compile", "--ignore-installed", "--prefix", str(tmp_path), *map(str, wheels))
    done = run(words, empty, Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path)})))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def editable(wheels, tmp_path_factory) -> Path:
    """The interpreter of an environment with an editable installation, beside the packages that are here."""
    folder = tmp_path_factory.mktemp("editable")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    source = wheels[0].parents[1] / "source"
    here = (sys.executable, "-m", "pip", "show", "--quiet", "pcbench")
    before = subprocess.run(here, cwd=folder).returncode
    # Without --ignore-installed, pip removes what these tests run in, --prefix or not.
    pip("install", "--no-build-isolation", "--ignore-installed", "--prefix", str(folder), "--editable", str(source))
    assert subprocess.run(here, cwd=folder).returncode == before
    return folder / "bin" / "python"


@pytest.fixture(params=["wheel", "editable"])
def start(request, empty) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python -m …` in an empty folder, of the installed wheel and of the editable installation."""
    if request.param == "wheel":
        return lambda *words: run(list(words), empty, request.getfixturevalue("site"))
    return lambda *words: run(list(words), empty, "", str(request.getfixturevalue("editable")))


@pytest.mark.parametrize("name", ["methods.py", "methods/__init__.py"])
def test_a_users_own_methods_are_told_apart(name, start, empty):
    (empty / name).parent.mkdir(exist_ok=True)
    (empty / name).write_text("")
    for module in ("pcbench", "pcbench.calibrate"):
        done = start(module, *PLAN[1:])
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"{empty / name} hides the package 'methods'" in done.stderr
    assert start("analysis", "audit", "--out", "-").returncode == 0  # which needs no methods


@pytest.mark.parametrize("name", ["analysis.py", "analysis/__init__.py"])
def test_a_run_goes_on_beside_a_users_own_analysis_and_says_so(name, start, empty):
    (empty / name).parent.mkdir(exist_ok=True)
    (empty / name).write_text("")
    done = start("pcbench.paper")  # as every other module of the package
    assert f"{empty / name} hides the package 'analysis'" in done.stderr.splitlines()[0]


def test_analysis_refuses_a_users_own_pcbench(start, empty):
    (empty / "pcbench.py").write_text("")
    done = start("analysis", "tables")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{empty / 'pcbench.py'} hides the package 'pcbench'" in done.stderr


def test_folders_without_modules_hide_nothing_or_are_told(start, empty, request):
    """Python prefers any installed package to them, but not an editable one."""
    for name in ("analysis", "conf", "methods"):
        (empty / name).mkdir()
        (empty / name / "notes.txt").write_text("mine")
    (empty / "conf" / "config.yaml").write_text("mine: true")
    (empty / "conf" / "__init__.py").write_text("")
    done = start(*PLAN)
    if "wheel" in request.node.name:
        assert (done.returncode, done.stderr) == (0, "")
        assert start("analysis", "audit", "--out", "-").returncode == 0
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{empty / 'methods'} hides the package 'methods'" in done.stderr
