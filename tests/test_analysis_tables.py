"""Tables from records: the paper's layouts, intervals, reasons for what is missing, and three forms of one table."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.load import benches
from analysis.render import DASH, Block, Cell, Table
from analysis.tables import main, tables, worst_table

from .analysis_parts import NO_LPIPS, ours, record, spread, table1, write

ROOT = Path(__file__).parents[1]


def table(results, name):
    return next(each for each in tables(results) if each.name == name)


def rows(found: Table, block: int = 0) -> dict[str, dict[str, Cell]]:
    return {row[0].text: dict(zip(found.columns, row, strict=True)) for row in found.blocks[block].rows}


def test_table_1_has_the_papers_rows_and_columns(tmp_path):
    write(tmp_path / "table1", *table1(), *table1(model="tiny_hunyuan"))
    found = table(tmp_path, "table1")
    assert found.columns == (
        "Method", "MACs (P) ↓", "MACs ÷ ↑", "Speedup ↑", "Latency (s) ↓",
        "VBench ↑", "LPIPS ↓", "SSIM ↑", "PSNR (dB) ↑", "n",
    )  # fmt: skip
    assert [block.heading for block in found.blocks] == [
        "tiny_hunyuan, 29×128×128, 50 steps; m",
        "tiny_wan, 29×128×128, 50 steps; m",
    ]
    assert list(rows(found)) == [
        "tiny_hunyuan (T = 50)", "PAB", "TeaCache", "fewer_steps",
        "PreciseCache-base", "PreciseCache-turbo", "PreciseCache-flash",
    ]  # fmt: skip
    assert "tiny_wan: no record of FasterCache." in found.notes


def test_a_row_says_what_its_record_says(tmp_path):
    write(tmp_path / "table1", *table1())
    row = rows(table(tmp_path, "table1"))["PreciseCache-base"]
    assert (row["MACs (P) ↓"].value, row["MACs ÷ ↑"].value) == pytest.approx((1 / 1.6, 1.6))
    assert row["PSNR (dB) ↑"].value == 46.5  # of 45, 46, 47 and 48
    assert 45 <= row["PSNR (dB) ↑"].low < 46.5 < row["PSNR (dB) ↑"].high <= 48
    assert row["Speedup ↑"].words() == ("1.60×", "[1.50, 1.70]")
    assert row["Latency (s) ↓"].words() == ("6.25", "")  # three calls of the same length
    assert row["n"].value == 4


def test_a_speedup_is_of_all_videos_not_of_the_timed_one(tmp_path):
    """The timed prompt computed half as much as the mean one: four times fewer MACs, 3.2 times faster."""
    made = ours("base", 2.0, 40.0, alpha=0.5)
    made["latency"]["speedup"] = spread([3.2])
    made["latency"]["speedup_over_macs_speedup"] = spread([0.75, 0.8, 0.85])
    write(tmp_path / "table1", record("none", 1.0, None), made)
    assert rows(table(tmp_path, "table1"))["PreciseCache-base"]["Speedup ↑"].words() == ("1.60×", "[1.50, 1.70]")


def test_only_what_the_record_says_is_a_preset_has_its_name(tmp_path):
    """Settings that look like Turbo's are not, where one field is another's; nor are records from before presets."""
    alike = record("precisecache", 2.1, 30.0, alpha=0.7, block_cache_rate=0.0, reuse="prediction", accumulate=False)
    write(tmp_path / "table1", *table1(), alike, record("teacache", 2.5, 33.0, threshold=0.2))
    found = rows(table(tmp_path, "table1"))
    assert {"TeaCache", "teacache threshold=0.2", "PreciseCache-turbo"} <= set(found)
    assert sum(name.startswith("precisecache alpha=0.7") for name in found) == 1


def test_both_readings_have_a_row(tmp_path):
    write(tmp_path / "table1", *table1(), ours("trial_turbo", 3.0, 30.0, alpha=0.7, reference="previous_trial"))
    names = list(rows(table(tmp_path, "table1")))
    assert names[-4:] == [
        "PreciseCache-base",
        "PreciseCache-turbo",
        "PreciseCache-flash",
        "PreciseCache-turbo (trial to trial)",
    ]


def test_two_machines_share_no_block(tmp_path):
    write(tmp_path / "mine", *table1("slow"), *table1("fast"))
    found = table(tmp_path, "mine")
    assert [block.heading.rpartition("; ")[2] for block in found.blocks] == ["fast", "slow"]
    assert [len(block.rows) for block in found.blocks] == [7, 7]


def test_two_references_share_no_block(tmp_path):
    other = [data | {"reference": "other", "id": f"other {data['id']}"} for data in table1()]
    write(tmp_path / "mine", *table1(), *other)
    headings = [block.heading for block in table(tmp_path, "mine").blocks]
    assert len(set(headings)) == 2
    assert headings[1].endswith("; against other")


def test_what_is_missing_says_why(tmp_path):
    untimed = record("pab", 1.3, None, preset="pab", spatial_range=2) | {"latency": None}
    failed = record("dbcache", threshold=0.1) | {"status": "failed", "error": "out of memory", "samples": []}
    write(tmp_path / "table1", record("none"), untimed, failed)
    found = table(tmp_path, "table1")
    row = rows(found)["PAB"]
    assert row["PSNR (dB) ↑"].missing
    assert row["SSIM ↑"].value == 1
    told = "\n".join(found.all_notes())
    assert f"{DASH} in LPIPS (1 of 3 rows): {NO_LPIPS}." in told
    assert "in PSNR (dB) (1 of 3 rows): every video is identical" in told
    assert "latency was not measured" in told
    assert "VBench was not scored" in told
    assert "tiny_wan, dbcache: failed: out of memory" in told


def test_vbench_is_its_total_or_what_lacks(tmp_path):
    whole, half = record("pab", 1.3, 30.0, preset="pab"), record("teacache", 1.9, 30.0)
    whole["vbench"] = [{"total": 0.8123, "missing": []}]
    half["vbench"] = [{"total": None, "missing": ["scene: not scored", "color: not scored"]}]
    write(tmp_path / "table1", record("none"), whole, half)
    found = table(tmp_path, "table1")
    assert rows(found)["PAB"]["VBench ↑"].words() == ("81.23%", "")
    assert "VBench's protocol is incomplete: scene: not scored, and 1 more" in "\n".join(found.all_notes())


def test_table_2_has_a_row_for_each_number_of_devices(tmp_path):
    one, four = table1()[5], table1()[5]
    four["recipe"]["numerics"]["parallel"] = 4
    four |= {"id": "four", "reference": "none on four"}
    for data in (one, four):
        data |= {"samples": [], "macs": None}  # latency alone
    four["latency"]["speedup"] = {"median": 1.9, "min": 1.9, "max": 1.9}
    write(tmp_path / "table2", record("none"), one, four)
    found = table(tmp_path, "table2")
    assert [block.heading for block in found.blocks] == ["m"]
    assert list(rows(found)) == ["1", "4"]
    assert rows(found)["4"]["Speedup ↑"].value == 1.9
    assert rows(found)["1"]["uncached (s)"].value == 10


def test_tables_3_and_4_are_in_the_papers_order(tmp_path):
    factors = [record("precisecache", 2.0, 30.0, downsample_factor=f) for f in ([4, 4, 4], [1, 2, 2], [2, 4, 4])]
    write(tmp_path / "table3", record("none"), *factors)
    assert list(rows(table(tmp_path, "table3"))) == ["Baseline", "1×2×2", "2×4×4", "4×4×4"]
    reuses = [record("precisecache", 2.0, 30.0, reuse=r, damping=1.0) for r in ("taylorseer", "residual", "prediction")]
    damped = record("precisecache", 2.0, 30.0, reuse="extrapolate", damping=0.5)
    write(tmp_path / "table4", record("none"), *reuses, damped)
    assert list(rows(table(tmp_path, "table4")))[1:] == [
        "Reuse prediction (F)", "Reuse residuals (R)", "TaylorSeer", "Reuse: extrapolate, damping 0.5",
    ]  # fmt: skip
    assert not [each.name for each in tables(tmp_path) if "equal" in each.name]  # no line leads from one to another


def test_any_folder_gets_the_general_table(tmp_path):
    write(tmp_path / "mine" / "first", *table1())
    found = table(tmp_path, "mine-first")
    told = rows(found)
    assert list(told)[:2] == ["none", "pab"]  # the reference, then what computes most
    assert told["precisecache alpha=0.5 block_cache_rate=0.0"]["Pareto"].text == "●"
    assert told["fewer_steps"]["Pareto"].missing
    assert told["fewer_steps"]["worst"].value == 35
    assert "LPIPS ↓" not in found.columns  # of which no record has one
    assert "mine-first-equal-speed" in {each.name for each in tables(tmp_path)}


def test_the_worst_prompt_is_beside_the_mean_even_where_no_video_has_a_psnr(tmp_path):
    write(tmp_path / "mine", record("none"), record("pab", 1.3, None))
    columns = table(tmp_path, "mine").columns
    assert columns.index("worst") == columns.index("PSNR (dB) ↑") + 1


MEMORY = "Peak memory (GiB) ↓"


def test_peak_memory_is_shown_where_it_was_measured(tmp_path):
    measured, not_measured = record("pab", 1.3, 30.0), record("teacache", 1.9, 40.0)
    measured["latency"] |= {"peak_gpu_bytes": 3 * 2**29, "reference_peak_gpu_bytes": 2**30}
    not_measured["latency"]["peak_gpu_bytes"] = None
    write(tmp_path / "mine", record("none") | {"latency": None}, measured, not_measured)
    found = table(tmp_path, "mine")
    shown = {name: row[MEMORY].words()[0] for name, row in rows(found).items()}
    assert shown == {"none": DASH, "pab": "1.50", "teacache": DASH}
    assert f"{DASH} in Peak memory (GiB) (1 of 3 rows): peak memory is that of a GPU; torch counts none on a CPU." in (
        found.all_notes()
    )


def test_where_no_gpu_was_used_a_note_says_so_and_no_column(tmp_path):
    write(tmp_path / "mine", *table1())
    found = table(tmp_path, "mine")
    assert MEMORY not in found.columns
    assert any(note.startswith("Peak memory:") and "torch counts none on a CPU" in note for note in found.notes)


def test_the_papers_tables_get_both_where_asked_for(tmp_path):
    write(tmp_path / "table1", *table1())
    (found, *_) = tables(tmp_path, more=True)
    assert found.columns[-4:] == ("PSNR (dB) ↑", "worst", MEMORY, "n")
    assert rows(found)["PAB"]["worst"].value == 30
    assert rows(found)["PAB"][MEMORY].missing
    assert main([str(tmp_path), "--more", "--out", str(tmp_path / "out")]) == 0
    assert MEMORY in (tmp_path / "out" / "table1.md").read_text()


def test_another_convention_may_be_asked_for(tmp_path, capsys):
    scored = record("pab", 1.3, 30.0, preset="pab")
    for sample in scored["samples"]:
        sample["fidelity"]["videosys.psnr@1"] = 25.0
    write(tmp_path / "table1", record("none"), scored)
    found = next(each for each in tables(tmp_path, "videosys") if each.name == "table1")
    assert rows(found)["PAB"]["PSNR (dB) ↑"].value == 25
    assert main([str(tmp_path), "--convention", "magic"]) == 2
    assert capsys.readouterr().err == "analysis: no record has scores by 'magic'; there are: raw, videosys\n"


def test_a_mean_is_as_its_convention_takes_it(tmp_path):
    """VideoSys averages batches of 16 videos first, so the short last one weighs more; the record says the result."""
    scored = record("pab", 1.3, 30.0) | {"fidelity": {"videosys.psnr@1": {"mean": 27.0}}}
    for sample in scored["samples"]:
        sample["fidelity"]["videosys.psnr@1"] = sample["fidelity"]["psnr@2"]
    write(tmp_path / "mine", record("none"), scored)
    (found, *_) = tables(tmp_path, "videosys")
    cell, plain = rows(found)["pab"]["PSNR (dB) ↑"], rows(table(tmp_path, "mine"))["pab"]["PSNR (dB) ↑"]
    assert (cell.value, plain.value) == (27.0, 31.5)
    assert (cell.low - 27.0, cell.high - 27.0) == pytest.approx((plain.low - 31.5, plain.high - 31.5))


def test_a_metrics_version_is_the_newest_that_the_block_was_scored_by(tmp_path):
    """Records of another machine in the same folder may have a newer one."""
    older = [record("none", machine="old"), record("pab", 1.3, 30.0, machine="old")]
    for sample in older[1]["samples"]:
        sample["fidelity"] = {"psnr@1": 30.0, "ssim@1": 0.9}
    write(tmp_path / "mine", *older, record("none"), record("pab", 1.3, 30.0))
    found = table(tmp_path, "mine")
    by_machine = {block.heading.rpartition("; ")[2]: rows(found, at)["pab"] for at, block in enumerate(found.blocks)}
    assert by_machine["old"]["SSIM ↑"].value == pytest.approx(0.9)
    assert by_machine["m"]["SSIM ↑"].value == pytest.approx(0.315)


def test_the_worst_prompts_and_who_is_worst_on_them(tmp_path):
    found = table1()
    found[3]["samples"][2]["fidelity"]["psnr@2"] = 1.0
    write(tmp_path, *found)
    (worst,) = worst_table("x", benches(tmp_path), count=2)
    first, second = worst.blocks[0].rows
    assert (first[0].text, first[3].value, first[4].text, first[5].value) == ("c (seed 0)", 1.0, "fewer_steps", 6)
    assert second[0].text == "a (seed 0)"
    assert first[1].value == pytest.approx((32 + 42 + 1 + 47 + 40 + 32) / 6)


SMALL = Table(
    "x",
    "50 % of a_b",
    ("method", "Speedup ↑"),
    [Block("wan_1|3b", [[Cell(text="a_b"), Cell(1.5, 1.25, 1.75, unit="×")], [Cell(text="c"), Cell(why="lost")]])],
    ["first & last"],
)


def test_markdown():
    assert SMALL.markdown().splitlines() == [
        "**50 % of a_b**",
        "",
        "| method | Speedup ↑ |",
        "| --- | ---: |",
        "| **wan_1\\|3b** |  |",
        "| a_b | 1.50× [1.25, 1.75] |",
        "| c | – |",
        "",
        "- first & last",
        "- – in Speedup (1 of 2 rows): lost.",
    ]


def test_latex():
    text = SMALL.latex()
    assert r"a\_b & 1.50$\times$ \\[-3pt]" in text
    assert r" & {\tiny [1.25, 1.75]} \\" in text
    assert r"c & -- \\" in text
    assert r"\multicolumn{2}{l}{\textbf{wan\_1$|$3b}} \\" in text
    assert r"\caption{50 \% of a\_b}" in text
    assert r"first \& last" in text
    assert text.isascii()
    assert text.count(r"\begin{") == text.count(r"\end{") == 3
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def _no_latex() -> bool:
    """Whether LaTeX or the packages that a table needs are missing."""
    if shutil.which("pdflatex") is None:
        return True
    found = subprocess.run(["kpsewhich", "booktabs.sty", "adjustbox.sty"], capture_output=True, text=True)
    return len(found.stdout.split()) < 2


@pytest.mark.skipif(_no_latex(), reason="pdflatex with booktabs and adjustbox is not installed")
def test_latex_compiles_and_fits_the_page(tmp_path):
    """Every table of the committed records, between the margins of the plainest class."""
    made = tables(ROOT / "results" / "published")
    inputs = [table.write(tmp_path)[1].name for table in made]
    body = "".join(rf"\input{{{name}}}\clearpage" for name in inputs)
    head = r"\documentclass{article}\usepackage{booktabs,adjustbox}\begin{document}"
    (tmp_path / "all.tex").write_text(head + body + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(made) > 20
    for complaint in ("Missing character", "Overfull", "Float too large"):
        assert complaint not in done.stdout


def test_csv_has_numbers_in_full():
    told = list(csv.DictReader(io.StringIO(SMALL.csv())))
    assert list(told[0].values()) == ["wan_1|3b", "a_b", "1.5", "1.25", "1.75"]
    assert list(told[1].values()) == ["wan_1|3b", "c", "", "", ""]
    assert list(told[0]) == ["block", "method", "Speedup", "Speedup low", "Speedup high"]


def test_an_interval_narrower_than_the_digits_is_not_shown():
    assert Cell(1.0, 0.999, 1.001).words() == ("1.00", "")
    assert Cell(1.0, float("nan"), float("nan")).interval is None
    assert Cell(float("nan")).words() == (DASH, "")


def test_every_table_of_a_folder_is_written_alike_each_time(tmp_path, capsys):
    write(tmp_path / "results" / "table1", *table1())
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "one")]) == 0
    assert "4 tables (" in capsys.readouterr().out
    assert main([str(tmp_path / "results"), "--out", str(tmp_path / "two")]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 12
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    capsys.readouterr()
    assert main([str(tmp_path / "results"), "--out", "-"]) == 0
    assert "| PreciseCache-turbo |" in capsys.readouterr().out
