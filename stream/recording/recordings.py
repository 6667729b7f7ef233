"""All films of one server: the folder they lie in, what they are called, and how many are made at once."""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from stream.descriptors import none_left
from stream.streams import Stream

from .recording import FILM, PART, Recording

log = logging.getLogger(__name__)

FOLDER = Path("recordings")
MAX_RUNNING = 4
_OURS = re.compile(r"[a-z0-9-]{1,100}(\.part)?\.mp4")  # no name of another kind is looked up, so none leads elsewhere


class CannotRecord(RuntimeError):
    """The folder takes no film, or shows none."""


class TooManyRecordings(RuntimeError):
    """The limit of simultaneous recordings is reached."""


class AlreadyRecording(RuntimeError):
    """The stream is being recorded."""


class NoRecording(LookupError):
    """There is no such recording."""


class StillRecording(RuntimeError):
    """The film is not finished."""


class Recordings:
    """Safe to use from any thread; touches the disk, so not from an event loop."""

    def __init__(self, folder: Path = FOLDER, max_running: int = MAX_RUNNING):
        """folder: made when the first recording starts."""
        self.folder = folder
        self._max_running = max_running
        self._running: dict[Stream, Recording] = {}
        self._closing = False
        self._lock = threading.RLock()  # a film that is full starts the next one in one go

    def start(self, stream: Stream) -> dict[str, Any]:
        """Record a stream; returns the recording's state. Raises AlreadyRecording, TooManyRecordings, CannotRecord."""
        with self._lock:
            if (running := self._running.get(stream)) is not None:
                raise AlreadyRecording(f"Stream {stream.name} is being recorded already, as {running.stem}{FILM}.")
            if len(self._running) >= self._max_running or self._closing:
                raise TooManyRecordings(f"{self._max_running} streams are being recorded; stop one of them first.")
            recording = self._make(stream)
            try:
                recording.start()
            except RuntimeError as error:
                recording.discard()
                raise CannotRecord(f"Stream {stream.name} cannot be recorded: {error}.") from error
            self._running[stream] = stream.recording = recording
        return recording.state()

    def stop(self, stream: Stream) -> Recording:
        """End a stream's recording: its film is finished once the recording's `over` is done. One that broke off by
        itself is given back as it is, for who stops it has not heard of that. Raises NoRecording."""
        with self._lock:  # not one that is about to start
            if (running := self._running.get(stream)) is not None:
                running.end()
                return running
            if isinstance(stream.recording, Recording) and stream.recording.is_broken:
                return stream.recording
        raise NoRecording(f"Stream {stream.name} is not being recorded.")

    def close(self) -> list[Recording]:
        """Start none any more and end all that run; returns these."""
        with self._lock:
            self._closing = True
            running = list(self._running.values())
            for recording in running:
                recording.end()
        return running

    def listed(self) -> list[dict[str, Any]]:
        """The films in the folder, newest first. Those that broke off are there too, as not `finished`; those that are
        being made are not."""
        try:
            paths = list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # nothing has been recorded, or all was taken away
            paths = []
        except OSError as error:
            if none_left(error):  # it passes, and no other folder would help
                raise
            raise CannotRecord(f"Recordings in {self.folder} cannot be read: {error.strerror}.") from error
        films = []
        for path in paths:
            if not _OURS.fullmatch(path.name) or path.name in self._unfinished() or not os.path.isfile(path):
                continue
            try:
                facts = path.stat()
            except OSError:  # it was moved away meanwhile
                continue
            films.append(
                {
                    "file": path.name,
                    "url": f"/api/recordings/{path.name}",
                    "bytes": facts.st_size,
                    "ended": datetime.fromtimestamp(facts.st_mtime).astimezone().isoformat(timespec="seconds"),
                    "finished": not path.name.endswith(PART),
                }
            )
        return sorted(films, key=lambda film: (film["ended"], film["file"]), reverse=True)

    def find(self, name: str) -> Path:
        """The film of that name. Raises NoRecording, StillRecording."""
        if name in self._unfinished():
            raise StillRecording(f"{name} is still being recorded; stop that first.")
        if not _OURS.fullmatch(name) or not os.path.isfile(self.folder / name):
            raise NoRecording(f"There is no recording named {name[:100]}.")
        return self.folder / name

    def _unfinished(self) -> set[str]:
        return {recording.stem + suffix for recording in list(self._running.values()) for suffix in (PART, FILM)}

    def _make(self, stream: Stream) -> Recording:
        """A recording under a name of its own: whoever holds STEM.part.mp4 owns STEM."""
        stem = f"{stream.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
            return next(made for each in stems if (made := self._made(stream, each)) is not None)
        except OSError as error:
            if none_left(error):
                raise
            raise CannotRecord(
                f"Recordings cannot be written to {self.folder}: {error.strerror}. "
                "Free it or start the server with another --recordings DIR."
            ) from error

    def _made(self, stream: Stream, stem: str) -> Recording | None:
        """None where the stem is taken. Raises OSError."""
        try:
            recording = Recording(stream, self.folder, stem, self._on_end)
        except FileExistsError:
            return None
        if not (self.folder / (stem + FILM)).exists():
            return recording
        recording.discard()
        return None

    def _on_end(self, recording: Recording) -> None:
        with self._lock:
            del self._running[recording.stream]
            if recording.is_full:
                try:
                    self.start(recording.stream)
                except (AlreadyRecording, TooManyRecordings, CannotRecord) as error:
                    log.error("The recording of stream %s does not go on: %s", recording.stream.name, error)
