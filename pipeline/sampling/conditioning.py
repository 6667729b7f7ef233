"""Controls as tensors: conditionings, made when a control changes and kept for the frames that follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from pipeline import capabilities
from pipeline.capabilities import Capabilities
from pipeline.settings import Controls

from . import lcm
from .model import Components
from .prompts import PromptEncoder
from .sampler import Conditioning
from .sizes import Sizes


class ConditioningCache:
    """Those of one loaded model."""

    def __init__(self, model: Capabilities, parts: Components, sizes: Sizes):
        self._parts, self._capabilities = parts, model
        self.prompts = PromptEncoder(parts.family, parts.tokenizers, parts.text_encoders, parts.device)
        # They hold the parts and not this object: a circle would keep a model's weights until it is collected.
        one = lru_cache(64)(partial(_made, parts, sizes, self.prompts, scaled=bool(model.annotators)))
        self._one, self._batch = one, lru_cache(16)(lambda *keys: Conditioning.join([one(*key) for key in keys]))

    def __call__(self, controls: Sequence[Controls], from_noise: Sequence[bool], scale: float = 1.0) -> Conditioning:
        """The conditioning of a batch, from the controls of each frame, which have equal shape keys.

        from_noise: whether a frame enters as noise alone. The model's LoRAs must have the weights asked for.
        """
        return self._batch(*(self.key(one, pure, scale) for one, pure in zip(controls, from_noise, strict=True)))

    def apply_loras(self, controls: Controls) -> None:
        """Give the model's LoRAs the weights asked for; conditionings of prompts that this changes are forgotten."""
        loras, weights = self._parts.loras, self.lora_weights(controls)
        if loras is None or loras.stand_at(weights):
            return
        if loras.touch_prompts:  # before: should writing break off, the text encoder is neither the old nor the new one
            self.prompts.forget()
            self._one.cache_clear()
            self._batch.cache_clear()
        loras.apply(weights)

    def lora_weights(self, controls: Controls) -> dict[str, float]:
        return capabilities.lora_weights(self._capabilities, controls)

    @property
    def guidance_embedding_dim(self) -> int | None:
        """Set in full LCMs, which take guidance as an input; None where guidance is true CFG."""
        return self._parts.unet.config.time_cond_proj_dim

    def uses_cfg(self, controls: Controls) -> bool:
        return capabilities.uses_cfg(self._capabilities, controls)

    def key(self, controls: Controls, from_noise: bool, scale: float = 1.0) -> tuple:
        """What a conditioning is made from: controls of equal keys have the same."""
        negative = controls.negative_prompt if self.uses_cfg(controls) else None
        return (
            controls.prompt,
            negative,
            1.0 if from_noise else controls.strength,
            controls.steps,
            controls.guidance,
            controls.seed,
            controls.control_scale,
            from_noise,
            scale,
        )


@torch.inference_mode()
def _made(
    parts: Components,
    sizes: Sizes,
    prompts: PromptEncoder,
    prompt: str,
    negative: str | None,
    strength: float,
    steps: int,
    guidance: float,
    seed: int,
    control_scale: float,
    from_noise: bool,
    scale: float,
    *,
    scaled: bool,
) -> Conditioning:
    """What a key (ConditioningCache.key) means. scaled: whether anything looks at the control scale."""
    device, dtype = parts.device, parts.dtype
    run = lcm.timesteps(parts.schedule, steps, strength)
    rows = lcm.table(parts.schedule, run)
    if from_noise:
        rows[0, :2] = torch.tensor([0.0, 1.0])
    dim = parts.unet.config.time_cond_proj_dim
    texts = [prompts(prompt)] if negative is None else [prompts.negative(negative), prompts(prompt)]
    height, width = sizes.picture(scale)

    def scalar(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=dtype, device=device)

    return Conditioning(
        # Tensors of their own: views into one would be misaligned for compiled CUDA code, which then copies them.
        timesteps=tuple(torch.tensor([t], device=device) for t in run),
        rows=tuple(rows.to(device).split(1)),
        noise=tuple(noise.to(device) for noise in lcm.draw_noise(seed, steps, sizes.latents(scale))),
        embeds=tuple(text.states for text in texts),
        pooled=tuple(text.pooled for text in texts if text.pooled is not None),
        # Original size, crop, target size: as if the picture had been photographed just so.
        time_ids=torch.tensor([[height, width, 0, 0, height, width]], device=device, dtype=dtype)
        if parts.family.pooled
        else None,
        guidance=None if negative is None else scalar(guidance, torch.float32),
        timestep_cond=None if dim is None else lcm.guidance_embedding(guidance, dim).to(device, dtype),
        control_scale=scalar(control_scale, dtype) if scaled else None,
    )
