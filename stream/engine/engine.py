"""The engine as its caller sees it; whether it paints in this thread, or anywhere else, is not known here."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from pipeline.batch import Batch, Pending, Pictures, Report
from pipeline.capabilities import Capabilities
from pipeline.settings import Controls


class Engine(Protocol):
    """What is asked of pipeline.Stylizer. The engine thread alone calls it: others ask the capabilities."""

    @property
    def device(self) -> object: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def max_batch(self) -> int: ...

    @property
    def scales(self) -> tuple[float, ...]: ...

    @property
    def takes_i420(self) -> bool:
        """Frames as they came, and I420 made along with the pictures, pay."""

    @property
    def runs_ahead(self) -> bool:
        """`submit` returns before the pictures are there."""

    def submit(self, batch: Batch) -> Pending[Pictures]:
        """Raises ValueError for what cannot be painted; other errors come at once or with the pictures. Pictures of one
        stream are asked for in the order that its batches went in."""

    def depth(self, controls: Controls) -> int:
        """At how many batches of one stream it can be at once with a possible gain, each of one frame."""

    def forget(self, streams: Iterable[Hashable] | None = None) -> None:
        """Drop what is remembered of these streams' frames for later ones; by default all that is, and what is under
        way."""

    def stands_at(self, controls: Controls) -> bool:
        """No LoRA weights would have to be written."""

    def capture(self, controls: Controls, report: Report) -> None:
        """Capture what is soon asked for as CUDA graphs, where there are any. Raises CaptureFailed."""

    def capture_next(self) -> bool:
        """Capture one more shape that was met often; False when there is none. Raises CaptureFailed."""

    def free_memory(self) -> None:
        """Of what a call that ran out of it has left behind."""
