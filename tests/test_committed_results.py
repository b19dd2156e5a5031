"""docs/ says what results/published says: tables, figures and rows in documents, made anew from the records.

The notebooks make them, and so are tried as well. results/README.md has the commands that bring docs/ up to date. What
git does not know is left out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.load import experiments
from analysis.tables import tables
from pcbench.sampling.generate import write_video
from pcbench.store import Place, records

from .notebook_parts import execute, needs_kernel, shown

pytestmark = needs_kernel
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STRIPS = ("table1", "figures")  # whose figures show videos, which are not in git
MADE = "import json\nprint(json.dumps({name: table.markdown() for name, table in made.items()}))"  # in tables.ipynb


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The committed records alone, in a folder that has the notebooks, too."""
    listed = subprocess.run(["git", "ls-files", "-z", "results/published"], cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("not a git checkout: which records are committed is not known")
    folder = tmp_path_factory.mktemp("committed")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for experiment in STRIPS:
        stand_ins(folder / "results" / "published" / experiment)
    return folder / "results" / "published"


def stand_ins(root: Path) -> None:
    """One black video in the place of every one that the records tell of: which of them are shown is in the numbers."""
    video = root / "black.mp4"
    write_video(video, np.zeros((5, 16, 16, 3), np.uint8), fps=8)
    for record in records(root):
        model, method = (record["recipe"][part]["name"] for part in ("backbone", "method"))
        place = Place(root, record["machine"]["name"], model, method, record["id"])
        place.folder.mkdir(parents=True)
        for number, sample in enumerate(record["samples"]):
            (place.folder / f"{number}.mp4").symlink_to(video)
            trace = {"prompt": sample["prompt"], "seed": sample["seed"]}
            (place.folder / f"{number}.trace.json").write_text(json.dumps(trace))


# To cut a figure's margin off, as Jupyter does, it is drawn twice. The stand-ins are one video: it is read once.
FASTER = """%config InlineBackend.print_figure_kwargs={"dpi": 25}
import functools, gc
from analysis.figures import strips
frames = functools.cache(strips._frames)
gc.disable()
strips._frames = lambda path: frames(path.resolve())
from pathlib import Path"""
ONCE = ('"from pathlib import Path', json.dumps(FASTER).removesuffix('"'))


def run(name: str, results: Path, more: str = "") -> list[dict[str, Any]]:
    """What a notebook shows of these records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return execute(results.parents[1] / "notebooks" / name, ONCE, more=more)


@pytest.fixture(scope="module")
def tables_shown(results) -> list[dict[str, Any]]:
    return run("tables.ipynb", results, more=MADE)


@pytest.fixture(scope="module")
def made(tables_shown) -> dict[str, str]:
    return json.loads(tables_shown[-1]["text"])


def committed(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.md")}


def test_tables_are_those_of_the_records(made):
    assert committed(DOCS / "tables") == made


def test_the_tables_notebook_shows_every_experiment(tables_shown, results):
    found = shown(tables_shown, "text/markdown")
    titles = [table.splitlines()[0] for table in found]
    for name in experiments(results):
        assert any(name.replace("/", "-") in title or name.removeprefix("table") in title for title in titles)
    assert any("against itself" in title for title in titles)
    assert all("| ---" in table for table in found)


def test_figures_are_those_of_the_records(results):
    """What is said of them; and the notebook shows them all."""
    outputs = run("figures.ipynb", results)
    said = committed(DOCS / "figures")
    pictures = {path.stem for path in (DOCS / "figures").glob("*.png")}
    assert pictures == said.keys() - {"claims"}
    claims, *captions = shown(outputs, "text/markdown")
    assert claims == said.pop("claims")
    assert sorted(captions) == sorted(said.values())
    assert len(shown(outputs, "image/png")) == len(said)


def rows(text: str) -> list[str]:
    """The rows of Markdown tables that have numbers in them."""
    return [line for line in text.splitlines() if re.match(r"\|.*\d\.\d\d", line)]


def test_rows_of_the_comparison_are_rows_of_the_tables(made, results):
    against = tables(results / "methods", against="precisecache prediction")
    known = {line for text in [*made.values(), *(table.markdown() for table in against)] for line in text.splitlines()}
    compared = rows((DOCS / "comparison.md").read_text())
    assert len(compared) > 50
    assert [row for row in compared if row not in known] == []


def test_rows_of_the_results_are_rows_of_the_tables(made):
    """Table 1 on the bundled backbones, and the answers to the paper's claims."""
    known = {
        line for text in [*made.values(), (DOCS / "figures" / "claims.md").read_text()] for line in text.splitlines()
    }
    sections = re.split(r"(?m)^## ", (DOCS / "results.md").read_text())
    (table,) = [each for each in sections if each.startswith("Table 1 on the bundled")]
    (claims,) = [each for each in sections if each.startswith("What the figures say")]
    assert len(rows(table)) >= 7
    assert len(rows(claims)) >= 7
    assert [row for row in rows(table + claims) if row not in known] == []
