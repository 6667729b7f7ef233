"""The CUDA graphs of one engine: its functions that are captured, and the moments at which they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pipeline.batch import Report
from pipeline.errors import first_line, is_out_of_memory
from pipeline.trees import TreeFunction

from .graphs import GraphCapture, Graphs

log = logging.getLogger(__name__)


class CapturedFunctions:
    """Makes functions that are captured, by `capture`; None leaves them as they are. graphs: those made so far."""

    def __init__(self, capture: GraphCapture | None):
        self._capture = capture
        self.graphs: list[Graphs] = []

    def __call__(self, function: TreeFunction) -> TreeFunction:
        if self._capture is None:
            return function
        self.graphs.append(Graphs(function, self._capture))
        return self.graphs[-1]


def make_calls(calls: Sequence[Callable[[], object]], free_memory: Callable[[], None]) -> None:
    """Make each call as it is; one that runs out of memory is passed over, with a line in the log."""
    for call in calls:
        if (reason := _out_of_memory(call)) is not None:
            free_memory()
            log.warning("One of the usual shapes does not fit into memory, it is not captured: %s", reason)


def capture_all_seen(graphs: Sequence[Graphs], report: Report) -> None:
    """Capture every shape that was met, as far as there is room. Raises CaptureFailed."""
    total, done = sum(each.waiting(1) for each in graphs), 0
    for each in graphs:
        while each.capture_next(1, makes_room=False):
            done += 1
            report("Capturing CUDA graphs", min(1.0, done / total))


def _out_of_memory(call: Callable[[], object]) -> str | None:
    """Make the call; why it ran out of memory, if it did, without the error, which would hold its tensors."""
    try:
        call()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    return None
