"""Random LTX-2 pipelines of toy width, with and without text encoder and vocoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from pcbench.backbones.ltx2 import scheduler

from .conftest import STEPS

WIDTH = 16  # of the text


def transformer(channels: int = 4, blocks: int = 2) -> LTX2VideoTransformer3DModel:
    """Video of width 20, sound of width 8; the fewest numbers that rotary positions take."""
    return LTX2VideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=channels,
        audio_out_channels=channels,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=blocks,
        caption_channels=WIDTH,
        rope_double_precision=False,
        rope_type="split",
        perturbed_attn=True,
    ).eval()


def parts(spatial: int = 8, temporal: int = 4, layers: int = 1) -> dict[str, Any]:
    """All that a pipeline needs beside its text encoder and vocoder, in eval mode.

    spatial, temporal: pixels and frames of a latent cell, as the pipeline is told; layers: of the text encoder.
    """
    stages = 3
    vae = AutoencoderKLLTX2Video(  # 32 pixels and 8 frames a cell, whatever the pipeline is told
        latent_channels=4,
        block_out_channels=(8,) * stages,
        down_block_types=("LTX2VideoDownBlock3D",) * stages,
        decoder_block_out_channels=(8,) * stages,
        layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * (stages + 1),
        spatio_temporal_scaling=(True,) * stages,
        decoder_spatio_temporal_scaling=(True,) * stages,
        decoder_inject_noise=(False,) * (stages + 1),
        downsample_type=("spatiotemporal",) * stages,
        upsample_type=("spatiotemporal",) * stages,
        upsample_residual=(False,) * stages,
        upsample_factor=(1,) * stages,
        spatial_compression_ratio=spatial,
        temporal_compression_ratio=temporal,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=layers,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )
    return {
        "transformer": transformer(),
        "vae": vae.eval(),
        "audio_vae": audio_vae.eval(),
        "connectors": connectors.eval(),
        "scheduler": scheduler(),
    }


def small_ltx2_pipeline(seed: int = 0) -> LTX2Pipeline:
    """Without a text encoder and vocoder; cells of 8 pixels and 4 frames. The same seed gives the same weights."""
    torch.manual_seed(seed)
    pipe = LTX2Pipeline(**parts(), **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


GUIDED = {
    "stg_scale": 1.0, "modality_scale": 3.0, "spatio_temporal_guidance_blocks": [1], "guidance_rescale": 0.7
}  # fmt: skip
PLAIN = {"stg_scale": 0.0, "modality_scale": 1.0, "spatio_temporal_guidance_blocks": None, "guidance_rescale": 0.0}


def call_ltx2(pipe: Any, prompt: int = 0, seed: int = 0, steps: int = STEPS, **options: Any) -> torch.Tensor:
    """One generation's final latents (1, 4, 5, 16, 16), or of another size, with classifier-free guidance alone."""
    return both_of(pipe, prompt, seed, steps, **options)[0]


def both_of(
    pipe: Any, prompt: int = 0, seed: int = 0, steps: int = STEPS, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the sound's."""
    text = torch.Generator().manual_seed(1000 + prompt)
    guidance = PLAIN | {name: options.pop(name) for name in PLAIN if name in options}
    for_sound = {f"audio_{name}": scale for name, scale in guidance.items() if "blocks" not in name}
    return pipe(
        prompt_embeds=torch.randn(1, 8, WIDTH, generator=text),
        prompt_attention_mask=torch.ones(1, 8, dtype=torch.long),
        negative_prompt_embeds=torch.zeros(1, 8, WIDTH),
        negative_prompt_attention_mask=torch.ones(1, 8, dtype=torch.long),
        num_frames=17,
        num_inference_steps=steps,
        guidance_scale=4.0,
        audio_guidance_scale=4.0,
        use_cross_timestep=False,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        return_dict=False,
        **guidance,
        **for_sound,
        **{"height": 128, "width": 128, **options},
    )
