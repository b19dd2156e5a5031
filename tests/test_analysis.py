"""Records to data frames: declared columns, benches that may share a table, one command for all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import COMMANDS, main
from analysis.conventions import conventions_table
from analysis.load import Column, benches, experiments, folders, labels, load_records, load_samples, one_bench
from analysis.tables.noise import noise_floor

from .analysis_parts import record, table1, write

ROOT = Path(__file__).parents[1]


def test_a_column_is_a_way_into_a_record():
    assert Column("x", "a.b").of({"a": {"b": 3}}) == 3
    assert Column("x", "a.b.c").of({"a": {"b": 3}}) is None
    assert Column("x", "a.b").of({"a": None}) is None


def test_a_record_has_a_row(tmp_path):
    write(tmp_path, record("precisecache", 2.0, 30.0, alpha=0.5))
    (row,) = load_records(tmp_path).to_dict("records")
    assert (row["machine"], row["model"], row["method"], row["samples"]) == ("m", "tiny_wan", "precisecache", 4)
    assert (row["macs_peta_per_video"], row["macs_speedup"], row["denoise_seconds_median"]) == (0.5, 2.0, 5.0)
    assert row["fields"] == {"alpha": 0.5}
    assert (row["frames"], row["steps"], row["timed_calls"]) == (29, 50, 3)


def test_what_a_record_lacks_is_nan(tmp_path):
    old = record("none") | {"latency": None, "macs": None, "samples": []}
    del old["vbench"], old["recipe"]["sampling"], old["recipe"]["numerics"]
    write(tmp_path, old)
    row = load_records(tmp_path).iloc[0]
    assert row[["macs_speedup", "speedup_median", "frames"]].isna().all()
    assert load_records(tmp_path / "nothing").empty
    assert "label" in benches(tmp_path)[0].records


def test_a_sample_has_a_row(tmp_path):
    write(tmp_path, record("precisecache", 2.0, 30.0, alpha=0.5, warmup_steps=3))
    rows = load_samples(tmp_path)
    assert list(rows["psnr@2"]) == [30.0, 31.0, 32.0, 33.0]
    assert rows["lpips@1"].isna().all()
    assert rows["macs"].iloc[0] == 5e14
    assert rows["fields"].iloc[0] == {"alpha": 0.5, "warmup_steps": 3}


def test_an_older_psnr_stands_in_unless_it_was_capped(tmp_path):
    for alpha, scores in enumerate([{"psnr@1": 31.5}, {"psnr@1": 100.0}, {"psnr@1": 31.5, "psnr@2": 30.0}]):
        data = record("precisecache", 2.0, 0.0, alpha=float(alpha))
        data["samples"] = [data["samples"][0] | {"fidelity": scores, "fidelity_notes": {}}]
        write(tmp_path, data | {"id": str(alpha)})
    found = load_samples(tmp_path).set_index("id")["psnr@2"]
    assert (found["0"], found["2"]) == (31.5, 30.0)
    assert pd.isna(found["1"])


def test_every_folder_with_records_is_found_at_any_depth(tmp_path):
    for folder in (".", "table1", "mine/first", "samples/no", ".hidden"):
        write(tmp_path / folder, record("none"))
    assert folders(tmp_path) == [tmp_path, tmp_path / "mine" / "first", tmp_path / "table1"]
    assert list(experiments(tmp_path)) == [tmp_path.name, "mine/first", "table1"]
    assert list(experiments(tmp_path / "table1")) == ["table1"]


def test_machines_models_and_references_are_benches_of_their_own(tmp_path):
    other = record("none") | {"reference": "another"}
    write(tmp_path, *table1("a"), *table1("b"), *table1("a", "tiny_hunyuan"), other | {"id": "other"})
    found = {(bench.machine, bench.model, bench.reference): bench for bench in benches(tmp_path)}
    assert len(found) == 4
    mine = found["b", "tiny_wan", "none"]
    assert set(mine.records["machine"]) == set(mine.samples["machine"]) == {"b"}
    assert [data["id"] for data in mine.raw] == list(mine.records["id"])
    assert mine.title == "tiny_wan, 29×128×128, 50 steps"


def test_machines_are_not_mixed(tmp_path):
    write(tmp_path, record("none", machine="a"), record("none", machine="b"))
    with pytest.raises(ValueError, match="several machines: a, b"):
        one_bench(tmp_path, "tiny_wan")
    assert len(one_bench(tmp_path, "tiny_wan", "a").records) == 1


def test_no_records_is_said(tmp_path):
    with pytest.raises(ValueError, match="no records of tiny"):
        one_bench(tmp_path, "tiny")
    with pytest.raises(ValueError, match="no records under"):
        benches(tmp_path)


def labelled(*fields: dict) -> list[str]:
    frame = pd.DataFrame({"method": ["x"] * len(fields), "fields": list(fields)})
    return list(labels(frame))


def test_a_label_tells_what_differs():
    assert labelled({"a": 1, "b": 2}, {"a": 3, "b": 2}) == ["x a=1", "x a=3"]
    assert labelled({"a": 1}) == ["x"]


def test_what_nearly_all_share_goes_without_saying():
    usual = [{"a": 1, "b": number} for number in range(4)]
    assert labelled(*usual, {"a": 2, "b": 0}) == ["x b=0", "x b=1", "x b=2", "x b=3", "x a=2 b=0"]


def test_calibrated_numbers_are_no_label():
    tables = [{"coefficients": [1.0, 2.0, 3.0, n], "ratios": {"cond": [n] * 50}, "a": n} for n in (1, 2)]
    assert labelled(*tables) == ["x a=1", "x a=2"]


def test_the_noise_floor_is_of_uncached_calls_and_of_videos_computed_in_full(tmp_path):
    steady = record("precisecache", 2.0, 30.0, alpha=0.5)
    inert = record("precisecache", 1.0, None, alpha=0.0)  # computed every step
    shorter = record("fewer_steps", 2.0, 30.0, steps=25)
    for one in shorter["samples"]:
        one["trace"] = {"actions": "F" * 25}  # all of its own steps: no repetition of the reference
    inert["samples"][0]["fidelity"]["psnr@2"] = 90.0
    inert["samples"][0]["fidelity_notes"] = {}
    steady["latency"]["reference_denoise_seconds"] = {"median": 12.0, "min": 12.0, "max": 12.0, "values": [12.0]}
    write(tmp_path, record("none"), steady, inert, shorter)
    floor = noise_floor(benches(tmp_path)[0])
    assert (floor.calls, floor.recomputed, floor.identical) == (10, 4, 3)
    assert floor.within == pytest.approx(10.5 / 9.5)
    assert floor.between == pytest.approx(1.2)
    assert len(floor.words()) == 2


def test_one_command_for_all(tmp_path, capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in COMMANDS)
    assert main(["tabels"]) == 2
    assert capsys.readouterr().err.startswith("analysis: no command 'tabels'; usage:")
    assert main([]) == 2
    assert main(["tables", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"analysis: no records under {tmp_path}"
    assert main(["compare", str(tmp_path)]) == 2


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'diffusers', 'transformers', 'matplotlib', 'imageio', 'hydra', 'omegaconf'}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
from analysis.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["tables", "audit"])
def test_tables_from_the_committed_records_need_pandas_alone(tmp_path, command):
    words = [command, str(ROOT / "results" / "published" / "methods"), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = "audit" if command == "audit" else "methods"
    assert {path.suffix for path in tmp_path.glob(f"{wanted}.*")} == {".md", ".tex", ".csv"}


def test_conventions_side_by_side(tmp_path):
    scored = record("teacache", 2.0, 30.0, threshold=0.1) | {
        "fidelity": {
            "psnr@2": {"mean": 42.123, "n": 2, "identical": 1, "unscored": 0},
            "videosys.psnr@1": {"mean": 37.0, "n": 3, "identical": 0, "unscored": 0},
            "latent_psnr@1": {"mean": 50.0, "n": 3, "identical": 0, "unscored": 0},
            "videosys.lpips@1": {"mean": None, "n": 0, "identical": 0, "unscored": 3},
        }
    }
    write(tmp_path, record("none") | {"fidelity": {}}, scored)
    assert conventions_table(tmp_path, "tiny_wan", "psnr").to_numpy().tolist() == [
        ["raw", "42.12 (1 identical)"],
        ["videosys", "37.00"],
    ]
    assert conventions_table(tmp_path, "tiny_wan", "lpips").to_numpy().tolist() == [["videosys", "not scored"]]
    with pytest.raises(ValueError, match="has a score called ssim"):
        conventions_table(tmp_path, "tiny_wan", "ssim")


def test_conventions_are_of_one_machine_and_one_reference(tmp_path):
    """The same recipe on another machine has the same id; another size has the same labels."""
    slow, fast = (
        record("teacache", 2.0, 30.0, machine=machine, threshold=0.1) | {"fidelity": {"psnr@2": {"mean": mean}}}
        for machine, mean in (("a", 42.0), ("b", 24.0))
    )
    write(tmp_path, slow, fast)
    for machine, mean in (("a", "42.00"), ("b", "24.00")):
        assert conventions_table(tmp_path, "tiny_wan", "psnr", machine).to_numpy().tolist() == [["raw", mean]]
    write(tmp_path, slow | {"id": "larger", "reference": "another"})
    with pytest.raises(ValueError, match=r"several uncached references: another .*, none .*; they cannot be mixed"):
        conventions_table(tmp_path, "tiny_wan", "psnr", "a")


@pytest.mark.parametrize("command", ["tables", "figures"])
def test_two_experiments_never_share_a_file(command, tmp_path, capsys):
    for folder in ("mine/first", "mine-first"):
        write(tmp_path / folder, record("none"), *(record("pab", speed, 40.0, interval=speed) for speed in (2.0, 3.0)))
        write(tmp_path / folder, *(record("fora", speed, 30.0, interval=speed) for speed in (2.0, 3.0)))
    assert main([command, str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "analysis: files of mine/first and mine-first would have one name; rename one of the folders\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_document_on_fidelity_says_what_its_records_say():
    document = (ROOT / "docs" / "fidelity.md").read_text()
    for metric in ("psnr", "ssim"):
        table = conventions_table(ROOT / "results" / "published" / "fidelity", "tiny_wan", metric)
        for convention, *cells in table.to_numpy().tolist():
            teacache_slow, precisecache, teacache_fast = cells
            assert f"| `{convention}` | {teacache_slow} | {teacache_fast} | {precisecache} |" in document
