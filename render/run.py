"""Films are made one after another: with progress, resumed where a run broke off, ended in order by Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED
from pipeline.settings import Controls, ModelSpec

from . import segments
from .clip import Clip, VideoClip, open_clip
from .errors import FilmError
from .jobs import RenderJob, RenderSettings, check, existing_files
from .muxing import Film, FilmSettings, film_for
from .painting import ANIMATED, Animate, FilmEngine, Submit, animated, from_text
from .pictures import BlankClip, picture_files
from .rendering import RenderSpec, render

GIF_RATE = 50  # browsers take a delay of less than two hundredths of a second for ten


class StylizerCache:
    """Loads the model when the first clip needs it, and again only for another size.

    batch: frames painted at once. circumstances: what else decides how pictures look (device, compiled), for --resume
    to compare.
    """

    def __init__(
        self, spec: ModelSpec, load: Callable[[ModelSpec], FilmEngine], batch: int, circumstances: dict[str, Any]
    ):
        self.spec, self.batch, self.circumstances = spec, batch, circumstances
        self._load = load
        self._stylizer: FilmEngine | None = None

    def stylizer(self, spec: ModelSpec) -> FilmEngine:
        if self._stylizer is None or self._stylizer.spec != spec:
            self._stylizer = None  # two of them may not fit into memory
            self._stylizer = self._load(spec)
        return self._stylizer


def run(jobs: Sequence[RenderJob], settings: RenderSettings, controls: Controls, cache: StylizerCache) -> int:
    """Make every film; returns the exit code. What is wrong with one clip does not keep the others from being made."""
    failed = 0
    with _interruptible() as interrupted:
        for job in jobs:
            try:
                check(job, settings)
                if not _make(job, settings, controls, cache, interrupted):
                    return EXIT_INTERRUPTED
            except FilmError as error:
                failed += 1
                print(" ".join(str(error).split()), file=sys.stderr)
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _make(
    job: RenderJob, settings: RenderSettings, controls: Controls, cache: StylizerCache, interrupted: Callable[[], bool]
) -> bool:
    """One film; False when it was interrupted."""
    clip = _clip(job, settings, cache)
    if settings.fps is not None and isinstance(clip, VideoClip):
        raise FilmError(f"--fps is for pictures: {job.source} has its own timing.")
    spec = _shaped(cache.spec, clip) if settings.clip_shape else cache.spec
    size = spec.width, spec.height
    film_size = (2 * size[0], size[1]) if settings.side_by_side else size
    film = film_for(
        FilmSettings(clip, job.target, film_size, settings.start_s, settings.end_s, settings.codec, settings.quality)
    )
    if settings.resume and not settings.overwrite and not segments.is_begun(job.target) and existing_files(job.target):
        print(f"{job.target} is there already, and nothing of it is left to resume.", file=sys.stderr)
        film.work.discard()
        return True
    take = RenderSpec(
        clip,
        controls,
        size,
        settings.start_s,
        settings.end_s,
        settings.cuts,
        settings.side_by_side,
        _batch(settings, cache),
        fresh=job.source is None and spec.motion is None,
        mask=None if settings.mask is None else open_clip(settings.mask),
        feather=settings.feather,
    )
    with _in_words(job, film):
        job.target.parent.mkdir(exist_ok=True)
        plan = _plan(clip, settings, controls, spec, film, cache)
        if settings.resume and segments.is_begun(job.target):
            film.work.resume(plan)
        else:
            film.work.begin(plan)
        try:
            _tell(clip, size, settings, film)
            stylizer = cache.stylizer(spec)
            for name, remark in {**stylizer.remarks(controls), **_live_only(controls)}.items():
                print(f"--{name.replace('_', '-')}: {remark}", file=sys.stderr)
            take = dataclasses.replace(take, ahead=stylizer.runs_ahead)
            return _render(job, take, _engine_call(stylizer, job, settings, take), film, interrupted)
        finally:
            film.abandon()
            if film.work.done:
                film.work.close()
            else:
                film.work.discard()


def _live_only(controls: Controls) -> dict[str, str]:
    """control -> a sentence, for each setting that films do not obey."""
    said = "No effect: every frame of a film is painted, and painted whole."
    return {name: said for name in ("skip_similar", "reuse") if getattr(controls, name)}


def _batch(settings: RenderSettings, cache: StylizerCache) -> int:
    """How many frames are painted at once; where they are animated, how many are on the way to that."""
    if cache.spec.motion is not None:
        return ANIMATED
    return 1 if settings.text_to_image else cache.batch


def _clip(job: RenderJob, settings: RenderSettings, cache: StylizerCache) -> Clip:
    fps = settings.fps or Fraction(25)
    if job.source is None:
        count = settings.count or (1 if cache.spec.motion is None else ANIMATED)
        return BlankClip(count, fps, (cache.spec.width, cache.spec.height))
    return open_clip(job.source, fps)


def _engine_call(stylizer: FilmEngine, job: RenderJob, settings: RenderSettings, take: RenderSpec) -> Submit | Animate:
    if stylizer.spec.motion is not None:
        count = take.clip.expected(take.start_s, take.end_s) if job.source is None else None
        return animated(stylizer, take.controls, count)
    submit: Submit = stylizer.submit
    return from_text(submit, sees_clip=job.source is not None) if settings.text_to_image else submit


@contextlib.contextmanager
def _in_words(job: RenderJob, film: Film) -> Iterator[None]:
    """A full disk and the like as FilmError."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        kept = (
            " What is painted so far is kept; --resume goes on with it."
            if film.work.done and segments.is_begun(job.target)
            else ""
        )
        reason = (error.strerror or str(error)).rstrip(".")
        raise FilmError(f"{job.target} cannot be written: {reason}.{kept}") from error


