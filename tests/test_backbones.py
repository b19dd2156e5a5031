"""Every family's real loading code, on a random pipeline of toy width saved as its released one is; and what a user
without the weights, or with a wrong option, is told."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from methods.engine.anatomy import anatomy_of
from pcbench import backbones, cli, feasible
from pcbench.backbones import weights
from pcbench.config import ConfigError
from pcbench.cost.macs import reference_macs
from pcbench.job import job_of
from pcbench.messages import message
from pcbench.observe.watch import Caller
from pcbench.record import build
from pcbench.sampling import generate
from pcbench.sampling.generate import cached
from pcbench.sampling.latency import profile

from .toys import TOYS, toy

MODELS = {name: name for name in TOYS} | {"wan_ti2v": "wan2_2_ti2v_5b", "hunyuan15": "hunyuan1_5"}
MODELS["wan_ti2v_image"] = "wan2_2_ti2v_5b_image"
FROM_IMAGE = ("wan_i2v", "wan_ti2v_image")
ENCODED = ["prompts=first_frame", "model.sampling.frames=5"]  # few frames for a VAE of full size
SMALL = ["model.sampling.height=32", "model.sampling.width=64", "model.sampling.frames=17", "model.sampling.steps=4"]
SMALL += ["model.numerics.dtype=float32", "prompts.limit=1", "latency.warmup=0", "latency.repeats=1"]
TEXT = {"wan": ["+model.backbone.call.max_sequence_length=16"]}
TEXT["cogvideox"] = TEXT["wan"]
OWN = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 6, "num_layers": 6, "ffn_dim": 768}  # not 5B's
TEXT["wan_ti2v"] = [*TEXT["wan"], *(f"++model.backbone.transformer.{name}={held}" for name, held in OWN.items())]
TEXT["wan_ti2v_image"] = [*TEXT["wan_ti2v"], "prompts=first_frame"]
IMAGE = {"in_channels": 20, "num_attention_heads": 6, "num_layers": 6, "ffn_dim": 768}
IMAGE |= {"image_dim": 16, "added_kv_proj_dim": 192}
TEXT["wan_i2v"] = [*TEXT["wan"], "prompts=first_frame"]
TEXT["wan_i2v"] += [f"++model.backbone.transformer.{name}={held}" for name, held in IMAGE.items()]
TEXT["hunyuan15"] = []
TEXT["ltx2"] = TEXT["wan"]
TEXT["opensora"] = [
    *TEXT["wan"],
    "+model.backbone.call.clean_caption=false",
    "+model.backbone.call.aesthetic_score=null",
]
TEXT["hunyuan"] = [*TEXT["wan"], "+model.backbone.call.prompt_template={template:'{}',crop_start:0}"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A folder of random weights in diffusers' format for each family."""
    root = tmp_path_factory.mktemp("weights")
    for name in TOYS:
        toy(name).save_pretrained(root / name)
    return {name: str(root / name) for name in TOYS}


@pytest.fixture(params=sorted(MODELS))
def family(request) -> str:
    return request.param


def small(family: str) -> list[str]:
    """A small size, which for LTX-2 is two cells at least: its VAE pads by reflection."""
    return ["model.sampling.height=64", *SMALL[1:]] if family == "ltx2" else SMALL


def run_of(family: str, folder: str, results, *words: str):
    source = [f"model={MODELS[family]}", f"model.backbone.source={folder}", f"results={results}", *TEXT[family]]
    return cli.run_from(
        [*source, *small(family), "model.numerics.vae_tiling=false", "method=uniform", "method.steps=2", *words]
    )


def denoised(pipe, run, encoded: bool = False) -> torch.Tensor:
    return generate.denoise(
        pipe, run.recipe, 0, **backbones.prompt_arguments(pipe, run, run.prompts[0], encoded=encoded)
    )


