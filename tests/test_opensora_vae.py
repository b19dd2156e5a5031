"""Open-Sora's VAE: parity with Open-Sora's own code on the same weights, gradients, sizes, saving, bad input."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pcbench.backbones.opensora.vae import AutoencoderOpenSora

from .opensora_parts import VAE_CONFIG as CONFIG
from .opensora_parts import close, fill

GOLDEN = Path(__file__).parent / "golden" / "opensora_vae.json"
# One block of time; less than one; two whole ones; a block and an odd rest; an image; sides that are no whole cells.
CASES: dict[str, dict[str, int]] = {
    "17 frames": {"frames": 17, "height": 32, "width": 48, "batch": 1},
    "9 frames": {"frames": 9, "height": 24, "width": 40, "batch": 2},
    "34 frames": {"frames": 34, "height": 16, "width": 16, "batch": 1},
    "21 frames": {"frames": 21, "height": 40, "width": 24, "batch": 1},
    "29 frames": {"frames": 29, "height": 16, "width": 24, "batch": 2},
    "image": {"frames": 1, "height": 30, "width": 42, "batch": 1},
}


def made(**config: Any) -> AutoencoderOpenSora:
    vae = AutoencoderOpenSora(**{**CONFIG, **config}).eval()
    fill(vae)
    return vae


def noise_of(case: dict[str, int], *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(repr(sorted(case.items())).encode()))
    return torch.randn(shape, generator=generator)


def video(case: dict[str, int]) -> torch.Tensor:
    return noise_of(case, case["batch"], 3, case["frames"], case["height"], case["width"]).tanh()


def latents_of(case: dict[str, int]) -> torch.Tensor:
    size = made().latent_size(case["frames"], case["height"], case["width"])
    return noise_of(case, case["batch"], 4, *size)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_as_the_official_code(name):
    case, vae, expected = CASES[name], made(), json.loads(GOLDEN.read_text())["cases"][name]
    close(vae.encode(video(case), sample_images=False).latent_dist.mode(), expected["encoded"])
    close(vae.decode(latents_of(case), num_frames=case["frames"]).sample, expected["decoded"])


@pytest.mark.parametrize("name", ["17 frames", "9 frames", "image"])
@torch.no_grad()
def test_the_same_noise_gives_the_official_sample(name):
    case, vae, expected = CASES[name], made(), json.loads(GOLDEN.read_text())["cases"][name]
    torch.manual_seed(5)
    close(vae.encode(video(case)).latent_dist.sample(), expected["sampled_seed_5"])


def test_the_published_size():
    with torch.device("meta"):
        vae = AutoencoderOpenSora()
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in vae.named_children()}
    assert count["spatial"] == 83_653_863  # SDXL's VAE
    assert sum(count.values()) - count["spatial"] == 309_687_144  # upstream's VAE_Temporal_SD
    assert (vae.spatial_factor, vae.temporal_factor) == (8, 4)


@pytest.mark.parametrize(
    ("frames", "latent"), [(1, 1), (4, 1), (5, 2), (17, 5), (18, 6), (29, 8), (51, 15), (192, 57), (204, 60)]
)
def test_latent_frames(frames, latent):
    assert made().latent_size(frames, 480, 854) == (latent, 60, 106)


def test_gradients_flow_through_encode_and_decode():
    vae, case = made().train(), CASES["21 frames"]
    clip = video(case)
    posterior = vae.encode(clip).latent_dist
    decoded = vae.decode(posterior.sample(), num_frames=case["frames"]).sample
    ((decoded - clip).square().mean() + 1e-4 * posterior.kl().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert all(p.grad.any() for name, p in vae.named_parameters() if name.endswith("conv_in.weight"))


def test_blocks_of_time_know_nothing_of_one_another():
    vae, case = made(), CASES["34 frames"]
    clip = video(case)
    with torch.no_grad():
        whole = vae.encode(clip, sample_images=False).latent_dist.mode()
        first = vae.encode(clip[:, :, :17], sample_images=False).latent_dist.mode()
    torch.testing.assert_close(whole[:, :, :5], first)


def test_image_batches_change_nothing():
    case = CASES["9 frames"]
    with torch.no_grad():
        few, many = (
            made(micro_batch_size=n).decode(latents_of(case), num_frames=case["frames"]).sample for n in (1, 32)
        )
    torch.testing.assert_close(few, many)


def test_shift_and_scale_normalise_the_latents():
    case = CASES["17 frames"]
    plain, scaled = made(shift=(0.0,) * 4, scale=(1.0,) * 4), made(shift=(0.5,) * 4, scale=(2.0,) * 4)
    with torch.no_grad():
        one, two = (vae.encode(video(case), sample_images=False).latent_dist for vae in (plain, scaled))
        torch.testing.assert_close(two.mean, (one.mean - 0.5) / 2)
        torch.testing.assert_close(two.std, one.std / 2)
        torch.testing.assert_close(scaled.decode(two.mean).sample, plain.decode(one.mean).sample)


def test_decode_without_a_count_gives_all_frames():
    with torch.no_grad():
        assert made().decode(torch.zeros(1, 4, 8, 2, 2)).sample.shape == (1, 3, 29, 16, 16)


def test_save_and_load(tmp_path):
    vae = made(shift=(0.0, 0.1, 0.2, 0.3))
    vae.save_pretrained(tmp_path)
    again = AutoencoderOpenSora.from_pretrained(tmp_path).eval()
    assert list(again.config.shift) == [0.0, 0.1, 0.2, 0.3]
    z = latents_of(CASES["9 frames"])
    with torch.no_grad():
        assert torch.equal(vae.decode(z, 9).sample, again.decode(z, 9).sample)


def test_tiling_is_the_image_vaes():
    vae = made()
    vae.enable_tiling()
    assert vae.spatial.use_tiling
    vae.disable_tiling()
    assert not vae.spatial.use_tiling


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="20 frames do not have 4 latent frames"):
        made().decode(torch.zeros(1, 4, 4, 2, 2), num_frames=20)
    with pytest.raises(ValueError, match="one entry fewer"):
        AutoencoderOpenSora(**CONFIG, temporal_downsample=(True,))
    with pytest.raises(ValueError, match="4 latent channels"):
        AutoencoderOpenSora(**CONFIG, shift=(0.0,))
