"""A few of the hostile command lines of tests/fuzz_words.py; the script tries as many as one likes."""

from __future__ import annotations

import pytest

from .fuzz_words import FLAGS, STRANGE, Bench, lines

FIXED = len(STRANGE) + len(FLAGS)


@pytest.mark.parametrize("seed", [1])
def test_a_hostile_line_is_a_result_or_one_line_and_exit_code_2(seed, tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    monkeypatch.chdir(bench.here)
    outcomes = [bench.try_line(words) for words in lines(FIXED + 60, seed)]
    assert [(each.words, each.faults, each.complaint) for each in outcomes if each.faults] == []
    assert {each.code for each in outcomes} == {0, 2}