def test_loads_generates_times_and_prices(family, folders, tmp_path):
    run = run_of(family, folders[family], tmp_path)
    said: list[str] = []
    generate.generate(job_of(run), said.append)
    profile(job_of(run), said.append)
    record = build(job_of(run))
    assert record["status"] == "ok"
    assert record["samples"][0]["trace"]["actions"].count("F") == 2
    assert record["macs"]["speedup"] == pytest.approx(2.0)
    assert record["latency"]["speedup"]["median"] > 0
    pipe = backbones.load(run.recipe, "cpu")
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    frames = generate.frames_of(run, job_of(run).place.sample(record_key(run)))
    assert frames.shape == (17, run.recipe.sampling.height, 64, 3)
    assert frames.dtype == np.uint8


def record_key(run) -> str:
    from pcbench.identity import sample_key

    return sample_key(*run.samples[0])


def test_decodes_as_the_pipeline_does_and_embeds_as_it_does(family, folders, tmp_path):
    run = run_of(family, folders[family], tmp_path)
    pipe = backbones.load(run.recipe, "cpu")
    module = backbones.family(run.recipe.backbone)
    latents = denoised(pipe, run)
    assert torch.equal(latents, denoised(pipe, run, encoded=True))
    assert module.latent_size(run.recipe.sampling) == module.ANATOMY.latent_size({"hidden_states": latents})
    arguments = module.call_arguments(run.recipe)
    prompt = backbones.prompt_arguments(pipe, run, run.prompts[0])
    whole = pipe(**arguments, **prompt, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]
    assert np.array_equal(module.decode(pipe, latents, run.recipe), (whole * 255).round().astype(np.uint8))


def test_is_watched_and_can_continue_with_another_latent(family, folders, tmp_path):
    """By its callback, or by its scheduler where the pipeline takes none."""
    run = run_of(family, folders[family], tmp_path)
    caller = Caller.of(run, run.prompts[0], 0)
    seen = caller.watch()
    assert len(seen.latents) == len(seen.moments) == run.recipe.sampling.steps
    assert torch.equal(seen.latents[-1], caller.call(run.recipe.method))

    def again(after_step):
        return caller.again(lambda step, branch: seen.moments[step].predictions[branch], after_step)

    assert torch.equal(again(lambda index, latent: latent), seen.latents[-1])
    assert not torch.equal(again(lambda index, latent: latent + 1 if index == 0 else latent), seen.latents[-1])


def test_the_shapes_used_for_pricing_are_those_of_the_call(family, folders, tmp_path):
    run = run_of(family, folders[family], tmp_path)
    generate.generate(job_of(run), lambda _: None)
    trace = next(iter(job_of(run).place.traces()))[1]
    module, config = backbones.family(run.recipe.backbone), backbones.transformer_config(run.recipe.backbone)
    told = module.arguments(run.recipe, config)
    assert json.loads(json.dumps(trace["arguments"])) == told
    full = [call for step in trace["steps"] for call in step["calls"]]
    assert len(full) == 2 * module.branches(run.recipe)
    assert reference_macs(job_of(run)) > 0


def test_compiled_blocks_give_the_same_video(family, folders, tmp_path, monkeypatch):
    """Of this compiler, the part that traces: its code generator takes minutes on a CPU."""
    graphs: list[torch.fx.GraphModule] = []
    original = torch.nn.Module.compile

    def backend(graph: torch.fx.GraphModule, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(original, backend=backend))
    run = run_of(family, folders[family], tmp_path)
    compiled = run_of(family, folders[family], tmp_path, "model.numerics.compile=true")
    assert job_of(compiled).id != job_of(run).id
    latents = []
    with torch._dynamo.config.patch():
        for each in (run, compiled):
            pipe = backbones.fresh(each.recipe, "cpu")
            with cached(pipe, each, each.recipe):
                latents.append(denoised(pipe, each))
    torch._dynamo.reset()
    assert torch.allclose(*latents, atol=1e-5)
    kinds = {type(block.module) for block in anatomy_of(pipe.transformer).blocks(pipe.transformer)}
    assert len(graphs) >= len(kinds)  # the size of the video; uniform makes no trials


