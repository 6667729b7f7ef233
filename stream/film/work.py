"""What survives a run that is killed? A folder beside the film with all its pictures so far: none is rendered again."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FilmError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SUFFIX = ".partial"
PLAN = "plan.json"


def folder_of(film: Path) -> Path:
    """Where an interrupted run's work on a film lies."""
    return film.with_name(film.name + SUFFIX)


def is_begun(film: Path) -> bool:
    """Is there work of an interrupted run? (A folder without a plan is one that was being thrown away.)"""
    return (folder_of(film) / PLAN).is_file()


class Work:
    """The folder FILM.partial: the plan, finished segments, and the pictures that no finished segment holds yet.

    Pictures are kept raw until their segment is complete: an encoder holds dozens back, and a kill would lose them.
    `sealed` counts the pictures in complete segments, `done` those and the raw ones.
    """

    def __init__(self, film: Path, shape: tuple[int, int, int]):
        self.folder = folder_of(film)
        self._film = film
        self._shape, self._bytes = shape, int(np.prod(shape))
        self._spool = None
        self._first = 0  # number of the first raw picture
        self._lock = threading.Lock()  # the engine's thread keeps, the encoder's seals, the reader's takes up
        self._claimed: int | None = None
        self.sealed = self.done = 0

    def begin(self, plan: dict[str, Any]) -> None:
        """Start from nothing; what another run left is thrown away. Raises FilmError."""
        self.discard()
        self.folder.mkdir()
        self._claim()
        part = self.part()
        part.write_text(json.dumps(plan, indent=1))
        part.rename(self.folder / PLAN)
        self._open_spool(0)

    def resume(self, plan: dict[str, Any]) -> None:
        """Take up what another run left, if it was made the same way. Raises FilmError."""
        self._claim()
        try:
            _compare(json.loads((self.folder / PLAN).read_text()), json.loads(json.dumps(plan)))
        except (OSError, ValueError) as error:
            self.close()
            raise FilmError(f"{self.folder} cannot be resumed; --overwrite starts over.") from error
        except FilmError:
            self.close()
            raise
        segments = self.segments()
        self.sealed = segments[-1][0] + segments[-1][1] if segments else 0
        for file in self.folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".raw" and file != self._spool_file(self.sealed)):
                file.unlink()
        self._open_spool(self.sealed)
        spooled = self._spool.tell() // self._bytes
        self._spool.truncate(spooled * self._bytes)  # a picture may have been cut off in the middle
        self.done = self.sealed + spooled

    def raw(self, number: int) -> np.ndarray:
        """A picture of an earlier run that has to be encoded again, sealed <= number < done."""
        with self._lock, self._spool_file(self._first).open("rb") as spool:
            spool.seek((number - self._first) * self._bytes)
            return np.frombuffer(spool.read(self._bytes), np.uint8).reshape(self._shape)

    def keep(self, picture: np.ndarray) -> None:
        """Save the next picture, before anything else is done with it."""
        with self._lock:
            self._spool.write(np.ascontiguousarray(picture).data)
            self._spool.flush()
            self.done += 1

    def seal(self, count: int, part: Path | None = None) -> None:
        """The next `count` pictures are safe: in `part` if given, else in files of their own. Their raw copies may go.

        The order matters for who is killed in between: until the segment has its name, the old raw file counts.
        """
        with self._lock:
            first, sealed = self.sealed, self.sealed + count
            with self._spool_file(first).open("rb") as old:
                old.seek(count * self._bytes)
                waiting = old.read()  # the few that were rendered while this segment was completed
            fresh = self._spool_file(sealed).with_suffix(".part")
            fresh.write_bytes(waiting)
            fresh.rename(self._spool_file(sealed))
            segment = self.folder / f"{first:08d}-{count}.segment"
            segment.touch() if part is None else part.rename(segment)
            self._spool.close()
            self.sealed = sealed
            self._open_spool(sealed)
            self._spool_file(first).unlink()

    def segments(self) -> list[tuple[int, int, Path]]:
        """(first picture, count, file) of the complete segments, in order and without a gap."""
        found = sorted(
            (int(match[1]), int(match[2]), file)
            for file in self.folder.iterdir()
            if (match := re.fullmatch(r"(\d{8})-(\d+)\.segment", file.name))
        )
        return list(_unbroken(found))

    def part(self) -> Path:
        """Where the segment in work is written."""
        return self.folder / "segment.part"

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None

    def discard(self) -> None:
        """All is done, or not wanted any more. Raises FilmError."""
        if self.folder.exists():
            self._claim()
            (self.folder / PLAN).unlink(missing_ok=True)  # first: who is killed in between has nothing to resume
            shutil.rmtree(self.folder)
        self.close()
        self.sealed = self.done = 0

    def _claim(self) -> None:
        """Two runs at once would mix their pictures. Raises FilmError."""
        if fcntl is None or self._claimed is not None:
            return
        self._claimed = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise FilmError(f"Another run is painting {self._film} at this moment.") from error

    def _open_spool(self, first: int) -> None:
        self._first = first
        self._spool = self._spool_file(first).open("ab")

    def _spool_file(self, first: int) -> Path:
        return self.folder / f"{first:08d}.raw"


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in now.keys() | before.keys():
        if now.get(name) != before.get(name):
            values = f"was {before.get(name)} and is {now.get(name)} now"
            change = values if len(values) < 100 else "is not what it was"
            raise FilmError(f"--resume: {name} {change}; give the same settings, or --overwrite to start over.")


def _unbroken(segments: list[tuple[int, int, Path]]) -> Iterator[tuple[int, int, Path]]:
    due = 0
    for first, count, file in segments:
        if first != due:
            return
        due = first + count
        yield first, count, file
