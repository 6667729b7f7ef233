"""A batch's way on the device: encode -> noise -> denoise -> decode.

Tensors in, tensors out. Nothing here waits for the device or looks at a value, so all of it can be captured as one
CUDA graph (pipeline.runtime.graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from pipeline.pixels import color
from pipeline.trees import joined

from . import lcm
from .adapters import Extra, Scene
from .deep_features import Deep, FeatureDenoiser, Features, ShallowDenoiser


class Encoder(torch.nn.Module):
    """Picture [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, h, w]."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor) -> Tensor:
        encoded = self.vae.encode(picture.to(self.vae.dtype))
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
class Conditioning:
    """Controls as tensors on the device: made when a control changes, read for every frame.

    The leading dimension is 1, or B where the conditionings of B frames have been joined.
    """

    timesteps: tuple[Tensor, ...]  # per step, int64 [1]
    rows: tuple[Tensor, ...]  # per step, float32 [1, 4]: pipeline.sampling.lcm.table
    noise: tuple[Tensor, ...]  # per step, float32 [1, C, h, w]
    embeds: tuple[Tensor, ...]  # (prompt,) or with CFG (negative prompt, prompt): [1, tokens, width]
    pooled: tuple[Tensor, ...]  # the same of the pooled text, [1, width]; () where the family has none
    time_ids: Tensor | None  # [1, 6], with the pooled text
    guidance: Tensor | None  # float32 [1, 1, 1, 1]
    timestep_cond: Tensor | None  # [1, 256]
    control_scale: Tensor | None  # [1, 1, 1, 1]

    def for_batch(self, size: int) -> Conditioning:
        def expand(part):
            if isinstance(part, tuple):
                return tuple(expand(tensor) for tensor in part)
            return None if part is None else part.expand(size, *part.shape[1:])

        return Conditioning(*(expand(part) for part in vars(self).values()))

    @staticmethod
    def join(conditionings: Sequence[Conditioning]) -> Conditioning:
        """One for a batch; all must have equal steps and guidance kinds (pipeline.capabilities.shape_key)."""
        if all(conditioning is conditionings[0] for conditioning in conditionings):
            return conditionings[0].for_batch(len(conditionings))
        return joined(conditionings)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def at(self, step: int) -> Conditioning:
        """A conditioning of that step alone."""
        one = slice(step, step + 1)
        return replace(self, timesteps=self.timesteps[one], rows=self.rows[one], noise=self.noise[one])


@dataclass(frozen=True)
class SampleRequest:
    """What B pictures are painted from.

    pixels: uint8 [B, 3, H, W], None for text-to-image. mask: [B, 1, H, W], 1 where to repaint, None for all of it.
    images: annotator -> control images [B, 3, H, W] in [0, 1].
    """

    conditioning: Conditioning
    pixels: Tensor | None
    mask: Tensor | None
    images: Mapping[str, Tensor]


@dataclass(frozen=True)
class SourceBlend:
    """Where the source is put back after every step: share [B, 1, h, w], source and the noise it entered with."""

    share: Tensor
    source: Tensor
    noise: Tensor


@dataclass(frozen=True)
class SamplingState:
    """B pictures between two steps. x: what their clean latents are taken to be, float32 [B, C, h, w]; the sources' at
    first. conditions: of all extras. kept: None where all is repainted."""

    x: Tensor
    conditions: tuple[Tensor, ...]
    kept: SourceBlend | None


