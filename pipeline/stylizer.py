"""Stylizer: encode -> denoise -> decode for a batch of frames. One per loaded model; call it from one thread."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from . import color, lcm
from .control import ANNOTATORS, ControlNetExtra
from .denoiser import Denoiser
from .loading import Components
from .prompts import PromptEncoder
from .settings import Controls, ModelSpec


class Encoder(torch.nn.Module):
    """Picture [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, h, w]."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor) -> Tensor:
        encoded = self.vae.encode(picture)
        # An AutoencoderKL's mode, not a sample: a fresh draw each frame flickers.
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor


class Decoder(torch.nn.Module):
    """Scaled latents, float32 [B, C, h, w] -> picture [B, 3, H, W], about [-1, 1]."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype, memory_format=torch.channels_last)
        return self.vae.decode(latents, return_dict=False)[0]


@dataclass(frozen=True)
class Recipe:
    """Controls as tensors on the device: made when a control changes, read for every frame.

    The leading dimension is 1, or B where the recipes of B frames have been joined.
    """

    timesteps: tuple[Tensor, ...]  # per step, int64 [1]
    rows: tuple[Tensor, ...]  # per step, float32 [1, 4]: pipeline.lcm.table
    noise: tuple[Tensor, ...]  # per step, float32 [1, C, h, w]
    embeds: tuple[Tensor, ...]  # (prompt,) or with CFG (negative prompt, prompt): [1, tokens, width]
    guidance: Tensor | None  # float32 [1, 1, 1, 1]
    timestep_cond: Tensor | None  # [1, 256]
    control_scale: Tensor | None  # [1, 1, 1, 1]

    def for_batch(self, size: int) -> Recipe:
        def expand(part):
            if isinstance(part, tuple):
                return tuple(expand(tensor) for tensor in part)
            return None if part is None else part.expand(size, *part.shape[1:])

        return Recipe(*(expand(part) for part in vars(self).values()))

    @staticmethod
    def join(recipes: Sequence[Recipe]) -> Recipe:
        """One recipe for a batch; all must have equal steps and guidance kinds (Stylizer.shape_key)."""
        if all(recipe is recipes[0] for recipe in recipes):
            return recipes[0].for_batch(len(recipes))

        def cat(parts):
            if isinstance(parts[0], tuple):
                return tuple(cat(column) for column in zip(*parts, strict=True))
            return None if parts[0] is None else torch.cat(parts)

        return Recipe(*(cat(column) for column in zip(*(vars(r).values() for r in recipes), strict=True)))


class Stylizer:
    """Frames in, stylized frames out.

    The three parts (`encode`, `denoise`, `decode`) are plain callables on tensors; compiled ones take their place
    while frames flow (pipeline.compiling).
    """

    max_batch = 1

    def __init__(self, spec: ModelSpec, parts: Components):
        self.spec = spec
        self.components = parts
        self.device, self.dtype = parts.device, parts.dtype
        self.encode = Encoder(parts.vae)
        extra = ControlNetExtra(parts.controlnet) if parts.controlnet is not None else None
        self.denoise = Denoiser(parts.unet, extra)
        self.decode = Decoder(parts.vae)
        self.prompts = PromptEncoder(parts.tokenizer, parts.text_encoder)
        factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        if isinstance(parts.vae, AutoencoderTiny):
            factor = 2 ** (len(parts.vae.config.encoder_block_out_channels) - 1)
        self.latent_shape = (parts.unet.config.in_channels, spec.height // factor, spec.width // factor)
        self._recipe = lru_cache(64)(self._make_recipe)

    @property
    def guidance_embedding_dim(self) -> int | None:
        """Set in full LCMs, which take guidance as an input; None where guidance is true CFG."""
        return self.components.unet.config.time_cond_proj_dim

    @property
    def loras(self) -> tuple[str, ...]:
        return self.components.loras.names if self.components.loras else ()

    @property
    def features(self) -> frozenset[str]:
        """Which of the controls' `x-needs` this model meets."""
        here = {
            "guidance": True,
            "cfg": self.guidance_embedding_dim is None,
            "lora": bool(self.loras),
            "control": self.components.controlnet is not None,
            "canny": self.components.controlnet is not None and self.spec.control == "canny",
        }
        return frozenset(name for name, present in here.items() if present)

    def check(self, controls: Controls) -> None:
        """Raise ValueError, one sentence, when controls name what this model does not have."""
        unknown = sorted(set(controls.lora_weights) - set(self.loras))
        if unknown:
            loaded = ", ".join(self.loras) or "none"
            raise ValueError(f"lora_weights: no LoRA {unknown[0]!r} is loaded (loaded: {loaded}).")
        if controls.steps > self.components.schedule.original_steps:
            raise ValueError(f"steps: this model's schedule holds {self.components.schedule.original_steps}.")

    def shape_key(self, controls: Controls) -> Hashable:
        """Frames whose controls have equal keys can share a batch."""
        if controls.bypass or controls.strength == 0:
            return "source"
        return (controls.steps, self._uses_cfg(controls), tuple(sorted(self._lora_weights(controls).items())))

    def __call__(self, frames, controls: Controls | Sequence[Controls]):
        """Stylize a batch.

        frames: uint8 [N, H, W, 3] RGB, numpy or torch, any size. controls: one for all, or one for each frame (of equal
        `shape_key`). Returns uint8 [N, spec.height, spec.width, 3], the same kind as `frames`. Raises ValueError on
        frames of another shape or type, and where `check` does.
        """
        given_numpy = isinstance(frames, np.ndarray)
        tensor = torch.from_numpy(frames) if given_numpy else frames
        if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[3] != 3 or 0 in tensor.shape:
            raise ValueError(f"frames must be uint8 [N, H, W, 3], not {tensor.dtype} {list(tensor.shape)}.")
        each = [controls] * len(tensor) if isinstance(controls, Controls) else list(controls)
        if len(each) != len(tensor):
            raise ValueError(f"{len(tensor)} frames came with {len(each)} controls.")
        if len({self.shape_key(one) for one in each}) > 1:
            raise ValueError("The controls of one batch must have equal shape keys.")
        for one in {id(one): one for one in each}.values():
            self.check(one)
        out = self._stylize(tensor.to(self.device, non_blocking=True), each)
        return out.cpu().numpy() if given_numpy else out.to(frames.device)

    @torch.inference_mode()
    def _stylize(self, frames: Tensor, controls: list[Controls]) -> Tensor:
        pixels = color.fit(frames, self.spec.width, self.spec.height)
        if self.shape_key(controls[0]) == "source":
            return pixels.permute(0, 2, 3, 1).contiguous()
        if self.components.loras:
            self._apply_loras(controls[0])
        recipe = Recipe.join([self._recipe(*self._recipe_key(one)) for one in controls])
        control = self._control_image(pixels, controls)

        x = self.encode(color.to_model(pixels, self.dtype))
        embeds = torch.cat(recipe.embeds)
        for t, row, noise in zip(recipe.timesteps, recipe.rows, recipe.noise, strict=True):
            x = lcm.noised(x, noise, row)
            model_input = x.to(self.dtype, memory_format=torch.channels_last)
            out = self.denoise(
                model_input, t, embeds, recipe.guidance, recipe.timestep_cond, control, recipe.control_scale
            )
            x = lcm.denoised(x, out, row)
        return color.to_frames(self.decode(x))

    def _control_image(self, pixels: Tensor, controls: list[Controls]) -> Tensor | None:
        if self.components.controlnet is None:
            return None
        annotate = ANNOTATORS[self.spec.control]
        images = [annotate(p, c.canny_low, c.canny_high) for p, c in zip(pixels, controls, strict=True)]
        return torch.stack(images).to(self.dtype, memory_format=torch.channels_last)

    def _apply_loras(self, controls: Controls) -> None:
        loras = self.components.loras
        if loras.apply(self._lora_weights(controls)) and loras.touch_prompts:
            self.prompts.forget()
            self._recipe.cache_clear()

    def _lora_weights(self, controls: Controls) -> dict[str, float]:
        loaded = {lora.name: lora.weight for lora in self.spec.loras}
        return {name: controls.lora_weights.get(name, weight) for name, weight in loaded.items()}

    def _uses_cfg(self, controls: Controls) -> bool:
        return self.guidance_embedding_dim is None and controls.guidance > 1.0

    def _recipe_key(self, controls: Controls) -> tuple:
        negative = controls.negative_prompt if self._uses_cfg(controls) else None
        return (
            controls.prompt,
            negative,
            controls.strength,
            controls.steps,
            controls.guidance,
            controls.seed,
            controls.control_scale,
        )

    @torch.inference_mode()
    def _make_recipe(self, prompt, negative, strength, steps, guidance, seed, control_scale) -> Recipe:
        schedule, device = self.components.schedule, self.device
        run = lcm.timesteps(schedule, steps, strength)
        dim = self.guidance_embedding_dim
        texts = (prompt,) if negative is None else (negative, prompt)

        def scalar(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((1, 1, 1, 1), value, dtype=dtype, device=device)

        return Recipe(
            # Tensors of their own: views into one would be misaligned for compiled CUDA code, which then copies them.
            timesteps=tuple(torch.tensor([t], device=device) for t in run),
            rows=tuple(lcm.table(schedule, run).to(device).split(1)),
            noise=tuple(noise.to(device) for noise in lcm.draw_noise(seed, steps, self.latent_shape)),
            embeds=tuple(self.prompts(text) for text in texts),
            guidance=None if negative is None else scalar(guidance, torch.float32),
            timestep_cond=None if dim is None else lcm.guidance_embedding(guidance, dim).to(device, self.dtype),
            control_scale=None if self.components.controlnet is None else scalar(control_scale, self.dtype),
        )