def test_without_a_working_compiler_nothing_begins(monkeypatch, tmp_path):
    def broken(function):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    feasible._check_compiler.cache_clear()
    run = cli.run_from(["model=tiny_wan", "model.numerics.compile=true", f"results={tmp_path}"])
    with pytest.raises(ConfigError, match="compile does not work on cpu here: no C"):
        feasible.check_here(replace(run, device="cpu"))
    feasible._check_compiler.cache_clear()


def test_group_offload_gives_the_same_video(family, folders, tmp_path):
    whole = run_of(family, folders[family], tmp_path)
    offloaded = replace(whole, offload="group")
    latents = []
    for run in (whole, offloaded):
        pipe = backbones.load(run.recipe, "cpu", run.offload)
        with generate.cached(pipe, run, run.recipe):
            latents.append(denoised(pipe, run))
    assert torch.equal(*latents)


@pytest.fixture(scope="module")
def hollow_vaes():
    """VAEs of which each parameter is one number, repeated without memory: those of full size take gigabytes and
    seconds to fill, and no test here decodes with them."""
    built = weights.built

    def hollow(kind, config):
        if "Autoencoder" not in kind.__name__:
            return built(kind, config)
        dtype = torch.get_default_dtype()
        with torch.device("meta"):
            vae = built(kind, config)
        held = vae.state_dict()
        numbers = dict.fromkeys(held, 0.0) | dict.fromkeys(dict(vae.named_buffers()), 1.0)  # LTX-2 divides by its own
        vae.load_state_dict(
            {name: torch.full((), numbers[name], dtype=dtype).expand(of.shape) for name, of in held.items()},
            assign=True,
        )
        return vae

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "built", hollow)
        yield


def test_random_weights_need_no_files_and_are_the_same_twice(family, tmp_path, hollow_vaes):
    config = toy(family).transformer.config
    wan = ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    names = {
        "wan": wan,
        "wan_ti2v": wan,
        "wan_i2v": (*wan, "added_kv_proj_dim", "image_dim"),
        "wan_ti2v_image": wan,
        "hunyuan": (
            *("num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers"),
            *("text_embed_dim", "pooled_projection_dim", "rope_axes_dim"),
        ),
        "hunyuan15": (
            *("num_attention_heads", "attention_head_dim", "num_layers", "rope_axes_dim"),
            *("text_embed_dim", "text_embed_2_dim", "image_embed_dim"),
        ),
        "ltx2": (
            *("num_attention_heads", "attention_head_dim", "cross_attention_dim", "num_layers", "caption_channels"),
            *("audio_num_attention_heads", "audio_attention_head_dim", "audio_cross_attention_dim"),
        ),
        "cogvideox": ("num_attention_heads", "attention_head_dim", "num_layers", "text_embed_dim", "time_embed_dim"),
        "opensora": ("num_attention_heads", "attention_head_dim", "num_layers", "caption_channels"),
    }
    own = [f"++model.backbone.transformer.{name}={value(config[name])}" for name in names[family]]
    words = [f"model={MODELS[family]}", "model.weights=random", f"results={tmp_path}", *small(family), *own]
    words += ENCODED if family in FROM_IMAGE else []
    run = cli.run_from([*words, "method=replay", "method.actions=FrFr"])
    weights.require(run.recipe.backbone, run.download)
    latents = []
    for _ in range(2):
        pipe = backbones.family(run.recipe.backbone).build(run.recipe, "cpu")
        with generate.cached(pipe, run, run.recipe) as handle:
            latents.append(denoised(pipe, run))
        assert handle.trace.computed == 2
    assert torch.isfinite(latents[0]).all()
    assert torch.equal(*latents)


def value(held: object) -> str:
    return str(list(held)).replace(" ", "") if isinstance(held, list | tuple) else str(held)


