"""A call's arguments -> the request its pictures are sampled from: checked, uploaded, fitted, annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.pixels import annotators
from pipeline.pixels.conversions import Conversions
from pipeline.runtime.transfers import Transfers
from pipeline.sampling.conditioning import ConditioningCache
from pipeline.sampling.sampler import SampleRequest
from pipeline.sampling.sizes import Sizes

from . import capabilities
from .capabilities import Capabilities
from .settings import Controls
from .trees import TreeFunction

Frames = np.ndarray | Tensor


@dataclass(frozen=True)
class Inputs:
    """A call's arguments on the device, those that there are at full size.

    controls: of each picture, of equal shape keys. pixels: uint8 [N, 3, height, width], None for text-to-image.
    mask: 0 or 1 [N, 1, height, width]. control: what control images are made of, like the pixels.
    """

    controls: tuple[Controls, ...]
    pixels: Tensor | None
    mask: Tensor | None
    control: Tensor | None
    scale: float

    @property
    def paints(self) -> bool:
        """Else the source passes through."""
        return self.pixels is None or capabilities.paints(self.controls[0])

    @property
    def from_noise(self) -> list[bool]:
        """Whether each enters as noise alone: an inpainting pipeline at full strength does, image to image never."""
        return [self.pixels is None or (self.mask is not None and one.strength == 1) for one in self.controls]


class Preparation:
    """For one loaded model. annotate: (pixels, annotators.CONTROLS) -> control images, by annotator."""

    def __init__(
        self,
        model: Capabilities,
        sizes: Sizes,
        conditionings: ConditioningCache,
        transfers: Transfers,
        conversions: Conversions,
        annotate: Mapping[str, TreeFunction],
    ):
        self._model, self._sizes, self._conditionings = model, sizes, conditionings
        self._transfers, self._conversions, self._annotate = transfers, conversions, annotate

    def inputs(
        self,
        frames: Frames | None,
        controls: Controls | Sequence[Controls],
        mask: Frames | None = None,
        control_frames: Frames | None = None,
        scale: float = 1.0,
        *,
        video: bool = False,
    ) -> Inputs:
        """As pipeline.batch.Batch has them; controls: one for all frames, or one for each. video: frames may be I420.
        Raises ValueError."""
        pixels = None
        if frames is not None:
            is_i420 = video and _is_i420(frames)
            pixels = self._fitted_i420(frames) if is_i420 else self.fitted("frames", frames)
        count = len(pixels) if pixels is not None else 1 if isinstance(controls, Controls) else len(controls)
        each = self._checked(controls, count, scale)
        fitted_mask = None
        if mask is not None:
            if frames is None:
                raise ValueError("A mask says what of frames to repaint, and there are none.")
            fitted_mask = self._fitted_mask(mask, _frames_shape(frames))
        control = pixels if control_frames is None else self.fitted("control_frames", control_frames, count)
        return Inputs(each, pixels, fitted_mask, control, 1.0 if frames is None else scale)

    def request(self, inputs: Inputs) -> SampleRequest:
        """The LoRAs have the weights asked for afterwards. Raises ValueError without what control images need."""
        pixels, control, mask = inputs.pixels, inputs.control, inputs.mask
        if inputs.scale != 1:
            pixels, control, mask = self._conversions.at_scale[inputs.scale]((pixels, control, mask))
        self._conditionings.apply_loras(inputs.controls[0])
        if control is None and self._annotate:
            raise ValueError("control_frames are needed: there is no frame that the control image could be made of.")
        turned = annotators.as_tensors(inputs.controls, self._transfers.device)
        images = {name: annotated((control, turned)) for name, annotated in self._annotate.items()}
        return SampleRequest(
            self._conditionings(inputs.controls, inputs.from_noise, inputs.scale), pixels, mask, images
        )

    def fitted(self, name: str, frames: Frames, count: int | None = None) -> Tensor:
        """uint8 [N, H, W, 3] of either kind -> uint8 [N, 3, height, width] on the device. Raises ValueError."""
        tensor = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
        if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[3] != 3 or 0 in tensor.shape:
            raise ValueError(f"{name} must be uint8 [N, H, W, 3], not {tensor.dtype} {list(tensor.shape)}.")
        if count is not None and len(tensor) != count:
            raise ValueError(f"{name} are {len(tensor)}, and there are {count} pictures to make.")
        return self._conversions.fitted(self._transfers.to_device(tensor))

    def _fitted_i420(self, frames: Frames) -> Tensor:
        """I420 -> what `fitted` makes of it in RGB. Raises ValueError."""
        rows, width = frames.shape[1:]
        if frames.dtype not in (np.uint8, torch.uint8) or rows % 3 or width % 2 or 0 in frames.shape:
            raise ValueError(f"I420 must be uint8 [N, H * 3 / 2, W], not {frames.dtype} {list(frames.shape)}.")
        return self._conversions.fitted_i420(self._transfers.to_device(frames))

    def _fitted_mask(self, mask: Frames, expected: tuple[int, ...]) -> Tensor:
        """uint8 [N, H, W] -> 0 or 1 [N, 1, height, width], cropped as the frames are. Raises ValueError."""
        tensor = torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask
        sizes = (expected, (expected[0], self._model.height, self._model.width))
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) not in sizes:
            raise ValueError(
                f"mask must be uint8 {list(expected)}, like the frames, not {tensor.dtype} {list(tensor.shape)}."
            )
        return self._conversions.fitted_mask(self._transfers.to_device(tensor))

    def _checked(self, controls: Controls | Sequence[Controls], count: int, scale: float) -> tuple[Controls, ...]:
        """The controls of each of `count` frames. Raises ValueError where they cannot be of one batch at that scale."""
        each = (controls,) * count if isinstance(controls, Controls) else tuple(controls)
        if len(each) != count:
            raise ValueError(f"{count} frames came with {len(each)} controls.")
        if not each:
            raise ValueError("There are no controls, so there is nothing to paint.")
        if len({capabilities.shape_key(self._model, one) for one in each}) > 1:
            raise ValueError("The controls of one batch must have equal shape keys.")
        if scale not in self._sizes.scales:
            raise ValueError(f"This model does not paint at scale {scale}: choose from {self._sizes.scales}.")
        for one in {id(one): one for one in each}.values():
            capabilities.check(self._model, one)
        return each


def _is_i420(frames: Frames) -> bool:
    return frames.ndim == 3 and frames.shape[2] != 3  # an odd width is none of I420


def _frames_shape(frames: Frames) -> tuple[int, ...]:
    """(N, H, W)."""
    count, rows, width = frames.shape[:3]
    return (count, rows * 2 // 3, width) if _is_i420(frames) else (count, rows, width)