class Sampler:
    """SampleRequest -> uint8 [B, H, W, 3]: begin, then a step for each of the conditioning's, then finish.

    encode, denoise, decode: modules, or compiled code in their place (pipeline.compiling). extras: those of the
    denoiser. keeps_source: a mask is obeyed by putting the source back after every step, as for a UNet that does not
    take the mask as an input. size: (height, width) of the pictures. keeping, shallow: what calls the UNet where deep
    features are kept and used again (pipeline.sampling.deep_features).
    """

    def __init__(
        self,
        encode: Callable[..., Tensor],
        denoise: Callable[..., Tensor],
        decode: Callable[..., Tensor],
        *,
        extras: Sequence[Extra],
        keeps_source: bool,
        size: tuple[int, int],
        dtype: torch.dtype,
        keeping: FeatureDenoiser,
        shallow: ShallowDenoiser,
    ):
        self.encode, self.denoise, self.decode = encode, denoise, decode
        self.extras, self.keeps_source, self.size, self.dtype = extras, keeps_source, size, dtype
        self.keeping, self.shallow = keeping, shallow

    @torch.inference_mode()
    def __call__(self, request: SampleRequest) -> Tensor:
        return self._painted(request, self.denoise)

    @torch.inference_mode()
    def keep(self, request: SampleRequest) -> tuple[Tensor, Deep]:
        """The pictures, and the deep features of each step."""
        deep: list[Features] = []

        def denoise(*call):
            out, features = self.keeping(*call)
            deep.append(features)
            return out

        return self._painted(request, denoise), tuple(deep)

    @torch.inference_mode()
    def reuse(self, given: tuple[SampleRequest, Deep]) -> Tensor:
        """The pictures of a request, painted on deep features of other frames."""
        request, deep = given
        features = iter(deep)
        return self._painted(request, lambda *call: self.shallow(next(features), *call))

    def _painted(self, request: SampleRequest, denoise: Callable[..., Tensor]) -> Tensor:
        state = self.begin(request)
        for number in range(request.conditioning.steps):
            state = replace(state, x=self.step(state, request.conditioning.at(number), denoise))
        return self.finish(state)

    @torch.inference_mode()
    def begin(self, request: SampleRequest) -> SamplingState:
        conditioning, mask = request.conditioning, request.mask
        if request.pixels is None:
            source = torch.zeros_like(conditioning.noise[0])
            picture = torch.zeros((len(source), 3, *self.size), device=source.device, dtype=self.dtype)
        else:
            picture = color.to_model(request.pixels, self.dtype)
            source = self.encode(picture)
        scene = Scene(picture, mask, request.images, conditioning.control_scale, self.encode)
        conditions = tuple(tensor for extra in self.extras for tensor in extra.prepare(scene))
        kept = None
        if mask is not None and self.keeps_source:
            kept = SourceBlend(1 - F.interpolate(mask, source.shape[2:]).float(), source, conditioning.noise[0])
        return SamplingState(source, conditions, kept)

    @torch.inference_mode()
    def step(
        self, state: SamplingState, conditioning: Conditioning, denoise: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """The next x. conditioning: of that step. denoise: in place of the sampler's own."""
        (t,), (row,), (noise,), kept = conditioning.timesteps, conditioning.rows, conditioning.noise, state.kept
        x = lcm.noised(state.x, noise, row)
        if kept is not None:
            x = torch.lerp(x, lcm.noised(kept.source, kept.noise, row), kept.share)
        call = self.denoise if denoise is None else denoise
        out = call(
            x.to(self.dtype, memory_format=torch.channels_last),
            t,
            torch.cat(conditioning.embeds),
            conditioning.guidance,
            conditioning.timestep_cond,
            torch.cat(conditioning.pooled) if conditioning.pooled else None,
            conditioning.time_ids,
            *state.conditions,
        )
        return lcm.denoised(x, out, row)

    def step_together(self, states: tuple[tuple[SamplingState, Conditioning], ...]) -> Tensor:
        """`step` for several states at once, each with a step of its own; the next x of all, one after the other."""
        return self.step(*joined(states))

    @torch.inference_mode()
    def finish(self, state: SamplingState) -> Tensor:
        x, kept = state.x, state.kept
        if kept is not None:
            x = torch.lerp(x, kept.source, kept.share)
        return color.to_frames(self.decode(x))
