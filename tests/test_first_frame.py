"""Prompts with an image: named by its content, cut and not distorted, and refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import pcbench
from pcbench import cli, devices, first_frame
from pcbench.config import ConfigError
from pcbench.job import job_of


@pytest.fixture
def folder(tmp_path):
    """A prompt file with a relative and an absolute path in it."""
    for name, colour in (("red.png", (255, 0, 0)), ("blue.png", (0, 0, 255))):
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (tmp_path / "mine.txt").write_text(f"# mine\na red wall | red.png\na | blue | wall | {tmp_path / 'blue.png'}\n")
    return tmp_path


def run_of(folder, *words: str):
    return cli.run_from(["model=wan_i2v", f"prompts.file={folder / 'mine.txt'}", "method=none", *words])


def test_a_line_is_a_text_and_an_image(folder):
    run = run_of(folder)
    assert [first_frame.text_of(prompt) for prompt in run.prompts] == ["a red wall", "a | blue | wall"]
    assert [path.name for path in run.images.values()] == ["red.png", "blue.png"]
    assert list(run.images) == run.prompts


def test_another_image_is_another_sample_and_the_same_one_elsewhere_is_not(folder, tmp_path_factory):
    before = run_of(folder).prompts
    moved = tmp_path_factory.mktemp("moved")
    for name in ("red.png", "mine.txt"):
        (moved / name).write_bytes((folder / name).read_bytes())
    assert run_of(moved).prompts == before
    Image.new("RGB", (40, 30), (250, 0, 0)).save(folder / "red.png")
    after = run_of(folder)
    assert after.prompts[0] != before[0]
    assert after.prompts[1] == before[1]
    assert job_of(after).files(after.prompts[0], 0).stem != job_of(after).files(before[0], 0).stem


def test_without_prompts_of_ones_own_there_are_some_with_images():
    assert len(cli.run_from(["model=wan_i2v"]).images) == 4
    assert pcbench.arguments("wan2_2_ti2v_5b_image")["num_frames"] == 121


BAD = {
    "a red wall": "has no image: this model makes videos from a first frame; write TEXT | IMAGE",
    " | red.png": "has no image",
    "a red wall | green.png": "image 'green.png' of 'a red wall': No such file",
    "a red wall | mine.txt": "image 'mine.txt' of 'a red wall': no image that can be read",
    "a red wall | .": "Is a directory",
    "a red wall | cut.png": "no image that can be read",
}


@pytest.mark.parametrize("line", BAD)
def test_a_line_without_an_image_that_can_be_read_is_refused(line, folder):
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:40])
    (folder / "mine.txt").write_text(line)
    with pytest.raises(ConfigError, match=BAD[line].replace("|", r"\|")):
        run_of(folder)


@pytest.mark.parametrize("words", ["prompts=demo", "prompts.file=demo.txt"])
def test_prompts_without_images_that_were_asked_for_are_not_replaced(words):
    with pytest.raises(ConfigError, match=r"has no image: .*prompts=first_frame"):
        cli.run_from(["model=wan_i2v", "method=none", words])


def test_a_trial_of_the_image_alone_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="leaves of 2 latent frames only the first"):
        cli.run_from(["model=wan_i2v", "method=precisecache", "model.sampling.frames=5"])


def test_a_model_of_text_alone_refuses_images(folder, capsys):
    assert cli.main(["model=tiny_wan", f"prompts.file={folder / 'mine.txt'}", f"results={folder / 'out'}"]) == 2
    assert "has an image, and this model takes text alone" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (60, 40)])
def test_an_image_is_cut_at_its_middle_and_keeps_its_proportions(size, tmp_path):
    """A white square in the middle of the picture stays one."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    y, x = size[1] // 2, size[0] // 2
    picture[y - 8 : y + 8, x - 8 : x + 8] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    frame = np.asarray(first_frame.opened(tmp_path / "a.png", 80, 120))[..., 0] > 127
    assert frame.shape == (80, 120)
    tall, wide = frame.any(1).sum(), frame.any(0).sum()
    assert tall == wide
    assert frame.sum() >= 0.98 * tall * wide  # the corners are resampled
    assert abs(int(np.argmax(frame.any(1))) * 2 + tall - 80) <= 2


def test_what_a_call_does_before_its_first_step_is_not_timed():
    first = torch.nn.Identity()

    def work():
        torch.linalg.eigh(torch.eye(800).double() + 1)
        return first(torch.ones(1)) + first(torch.ones(1))

    whole, _ = devices.timed(work, "cpu")
    loop, result = devices.timed(work, "cpu", first)
    assert result == 2
    assert loop < 0.2 * whole
    assert not first._forward_pre_hooks
