"""What cannot work is refused in one line before any model is loaded, and so is what would have no effect."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from pcbench import cli, compose
from pcbench.compose import names
from pcbench.compose.schemas import CONF

from .contract_parts import CLASSES

SMALL = ["prompts=smoke", "prompts.limit=1", "stages=[generate]", "model.sampling.steps=8"]
CANNOT_WORK = {
    "model=tiny_wan method=planned method.steps=4 method.protect_first=6": "6 steps are protected, more than the 4",
    "model=tiny_wan method=adacache method.metric_block=6": "metric_block 6 is beyond the last of 6 blocks",
    "model=tiny_wan method=dicache method.probe_depth=6": "probe_depth can be at most 5",
    "model=tiny_cogvideox model.sampling.flow_shift=3": "leave model.sampling.flow_shift at null",
    "model=tiny_cogvideox model.weights=random model.sampling.flow_shift=3": "leave model.sampling.flow_shift at null",
    "model=ltx2 method=adacache": "where to measure the attention of a LTX2VideoTransformerBlock is not known",
    "model=ltx2 method=dicache": "ltx2 makes sound too",
    "model=cogvideox_5b +model.backbone.transformer.patch_size_t=2": "has patches of [2, 2, 2] latent frames",
}
NO_EFFECT = {
    "model=tiny_wan method=precisecache method.block_cache_rate=0.05": "block_cache_rate 0.05 is less than one of 6 bl",
    "model=tiny_wan method=pab method.mlp_timesteps=[999] method.mlp_blocks=[77]": "no MLP in any of mlp_blocks (77,)",
    "model=tiny_wan method=pab method.mlp_blocks=[1]": "mlp_blocks has no effect on wan without mlp_timesteps",
    "model=tiny_wan method=teacache method.coefficients=[1,0] method.coefficient_set=wan2.1-t2v-14b": "give either",
    "model=tiny_hunyuan model.sampling.negative_prompt=bad": "without classifier-free guidance",
    "model=tiny_wan model.sampling.guidance_scale=1 model.sampling.negative_prompt=bad": "leave it empty",
}


@pytest.mark.parametrize("words", [*CANNOT_WORK, *NO_EFFECT])
def test_what_cannot_work_is_one_clear_line_and_exit_code_2(words, tmp_path, capsys):
    assert cli.main([*SMALL, *words.split(), f"results={tmp_path}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pcbench: "))
    assert {**CANNOT_WORK, **NO_EFFECT}[words] in line
    assert not list(tmp_path.rglob("*.*"))


def test_a_negative_prompt_counts_where_there_is_guidance():
    for words in (["model=tiny_hunyuan", "+model.backbone.call.true_cfg_scale=4"], ["model=tiny_cogvideox"]):
        assert compose.run_from([*words, "model.sampling.negative_prompt=bad"]).recipe.sampling.negative_prompt == "bad"


@pytest.mark.parametrize("preset", sorted(names("method")))
def test_a_changed_copy_of_a_config_is_the_config_so_made(preset):
    """What depends on a changed field is no longer that of the old one."""
    fields = yaml.safe_load((CONF / "method" / f"{preset}.yaml").read_text())
    config = CLASSES[next(each for each in fields.pop("defaults") if each != "_self_").removeprefix("_")]
    if preset == "replay":
        fields["actions"] = "FF"
    assert dataclasses.replace(config(**fields if preset == "replay" else {}), **fields) == config(**fields)
