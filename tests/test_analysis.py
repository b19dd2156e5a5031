"""Records to tables: numbers pass through, machines are not mixed, the README says what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.conventions import conventions_table
from analysis.load import load_samples
from analysis.tables import COLUMNS, markdown, method_table

ROOT = Path(__file__).parents[1]


def write(results: Path, name: str, alpha: float | None = None, machine: str = "m", psnr: float | None = None) -> None:
    method = {"name": name, "version": 1} | ({} if alpha is None else {"alpha": alpha, "warmup_steps": 3})
    sample = {"prompt": "p", "seed": 0, "steps": 50, "computed": 20, "macs": 4e11, "seconds": 1.0}
    record = {
        "id": f"{name}{alpha}",
        "reference": "none",
        "status": "ok",
        "recipe": {"backbone": {"name": "tiny"}, "method": method},
        "machine": {"name": machine},
        "macs": {"peta_per_video": 4e-4, "reference_peta_per_video": 1e-3, "speedup": 2.5},
        "latency": None,
        "samples": [sample | {"fidelity": {} if psnr is None else {"psnr@2": psnr}}],
    }
    path = results / "records" / machine / "tiny" / f"{record['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_a_table_names_only_what_differs(tmp_path):
    write(tmp_path, "none")
    write(tmp_path, "precisecache", 0.5, psnr=31.5)
    write(tmp_path, "precisecache", 0.7, psnr=30.0)
    table = method_table(tmp_path, "tiny")
    assert list(table["method"]) == ["none", "precisecache alpha=0.5", "precisecache alpha=0.7"]
    assert list(table["PSNR dB"]) == ["–", "31.50", "30.00"]
    assert list(table["latency s"]) == ["–"] * 3
    assert table["steps computed"][0] == "20/50"
    assert markdown(table).splitlines()[1] == "| --- |" + " ---: |" * (len(COLUMNS) - 1)


def test_calibrated_numbers_are_no_label(tmp_path):
    write(tmp_path, "teacache", 0.1)
    write(tmp_path, "teacache", 0.2)
    for number, path in enumerate(sorted(tmp_path.rglob("*.json"))):
        record = json.loads(path.read_text())
        record["recipe"]["method"] |= {
            "coefficients": [1.0, 2.0, 3.0, float(number)],
            "ratios": {"cond": [number] * 50},
        }
        path.write_text(json.dumps(record))
    assert set(method_table(tmp_path, "tiny")["method"]) == {"teacache alpha=0.1", "teacache alpha=0.2"}


def test_machines_are_not_mixed(tmp_path):
    write(tmp_path, "none", machine="a")
    write(tmp_path, "none", machine="b")
    with pytest.raises(ValueError, match="several machines: a, b"):
        method_table(tmp_path, "tiny")


def test_no_records_is_said(tmp_path):
    with pytest.raises(ValueError, match="no records of tiny"):
        method_table(tmp_path, "tiny")


def test_a_sample_has_a_row(tmp_path):
    write(tmp_path, "precisecache", 0.5, psnr=31.5)
    (row,) = load_samples(tmp_path).to_dict("records")
    assert row["psnr@2"] == 31.5
    assert row["macs"] == 4e11
    assert row["fields"] == {"alpha": 0.5, "warmup_steps": 3}


def test_an_older_psnr_stands_in_unless_it_was_capped(tmp_path):
    for alpha, scores in enumerate([{"psnr@1": 31.5}, {"psnr@1": 100.0}, {"psnr@1": 31.5, "psnr@2": 30.0}]):
        write(tmp_path, "precisecache", float(alpha), psnr=0.0)
        path = next(tmp_path.rglob(f"precisecache{float(alpha)}.json"))
        record = json.loads(path.read_text())
        record["samples"][0]["fidelity"] = scores
        path.write_text(json.dumps(record))
    found = load_samples(tmp_path).set_index("id")["psnr@2"]
    assert found["precisecache0.0"] == 31.5
    assert pd.isna(found["precisecache1.0"])
    assert found["precisecache2.0"] == 30.0


def test_conventions_side_by_side(tmp_path, capsys, monkeypatch):
    write(tmp_path, "none")
    write(tmp_path, "teacache", 0.1)
    path = next(tmp_path.rglob("teacache*.json"))
    record = json.loads(path.read_text()) | {
        "fidelity": {
            "psnr@2": {"mean": 42.123, "n": 2, "identical": 1, "unscored": 0},
            "videosys.psnr@1": {"mean": 37.0, "n": 3, "identical": 0, "unscored": 0},
            "latent_psnr@1": {"mean": 50.0, "n": 3, "identical": 0, "unscored": 0},
            "videosys.lpips@1": {"mean": None, "n": 0, "identical": 0, "unscored": 3},
        }
    }
    path.write_text(json.dumps(record))
    for other in tmp_path.rglob("none*.json"):
        other.write_text(json.dumps(json.loads(other.read_text()) | {"fidelity": {}}))
    assert conventions_table(tmp_path, "tiny", "psnr").to_numpy().tolist() == [
        ["raw", "42.12 (1 identical)"],
        ["videosys", "37.00"],
    ]
    assert conventions_table(tmp_path, "tiny", "lpips").to_numpy().tolist() == [["videosys", "not scored"]]
    with pytest.raises(ValueError, match="has a score called ssim"):
        conventions_table(tmp_path, "tiny", "ssim")


def test_the_document_on_fidelity_says_what_its_records_say():
    document = (ROOT / "docs" / "fidelity.md").read_text()
    for metric in ("psnr", "ssim"):
        table = conventions_table(ROOT / "results" / "fidelity", "tiny_wan", metric)
        for convention, *cells in table.to_numpy().tolist():
            teacache_slow, precisecache, teacache_fast = cells
            assert f"| `{convention}` | {teacache_slow} | {teacache_fast} | {precisecache} |" in document
