"""One step of each twin's trainings: the losses are finite, every trained part learns, and what is saved runs."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from pcbench.tiny import loop, train_transformer, train_vae
from pcbench.tiny.data import random_clip
from pcbench.tiny.loop import Schedule, Start, published, train
from pcbench.tiny.publish import WEIGHTS
from pcbench.tiny.twins import TWINS

# Parts no gradient can reach: the pipeline reads the language model two layers before its end.
UNUSED = {"hunyuan": ("text_encoder.layers.2", "text_encoder.layers.3", "text_encoder.norm"), "opensora": ()}


@pytest.fixture(params=sorted(TWINS))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def vaes() -> dict:
    torch.manual_seed(0)
    return {name: twin.new_vae() for name, twin in TWINS.items()}


@pytest.fixture
def short(monkeypatch) -> None:
    """One short, small clip a step."""
    monkeypatch.setattr(train_vae, "CLIPS", ((random_clip, 1, 9, 32, 32),))


def test_the_vae_learns(family, vaes, short):
    twin, vae = TWINS[family], vaes[family]
    loss = train_vae.vae_loss(twin, vae, 0, torch.Generator().manual_seed(0))
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


def test_a_taught_step_reaches_encoder_and_decoder(family, vaes, short):
    twin, vae = TWINS[family], vaes[family]
    vae.zero_grad()
    train_vae.vae_loss(twin, vae, 0, torch.Generator().manual_seed(0), taught=True).backward()
    assert [name for name, value in vae.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_full_clips_keep_their_length_and_latents_get_unit_scale(family, vaes, monkeypatch):
    """Clips of all frames, of fewer pixels."""
    twin, vae = TWINS[family], vaes[family].eval()
    monkeypatch.setattr(twin, "SIDE", 64)
    before = dict(vae.config)
    mean, std, psnr = train_vae.measure_latents(twin, vae, count=1)
    twin.note_statistics(vae, mean, std)
    clips = torch.randn(1, 3, twin.FRAMES, 32, 32).clamp(-1, 1)
    latents = twin.normalise(vae, twin.encode(vae, clips).mode())
    assert latents.shape[1:] == (8, (twin.FRAMES + 3) // 4, 4, 4)
    assert twin.decode(vae, latents, twin.FRAMES).shape == clips.shape
    assert psnr > 0
    vae.register_to_config(**{name: before[name] for name in vae.config if name in before})


def latent_size(twin, kind) -> tuple[int, int, int]:
    return ((kind.frames or twin.FRAMES) + 3) // 4, kind.side // 8, kind.side // 8


def test_the_transformer_learns_on_every_kind_of_latent(family, monkeypatch):
    torch.manual_seed(0)
    twin = TWINS[family]()
    scenes = torch.arange(8)
    pools = {
        kind.name: {"latents": torch.randn(8, 8, *latent_size(twin, kind)).half(), "scenes": scenes}
        for kind in twin.KINDS
    }
    for kind in twin.KINDS:
        monkeypatch.setattr(train_transformer, "pick_kind", lambda *_, kind=kind: dataclasses.replace(kind, batch=1))
        loss = train_transformer.denoising_loss(twin, pools, 1.0, torch.Generator().manual_seed(0))
        loss.backward()
        assert torch.isfinite(loss)
    unused = UNUSED.get(family.removeprefix("small_"), ())
    without = [n for n, v in twin.named_parameters() if v.grad is None and not n.startswith(unused or ("-",))]
    assert without == []
    _, muon = Schedule(steps=1, learning_rate=1e-3, muon_learning_rate=1e-3).optimizers(twin)
    matrices = {id(each) for each in muon.whole}
    named = [name for name, value in twin.named_parameters() if id(value) in matrices]
    assert len(named) > 20
    assert all("blocks." in name for name in named)


def test_a_pool_is_of_the_vae_and_the_scale_that_are_asked_for(tmp_path, monkeypatch):
    family, made = TWINS["wan"], []
    monkeypatch.setattr(train_transformer, "encode_pool", lambda *of: made.append(of) or {"latents": torch.ones(1)})
    vae, kind = family.new_vae(), family.KINDS[0]
    for _ in range(2):
        train_transformer.pool_of(family, vae, kind, 1.0, tmp_path)
    assert len(made) == 1
    train_transformer.pool_of(family, vae, kind, 0.5, tmp_path)
    assert len(made) == 2
    with torch.no_grad():
        next(vae.parameters()).add_(1)
    train_transformer.pool_of(family, vae, kind, 0.5, tmp_path)
    assert len(made) == 3


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


def test_the_noise_shift_grows_with_the_tokens_of_a_small_twin():
    small, tiny = TWINS["small_wan"], TWINS["wan"]
    shifts = [small.shift(torch.Size((1, 8, *latent_size(small, kind)))) for kind in small.KINDS]
    assert shifts == [5.0, 2.5, 2.0, 2.0]
    assert {tiny.shift(torch.Size((1, 8, *latent_size(tiny, kind)))) for kind in tiny.KINDS} == {tiny.SHIFT}


def test_the_last_kind_of_a_small_twin_is_as_large_as_a_trial():
    small = TWINS["small_wan"]
    full, trial = (latent_size(small, small.KINDS[index]) for index in (0, -1))
    assert trial == (full[0] // 2, full[1] // 4, full[2] // 4) == (2, 8, 8)


def a_training(folder, steps: int, start: Start | None = None) -> tuple[torch.nn.Linear, list[int]]:
    torch.manual_seed(0)
    model, seen = torch.nn.Linear(3, 3), []

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        seen.append(step)
        return model(torch.randn(4, 3, generator=generator)).square().mean()

    schedule = Schedule(steps=steps, learning_rate=1e-2, warmup=4, checkpoint_every=2, log_every=2)
    train(model, loss_at, schedule, folder, start)
    return model, seen


def test_a_training_goes_on_from_what_was_published(tmp_path):
    """At the step and with the curve of the published weights, warmed up again; from then on its checkpoint counts."""
    a_training(tmp_path / "first", 4)
    start = published(tmp_path / "first" / "loss.csv")
    assert (start.step, [row[0] for row in start.rows]) == (4, [2, 4])
    _, seen = a_training(tmp_path / "second", 10, start)
    assert seen == [4, 5, 6, 7, 8, 9]
    curve = published(tmp_path / "second" / "loss.csv")
    assert [row[0] for row in curve.rows] == [2, 4, 6, 8, 10]
    assert curve.rows[:2] == start.rows
    rates = [row[2] for row in curve.rows]
    assert rates[2] == pytest.approx(1e-2 * 0.5 * Schedule(steps=10, learning_rate=1).rate(5, begun=-200), rel=1e-5)
    assert torch.load(tmp_path / "second" / "checkpoint.pt", weights_only=True)["begun"] == 4
    _, seen = a_training(tmp_path / "second", 12, start)
    assert seen == [10, 11]


def test_a_resumed_training_has_the_curve_of_one_that_was_not_stopped(tmp_path):
    """Checkpoints lie between two rows of the curve."""
    schedule = Schedule(steps=12, learning_rate=1e-2, warmup=4, checkpoint_every=4, log_every=3)

    def curve(name: str, *stops: int) -> list[tuple[int, float]]:
        for stop in (*stops, schedule.steps + 1):
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 3)

            def loss_at(step: int, generator: torch.Generator, model=model, stop=stop) -> torch.Tensor:
                if step == stop:
                    raise KeyboardInterrupt
                return model(torch.randn(4, 3, generator=generator)).square().mean()

            with contextlib.suppress(KeyboardInterrupt):
                train(model, loss_at, schedule, tmp_path / name)
        return [row[:2] for row in published(tmp_path / name / "loss.csv").rows]

    assert curve("stopped", 5, 11) == curve("whole")


def test_guidance_is_taught_late_and_only_where_it_is_an_input(monkeypatch):
    """Its target is what classifier-free guidance says of the same model, and no gradient flows through that."""
    torch.manual_seed(0)
    twin = TWINS["small_hunyuan"]()
    pools = {"image": {"latents": torch.randn(8, 8, 1, 4, 4).half(), "scenes": torch.arange(8)}}
    image = dataclasses.replace(twin.KINDS[0], batch=2)
    assert image.name == "image"
    monkeypatch.setattr(train_transformer, "pick_kind", lambda *_: image)
    guided, calls = twin.guided, []

    def noted(*inputs):
        prediction, target = guided(*inputs)
        calls.append(1)
        assert "" not in inputs[2]
        assert (prediction.requires_grad, target.requires_grad) == (True, False)
        asked, null = twin(*inputs), twin(*inputs[:2], [""] * 2)
        torch.testing.assert_close(target, null + 4 * (asked - null), rtol=0.02, atol=0.02)
        return prediction, target

    monkeypatch.setattr(twin, "guided", noted)
    start = train_transformer.DISTIL_FROM
    assert start >= 0.5  # once prompts are known
    for progress, least, most in ((start - 0.01, 0, 0), (start, 1, 11)):
        calls.clear()
        for seed in range(12):
            train_transformer.denoising_loss(twin, pools, progress, torch.Generator().manual_seed(seed))
        assert least <= len(calls) <= most


@pytest.mark.parametrize("name", ["wan", "small_wan"])
def test_bundled_weights_can_be_trained_on(name):
    bundled = WEIGHTS / TWINS[name].model()
    twin = TWINS[name]()
    before = twin.transformer.proj_out.weight.detach().clone()
    start = train_transformer.take_bundled(twin, bundled)
    assert start.step == start.rows[-1][0] > 0
    assert not torch.equal(before, twin.transformer.proj_out.weight)
    saved = load_file(bundled / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == twin.transformer.state_dict().keys()
    assert all(torch.equal(saved[key].float(), value) for key, value in twin.transformer.state_dict().items())


def test_a_slow_training_is_saved_by_the_clock_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LONGEST_UNSAVED", 0)

    def interrupted(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return model(torch.randn(4, 3, generator=generator)).square().mean()

    model = torch.nn.Linear(3, 3)
    schedule = Schedule(steps=100, learning_rate=1e-2, checkpoint_every=50, log_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(model, interrupted, schedule, tmp_path)
    assert (
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == published(tmp_path / "loss.csv").step == 4
    )
