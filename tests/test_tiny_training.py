"""One step of each twin's trainings: the losses are finite, every trained part learns, and what is saved runs."""

from __future__ import annotations

import pytest
import torch

from pcbench.backbones.tiny import train_transformer, train_vae
from pcbench.backbones.tiny.loop import Schedule
from pcbench.backbones.tiny.twins import TWINS

# Parts no gradient can reach: the pipeline reads the language model two layers before its end.
UNUSED = {"hunyuan": ("text_encoder.layers.2", "text_encoder.layers.3", "text_encoder.norm"), "opensora": ()}


@pytest.fixture(params=sorted(TWINS))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def vaes() -> dict:
    torch.manual_seed(0)
    return {name: twin.new_vae() for name, twin in TWINS.items()}


def test_the_vae_learns(family, vaes):
    twin, vae = TWINS[family], vaes[family]
    smallest = len(train_vae.CLIPS) - 1
    loss = train_vae.vae_loss(twin, vae, smallest, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    without = [name for name, value in vae.named_parameters() if value.grad is None]
    assert without == []


def test_latents_by_hand_are_block_averages(family, vaes):
    twin, vae = TWINS[family], vaes[family]
    clips = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    latents = train_vae.block_latents(clips)
    assert latents.shape == twin.encode(vae, clips).mean.shape  # what the encoder is taught with
    torch.testing.assert_close(latents[:, 0:6:2, 0], torch.nn.functional.avg_pool2d(clips[:, :, 0], 8))
    torch.testing.assert_close(latents[:, 0:6:2, 0], latents[:, 1:6:2, 0])
    torch.testing.assert_close(latents[:, 1:6:2, 2], torch.nn.functional.avg_pool2d(clips[:, :, 7:].mean(2), 8))
    ramp = torch.linspace(-1, 1, 8).repeat(6).expand(1, 3, 9, 32, 48)
    across, down = train_vae.block_latents(ramp)[0, 6:]
    assert across.min() > 1
    assert down.abs().max() < 1e-6


def test_a_taught_step_reaches_encoder_and_decoder(family, vaes):
    twin, vae = TWINS[family], vaes[family]
    vae.zero_grad()
    smallest = len(train_vae.CLIPS) - 1
    train_vae.vae_loss(twin, vae, smallest, torch.Generator().manual_seed(0), taught=True).backward()
    assert [name for name, value in vae.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_full_clips_keep_their_length_and_latents_get_unit_scale(family, vaes):
    twin, vae = TWINS[family], vaes[family].eval()
    before = dict(vae.config)
    mean, std, psnr = train_vae.measure_latents(twin, vae, count=1)
    twin.note_statistics(vae, mean, std)
    clips = torch.randn(1, 3, twin.FRAMES, 64, 64).clamp(-1, 1)
    latents = twin.normalise(vae, twin.encode(vae, clips).mode())
    assert latents.shape[1:] == (8, (twin.FRAMES + 3) // 4, 8, 8)
    assert twin.decode(vae, latents, twin.FRAMES).shape == clips.shape
    assert psnr > 0
    vae.register_to_config(**{name: before[name] for name in vae.config if name in before})


def test_the_transformer_learns_on_every_kind_of_latent(family):
    torch.manual_seed(0)
    twin = TWINS[family]()
    scenes = torch.arange(8)
    pools = {
        name: {"latents": torch.randn(8, 8, 7 if long else 4, side // 8, side // 8).half(), "scenes": scenes}
        for name, (_, long, side) in train_transformer.POOLS.items()
    }
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        loss = train_transformer.denoising_loss(twin, pools, 1.0, generator)
        loss.backward()
        assert torch.isfinite(loss)
    unused = UNUSED.get(family, ())
    without = [n for n, v in twin.named_parameters() if v.grad is None and not n.startswith(unused or ("-",))]
    assert without == []
    _, muon = Schedule(steps=1, learning_rate=1e-3, muon_learning_rate=1e-3).optimizers(twin)
    matrices = {id(each) for each in muon.whole}
    named = [name for name, value in twin.named_parameters() if id(value) in matrices]
    assert len(named) > 20
    assert all("blocks." in name for name in named)


def test_muon_moves_convolutions_in_place():
    convolution = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3))
    before = convolution[0].weight.detach().clone()
    _, muon = Schedule(steps=1, learning_rate=1e-3, muon_learning_rate=1e-2).optimizers(convolution)
    convolution(torch.randn(1, 4, 5, 5, 5)).square().mean().backward()
    muon.step()
    change = (convolution[0].weight.detach() - before).flatten(1)
    assert change.abs().max() > 0
    singular = torch.linalg.svdvals(change)
    assert singular.max() / singular.min() < 3  # an orthogonalised step
