"""A clip is repainted: decoding, the engine and encoding at the same time; every picture, in order, once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, repeat
from typing import Any, TypeVar

import numpy as np

from masks import pasted
from pipeline.batch import Batch, Pending, Pictures
from pipeline.settings import Controls

from .clip import Clip
from .cuts import CutDetector
from .muxing import Film
from .painting import Animate, Submit
from .pictures import Moment, Still

Item = TypeVar("Item")

AHEAD = 2  # batches that wait in front of the engine and behind it: enough to never idle, little to hold


class _Stopped(Exception):
    """Asked to end before there was anything to do."""


@dataclass(frozen=True)
class RenderSpec:
    """What to render of a clip, and how. size: (width, height) of the painted picture.

    cuts: new noise for each shot; fresh: for each picture. ahead: submit returns before pictures are there. mask: a
    clip that is white where to repaint, frame by frame; its last one holds on. feather: pixels over which the source
    and the painting blend at its border.
    """

    clip: Clip
    controls: Controls
    size: tuple[int, int]
    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    cuts: bool = False
    side_by_side: bool = False
    batch: int = 1
    ahead: bool = False
    fresh: bool = False
    mask: Clip | None = None
    feather: int = 8


@dataclass(frozen=True, slots=True)
class _Due:
    """A frame whose turn has come. mask: uint8 [height, width]."""

    number: int
    still: Still
    mask: np.ndarray | None
    shot: int


def render(
    take: RenderSpec,
    paint: Submit | Animate,
    film: Film,
    progress: Callable[[], Any] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Put every picture that `film` does not have yet; False when it was stopped before the end. The caller finishes
    the film.

    Batches always have `take.batch` frames, the last one filled up with copies: a picture must not depend on which
    others it was painted with, and some devices round differently for other shapes. progress: called for each picture.
    Raises what reading, painting or writing raised.
    """
    done = film.work.done
    frames = _due(take, paint.restart(done) if isinstance(paint, Animate) else done, should_stop)
    with (
        ThreadPoolExecutor(1, "reader") as reader,
        ThreadPoolExecutor(1, "writer") as writer,
        closing(_prefetched(frames, reader, AHEAD * take.batch)) as dues,
    ):
        written: deque[Future] = deque()
        if isinstance(paint, Animate):
            painted = _animated(take, paint, dues, should_stop, done)
        else:
            painted = _painted(take, paint, dues, should_stop)
        try:
            for picture, still in painted:
                written.append(writer.submit(_put, film, picture, still, written[-1] if written else None))
                progress()
                while len(written) > AHEAD * take.batch:
                    written.popleft().result()
            stopped = False
        except _Stopped:
            stopped = True
        for future in written:
            future.result()
    return not stopped


def _put(film: Film, picture: np.ndarray, still: Still, before: Future | None) -> None:
    """Where the picture before could not be written, none may take its place."""
    if before is not None:
        before.result()
    film.put(picture, still.pts, still.duration)


def _prefetched(items: Iterator[_Due], reader: Executor, ahead: int) -> Generator[_Due]:
    """The items, fetched by `reader` before they are asked for, at most `ahead` of them."""
    coming = deque(reader.submit(next, items, None) for _ in range(ahead))
    try:
        while (item := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, items, None))
            yield item
    finally:
        for future in coming:
            future.cancel()


def _due(take: RenderSpec, begin: int, should_stop: Callable[[], bool]) -> Iterator[_Due]:
    """All frames from number `begin` on; the others are decoded and passed over."""
    detector = CutDetector()
    moments = take.clip.moments(take.start_s, take.end_s)
    for number, (moment, masking) in enumerate(zip(moments, _masks(take), strict=False)):
        if number < begin:
            if should_stop():
                raise _Stopped
            if not take.cuts:
                continue
        still = moment(take.size)
        shot = detector.shot_of(still.rgb) if take.cuts else number if take.fresh else 0
        if number >= begin:
            mask = masking(take.size).rgb.max(axis=2) if masking else None
            yield _Due(number, still, mask, shot)


def _masks(take: RenderSpec) -> Iterator[Moment | None]:
    """The mask's moments, without end; None where there is no mask."""
    last = None
    if take.mask is not None:
        for last in take.mask.moments(take.start_s if take.mask.expected(Fraction(0), None) != 1 else Fraction(0)):
            yield last
        if last is None:  # it ends before the part begins
            *_, last = take.mask.moments()
    yield from repeat(last)


def _batches(items: Iterator[_Due], size: int) -> Iterator[list[_Due]]:
    while batch := list(islice(items, size)):
        yield batch


def _painted(
    take: RenderSpec, submit: Submit, dues: Iterator[_Due], should_stop: Callable[[], bool]
) -> Iterator[tuple[np.ndarray, Still]]:
    """(picture, frame) of each, painted in batches."""
    given = _given(take, submit, dues, should_stop)
    for batch, pending in _one_behind(given) if take.ahead else given:
        yield from [_shown(take, due, picture) for due, picture in zip(batch, pending().rgb, strict=False)]


def _given(
    take: RenderSpec, submit: Submit, dues: Iterator[_Due], should_stop: Callable[[], bool]
) -> Iterator[tuple[list[_Due], Pending[Pictures]]]:
    """Batches that the engine has been given, each with its pictures to come."""
    for batch in _batches(dues, take.batch):
        if should_stop():
            raise _Stopped
        filled = [*batch, *[batch[-1]] * (take.batch - len(batch))]
        frames = np.stack([due.still.rgb for due in filled])
        masks = [due.mask for due in filled if due.mask is not None]
        controls = tuple(_of_shot(take.controls, due.shot) for due in filled)
        yield batch, submit(Batch(frames, controls, np.stack(masks) if masks else None))


def _one_behind(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each when the next is there: a GPU is at work on that while this one is taken from it."""
    waiting: list[Item] = []
    try:
        for item in items:
            yield from waiting
            waiting = [item]
    except Exception:
        yield from waiting  # it is not to be painted a second time
        raise
    yield from waiting


def _animated(
    take: RenderSpec, animate: Animate, dues: Iterator[_Due], should_stop: Callable[[], bool], done: int
) -> Iterator[tuple[np.ndarray, Still]]:
    """(picture, frame) of each from number `done` on; those before are only looked at."""
    waiting: deque[_Due] = deque()
    if (first := next(dues, None)) is None:
        return

    def frames() -> Iterator[np.ndarray]:
        for due in chain([first], dues):
            if should_stop():
                raise _Stopped
            waiting.append(due)
            yield due.still.rgb

    for picture in animate.paint(frames(), first.number):
        due = waiting.popleft()
        if due.number >= done:
            yield _shown(take, due, picture)


def _shown(take: RenderSpec, due: _Due, picture: np.ndarray) -> tuple[np.ndarray, Still]:
    """A new picture as it is shown, and its frame."""
    if due.mask is not None:
        picture = pasted(due.still.rgb, picture, due.mask, take.feather)
    if take.side_by_side:
        picture = np.concatenate([due.still.rgb, picture], axis=1)
    return picture, due.still


def _of_shot(controls: Controls, shot: int) -> Controls:
    """Noise is fixed within a shot, so that what stands still does not flicker, and drawn anew for the next."""
    return controls if shot == 0 else controls.model_copy(update={"seed": (controls.seed + shot) % 2**32})