def _render(
    job: RenderJob, take: RenderSpec, paint: Submit | Animate, film: Film, interrupted: Callable[[], bool]
) -> bool:
    expected = take.clip.expected(take.start_s, take.end_s)
    with tqdm(
        total=expected,
        initial=film.work.done,
        desc=job.target.name,
        unit=" frames",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 5,
    ) as bar:
        complete = render(take, paint, film, bar.update, interrupted)
    if bar.n == 0:
        if not complete:
            return False
        raise FilmError(f"{take.clip.path} has no picture in the part that was asked for.")
    film.finish(complete)
    damaged = take.clip.damaged
    if damaged:
        print(
            f"{take.clip.path} is damaged in {damaged} places; what could be read of it was painted.", file=sys.stderr
        )
    if complete:
        film.work.discard()
        return True
    print(
        f"Interrupted: {job.target} plays up to picture {film.work.done}"
        + (f" of about {expected}" if expected else "")
        + "; the same command with --resume goes on from there.",
        file=sys.stderr,
    )
    return False


def _shaped(spec: ModelSpec, clip: Clip) -> ModelSpec:
    """The model's number of pixels in the clip's shape, in multiples of 8."""
    pixels, aspect = spec.width * spec.height, clip.width / clip.height
    step = 16 if spec.adapter else 8
    sides = (math.sqrt(pixels * aspect), math.sqrt(pixels / aspect))
    width, height = (max(64, round(side / step) * step) for side in sides)
    try:
        return dataclasses.replace(spec, width=width, height=height)
    except ValueError as error:
        raise FilmError(f"{clip.path} is {clip.width}x{clip.height}, too long a shape: give a --size.") from error


def _plan(
    clip: Clip, settings: RenderSettings, controls: Controls, spec: ModelSpec, film: Film, cache: StylizerCache
) -> dict[str, Any]:
    """All that decides what the pictures look like; equal plans give equal pictures."""
    files: Sequence[Path] = clip.files
    if settings.mask is not None:
        files = [*files, *(picture_files(settings.mask) or [settings.mask])]
    return {
        "clip": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "part": [str(settings.start_s), None if settings.end_s is None else str(settings.end_s)],
        "encoder": film.description,
        "quality": settings.quality,
        "fps": str(clip.rate),
        "side-by-side": settings.side_by_side,
        "feather": settings.feather,
        "text to image": [settings.text_to_image, settings.count],
        "cuts": settings.cuts,
        "batch": _batch(settings, cache),
        "model": {**dataclasses.asdict(spec), **cache.circumstances},
        **controls.model_dump(),
    }


def _tell(clip: Clip, size: tuple[int, int], settings: RenderSettings, film: Film) -> None:
    """What a user would wonder about afterwards."""
    if abs(math.log(clip.width / clip.height * size[1] / size[0])) > 0.05:
        print(
            f"The clip is {clip.width}x{clip.height}, the film {size[0]}x{size[1]}: its edges are cut off "
            "(--size clip keeps its shape).",
            file=sys.stderr,
        )
    if film.description == "gif" and clip.rate > GIF_RATE:
        print(f"A GIF shows {GIF_RATE} pictures a second at most; this one will play too slowly.", file=sys.stderr)
    if film.work.done:
        print(f"Resuming: {film.work.done} pictures are there already.", file=sys.stderr)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the run after the batch in hand; a second Ctrl-C at once."""
    interrupted = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