@pytest.mark.parametrize("model", ["wan2_2_a14b", "wan2_2_i2v_a14b"])
def test_a_second_transformer_takes_over_below_the_boundary(model, hollow_vaes):
    """Wan2.2: random weights build both transformers; a step uses one of them."""
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
    words = [f"+model.backbone.transformer.{name}={held}" for name, held in small.items()]
    words += ENCODED if "i2v" in model else []
    run = cli.run_from([f"model={model}", "model.weights=random", "method=none", *SMALL, *words])
    pipe = backbones.family(run.recipe.backbone).build(run.recipe, "cpu")
    assert pipe.config.boundary_ratio == backbones.family(run.recipe.backbone).BOUNDARY
    calls = {"transformer": 0, "transformer_2": 0}
    for name in calls:
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    denoised(pipe, run)
    assert min(calls.values()) > 0
    assert sum(calls.values()) == 2 * run.recipe.sampling.steps


BAD = {
    "model.offload=disk": "model.offload cannot be 'disk': there are none, model, group",
    "model.weights=trained": "model.weights cannot be 'trained': did you mean 'pretrained'",
    "model.numerics.compile=true model.offload=group": "model.numerics.compile keeps the model on the device",
    "model.numerics.attention=fast": "model.numerics.attention cannot be 'fast'",
    "model.sampling.frames=48": "multiple of 4 plus one",
    "model=cogvideox model.sampling.frames=45": "multiple of 8 plus one",
    "model.sampling.height=100": "multiples of 16",
}


@pytest.mark.parametrize("words", BAD)
def test_a_wrong_option_is_one_line(words):
    with pytest.raises((ConfigError, ValueError), match=BAD[words]):
        cli.run_from(["model=hunyuan", *words.split()])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to offload from")
def test_model_offload_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="no CUDA device"):
        cli.run_from(["model=hunyuan", "model.offload=model"])


@pytest.mark.parametrize("model", [*MODELS.values(), "wan_1_3b", "wan2_2_a14b", "cogvideox_5b"])
def test_missing_weights_are_one_line_that_says_what_to_do(model, monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(weights.HfApi, "model_info", unreachable)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, **__: None)
    from_image = model in [MODELS[family] for family in FROM_IMAGE]
    words = ["prompts=first_frame"] if from_image else []
    run = cli.run_from([f"model={model}", f"results={tmp_path}", *words])
    with pytest.raises(ConfigError) as caught:
        weights.require(run.recipe.backbone, run.download)
    line = str(caught.value)
    assert "\n" not in line
    assert message(line) == line  # short enough to be shown whole
    for part in (run.recipe.backbone.source, " GB)", "model.backbone.source=", "model.weights=random"):
        assert part in line
    assert ("model=tiny_" in line) is not from_image  # of which there is none bundled


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    run = cli.run_from(["model=wan", f"model.backbone.source={tmp_path}"])
    with pytest.raises(ConfigError, match=r"no diffusers pipeline folder: it has no model_index\.json"):
        weights.require(run.recipe.backbone, run.download)
    gone = cli.run_from(["model=wan", "model.backbone.source=/no/such/folder"])
    with pytest.raises(ConfigError, match="no such folder"):
        weights.require(gone.recipe.backbone, gone.download)


@pytest.mark.parametrize("family", ["wan", "hunyuan", "cogvideox", "opensora"])
def test_random_weights_of_a_bundled_model_have_its_own_width(family):
    """And not the class defaults', which are the full-size model's."""
    run = cli.run_from([f"model=tiny_{family}", "model.weights=random", "method=none"])
    trained = cli.run_from([f"model=tiny_{family}", "method=none"]).recipe.backbone
    config = backbones.transformer_config(run.recipe.backbone)
    assert config == backbones.transformer_config(trained)
    assert config["num_attention_heads"] * config["attention_head_dim"] < 512
    pipe = backbones.load(run.recipe, "cpu")
    assert pipe.transformer.config.num_layers == config["num_layers"]
    assert sum(each.numel() for each in pipe.transformer.parameters()) < 1e7
