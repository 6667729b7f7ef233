"""The thread that drains a camera into a publication, and opens the camera again when it was gone."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from sources import Source
from stream.engine.status import sentence
from stream.publications import Publication

log = logging.getLogger(__name__)

RETRY_S = 1.0


class Capture:
    """From `start` to `close`, which closes the camera too.

    open_source: called at once, and whenever the camera is gone; raises CameraError, at first to the caller.
    `trouble` is why no frames come, None while they do: viewers see the last picture meanwhile.
    """

    def __init__(self, open_source: Callable[[], Source], publication: Publication):
        self.trouble: str | None = None
        self._open_source, self._publication = open_source, publication
        self._source = open_source()
        self.name, self.address, self.rate_hz = self._source.name, self._source.address, self._source.rate_hz
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """A driver that does not answer is not waited for: its thread ends with the process."""
        self._closing.set()
        if self._thread.ident is None:
            self._source.close()
        else:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        source: Source | None = self._source
        while source is not None:
            self.trouble = self._drain(source)
            source = self._reopened()

    def _drain(self, source: Source) -> str:
        """Hand on its frames until it has no more or `close` is called, and close it; returns why they ended."""
        try:
            with contextlib.closing(source):
                self._hand_on(source)
        except Exception as error:  # whatever a driver raises
            log.debug("%s failed.", self.name, exc_info=True)
            return f"{self.name} failed ({sentence(error)}): the last picture stays until it works again"
        return f"{self.name} is gone: the last picture stays until it is back"

    def _hand_on(self, source: Source) -> None:
        while (captured := source.read(self._closing)) is not None and not self._closing.is_set():
            self._publication.put(captured.rgb, captured.media_s)
            self.trouble = None

    def _reopened(self) -> Source | None:
        """The camera once it is back, however long that takes; None on `close`."""
        while not self._closing.wait(RETRY_S):
            try:
                return self._open_source()
            except Exception:  # still gone, as `trouble` says
                log.debug("%s cannot be opened again yet.", self.name, exc_info=True)
        return None
