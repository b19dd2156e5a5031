"""docs/ says what results/ says: tables, figures and the rows of docs/comparison.md, made anew from the records.

`python -m analysis tables results --out docs/tables; python -m analysis figures results --out docs/figures` brings them
up to date. Records that git does not know, of somebody's own runs, are left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis import figures
from analysis.tables import tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The committed records alone."""
    listed = subprocess.run(["git", "ls-files", "-z", "results"], cwd=ROOT, capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("not a git checkout: which records are committed is not known")
    folder = tmp_path_factory.mktemp("committed")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder / "results"


@pytest.fixture(scope="module")
def made(results) -> dict[str, str]:
    return {table.name: table.markdown() for table in tables(results)}


def committed(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.md")}


def test_tables_are_those_of_the_records(made):
    assert committed(DOCS / "tables") == made


def test_figures_are_those_of_the_records(results):
    drawings, _ = figures.drawings(results)
    said = committed(DOCS / "figures")
    assert said.pop("claims") == figures.claims_table(drawings)
    assert said == {drawing.name: drawing.caption for drawing in drawings}
    assert {path.stem for path in (DOCS / "figures").glob("*.png")} == said.keys()


def test_rows_of_the_comparison_are_rows_of_the_tables(made, results):
    against = tables(results / "methods", against="precisecache prediction")
    known = {line for text in [*made.values(), *(table.markdown() for table in against)] for line in text.splitlines()}
    rows = [line for line in (DOCS / "comparison.md").read_text().splitlines() if re.match(r"\|.*\d\.\d\d", line)]
    assert len(rows) > 50
    assert [row for row in rows if row not in known] == []
