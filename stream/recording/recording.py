"""One recording of a stream: a thread of its own writes what the stream shows and says; nobody ever waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from stream.engine.frames import Picture, Sound
from stream.imagine import imagine_publication
from stream.streams import Stream

from .backlog import Backlog
from .mp4 import HOLD_S, FragmentFile, Mp4Muxer

log = logging.getLogger(__name__)

TICK_S = 0.25
LOOK_S = 0.5  # how often it looks whether its file is still where it was
ABANDONED_S = 300.0  # without a new picture: nobody means to record so long a still
FULL_S = 4 * 3600.0  # then the film goes on in a next file: an MP4's index takes about 20 MB of memory an hour
EARLY_SOUNDS = 250  # kept while the first picture is in the engine: 5 s of Opus packets

PART, FILM = ".part.mp4", ".mp4"


class FileLost(Exception):
    """The file was taken away while it was written."""


class FileMoved(FileLost):
    """It lies elsewhere now."""


class Recording:
    """From `start` to `end`, or until it ends by itself: disk full, its file taken away, no picture for ABANDONED_S,
    FULL_S reached. Once it is over, whatever went wrong, `over` is done and `state` tells for good how it ended.

    The film begins with the first picture that was captured after the start, or with the imagined one that stands. Its
    time is that of captured_s: what was dropped is a longer picture, what came without sound is silence, and while no
    publisher is there the last picture stays. It is written to STEM.part.mp4, which becomes STEM.mp4 when it ended in
    order.
    """

    def __init__(self, stream: Stream, folder: Path, stem: str, ended: Callable[[Recording], None]):
        """ended: called from the recording's thread before `over` is done. Raises OSError; FileExistsError for a taken
        stem."""
        self.stream = stream
        self.stem = stem
        self.frames_dropped = 0  # the encoder was too slow for them
        self.is_full = False
        self.over: Future[None] = Future()
        self.over.set_running_or_notify_cancel()  # who waits for it and gives up ends nothing
        self._folder = folder
        self._part = folder / (stem + PART)
        self._file = FragmentFile(self._part)
        self._state, self._detail = "recording", ""
        self._name: str | None = stem + FILM
        self._started = datetime.now().astimezone()
        self._started_s = time.monotonic()
        self._ended = ended
        self._leave: list[Callable[[], None]] = []
        self._backlog = Backlog()
        self._muxer: Mp4Muxer | None = None
        self._final: dict[str, Any] | None = None  # its state once it is over
        self._early: deque[Sound] = deque(maxlen=EARLY_SOUNDS)
        self._newest: Picture | None = None
        self._thread = threading.Thread(target=self._run, name=f"recording {stream.name}", daemon=True)

    # -- for everyone ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises RuntimeError when the system has no thread left; then nothing has begun."""
        self._leave = [self.stream.watch(self._on_picture, is_viewer=False), self.stream.listen(self._backlog.put)]
        try:
            self._thread.start()
        except RuntimeError:
            self._let_go()
            raise

    def end(self) -> None:
        """Take nothing more and finish the film, without waiting for that: `over` tells when it is done."""
        self.is_full = False  # whoever ends it wants no next one
        self._backlog.close()

    @property
    def is_running(self) -> bool:
        return self._state == "recording"

    @property
    def is_broken(self) -> bool:
        return self._state == "failed"

    def discard(self) -> None:
        """Leave nothing behind of what has not been started."""
        self._file.close()
        self._part.unlink()

    def state(self) -> dict[str, Any]:
        """What GET /api/streams/{stream}/recording answers."""
        muxer, name = self._muxer, self._name  # before asking whether it is over: then the muxer is let go
        if self._final is not None:
            return self._final
        return {
            "state": self._state,
            "file": name,
            "url": name and f"/api/recordings/{name}",
            "started": self._started.isoformat(timespec="milliseconds"),
            "seconds": round(muxer.seconds, 3) if muxer is not None else 0.0,
            "bytes": self._file.bytes,
            "frames": muxer.frames if muxer is not None else 0,
            "frames_dropped": self.frames_dropped,
            "detail": self._detail or self._remark(),
        }

    def _remark(self) -> str:
        if self.frames_dropped:
            return f"{self.frames_dropped} pictures are missing in the film: they came faster than it is encoded."
        return "Waiting for the first picture." if self._muxer is None else ""

    # -- the stream's threads ----------------------------------------------------------------------------------------

    def _on_picture(self, picture: Picture) -> None:
        if not self._backlog.put(picture) and not self._backlog.is_closed:
            self.frames_dropped += 1

    # -- the recording's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        with ExitStack() as ending:  # from the last to the first, each whatever the others raise
            ending.callback(self.over.set_result, None)
            ending.callback(self._ended, self)
            ending.callback(self._settle)
            ending.callback(self._file.close)
            try:
                try:
                    self._record()
                finally:
                    self._let_go()
                self._finish()
            except BaseException as error:
                self._break_off(error)

    def _settle(self) -> None:
        """What it was is all that is kept: the encoder takes some 10 MB, and the stream tells for long how it ended."""
        self._final = self.state()
        self._muxer = self._newest = None

    def _record(self) -> None:
        look_s = time.monotonic() + LOOK_S
        while (item := self._backlog.take(TICK_S)) is not None or not self._backlog.is_closed:
            if isinstance(item, Picture):
                self._add_picture(item)
            elif isinstance(item, Sound):
                self._add_sound(item)
            now_s = time.monotonic()
            if not self._backlog.is_closed:
                self._pass_time(now_s)
            if now_s >= look_s:
                self._look()
                look_s = now_s + LOOK_S

    def _look(self) -> None:
        """Raises FileLost, OSError."""
        if not self._file.is_in_place():
            if self._file.is_removed():
                raise FileLost(f"{self._part.name} was removed")
            raise FileMoved(f"{self._part.name} was moved away")

    def _add_picture(self, picture: Picture) -> None:
        if self._muxer is None:
            if picture.captured_s < self._started_s:
                imagined = imagine_publication(self.stream)
                if imagined is None or picture.captured_s < imagined.began_s:
                    return
                # It stays until a setting changes: the film begins with it.
                picture = replace(picture, captured_s=self._started_s, shown_s=self._started_s)
            height, width = picture.rgb.shape[:2]
            self._muxer = Mp4Muxer(self._file, width, height, picture.captured_s)
        self._newest = picture
        self._muxer.add_picture(picture.rgb, picture.captured_s)
        while self._early:
            self._add_sound(self._early.popleft())

    def _add_sound(self, sound: Sound) -> None:
        if self._muxer is None:
            self._early.append(sound)
        else:
            self._muxer.add_sound(sound.samples, sound.captured_s)

    def _pass_time(self, now_s: float) -> None:
        idle_s = now_s - (self._newest.shown_s if self._newest is not None else self._started_s)
        if idle_s > ABANDONED_S:
            self._detail = f"The recording ended: no picture came for {round(ABANDONED_S / 60)} minutes."
            self._backlog.close()
        if self._muxer is None:
            return
        if self._muxer.seconds >= FULL_S:
            self.is_full = True
            self._backlog.close()
        elif self._film_s(now_s) - self._muxer.until_s >= HOLD_S and not self._backlog.holds(Picture):
            self._muxer.hold(self._film_s(now_s))

    def _film_s(self, now_s: float) -> float:
        """Where the film is at now_s, on the clock of captured_s: as far behind as its newest picture came."""
        assert self._newest is not None  # the film begins with a picture
        return self._newest.captured_s + now_s - self._newest.shown_s

    def _let_go(self) -> None:
        self._backlog.close()
        for leave in self._leave:
            leave()

    def _finish(self) -> None:
        self._look()
        if self._muxer is None:
            self._file.close()
            self._part.unlink()
            self._detail = self._detail or "No picture came, so there is no film."
            self._name, self._state = None, "ended"
            return
        self._muxer.close(self._film_s(time.monotonic()))
        self._file.close()
        film, number = self._folder / (self.stem + FILM), 1
        while film.exists():  # of another program: the stem was free when we began
            number += 1
            film = self._folder / f"{self.stem}-{number}{FILM}"
        self._part.rename(film)
        self._name, self._state = film.name, "ended"

    def _break_off(self, error: BaseException) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split()).rstrip(".")
        expected = isinstance(error, OSError | FileLost)
        log.error("The recording %s broke off: %s", self.stem, reason, exc_info=None if expected else error)
        name, kept = None, f"{self._part.name} may hold what was written."
        try:
            name, kept = self._leftovers(isinstance(error, FileMoved))
        except OSError as fault:
            log.error("What the recording %s has written cannot be looked after: %s", self.stem, fault.strerror)
        finally:
            self._detail = f"The recording broke off: {reason}. {kept}"
            self._name, self._state = name, "failed"

    def _leftovers(self, is_moved: bool) -> tuple[str | None, str]:
        """(the name of what is left of the film, what is said of that). Raises OSError."""
        if self._muxer is not None:
            self._muxer.abandon()
        self._file.close()
        is_ours = self._file.is_in_place()  # no file that took its place is ours to show or to remove
        if self._file.is_playable and is_moved:
            return None, "What was written plays from where it is now."
        if self._file.is_playable and is_ours:
            return self._part.name, f"What was written is kept as {self._part.name}."
        if is_ours:
            self._part.unlink()
        return None, "There is no film."
