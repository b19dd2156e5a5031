"""A whole pipeline of each family at toy width, with text encoders and VAE, and random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    LTX2Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import (
    ByT5Tokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pcbench.backbones import FAMILIES, wan_i2v
from pcbench.tiny.twins import TWINS
from pcbench.tiny.twins.base import tokenizer

from .ltx2_parts import WIDTH, parts

TOYS = tuple(name for name in FAMILIES if name != "vchitect")  # whose own are in vchitect_parts.py
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def toy(family: str) -> Any:
    """A pipeline of the family; the same weights at every call."""
    torch.manual_seed(0)
    if family in TWINS:
        twin = TWINS[family]
        return twin().pipeline(twin.new_vae())
    return OTHERS[family]()


def _wan_i2v() -> Any:
    """Wan's twin with an image in further channels of its latent and in CLIP's tokens."""
    parts = toy("wan").components
    config, channels = dict(parts["transformer"].config), parts["vae"].config.z_dim
    own = {name: held for name, held in config.items() if not name.startswith("_")}
    own |= {"in_channels": 2 * channels + 4, "image_dim": 16, "added_kv_proj_dim": 32 * own["num_attention_heads"]}
    parts["transformer"] = WanTransformer3DModel(**own).eval()
    return wan_i2v.PIPELINE(**{**parts, **wan_i2v.image_encoder(16)})


def _wan_ti2v_image() -> Any:
    """Wan's twin with a timestep for each token, those of its first frame being 0."""
    return wan_i2v.PIPELINE(**toy("wan_ti2v").components, expand_timesteps=True)


def _wan_ti2v() -> WanPipeline:
    """Wan's twin with a timestep for each token, and cells of 16 pixels."""
    channels = 8
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.1] * channels,
        latents_std=[2.0] * channels,
    )
    parts = {**toy("wan").components, "vae": vae}
    return WanPipeline(**parts, expand_timesteps=True)


def _hunyuan15() -> HunyuanVideo15Pipeline:
    """Its tokenizers have a token for each byte."""
    letters = [*bytes_to_unicode().values(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    tokenizer.chat_template = TEMPLATE
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    )
    glyphs = T5Config(vocab_size=384, d_model=8, d_ff=8, d_kv=8, num_heads=1, num_layers=1, dropout_rate=0.0)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=1,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(text).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=T5EncoderModel(glyphs).eval(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def _ltx2() -> LTX2Pipeline:
    """A prompt's embedding is the input of the text encoder's only layer, and its output."""
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,  # two channels of eight bands
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return LTX2Pipeline(
        **parts(spatial=32, temporal=8, layers=2),
        text_encoder=Gemma3TextModel(text).eval(),
        tokenizer=tokenizer(),
        vocoder=vocoder.eval(),
    )


OTHERS = {
    "ltx2": _ltx2,
    "wan_i2v": _wan_i2v,
    "wan_ti2v": _wan_ti2v,
    "wan_ti2v_image": _wan_ti2v_image,
    "hunyuan15": _hunyuan15,
}
