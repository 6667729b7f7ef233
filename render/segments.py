"""What survives a run that is killed? A folder beside the film with its segments so far: none is rendered again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """The folder FILM.partial: the plan and the complete segments of the film, `done` pictures in all."""

    def __init__(self, film: Path):
        self.folder = folder_of(film)
        self._film = film
        self._claimed: int | None = None
        self.done = 0

    def begin(self, plan: dict[str, Any]) -> None:
        """Start from nothing; what another run left is thrown away. Raises FilmError."""
        self.discard()
        self.folder.mkdir()
        self._claim()
        part = self.part()
        part.write_text(json.dumps(plan, indent=1))
        part.rename(self.folder / PLAN)

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
        self.done = sum(count for _, count, _ in self.segments())

    def seal(self, count: int, part: Path | None = None) -> None:
        """The next `count` pictures are safe: in `part` if given, else in files of their own."""
        segment = self.folder / f"{self.done:08d}-{count}.segment"
        segment.touch() if part is None else part.rename(segment)
        self.done += count

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
        self.done = 0

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
