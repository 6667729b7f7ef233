"""A publisher without a camera: it asks for a picture when what makes one has changed, and is quiet in between."""

from __future__ import annotations

import asyncio
import threading

from pipeline.settings import Controls

from .publications import Publication
from .streams import Stream

ABANDONED_S = 60.0  # nobody watches, nobody changes anything: who started it has left without a word
LOOK_EVERY_S = 5.0

NO_SOURCE = "No effect: what is imagined starts from no picture."
REMARKS = {"strength": NO_SOURCE, "bypass": NO_SOURCE, "skip_similar": NO_SOURCE}
USUAL_STEPS = 4  # of the LCM guides for text to image
FEW_STEPS = f"Few without a picture to start from: {USUAL_STEPS} are usual."
# Its picture is the same whatever these are.
_INDIFFERENT = {name: Controls.model_fields[name].default for name in REMARKS}


class ImaginePublisher:
    """Publishes from `begin` until `end`, until another publisher takes over, or until it is abandoned; sooner where
    nobody watches and another stream needs the room.

    Make, begin and end it on the event loop; the engine paints with whatever the controls are when its turn comes, so
    of changes that come faster the newest is seen.
    """

    kind = "imagine"

    def __init__(self, stream: Stream):
        self._stream = stream
        self._lock = threading.Lock()  # controls change on the loop and, once the model is known, in its thread
        self._asked: Controls | None = None

    def begin(self) -> None:
        self._publication, replaced = self._stream.publish(self, gives_way=True)
        self._publication.close_publisher, self._publication.on_change = self.end, self._ask
        if replaced is not None:
            replaced.close_publisher()
        self._ask()
        self._look()

    def end(self) -> None:
        """Viewers keep the last picture."""
        self._timer.cancel()
        self._publication.end()

    def _ask(self) -> None:
        with self._lock:
            wanted = self._stream.controls.model_copy(update=_INDIFFERENT)
            if wanted != self._asked:
                self._asked = wanted
                self._publication.put(None)

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
        if self._stream.unused_s() > ABANDONED_S:
            self.end()


def imagine_publication(stream: Stream) -> Publication | None:
    """The publication whose pictures are imagined; None where something else or nobody publishes."""
    publication = stream.publication
    return publication if publication is not None and publication.publisher.kind == ImaginePublisher.kind else None


def remarks(stream: Stream) -> dict[str, str]:
    """control -> a sentence, for each that does nothing while the stream is imagined, or too little."""
    if imagine_publication(stream) is None:
        return {}
    return REMARKS | ({"steps": FEW_STEPS} if stream.controls.steps < USUAL_STEPS else {})
