"""The published numbers, beside ours and against themselves."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis.paper import audit as audits
from analysis.paper.audit import audit, wan_macs
from analysis.paper.compare import compare, main
from analysis.paper.published import TABLES, published

from .analysis_parts import record, table1, write


@pytest.mark.parametrize("name", TABLES)
def test_every_published_row_has_a_source(name):
    table = published(name)
    assert table["source"].notna().all()
    assert not table.duplicated().any()


def test_published_numbers_are_in_range():
    for name in TABLES:
        table = published(name)
        for column, low, high in (("lpips", 0, 1), ("ssim", 0, 1), ("psnr", 10, 50), ("vbench", 60, 100)):
            values = table.get(column, pd.Series(dtype=float)).dropna()
            assert values.between(low, high).all(), (name, column)
    assert len(published("table1")) == 4 * 7


def test_tables_2_to_4_repeat_what_table_1_prints():
    two = published("table2")
    ratio = two.groupby("model")["latency_s"].transform("first") / two["latency_s"]
    assert (ratio - two["scaling"]).abs().max() < 0.02
    four = published("table4").set_index("strategy")
    assert four.loc["prediction", "lpips"] == published("table3").set_index("factor").loc["2x4x4", "lpips"]


def lines(table):
    return {(row[0].text, row[1].text): row for block in table.blocks for row in block.rows}


def test_ours_stands_beside_table_1(tmp_path):
    write(tmp_path / "table1", *table1())
    found = {table.name: table for table in compare(tmp_path)}
    told = lines(found["compare-table1"])
    _, _, paper, ours, apart, n = told["PreciseCache-base", "speedup"]
    assert (paper.value, ours.value, n.value) == (1.59, 1.6, 4)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.01, -0.09, 0.11))
    assert told["PreciseCache-base", "MACs ÷"][2].value == pytest.approx(329.2 / 204.5)
    assert told["PreciseCache-base", "VBench − uncached"][2].value == pytest.approx(-0.06)
    assert told["PreciseCache-base", "PSNR, dB"][4].value == pytest.approx(46.5 - 29.12)
    assert told["FasterCache", "speedup"][3].missing
    assert "tiny_ models are toy twins" in found["compare-table1"].markdown()


def test_seconds_are_shown_and_never_subtracted(tmp_path):
    write(tmp_path / "table1", *table1())
    table = compare(tmp_path)[0]
    seconds = [row for row in lines(table).values() if row[1].text == "latency, s"]
    assert len(seconds) == 6
    assert all(row[4].text == "not compared" for row in seconds)
    assert any(row[3].value == 6.25 for row in seconds)


def test_tables_2_to_4_are_matched_by_what_they_vary(tmp_path):
    where = {"alpha": 0.7, "block_cache_rate": 0.0}
    write(tmp_path / "table2", record("none"), record("precisecache", 2.0, 30.0, **where))
    write(tmp_path / "table3", record("none"), record("precisecache", 2.0, 30.0, downsample_factor=[2, 4, 4], **where))
    write(tmp_path / "table4", record("none"), record("precisecache", 2.0, 30.0, reuse="residual", **where))
    two, three, four = (lines(table) for table in compare(tmp_path))
    assert two["1", "speedup"][2].value == pytest.approx(3326 / 1330)
    assert two["1", "speedup"][3].value == 2.0
    assert two["8", "speedup"][3].missing
    assert three["2x4x4", "speedup"][4].value == pytest.approx(2.0 - 2.18)
    assert three["1x2x2", "speedup"][3].missing
    assert four["residual", "LPIPS"][2].value == 0.0791
    assert four["residual", "LPIPS"][3].why == "LPIPS needs a package"


def test_peers_are_shown_beside_ours(tmp_path):
    write(tmp_path / "table1", *table1(model="tiny_hunyuan"))
    peers = next(table for table in compare(tmp_path) if table.name == "compare-peers")
    block = next(block for block in peers.blocks if block.heading == "TeaCache on hunyuan")
    assert block.rows[0][0].text == "ours"
    assert {"MagCache", "EasyCache", "PreciseCache"} <= {row[0].text for row in block.rows}
    assert "−" not in "".join(peers.columns)


def test_nothing_to_compare_is_one_line(tmp_path, capsys):
    write(tmp_path / "mine", record("none"))
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"analysis: no records of table1 to table4 under {tmp_path}")


def test_wans_macs_are_those_of_its_blocks():
    assert 100 * wan_macs(720, 1280) / 1e15 == pytest.approx(326.2, abs=0.1)  # the harness's own count, docs/results.md


def test_the_audit_finds_what_is_known():
    found = audit()
    said = dict(found)
    assert said["Table 1, opensora"].startswith("6 of 6 speedups are not the ratio")
    assert "48.2 s instead of 47.23" in said["Table 1, opensora"]
    assert "1080P would be 272% of an A800's peak" in said["Table 2, wan"]
    assert "0.0633" in said["Tables 1, 3, 4"]
    assert "0.0793" in said["Tables 1, 3, 4"]
    assert {"Table 3, 1x2x2", "Table 3, 1x4x4", "Table 1, hunyuan"} <= set(said)
    assert not any(where.startswith("Table 1, cogvideox") for where, _ in found)


def test_the_audit_is_of_the_numbers(monkeypatch):
    """A paper without contradictions has none found."""
    tables = {name: published(name) for name in TABLES}
    one = tables["table1"]
    first = one.groupby("model")[["latency_s", "pmacs"]].transform("first")
    one["speedup"] = (first["latency_s"] / one["latency_s"]).round(2)
    one["pmacs"] = first["pmacs"] * one["latency_s"] / first["latency_s"]
    one.loc[one["method"] == "none", "vbench"] = 50.0
    tables["table2"]["latency_s"] *= 10.0
    monkeypatch.setattr(audits, "published", lambda name: tables[name].copy())
    assert [where for where, _ in audits._speedups()] == ["Table 1"]
    assert audits._macs() == []
    assert audits._borrowed() == []
    assert "27% of an A800's peak" in audits._size()[0][1]
    assert math.isclose(tables["table1"]["speedup"].max(), 2.63)
