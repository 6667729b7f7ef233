"""One recording of a stream: a thread of its own writes what the stream shows and says; nobody ever waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backlog import Backlog
from .frames import Picture, Sound
from .imagination import imagination_of
from .reel import HOLD_S, Reel, ReelFile

if TYPE_CHECKING:
    from .streams import Stream

log = logging.getLogger(__name__)

TICK_S = 0.25
ABANDONED_S = 300.0  # without a new picture: nobody means to record so long a still
FULL_S = 4 * 3600.0  # then the film goes on in a next file: an MP4's index takes about 20 MB of memory an hour
EARLY_SOUNDS = 250  # kept while the first picture is in the engine: 5 s of Opus packets

PART, FILM = ".part.mp4", ".mp4"


class Recording:
    """From `start` to `stop`, or until it ends by itself: disk full, no picture for ABANDONED_S, FULL_S reached.

    The film begins with the first picture that was captured after the start, or with the imagined one that stands. Its
    time is that of captured_s: what was dropped is a longer picture, what came without sound is silence, and while no
    publisher is there the last picture stays. It is written to STEM.part.mp4, which becomes STEM.mp4 when it ended in
    order.
    """

    def __init__(self, stream: Stream, folder: Path, stem: str, ended: Callable[[Recording], None]):
        """ended: called from the recording's thread when it is over. Raises OSError; FileExistsError for a taken
        stem."""
        self.stream = stream
        self.stem = stem
        self.frames_dropped = 0  # the encoder was too slow for them
        self.is_full = False
        self._folder = folder
        self._file = ReelFile(folder / (stem + PART))
        self._state, self._name, self._detail = "recording", stem + FILM, ""
        self._started = datetime.now().astimezone()
        self._started_s = time.monotonic()
        self._ended, self._leave = ended, []
        self._backlog = Backlog()
        self._reel: Reel | None = None
        self._final: dict[str, Any] | None = None  # its state once it is over
        self._early: deque[Sound] = deque(maxlen=EARLY_SOUNDS)
        self._newest: Picture | None = None
        self._thread = threading.Thread(target=self._run, name=f"recording {stream.name}", daemon=True)

    # -- for everyone ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._leave = [self.stream.watch(self._on_picture, is_viewer=False), self.stream.listen(self._backlog.put)]
        self._thread.start()

    def end(self) -> None:
        """Take nothing more and finish the film, without waiting for that."""
        self.is_full = False  # whoever ends it wants no next one
        self._backlog.close()

    def stop(self) -> dict[str, Any]:
        """Finish the film; returns its state. Blocks for as long as the pictures in hand take."""
        self.end()
        self._thread.join()
        return self.state()

    @property
    def is_running(self) -> bool:
        return self._state == "recording"

    def discard(self) -> None:
        """Leave nothing behind of what has not been started."""
        self._file.close()
        (self._folder / (self.stem + PART)).unlink()

    def state(self) -> dict[str, Any]:
        """What GET /api/streams/{stream}/recording answers."""
        reel, name = self._reel, self._name  # before asking whether it is over: then the reel is let go
        if self._final is not None:
            return self._final
        return {
            "state": self._state,
            "file": name,
            "url": name and f"/api/recordings/{name}",
            "started": self._started.isoformat(timespec="milliseconds"),
            "seconds": round(reel.seconds, 3) if reel is not None else 0.0,
            "bytes": self._file.bytes,
            "frames": reel.frames if reel is not None else 0,
            "frames_dropped": self.frames_dropped,
            "detail": self._detail or self._remark(),
        }

    def _remark(self) -> str:
        if self.frames_dropped:
            return f"{self.frames_dropped} pictures are missing in the film: they came faster than it is encoded."
        return "Waiting for the first picture." if self._reel is None else ""

    # -- the stream's threads ----------------------------------------------------------------------------------------

    def _on_picture(self, picture: Picture) -> None:
        if not self._backlog.put(picture) and not self._backlog.is_closed:
            self.frames_dropped += 1

    # -- the recording's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._record()
            self._let_go()
            self._finish()
        except Exception as error:
            self._let_go()
            self._break_off(error)
        finally:
            self._final = self.state()
            self._reel = self._newest = None  # some 10 MB, while the stream still tells how its recording ended
            self._ended(self)

    def _record(self) -> None:
        while (item := self._backlog.take(TICK_S)) is not None or not self._backlog.is_closed:
            if isinstance(item, Picture):
                self._add_picture(item)
            elif isinstance(item, Sound):
                self._add_sound(item)
            if not self._backlog.is_closed:
                self._pass_time(time.monotonic())

    def _add_picture(self, picture: Picture) -> None:
        if self._reel is None:
            if picture.captured_s < self._started_s:
                imagination = imagination_of(self.stream)
                if imagination is None or picture.captured_s < imagination.began_s:
                    return
                # It stays until a setting changes: the film begins with it.
                picture = replace(picture, captured_s=self._started_s, shown_s=self._started_s)
            height, width = picture.rgb.shape[:2]
            self._reel = Reel(self._file, width, height, picture.captured_s)
        self._newest = picture
        self._reel.add_picture(picture.rgb, picture.captured_s)
        while self._early:
            self._add_sound(self._early.popleft())

    def _add_sound(self, sound: Sound) -> None:
        if self._reel is None:
            self._early.append(sound)
        else:
            self._reel.add_sound(sound.samples, sound.captured_s)

    def _pass_time(self, now_s: float) -> None:
        idle_s = now_s - (self._newest.shown_s if self._newest is not None else self._started_s)
        if idle_s > ABANDONED_S:
            self._detail = f"The recording ended: no picture came for {round(ABANDONED_S / 60)} minutes."
            self._backlog.close()
        if self._reel is None:
            return
        if self._reel.seconds >= FULL_S:
            self.is_full = True
            self._backlog.close()
        elif self._film_s(now_s) - self._reel.until_s >= HOLD_S and not self._backlog.holds(Picture):
            self._reel.hold(self._film_s(now_s))

    def _film_s(self, now_s: float) -> float:
        """Where the film is at now_s, on the clock of captured_s: as far behind as its newest picture came."""
        return self._newest.captured_s + now_s - self._newest.shown_s

    def _let_go(self) -> None:
        self._backlog.close()
        for leave in self._leave:
            leave()

    def _finish(self) -> None:
        part = self._folder / (self.stem + PART)
        if self._reel is None:
            self._file.close()
            part.unlink()
            self._detail = self._detail or "No picture came, so there is no film."
            self._name, self._state = None, "ended"
            return
        self._reel.close(self._film_s(time.monotonic()))
        self._file.close()
        film, number = self._folder / (self.stem + FILM), 1
        while film.exists():  # of another program: the stem was free when we began
            number += 1
            film = self._folder / f"{self.stem}-{number}{FILM}"
        part.rename(film)
        self._name, self._state = film.name, "ended"

    def _break_off(self, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        log.error("The recording %s broke off: %s", self.stem, reason, exc_info=not isinstance(error, OSError))
        if self._reel is not None:
            self._reel.abandon()
        self._file.close()
        part = self._folder / (self.stem + PART)
        if self._file.is_playable and part.exists():  # nobody removed it meanwhile
            self._name, kept = part.name, f"What was written is kept as {part.name}."
        else:
            part.unlink(missing_ok=True)
            self._name, kept = None, "There is no film."
        self._detail, self._state = f"The recording broke off: {reason}. {kept}", "failed"
