"""Stylizer: encode -> denoise -> decode for a batch of frames. One per loaded model; call it from one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.loading.components import Components
from pipeline.loading.hub import Report
from pipeline.pixels import annotators, color
from pipeline.pixels.conversions import Conversions
from pipeline.runtime.devices import free_memory
from pipeline.runtime.folding import folded
from pipeline.runtime.graphs import Graphs, Record, Way, record_in_one_pool, unless_it_waits
from pipeline.runtime.transfers import Pending, Transfers, there
from pipeline.sampling import animatediff
from pipeline.sampling.conditioning import Recipes
from pipeline.sampling.deep_features import Keeping, Memory, Shallow, Sight, part, reduced, serves
from pipeline.sampling.denoiser import Denoiser
from pipeline.sampling.sampler import Canvas, Decoder, Encoder, Order, Painter, Recipe, joined
from pipeline.sampling.sizes import Sizes
from pipeline.sampling.stream_batch import StreamBatch

from . import capabilities
from .errors import first_line, is_out_of_memory
from .settings import Controls, ModelSpec

CLIP_CHUNK = 16  # frames of a clip that are encoded or decoded at once
BATCHES = (1, 2, 4, 8)  # in which live streams share a call
CAMERAS = ((640, 480), (1280, 720), (512, 512))  # usual sizes of live video: (width, height)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InFlight:
    """Frames between two steps. Those of equal keys can share calls. hand_over: what makes of their pictures, uint8
    [N, H, W, 3] on the device, what was asked for."""

    key: Hashable
    controls: Controls
    recipe: Recipe
    canvas: Canvas
    hand_over: Callable[[Tensor], Any]
    steps_done: int = 0

    @property
    def steps_left(self) -> int:
        return self.recipe.steps - self.steps_done


class Stylizer:
    """Frames in, stylized frames out: it checks what is asked, turns controls into tensors, and has them painted.

    graphs: replay CUDA graphs of what `record` and its like have recorded; None where there is CUDA.
    """

    def __init__(self, spec: ModelSpec, parts: Components, graphs: bool | None = None):
        self.spec = spec
        self.capabilities = capabilities.capabilities_of(spec, parts)  # any thread may ask what these allow
        self.components = parts
        self.device, self.dtype = parts.device, parts.dtype
        self._transfers = Transfers(parts.device)
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        outer = min(parts.family.outer, len(parts.unet.up_blocks))
        self._keeping, self._shallow = (kind(parts.unet, parts.extras, outer) for kind in (Keeping, Shallow))
        vae = folded(parts.vae) if self.device.type == "cpu" else parts.vae  # elsewhere its gain is not measured
        self.use(Encoder(vae), Denoiser(parts.unet, parts.extras), Decoder(vae))
        self.sizes = Sizes(spec, parts)
        self.recipes = Recipes(spec, parts, self.sizes)
        record = record_in_one_pool(self.device) if self.graphs else None
        self._around: list[Graphs] = []
        self._conversions = Conversions(self.sizes, self.dtype, recorded_by(record, self._around))
        # Annotators may be anybody's.
        recorded = recorded_by(record and unless_it_waits(record), self._around)
        self._annotate = {name: recorded(annotation(name, self.dtype)) for name in spec.annotators}

    def use(self, encode: Callable[..., Tensor], denoise: Callable[..., Tensor], decode: Callable[..., Tensor]) -> None:
        """Paint with these parts from the next batch on: modules, or compiled code. What was recorded is let go.

        Whatever is raised leaves everything as it was.
        """
        parts, spec = self.components, self.spec
        painter = Painter(
            encode,
            denoise,
            decode,
            extras=parts.extras,
            keeps_source=not parts.inpaints,
            size=(spec.height, spec.width),
            dtype=parts.dtype,
            keeping=self._keeping,
            shallow=self._shallow,
        )
        record = record_in_one_pool(self.device) if self.graphs else None
        self.painter, self._within = painter, []
        recorded = recorded_by(record, self._within)
        ways = (painter, painter.begin, painter.step_together, painter.finish, painter.keep, painter.reuse)
        self._paint, self._begin, self._step, self._finish, self._keep, self._reuse = map(recorded, ways)

    @property
    def max_batch(self) -> int:
        """How many frames the live engine may paint at once: on a CPU one by one is as fast, and each comes sooner."""
        return 8 if self.device.type == "cuda" else 1

    @property
    def runs_ahead(self) -> bool:
        """Does a call without `wait` return before its pictures are there?"""
        return self.device.type == "cuda"

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the width and height, at which calls paint."""
        return self.sizes.scales

    @property
    def takes_i420(self) -> bool:
        """Is `live` the way for video? On a CPU swscale and OpenCV convert ten times as fast as torch."""
        return self.device.type == "cuda"

    @property
    def loras(self) -> tuple[str, ...]:
        return tuple(self.capabilities.loras)

    @property
    def features(self) -> frozenset[str]:
        return self.capabilities.features

    def check(self, controls: Controls) -> None:
        capabilities.check(self.capabilities, controls)

    def remarks(self, controls: Controls) -> dict[str, str]:
        compiled = not isinstance(self.painter.denoise, torch.nn.Module)
        return capabilities.remarks(self.capabilities, controls, compiled)

    def shape_key(self, controls: Controls) -> Hashable:
        return capabilities.shape_key(self.capabilities, controls)

    def record(self, controls: Controls, report: Report) -> None:
        """Record what a server that starts with these controls will soon be asked for. Nothing without graphs.

        To be called where no stream waits: it takes as long as some hundred frames. Raises CaptureFailed: whoever
        catches it lets this stylizer go, its error too, and loads the model anew without graphs.
        """
        if self.graphs and self.spec.motion is None:
            self.record_calls(*self._usual_calls(controls), report=report)

    def record_calls(self, *calls: Callable[[], object], report: Report = lambda detail, progress: None) -> None:
        """Make each call as it is, then record every shape that was met. Nothing without graphs.

        A call that runs out of memory is passed over, with a line in the log. Raises CaptureFailed.
        """
        if not self.graphs:
            return
        for call in calls:
            if (reason := _out_of_memory(call)) is not None:
                self.free_memory()
                log.warning("One of the usual shapes does not fit into memory, it is not recorded: %s", reason)
        total, done = sum(graphs.waiting(1) for graphs in self._all_graphs), 0
        for graphs in self._all_graphs:
            while graphs.record_next(1, makes_room=False):
                done += 1
                report("Recording CUDA graphs", min(1.0, done / total))

    def record_next(self) -> bool:
        """Record one more shape of work that was met often and ran as it is; False when there is none.

        For when the device idles. Raises CaptureFailed, as `record` does.
        """
        return any(graphs.record_next() for graphs in self._all_graphs)

    @property
    def _all_graphs(self) -> tuple[Graphs, ...]:
        return (*self._within, *self._around)

    def _usual_calls(self, controls: Controls) -> Iterator[Callable[[], object]]:
        """One for each shape that is recorded before frames are taken; other shapes wait until they were met.

        Every batch that streams may share, with CFG and without, as both are a touch of a slider away. Of one frame
        alone the rungs below, fewer steps and then smaller pictures: where they are needed a batch takes too long. What
        shares steps, as the scheduler compares that with whole frames, which are replayed. Usual cameras in each batch,
        little work each. With two steps that makes 11 ways to paint, 4 to share steps, and 20 small graphs around them.
        """
        asked = controls.model_copy(update={"bypass": False, "strength": controls.strength or 0.5})
        batches = [size for size in BATCHES if size <= self.max_batch]
        other = asked.model_copy(update={"guidance": 1.0 if self.recipes.uses_cfg(asked) else 2.0})
        kinds = [asked] if self.recipes.guidance_embedding_dim is not None else [asked, other]
        for kind in kinds:
            yield from (partial(self._paint_blank, kind, size) for size in batches)
        for steps in range(asked.steps - 1, 0, -1):
            yield partial(self._paint_blank, asked.model_copy(update={"steps": steps}), 1)
        for scale in self.scales[1:]:
            yield partial(self._paint_blank, asked.model_copy(update={"steps": 1}), 1, scale)
        if 1 < asked.steps <= self.max_batch and not asked.reuse:
            yield partial(self._share_steps_blank, asked)
        for camera in CAMERAS:
            yield from (partial(self._fitted_i420, blank_i420(size, camera)) for size in batches)

    def _paint_blank(self, controls: Controls, size: int, scale: float = 1.0) -> None:
        """A batch of live video; twice, where features are reused."""
        memories = [None] * size
        for _ in range(2 if controls.reuse else 1):
            each = [controls] * size
            _, memories = self.remembering(blank_i420(size, CAMERAS[0]), each, memories, live=True, scale=scale)

    def _share_steps_blank(self, controls: Controls) -> None:
        batch = self.stream_batch()
        for _ in range(controls.steps):
            batch(blank_i420(1, CAMERAS[0]), controls, live=True)

    def stands_at(self, controls: Controls) -> bool:
        """Whether the LoRAs have the weights asked for, so that none are written for a call."""
        loras = self.components.loras
        return loras is None or loras.stand_at(self.recipes.lora_weights(controls))

    def free_memory(self) -> None:
        """What a call that ran out of memory left behind. Its error must be let go of before: it holds tensors."""
        free_memory(self.device)

    def __call__(
        self,
        frames,
        controls: Controls | Sequence[Controls],
        mask=None,
        control_frames=None,
        scale: float = 1.0,
        wait: bool = True,
    ):
        """Stylize a batch.

        frames: uint8 [N, H, W, 3] RGB, numpy or torch, any size. controls: one for all, or one for each frame (of equal
        `shape_key`). mask: uint8 [N, H, W], or [N, spec.height, spec.width], 255 where to repaint; what lies outside
        is decoded like the rest, so to paste the source back is the caller's. control_frames: uint8 [N, H, W, 3] that
        the control images are made of, in place of `frames`. scale: one of `scales`; smaller ones take less time, and
        what was painted is scaled up. Returns uint8 [N, spec.height, spec.width, 3], the same kind as `frames`; without
        `wait` the same as Pending (runtime.transfers). Raises ValueError on frames of another shape or type, a scale
        that is none of `scales`, and where `check` does.
        """
        asked = self._asked(frames, controls, mask, control_frames, scale=scale)
        return self._hand_over(frames, wait=wait)(self._stylize(*asked, scale))

    @torch.inference_mode()
    def remembering(
        self,
        frames: np.ndarray,
        controls: Sequence[Controls],
        memories: Sequence[Memory | None],
        mask: np.ndarray | None = None,
        live: bool = False,
        scale: float = 1.0,
        wait: bool = True,
    ) -> tuple[Any, list[Memory | None]]:
        """A call, or `live`, that obeys `controls.reuse`: what that returns, and what to hand in with the next frame of
        each stream.

        memories: of each frame's stream, None at first. All frames of a batch are painted on deep features that were
        kept, or none: streams that share batches soon agree on when. The other arguments, and errors, are as there.
        """
        pixels, each, fitted, control = self._asked(frames, controls, mask, live=live, scale=scale)
        hand_over = self._hand_over(frames, live, wait)
        if not each[0].reuse or self.shape_key(each[0]) == "source":
            return hand_over(self._stylize(pixels, each, fitted, control, scale)), [None] * len(each)
        from_noise = self._from_noise(each, fitted)
        order = self._order(pixels, each, fitted, control, from_noise, scale)
        masks = [None] * len(each) if mask is None else mask
        sights = [
            Sight((frame.shape, self._circumstances(one, pure, scale)), reduced(frame), own)
            for frame, one, pure, own in zip(frames, each, from_noise, masks, strict=True)
        ]
        if all(serves(*seen, one.reuse) for *seen, one in zip(memories, sights, each, strict=True)):
            deep = memories[0].deep if len(memories) == 1 else joined([memory.deep for memory in memories])
            pictures = self._conversions.enlarged(self._reuse((order, deep)))
            return hand_over(pictures), [replace(memory, used=memory.used + 1) for memory in memories]
        pictures, deep = self._keep(order)
        pictures = self._conversions.enlarged(pictures)
        return hand_over(pictures), [Memory(sight, part(deep, i)) for i, sight in enumerate(sights)]

    def _circumstances(self, controls: Controls, from_noise: bool, scale: float) -> Hashable:
        """What deep features depend on, besides frame and mask."""
        edges = (controls.canny_low, controls.canny_high)
        return (self.recipes.key(controls, from_noise, scale), self.shape_key(controls), edges)

    def stream_batch(self) -> StreamBatch:
        """The same pictures with frames at different steps in one call of the UNet: more of them in a second, later."""
        return StreamBatch(self)

    @torch.inference_mode()
    def begin(self, frames, controls, mask=None, control_frames=None, live: bool = False) -> InFlight:
        """What a stream batch takes through its steps. Arguments and errors are those of a call, or of `live`;
        controls under which nothing is painted are refused."""
        pixels, each, mask, control = self._asked(frames, controls, mask, control_frames, live)
        if (shape_key := self.shape_key(each[0])) == "source":
            raise ValueError("With bypass, or a strength of 0, there are no steps to take.")
        order = self._order(pixels, each, mask, control, self._from_noise(each, mask))
        canvas = self._begin(replace(order, recipe=order.recipe.at(0)))
        hand_over = self._hand_over(frames, live)
        return InFlight((shape_key, mask is None), each[0], order.recipe, canvas, hand_over)

    @torch.inference_mode()
    def advance(self, flight: Sequence[InFlight]) -> list[InFlight]:
        """Frames of equal keys, each one step on, all in one call."""
        self.recipes.apply_loras(flight[0].controls)
        x = self._step(tuple((each.canvas, each.recipe.at(each.steps_done)) for each in flight))
        each_x = x.split([len(each.canvas.x) for each in flight])
        return [
            replace(each, canvas=replace(each.canvas, x=x), steps_done=each.steps_done + 1)
            for each, x in zip(flight, each_x, strict=True)
        ]

    @torch.inference_mode()
    def finish(self, done: InFlight) -> Any:
        """The pictures of frames that have no step left, as a call returns them, or `live`."""
        return done.hand_over(self._finish(done.canvas))

    def _asked(
        self, frames, controls, mask=None, control_frames=None, live: bool = False, scale: float = 1.0
    ) -> tuple[Tensor, list[Controls], Tensor | None, Tensor]:
        """A call's arguments as `_stylize` takes them. Raises ValueError."""
        self._refuse_motion()
        pixels = self._fitted_i420(frames) if live and frames.ndim == 3 else self._fitted("frames", frames)
        each = self._checked(controls, len(pixels), scale)
        if mask is not None:
            mask = self._fitted_mask(mask, tuple(frames.shape[:3]))
        control = pixels if control_frames is None else self._fitted("control_frames", control_frames, len(pixels))
        return pixels, each, mask, control

    @torch.inference_mode()
    def live(
        self, frames: np.ndarray, controls: Controls | Sequence[Controls], scale: float = 1.0, wait: bool = True
    ) -> Any:
        """The same for video as it comes and goes, with one upload and one download.

        frames: uint8 [N, H, W, 3] RGB, or [N, H * 3 / 2, W] I420 as in pixels.color. Returns the pictures in both
        ways, (RGB, I420); without `wait` as calls do. Raises ValueError as they do.
        """
        asked = self._asked(frames, controls, live=True, scale=scale)
        return self._hand_over(frames, live=True, wait=wait)(self._stylize(*asked, scale))

    def _checked(self, controls: Controls | Sequence[Controls], count: int, scale: float) -> list[Controls]:
        """The controls of each of `count` frames. Raises ValueError where they cannot be of one batch at that scale."""
        each = [controls] * count if isinstance(controls, Controls) else list(controls)
        if len(each) != count:
            raise ValueError(f"{count} frames came with {len(each)} controls.")
        if len({self.shape_key(one) for one in each}) > 1:
            raise ValueError("The controls of one batch must have equal shape keys.")
        if scale not in self.sizes.scales:
            raise ValueError(f"This model does not paint at scale {scale}: choose from {self.sizes.scales}.")
        for one in {id(one): one for one in each}.values():
            self.check(one)
        return each

    @torch.inference_mode()
    def imagine(self, controls: Controls, count: int = 1, control_frames=None) -> np.ndarray:
        """Text-to-image: uint8 [count, spec.height, spec.width, 3]; picture i has the seed `controls.seed` + i.

        control_frames: uint8 [count, H, W, 3] for a ControlNet or adapter. `strength` has no meaning here. Raises
        ValueError as calls do.
        """
        self._refuse_motion()
        self.check(controls)
        each = [controls.model_copy(update={"seed": (controls.seed + i) % 2**32}) for i in range(count)]
        control = None if control_frames is None else self._fitted("control_frames", control_frames, count)
        return self._transfers.to_host(self._paint(self._order(None, each, None, control, [True] * count)))()

    def _refuse_motion(self) -> None:
        if self.spec.motion is not None:
            raise ValueError("A model with a motion adapter makes clips: call animate().")

    def animate(self, controls: Controls, frames=None, count: int = 16) -> np.ndarray:
        """A clip by AnimateDiff: uint8 [count, spec.height, spec.width, 3].

        frames: uint8 [N, H, W, 3], a clip to repaint instead; count is then N. What is longer than the motion module
        can see at once goes through overlapping windows. Raises ValueError as calls do, and for a model without a
        motion adapter.
        """
        return np.stack(list(self.animate_stream(controls, frames, count)))

    @torch.inference_mode()
    def animate_stream(
        self, controls: Controls, frames: Iterable | None = None, count: int = 16, first: int = 0
    ) -> Iterator[np.ndarray]:
        """The pictures of `animate` one after the other, for clips of any length: it holds some windows of them.

        frames: uint8 [H, W, 3] each. first: the number of the first of them, to go on in the middle of a clip; which
        one to begin with says `animation_restart`.
        """
        if self.spec.motion is None:
            raise ValueError("animate needs a motion adapter: load a ModelSpec with `motion`.")
        self.check(controls)
        self.recipes.apply_loras(controls)
        if frames is None:
            source = repeat(torch.zeros((1, *self.sizes.latents()), device=self.device), count - first)
        else:
            clips = (self._fitted("frames", clip) for clip in _clips(frames))
            if self.shape_key(controls) == "source":
                for clip in clips:
                    yield from self._transfers.to_host(clip.permute(0, 2, 3, 1))()
                return
            source = (
                latents for clip in clips for latents in self.painter.encode(color.to_model(clip, self.dtype)).split(1)
            )
        source, drawn = iter(source), (controls.seed, controls.steps, self.sizes.latents())
        begun = list(islice(source, self.clip_length + 1))
        if first == 0 and len(begun) <= self.clip_length:
            window, noise = self.clip_length, animatediff.clip_noise(*drawn, len(begun), from_noise=frames is None)
        else:
            window, noise = animatediff.WINDOW, animatediff.endless_noise(*drawn, first)
        recipe = self.recipes([controls], [frames is None])
        embeds = torch.cat(recipe.embeds)

        def call(step: int, x: Tensor) -> Tensor:
            each = embeds.repeat_interleave(x.shape[2], dim=0)
            return self.painter.denoise(
                x.to(self.dtype), recipe.timesteps[step], each, recipe.guidance, recipe.timestep_cond
            )

        x0 = animatediff.denoise(chain(begun, source), noise, recipe.rows, call, window)
        while part := list(islice(x0, CLIP_CHUNK)):
            yield from self._transfers.to_host(color.to_frames(self.painter.decode(torch.cat(part))))()

    @property
    def clip_length(self) -> int:
        """How many frames a motion module can see at once."""
        return self.components.unet.config.motion_max_seq_length

    def animation_restart(self, controls: Controls, done: int) -> int:
        """The frame that `animate_stream` must begin with to go on behind the first `done` pictures of a clip. What it
        yields of those is not to be used."""
        return animatediff.needed_from(done, controls.steps, self.clip_length)

    def _fitted(self, name: str, frames, count: int | None = None) -> Tensor:
        """uint8 [N, H, W, 3] of either kind -> uint8 [N, 3, height, width] on the device. Raises ValueError."""
        tensor = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
        if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[3] != 3 or 0 in tensor.shape:
            raise ValueError(f"{name} must be uint8 [N, H, W, 3], not {tensor.dtype} {list(tensor.shape)}.")
        if count is not None and len(tensor) != count:
            raise ValueError(f"{name} are {len(tensor)}, and there are {count} pictures to make.")
        return self._conversions.fitted(self._transfers.to_device(tensor))

    def _fitted_i420(self, frames: np.ndarray) -> Tensor:
        """I420 -> what _fitted makes of it in RGB. Raises ValueError."""
        rows, width = frames.shape[1:]
        if frames.dtype != np.uint8 or rows % 3 or width % 2 or 0 in frames.shape:
            raise ValueError(f"I420 must be uint8 [N, H * 3 / 2, W], not {frames.dtype} {list(frames.shape)}.")
        return self._conversions.fitted_i420(self._transfers.to_device(frames))

    def _fitted_mask(self, mask, expected: tuple[int, ...]) -> Tensor:
        """uint8 [N, H, W] -> 0 or 1 [N, 1, height, width], cropped as the frames are. Raises ValueError."""
        tensor = torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask
        sizes = (expected, (expected[0], self.spec.height, self.spec.width))
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) not in sizes:
            raise ValueError(
                f"mask must be uint8 {list(expected)}, like the frames, not {tensor.dtype} {list(tensor.shape)}."
            )
        return self._conversions.fitted_mask(self._transfers.to_device(tensor))

    @torch.inference_mode()
    def _stylize(
        self, pixels: Tensor, controls: list[Controls], mask: Tensor | None, control: Tensor, scale: float
    ) -> Tensor:
        if self.shape_key(controls[0]) == "source":
            return pixels.permute(0, 2, 3, 1).contiguous()
        order = self._order(pixels, controls, mask, control, self._from_noise(controls, mask), scale)
        return self._conversions.enlarged(self._paint(order))

    def _from_noise(self, controls: list[Controls], mask: Tensor | None) -> list[bool]:
        """An inpainting pipeline at full strength starts from noise alone; image to image never does."""
        return [mask is not None and one.strength == 1 for one in controls]

    def _order(
        self,
        pixels: Tensor | None,
        controls: list[Controls],
        mask: Tensor | None,
        control: Tensor | None,
        from_noise: Sequence[bool],
        scale: float = 1.0,
    ) -> Order:
        """pixels, control: uint8 [B, 3, H, W]; mask: [B, 1, H, W]. LoRAs have the weights asked for afterwards."""
        if scale != 1:
            pixels, control, mask = self._conversions.reduced[scale]((pixels, control, mask))
        self.recipes.apply_loras(controls[0])
        if control is None and self.spec.annotators:
            raise ValueError("control_frames are needed: there is no frame that the control image could be made of.")
        turned = annotators.as_tensors(controls, self.device)
        images = {name: annotated((control, turned)) for name, annotated in self._annotate.items()}
        return Order(self.recipes(controls, from_noise, scale), pixels, mask, images)

    def _hand_over(self, frames, live: bool = False, wait: bool = True) -> Callable[[Tensor], Any]:
        """Makes of pictures, uint8 [N, H, W, 3] on the device, the same kind as `frames`, or with `live` both ways;
        without `wait` the same as Pending."""
        home = None if isinstance(frames, np.ndarray) else frames.device

        def pending(rgb: Tensor) -> Pending[Any]:
            if live:
                return self._in_both_ways(rgb)
            return self._transfers.to_host(rgb) if home is None else there(rgb.to(home))

        return (lambda rgb: pending(rgb)()) if wait else pending

    def _in_both_ways(self, rgb: Tensor) -> Pending[tuple[np.ndarray, np.ndarray]]:
        """Pictures in RGB and in I420, with one download."""
        (_, height, width, _), pixels = rgb.shape, rgb[0].numel()

        def split(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pictures, planes = np.split(both, [pixels], 1)
            return pictures.reshape(-1, height, width, 3), planes.reshape(-1, height * 3 // 2, width)

        return self._transfers.to_host(self._conversions.in_both_ways(rgb)).then(split)


def recorded_by(record: Record | None, made: list[Graphs]) -> Callable[[Way], Way]:
    """Makes of a way one that can be recorded, and adds it to `made`; None leaves it as it is."""

    def recorded(way: Way) -> Way:
        if record is None:
            return way
        made.append(Graphs(way, record))
        return made[-1]

    return recorded


def annotation(name: str, dtype: torch.dtype) -> Way:
    return lambda given: annotators.annotate(name, *given, dtype)


def blank_i420(count: int, size: tuple[int, int]) -> np.ndarray:
    """Frames as pipeline.pixels.color has them. size: (width, height)."""
    width, height = size
    return np.zeros((count, height * 3 // 2, width), np.uint8)


def _out_of_memory(call: Callable[[], object]) -> str | None:
    """Make the call; why it ran out of memory, if it did, without the error, which would hold its tensors."""
    try:
        call()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    return None


def _clips(frames: Iterable) -> Iterator[Tensor]:
    """Frames, uint8 [H, W, 3], as pieces of a clip, uint8 [up to CLIP_CHUNK, H, W, 3]."""
    frames = iter(frames)
    while piece := list(islice(frames, CLIP_CHUNK)):
        yield torch.stack([torch.as_tensor(frame) for frame in piece])
