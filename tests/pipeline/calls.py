"""Short ways to ask a Stylizer for pictures, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.batch import Batch, Pending, Pictures
from pipeline.settings import Controls
from pipeline.stylizer import Stylizer


def submitted(
    stylizer: Stylizer, frames: np.ndarray | None, controls: Controls | Sequence[Controls], **more: Any
) -> Pictures:
    """Waits for them; asks for I420, as a live stream does."""
    each = (controls,) * len(frames) if isinstance(controls, Controls) else tuple(controls)
    return stylizer.submit(Batch(frames, each, **{"i420": True, **more}))()


def sharing_steps(
    stylizer: Stylizer, frames: np.ndarray, controls: Controls, behind: int | None = None, **more: Any
) -> Pending[Pictures]:
    """A frame of one stream, which may wait for as many others as can share its steps."""
    behind = controls.steps - 1 if behind is None else behind
    return stylizer.submit(Batch(frames, (controls,), streams=("a",), behind=behind, **{"i420": True, **more}))
