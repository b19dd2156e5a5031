"""What cannot work is refused in one line before any model is loaded, and so is what would have no effect."""

from __future__ import annotations

import pytest

from pcbench import cli

SMALL = ["prompts=smoke", "prompts.limit=1", "stages=[generate]", "model.sampling.steps=8"]
CANNOT_WORK = {
    "model=tiny_wan method=planned method.steps=4 method.protect_first=6": "6 steps are protected, more than the 4",
    "model=tiny_wan method=adacache method.metric_block=6": "metric_block 6 is beyond the last of 6 blocks",
    "model=tiny_wan method=dicache method.probe_depth=6": "probe_depth can be at most 5",
    "model=tiny_cogvideox model.sampling.flow_shift=3": "leave model.sampling.flow_shift at null",
    "model=tiny_cogvideox model.weights=random model.sampling.flow_shift=3": "leave model.sampling.flow_shift at null",
    "model=ltx2 method=adacache": "where to measure the attention of a LTX2VideoTransformerBlock is not known",
    "model=ltx2 method=dicache": "ltx2 makes sound too",
}


@pytest.mark.parametrize("words", CANNOT_WORK)
def test_what_cannot_work_is_one_clear_line_and_exit_code_2(words, tmp_path, capsys):
    assert cli.main([*SMALL, *words.split(), f"results={tmp_path}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pcbench: "))
    assert CANNOT_WORK[words] in line
    assert not list(tmp_path.rglob("*.*"))
