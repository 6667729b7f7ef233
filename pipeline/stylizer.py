"""Stylizer: a Batch in, Pictures out. One per loaded model; call it from one thread."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.loading.components import capabilities_of
from pipeline.pixels import annotators
from pipeline.pixels.conversions import Conversions
from pipeline.runtime.captures import CapturedFunctions, capture_all_seen, make_calls
from pipeline.runtime.devices import free_memory
from pipeline.runtime.folding import folded
from pipeline.runtime.graphs import Graphs, capture_in_one_pool
from pipeline.runtime.transfers import Transfers
from pipeline.sampling import animatediff, reuse
from pipeline.sampling.conditioning import ConditioningCache
from pipeline.sampling.deep_features import FeatureDenoiser, ShallowDenoiser
from pipeline.sampling.denoiser import Denoiser
from pipeline.sampling.model import Components
from pipeline.sampling.sampler import Decoder, Encoder, Sampler
from pipeline.sampling.sizes import Sizes
from pipeline.sampling.stream_batch import StreamBatch

from . import capabilities
from .batch import Batch, Pending, Pictures, Report
from .preparation import Frames, Inputs, Preparation
from .settings import Controls, ModelSpec
from .trees import TreeFunction
from .usual_shapes import painting, usual_shapes

Kind = TypeVar("Kind", np.ndarray, Tensor)


class Stylizer:
    """Checks what is asked, turns controls into tensors, and has them painted. capabilities: for any thread.

    graphs: replay CUDA graphs of what `capture` and its like have captured; None where there is CUDA.
    """

    def __init__(self, spec: ModelSpec, parts: Components, graphs: bool | None = None):
        self.spec = spec
        self.capabilities = capabilities_of(spec, parts)
        self.components = parts
        self.device, self.dtype = parts.device, parts.dtype
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        self.sizes = Sizes(spec, parts)
        self.conditionings = ConditioningCache(self.capabilities, parts, self.sizes)
        self._animation = animatediff.Animation(parts, self.sizes, self.conditionings)
        self._transfers = Transfers(parts.device)
        self._around = self._new_captures()
        sizes = {scale: self.sizes.picture(scale) for scale in self.scales}
        self._conversions = Conversions(sizes, self.dtype, self._around)
        annotate = {name: self._annotation(name) for name in spec.annotators}
        self._preparation = Preparation(
            self.capabilities, self.sizes, self.conditionings, self._transfers, self._conversions, annotate
        )
        outer = min(parts.family.outer, len(parts.unet.up_blocks))
        self._keeping = FeatureDenoiser(parts.unet, parts.extras, outer)
        self._shallow = ShallowDenoiser(parts.unet, parts.extras, outer)
        vae = folded(parts.vae) if self.device.type == "cpu" else parts.vae  # elsewhere its gain is not measured
        self.use(Encoder(vae), Denoiser(parts.unet, parts.extras), Decoder(vae))

    def use(self, encode: Callable[..., Tensor], denoise: Callable[..., Tensor], decode: Callable[..., Tensor]) -> None:
        """Paint with these parts from the next batch on: modules, or compiled code. What was captured is let go, and so
        are deep features that were kept; frames under way go on with the parts that they began with.

        Whatever is raised leaves everything as it was.
        """
        sampler = Sampler(
            encode,
            denoise,
            decode,
            extras=self.components.extras,
            keeps_source=not self.components.inpaints,
            size=(self.spec.height, self.spec.width),
            dtype=self.dtype,
            keeping=self._keeping,
            shallow=self._shallow,
        )
        captured = self._new_captures()
        self.sampler, self._within = sampler, captured
        self._paint = captured(sampler)
        self._stream_batch = StreamBatch[Pictures](
            captured(sampler.begin), captured(sampler.step_together), captured(sampler.finish)
        )
        self._reuse = reuse.Reuse(captured(sampler.keep), captured(sampler.reuse))

    def _new_captures(self) -> CapturedFunctions:
        return CapturedFunctions(capture_in_one_pool(self.device) if self.graphs else None)

    def _annotation(self, name: str) -> TreeFunction:
        function = annotation(name, self.dtype)
        capturable = self.graphs and annotators.ANNOTATORS[name].capturable(self.device)
        return self._around(function) if capturable else function

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def max_batch(self) -> int:
        """How many frames the live engine may paint at once: on a CPU one by one is as fast, and each comes sooner."""
        return 8 if self.device.type == "cuda" else 1

    @property
    def runs_ahead(self) -> bool:
        """Does `submit` return before its pictures are there?"""
        return self.device.type == "cuda"

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the width and height, at which calls paint."""
        return self.sizes.scales

    @property
    def takes_i420(self) -> bool:
        """Is I420 to be converted here, both ways? On a CPU swscale and OpenCV are ten times as fast as torch."""
        return self.device.type == "cuda"

    @property
    def loras(self) -> tuple[str, ...]:
        return tuple(self.capabilities.loras)

    def remarks(self, controls: Controls) -> dict[str, str]:
        compiled = not isinstance(self.sampler.denoise, torch.nn.Module)
        return capabilities.remarks(self.capabilities, controls, compiled)

    def depth(self, controls: Controls) -> int:
        """At how many batches of one stream it can be at once with a possible gain (`Batch.behind` + 1)."""
        shares = self.spec.motion is None and capabilities.paints(controls) and not controls.reuse
        return controls.steps if shares and controls.steps <= self.max_batch else 1

    def stands_at(self, controls: Controls) -> bool:
        """Whether the LoRAs have the weights asked for, so that none are written for a call."""
        loras = self.components.loras
        return loras is None or loras.stand_at(self.conditionings.lora_weights(controls))

    # -- painting ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def submit(self, batch: Batch) -> Pending[Pictures]:
        """Have a batch painted.

        Frames of streams with `controls.reuse` are painted on deep features kept of an earlier frame where these will
        do: `Pictures.kind` tells. With `behind` a single frame shares the steps of those of its stream that are under
        way; another that is painted has these finished first. Raises ValueError for what cannot be painted, and
        whatever goes wrong here or when the Pending is called; where a shared step fails, every Pending that was under
        way does.
        """
        self._refuse_motion()
        if batch.streams and len(batch.streams) != len(batch.controls):
            raise ValueError(f"{len(batch.controls)} controls came with {len(batch.streams)} streams.")
        frames = batch.frames
        controls = batch.controls if frames is not None else [capabilities.from_text(one) for one in batch.controls]
        inputs = self._preparation.inputs(frames, controls, batch.mask, batch.control_frames, batch.scale, video=True)
        in_both_ways = batch.i420 and self.takes_i420
        hand_over = partial(self._hand_over, in_both_ways=in_both_ways)
        reuses = batch.frames is not None and inputs.controls[0].reuse > 0
        if batch.behind > 0 and batch.frames is not None and len(controls) == 1 and inputs.paints and not reuses:
            return self._share_steps(batch, inputs, hand_over)
        if inputs.paints:
            self._stream_batch.finish()
        if reuses and inputs.paints and batch.streams and batch.control_frames is None:
            seen, most = self._seen(batch, inputs), [one.reuse for one in inputs.controls]
            pictures, kind = self._reuse(self._preparation.request(inputs), batch.streams, seen, most)
            return hand_over(self._conversions.enlarged(pictures), kind)
        self._reuse.forget(batch.streams)
        return hand_over(self._pictures(inputs))

    def _share_steps(
        self, batch: Batch, inputs: Inputs, hand_over: Callable[[Tensor], Pending[Pictures]]
    ) -> Pending[Pictures]:
        self._reuse.forget(batch.streams)
        (controls,) = inputs.controls
        shape_key = capabilities.shape_key(self.capabilities, controls)
        key = (batch.streams, shape_key, inputs.mask is None, inputs.scale)
        if not self._stream_batch.joins(key):  # before LoRA weights are written for this one
            self._stream_batch.finish()
        enlarged = self._conversions.enlarged
        return self._stream_batch.add(
            self._preparation.request(inputs),
            key,
            batch.behind,
            partial(self.conditionings.apply_loras, controls),
            lambda pictures: hand_over(enlarged(pictures)),
        )

    def _seen(self, batch: Batch, inputs: Inputs) -> list[reuse.Seen]:
        """What the deep features of each frame depend on."""
        assert batch.frames is not None
        masks: Sequence[np.ndarray | None] = [None] * len(batch.frames) if batch.mask is None else list(batch.mask)
        return [
            reuse.Seen((frame.shape, self._circumstances(one, pure, inputs.scale)), reuse.coarse(frame), mask)
            for frame, one, pure, mask in zip(batch.frames, inputs.controls, inputs.from_noise, masks, strict=True)
        ]

    def _circumstances(self, controls: Controls, from_noise: bool, scale: float) -> Hashable:
        """What deep features depend on, besides frame and mask."""
        edges = (controls.canny_low, controls.canny_high)
        shape_key = capabilities.shape_key(self.capabilities, controls)
        return self.conditionings.key(controls, from_noise, scale), shape_key, edges

    def _pictures(self, inputs: Inputs) -> Tensor:
        """uint8 [N, height, width, 3] on the device."""
        if not inputs.paints:
            assert inputs.pixels is not None
            return inputs.pixels.permute(0, 2, 3, 1).contiguous()
        return self._conversions.enlarged(self._paint(self._preparation.request(inputs)))

    def _hand_over(self, rgb: Tensor, kind: Hashable = None, *, in_both_ways: bool) -> Pending[Pictures]:
        """With one download. rgb: uint8 [N, height, width, 3]."""
        if not in_both_ways:
            return replace(self._transfers.to_host(rgb), kind=kind).then(lambda rgb: Pictures(rgb, kind=kind))
        (_, height, width, _), pixels = rgb.shape, rgb[0].numel()

        def split(both: np.ndarray) -> Pictures:
            pictures, planes = np.split(both, [pixels], 1)
            return Pictures(pictures.reshape(-1, height, width, 3), planes.reshape(-1, height * 3 // 2, width), kind)

        return replace(self._transfers.to_host(self._conversions.in_both_ways(rgb)), kind=kind).then(split)

    @torch.inference_mode()
    def __call__(
        self,
        frames: Kind,
        controls: Controls | Sequence[Controls],
        mask: Frames | None = None,
        control_frames: Frames | None = None,
        scale: float = 1.0,
    ) -> Kind:
        """Stylize a batch, and wait for it.

        frames: uint8 [N, H, W, 3] RGB, numpy or torch, any size. controls: one for all, or one for each frame (of equal
        pipeline.capabilities.shape_key). mask: uint8 [N, H, W], or [N, spec.height, spec.width], 255 where to repaint;
        what lies outside is decoded like the rest, so to paste the source back is the caller's. control_frames: uint8
        [N, H, W, 3] that the control images are made of, in place of `frames`. scale: one of `scales`; smaller ones
        take less time, and what was painted is scaled up. Returns uint8 [N, spec.height, spec.width, 3], the same kind
        as `frames`. Raises ValueError on what cannot be painted.
        """
        self._refuse_motion()
        pictures = self._pictures(self._preparation.inputs(frames, controls, mask, control_frames, scale))
        return self._transfers.to_host(pictures)() if isinstance(frames, np.ndarray) else pictures.to(frames.device)

    def imagine(self, controls: Controls, count: int = 1, control_frames: np.ndarray | None = None) -> np.ndarray:
        """Text-to-image: uint8 [count, spec.height, spec.width, 3]; picture i has the seed `controls.seed` + i.

        control_frames: uint8 [count, H, W, 3] for a ControlNet or adapter. `strength` has no meaning here. Raises
        ValueError as calls do.
        """
        each = (controls.model_copy(update={"seed": (controls.seed + i) % 2**32}) for i in range(count))
        return self.submit(Batch(None, tuple(each), control_frames=control_frames))().rgb

    def _refuse_motion(self) -> None:
        if self.spec.motion is not None:
            raise ValueError("A model with a motion adapter makes clips: call animate().")

    def animate(self, controls: Controls, frames: Iterable[Frames] | None = None, count: int = 16) -> np.ndarray:
        """A clip by AnimateDiff: uint8 [count, spec.height, spec.width, 3].

        frames: uint8 [N, H, W, 3], a clip to repaint instead; count is then N. What is longer than the motion module
        can see at once goes through overlapping windows. Raises ValueError as calls do, and for a model without a
        motion adapter.
        """
        return np.stack(list(self.animate_stream(controls, frames, count)))

    @torch.inference_mode()
    def animate_stream(
        self, controls: Controls, frames: Iterable[Frames] | None = None, count: int = 16, first: int = 0
    ) -> Iterator[np.ndarray]:
        """The pictures of `animate` one after the other, for clips of any length: it holds some windows of them.

        frames: uint8 [H, W, 3] each. first: the number of the first of them, to go on in the middle of a clip; which
        one to begin with says `animation_restart`.
        """
        if self.spec.motion is None:
            raise ValueError("animate needs a motion adapter: load a ModelSpec with `motion`.")
        capabilities.check(self.capabilities, controls)
        self.conditionings.apply_loras(controls)
        clips = None if frames is None else (self._preparation.fitted("frames", clip) for clip in _clips(frames))
        if clips is not None and not capabilities.paints(controls):
            pictures: Iterator[Tensor] = (clip.permute(0, 2, 3, 1) for clip in clips)
        else:
            pictures = self._animation(self.sampler, controls, clips, count, first)
        for piece in pictures:
            yield from self._transfers.to_host(piece)()

    def animation_restart(self, controls: Controls, done: int) -> int:
        """The frame that `animate_stream` must begin with to go on behind the first `done` pictures of a clip. What it
        yields of those is not to be used."""
        return animatediff.needed_from(done, controls.steps, self._animation.longest)

    def forget(self, streams: Iterable[Hashable] | None = None) -> None:
        """Let go of what is remembered of these streams' frames for later ones; by default of all that is, and of
        frames under way."""
        if streams is None:
            self._stream_batch.forget()
        self._reuse.forget(streams)

    def free_memory(self) -> None:
        """What a call that ran out of memory left behind. Its error must be let go of before: it holds tensors."""
        free_memory(self.device)

    # -- CUDA graphs -------------------------------------------------------------------------------------------------

    def capture(self, controls: Controls, report: Report) -> None:
        """Capture what a server that starts with these controls will soon be asked for. Nothing without graphs.

        To be called where no stream waits: it takes as long as some hundred frames. Raises CaptureFailed: whoever
        catches it lets this stylizer go, its error too, and loads the model anew without graphs.
        """
        if self.graphs and self.spec.motion is None:
            depth = self.depth(painting(controls))
            usual = usual_shapes(self.capabilities, controls, max_batch=self.max_batch, scales=self.scales, depth=depth)
            self.capture_calls(*(partial(self._submit_all, batches) for batches in usual), report=report)
            self.forget()

    def _submit_all(self, batches: Sequence[Batch]) -> None:
        for pending in [self.submit(batch) for batch in batches]:
            pending()

    def capture_calls(self, *calls: Callable[[], object], report: Report = lambda detail, progress: None) -> None:
        """Make each call as it is, then capture every shape that was met. Nothing without graphs.

        A call that runs out of memory is passed over, with a line in the log. Raises CaptureFailed.
        """
        if self.graphs:
            make_calls(calls, self.free_memory)
            capture_all_seen(self._all_graphs, report)

    def capture_next(self) -> bool:
        """Capture one more shape of work that was met often and ran as it is; False when there is none.

        For when the device idles. Raises CaptureFailed, as `capture` does.
        """
        return any(graphs.capture_next() for graphs in self._all_graphs)

    @property
    def _all_graphs(self) -> list[Graphs]:
        return [*self._within.graphs, *self._around.graphs]


def annotation(name: str, dtype: torch.dtype) -> TreeFunction:
    def annotated(given: tuple[Tensor, Mapping[str, Tensor]]) -> Tensor:
        pixels, controls = given
        return annotators.annotate(name, pixels, controls, dtype)

    return annotated


def _clips(frames: Iterable[Frames]) -> Iterator[Tensor]:
    """Frames, uint8 [H, W, 3], as pieces of a clip, uint8 [up to CLIP_CHUNK, H, W, 3]."""
    frames = iter(frames)
    while piece := list(islice(frames, animatediff.CLIP_CHUNK)):
        yield torch.stack([torch.as_tensor(frame) for frame in piece])
