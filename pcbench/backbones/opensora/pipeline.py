"""Open-Sora 1.2's text-to-video sampling as a diffusers pipeline.

Follows https://github.com/hpcaitech/Open-Sora, branch opensora/v1.2 (bde3c42): scripts/inference.py,
opensora/schedulers/rf, opensora/utils/inference_utils.py. Left out are upstream's conditioning on reference frames, its
loops that extend a video, and prompts rewritten by a language model. Upstream holds height, width and frames in the
weights' dtype, so its own bfloat16 runs round the timestep shift (by up to 0.3 %) and the width 854 to 856.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtAlphaPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput, is_bs4_available, is_ftfy_available
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import AutoTokenizer, T5EncoderModel

from .scheduler import set_timesteps
from .transformer import STDiT3Transformer3DModel
from .vae import AutoencoderOpenSora, latent_size

IMAGE_FPS = 120  # upstream's frame rate of a single image (opensora/datasets/datasets.py)


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """frames: video in the form given by `output_type`, or latents (B, C, T, H, W) for output_type="latent"."""

    frames: Any


class OpenSoraPipeline(DiffusionPipeline):
    """Text to video with Open-Sora 1.2.

    `tokenizer`, `text_encoder` and `vae` may be None for calls with `prompt_embeds` and `output_type="latent"`.
    The unconditional branch is the transformer's own learned null caption: there is no negative prompt.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder", "vae"]  # noqa: RUF012 (diffusers compares it as a list)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    # DeepFloyd IF's caption cleaning, which upstream took from PixArt (opensora/models/text_encoder/t5.py).
    bad_punct_regex = PixArtAlphaPipeline.bad_punct_regex
    _clean_caption = PixArtAlphaPipeline._clean_caption
    _text_preprocessing = PixArtAlphaPipeline._text_preprocessing

    def __init__(
        self,
        transformer: STDiT3Transformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        tokenizer: AutoTokenizer | None = None,
        text_encoder: T5EncoderModel | None = None,
        vae: AutoencoderOpenSora | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self._guidance_scale = 1.0

    @property
    def guidance_scale(self) -> float:
        """Weight of classifier-free guidance; 1 or less means no guidance."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def encode_prompt(
        self,
        prompt: str | list[str],
        aesthetic_score: float | None = 6.5,
        motion_score: float | None = None,
        camera_motion: str | None = None,
        clean_caption: bool = True,
        max_sequence_length: int = 300,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, L, C) of the prompts and the mask (B, L) of their tokens.

        The scores are appended as text, as in training; the defaults are `aes = 6.5` and `flow = None` of
        configs/opensora-v1-2/inference/sample.py. Raises ImportError if cleaning is asked for without its packages.
        """
        if clean_caption and not (is_bs4_available() and is_ftfy_available()):
            raise ImportError("clean_caption=True needs the packages beautifulsoup4 and ftfy")
        device = device or self._execution_device
        prompts = [
            _with_scores(text, aesthetic_score, motion_score, camera_motion)
            for text in ([prompt] if isinstance(prompt, str) else prompt)
        ]
        tokens = self.tokenizer(
            self._text_preprocessing(prompts, clean_caption=clean_caption),
            padding="max_length",
            max_length=max_sequence_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        embeds = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return embeds, tokens.attention_mask

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | None,
        prompt_embeds: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raise ValueError for arguments that contradict each other or this pipeline."""
        if negative_prompt:
            raise ValueError("Open-Sora has no negative prompt: its unconditional branch is a learned null caption")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if prompt is not None and (self.text_encoder is None or self.tokenizer is None):
            raise ValueError("this pipeline has no text encoder: give prompt_embeds")
        if output_type != "latent" and self.vae is None:
            raise ValueError('this pipeline has no VAE: give output_type="latent"')
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs knows no {', '.join(sorted(unknown))}")

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """New noise, or the given latents, of shape (B, C, T, H, W) in float32. Raises ValueError for another shape."""
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents.shape != shape:
            raise ValueError(f"latents must be {shape} for this video, not {tuple(latents.shape)}")
        return latents.to(device, torch.float32)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | None = None,
        height: int = 240,
        width: int = 426,
        num_frames: int = 51,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        fps: int = 24,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        max_sequence_length: int = 300,
        aesthetic_score: float | None = 6.5,
        motion_score: float | None = None,
        camera_motion: str | None = None,
        clean_caption: bool = True,
    ) -> OpenSoraPipelineOutput | tuple[Any]:
        """Generate videos; defaults are upstream's sample.py (240p, "9:16" in its height:width order, 51 frames).

        height, width, num_frames: the video's size in pixels and frames, also given to the transformer. The latent has
            whole cells only, so a width of 854 gives a video 848 wide, as upstream.
        fps: the frame rate given to the transformer, in frames per second.
        prompt_embeds, prompt_attention_mask: (B, L, C) and (B, L), in place of `prompt`; no mask means all tokens.
        """
        self.check_inputs(prompt, negative_prompt, prompt_embeds, output_type, list(callback_on_step_end_tensor_inputs))
        self._guidance_scale = guidance_scale
        device, config, dtype = self._execution_device, self.transformer.config, self.transformer.dtype
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self.encode_prompt(
                prompt, aesthetic_score, motion_score, camera_motion, clean_caption, max_sequence_length, device
            )
        assert prompt_embeds is not None
        text = self._conditions(prompt_embeds, prompt_attention_mask, device, dtype)
        batch = len(prompt_embeds)
        sizes = {"fps": fps if num_frames > 1 else IMAGE_FPS, "height": height, "width": width}
        rows = len(text["encoder_hidden_states"])
        text |= {name: torch.full((rows,), float(value), device=device) for name, value in sizes.items()}

        size = (self.vae.latent_size if self.vae is not None else latent_size)(num_frames, height, width)
        latents = self.prepare_latents((batch, config.in_channels, *size), device, generator, latents)
        set_timesteps(self.scheduler, num_inference_steps, height, width, num_frames, device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)

        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                sigma = float(self.scheduler.sigmas[index])
                context = {"step_index": index, "sigma": sigma, "num_inference_steps": len(timesteps)}
                with self.transformer.cache_context("cond_uncond", **context):
                    velocity = self._velocity(latents, timestep, text)
                # upstream's velocity points towards the video, diffusers' flow towards the noise
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, index, timestep, {"latents": latents}).pop("latents", latents)
                progress.update()

        frames: Any = latents
        if output_type != "latent":
            video = self.vae.decode(latents.to(self.vae.dtype), num_frames=num_frames, return_dict=False)[0]
            frames = self.video_processor.postprocess_video(video, output_type=output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=frames) if return_dict else (frames,)

    def _conditions(
        self, embeds: torch.Tensor, mask: torch.Tensor | None, device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Text arguments of every transformer call: [conditional, unconditional] with guidance, else conditional."""
        embeds = embeds.to(device, dtype)
        mask = torch.ones(embeds.shape[:2], device=device) if mask is None else mask.to(device)
        if mask.shape != embeds.shape[:2]:
            raise ValueError(f"prompt_attention_mask must be {tuple(embeds.shape[:2])}, not {tuple(mask.shape)}")
        if self.do_classifier_free_guidance:
            null = self.transformer.null_caption.to(device, dtype)
            if embeds.shape[1] > len(null):
                raise ValueError(
                    f"the null caption has {len(null)} tokens: prompt_embeds cannot have {embeds.shape[1]}"
                )
            # upstream masks the null caption with the prompt's mask, so both have as many active tokens
            embeds = torch.cat([embeds, null[: embeds.shape[1]].expand_as(embeds)])
            mask = torch.cat([mask, mask])
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def _velocity(self, latents: torch.Tensor, timestep: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """The guided velocity in float32; the transformer's other channels, a variance, are not used."""
        copies = len(conditions["encoder_hidden_states"]) // len(latents)  # not from the scale, which may change
        hidden = torch.cat([latents] * copies).to(self.transformer.dtype)
        prediction = self.transformer(
            hidden_states=hidden, timestep=timestep.expand(len(hidden)), **conditions, return_dict=False
        )[0][:, : latents.shape[1]].float()
        if copies == 1:
            return prediction
        conditional, unconditional = prediction.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def _with_scores(prompt: str, aesthetic: float | None, motion: float | None, camera: str | None) -> str:
    """The prompt with those scores appended that it does not state itself."""
    scores = {
        "aesthetic score:": None if aesthetic is None else f"{aesthetic:.1f}",
        "motion score:": None if motion is None else f"{motion:.1f}",
        "camera motion:": camera,
    }
    added = (f"{name} {value}." for name, value in scores.items() if value is not None and name not in prompt)
    return " ".join([prompt, *added])
