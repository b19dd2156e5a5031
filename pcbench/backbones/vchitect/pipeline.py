"""Vchitect-2.0's text-to-video sampling as a diffusers pipeline.

Follows inference.py and models/pipeline.py of https://github.com/Vchitect/Vchitect-2.0 (299618f). Prompts are encoded
by Stable Diffusion 3's own methods, of which the official ones are copies. Two differences: the conditional branch is
called first, officially the unconditional one; and latents stay in float32, which officially autocast rounds to
bfloat16 after each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .transformer import VchitectTransformer3DModel

SPATIAL = 8  # pixels per latent cell


def _stable_diffusion_3() -> Any:
    """The pipeline whose text encoding this is; diffusers loads image processors with it, which warn without
    torchvision."""
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline


@dataclass
class VchitectPipelineOutput(BaseOutput):
    """frames: video in the form given by `output_type`, or latents (B, C, T, H, W) for output_type="latent"."""

    frames: Any


class VchitectPipeline(DiffusionPipeline):
    """Text to video with Vchitect-2.0.

    Tokenizers, text encoders and VAE may be None for calls with `prompt_embeds` and `output_type="latent"`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _optional_components = [  # noqa: RUF012 (diffusers compares it as a list)
        *("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    ]
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        transformer: VchitectTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        tokenizer: CLIPTokenizer | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        tokenizer_3: T5TokenizerFast | None = None,
        text_encoder: CLIPTextModelWithProjection | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        text_encoder_3: T5EncoderModel | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            tokenizer_3=tokenizer_3,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_3=text_encoder_3,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
        )
        self.video_processor = VideoProcessor(vae_scale_factor=SPATIAL)
        self.tokenizer_max_length = 77 if tokenizer is None else tokenizer.model_max_length
        self._guidance_scale = 1.0
        self._guided = False

    @property
    def guidance_scale(self) -> float:
        """Weight of classifier-free guidance at the current step."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guided

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def _get_clip_prompt_embeds(self, *arguments: Any, **named: Any) -> Any:
        return _stable_diffusion_3()._get_clip_prompt_embeds(self, *arguments, **named)

    def _get_t5_prompt_embeds(self, *arguments: Any, **named: Any) -> Any:
        return _stable_diffusion_3()._get_t5_prompt_embeds(self, *arguments, **named)

    def encode_prompt(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        max_sequence_length: int = 256,
        device: torch.device | None = None,
    ) -> tuple[Any, Any, Any, Any]:
        """Embeddings (B, L, C) of the prompts and of the negative ones, and CLIP's pooled embeddings of both.

        Without guidance those of negative prompts are None.
        max_sequence_length: tokens of T5's part, which follows CLIP's.
        """
        return _stable_diffusion_3().encode_prompt(
            self,
            prompt,
            None,
            None,
            device=device,
            do_classifier_free_guidance=do_classifier_free_guidance,
            negative_prompt=negative_prompt,
            max_sequence_length=max_sequence_length,
        )

    def check_inputs(
        self, prompt: Any, height: int, width: int, embeds: list[Any], output_type: str, callback_inputs: list[str]
    ) -> None:
        """Raise ValueError for arguments that contradict each other or this pipeline.

        embeds: prompt, pooled; and, with guidance, negative, negative pooled.
        """
        side = SPATIAL * self.transformer.config.patch_size
        if height % side or width % side:
            raise ValueError(f"height and width must be multiples of {side}, not {height}x{width}")
        if (prompt is None) == (embeds[0] is None):
            raise ValueError("give either prompt or prompt_embeds")
        if prompt is None and any(each is None for each in embeds):
            raise ValueError(
                "prompt_embeds come with pooled_prompt_embeds and, for guidance, with negative ones of both"
            )
        if prompt is not None and (self.text_encoder is None or self.text_encoder_2 is None):
            raise ValueError("this pipeline has no text encoders: give prompt_embeds")
        if output_type != "latent" and self.vae is None:
            raise ValueError('this pipeline has no VAE: give output_type="latent"')
        if unknown := set(callback_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs knows no {', '.join(sorted(unknown))}")

    def prepare_latents(
        self,
        shape: tuple[int, int, int, int, int],
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """New noise, or the given latents, of shape (B, C, T, H, W) in float32. Raises ValueError for another shape."""
        if latents is None:  # drawn frame after frame, as officially
            frame_after_frame = (shape[0], shape[2], shape[1], *shape[3:])
            noise = randn_tensor(frame_after_frame, generator=generator, device=device, dtype=torch.float32)
            return noise.transpose(1, 2).contiguous()
        if latents.shape != shape:
            raise ValueError(f"latents must be {shape} for this video, not {tuple(latents.shape)}")
        return latents.to(device, torch.float32)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, T, H, W) as videos (B, 3, T, height, width) in [-1, 1]; the VAE is one of images."""
        config = self.vae.config
        latents = (latents / config.scaling_factor + config.shift_factor).to(self.vae.dtype)
        return torch.stack([self.vae.decode(frame, return_dict=False)[0] for frame in latents.unbind(2)], dim=2)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 432,
        width: int = 768,
        num_frames: int = 40,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        use_dynamic_cfg: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        max_sequence_length: int = 256,
    ) -> VchitectPipelineOutput | tuple[Any]:
        """Generate videos; defaults are inference.py's.

        use_dynamic_cfg: the official scale, which changes from step to step (`dynamic_scale`); false keeps it.
        """
        embeds: list[Any] = [prompt_embeds, pooled_prompt_embeds, negative_prompt_embeds, negative_pooled_prompt_embeds]
        self._guidance_scale, self._guided = guidance_scale, guidance_scale > 1
        embeds = embeds[: 4 if self._guided else 2]
        self.check_inputs(prompt, height, width, embeds, output_type, list(callback_on_step_end_tensor_inputs))
        device = self._execution_device
        if prompt is not None:
            positive, negative, pooled, negative_pooled = self.encode_prompt(
                prompt, negative_prompt, self._guided, max_sequence_length, device
            )
            embeds = [positive, pooled, negative, negative_pooled]
        size = (num_frames, height // SPATIAL, width // SPATIAL)
        shape = (len(embeds[0]), self.transformer.config.in_channels, *size)
        latents = self.prepare_latents(shape, device, generator, latents)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self.scheduler.set_begin_index(0)
        timesteps = self.scheduler.timesteps
        self._num_timesteps, known = len(timesteps), timesteps.tolist()
        with self.progress_bar(total=len(known)) as progress:
            for index, timestep in enumerate(timesteps):
                if use_dynamic_cfg and self._guided:
                    self._guidance_scale = dynamic_scale(guidance_scale, known[index], num_inference_steps)
                velocity = self._velocity(latents, index, embeds)
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, index, timestep, {"latents": latents}).pop("latents", latents)
                progress.update()
        frames: Any = latents
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        return VchitectPipelineOutput(frames=frames) if return_dict else (frames,)

    def _velocity(self, latents: torch.Tensor, index: int, embeds: list[torch.Tensor]) -> torch.Tensor:
        """The guided velocity of a step in float32, by a call of the transformer for each branch."""
        schedule = self.scheduler
        announced = {
            "step_index": index,
            "sigma": float(schedule.sigmas[index]),
            "num_inference_steps": self._num_timesteps,
        }
        timestep = schedule.timesteps[index].expand(len(latents))
        velocities = []
        for branch, name in enumerate(("cond", "uncond") if self._guided else ("cond",)):
            text, pooled = (each.to(latents.device) for each in embeds[2 * branch : 2 * branch + 2])
            with self.transformer.cache_context(name, **announced):
                velocity = self.transformer(
                    hidden_states=latents.to(self.transformer.dtype),
                    timestep=timestep,
                    encoder_hidden_states=text,
                    pooled_projections=pooled,
                    return_dict=False,
                )[0]
            velocities.append(velocity.float())
        if not self._guided:
            return velocities[0]
        conditional, unconditional = velocities
        return unconditional + self._guidance_scale * (conditional - unconditional)


def dynamic_scale(scale: float, timestep: float, steps: int) -> float:
    """The official guidance scale at a timestep (0 to 1000) of so many steps: between 1 and 1 + `scale`.

    CogVideoX's formula. It is a smooth rise where timesteps count steps; these go up to 1000, so that among 100 steps
    the scale jumps from one to the next.
    """
    return 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5)) / 2
