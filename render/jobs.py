"""Which clips become which films? All that can be checked is checked first; then one after another, with progress."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED
from pipeline.batch import Batch
from pipeline.settings import Controls, ModelSpec

from . import codecs, segments
from .blank import BlankClip
from .clip import VIDEOS, Clip, VideoClip, open_clip
from .errors import FilmError
from .muxing import Film, Order, order_film
from .pictures import fitting_pattern, is_pattern, is_picture, picture_files, visible
from .rendering import Animate, Paint, Take, render

# Frames painted at once, by device: from here on more gained little. Measured on CPUs: benchmarks/results.
BATCH = {"cpu": 4, "cuda": 4, "mps": 2}
ANIMATED = 16  # frames of a clip by AnimateDiff from text, as in its training
GIF_RATE = 50  # browsers take a delay of less than two hundredths of a second for ten


@dataclass(frozen=True)
class Job:
    """One clip and the film to make of it; without a clip pictures come from the prompt alone."""

    source: Path | None
    target: Path
    makes_folder: bool = False  # the target's folder, if it is not there


@dataclass(frozen=True)
class Wishes:
    """How films are to be made, as the command line says it."""

    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    codec: str | None = None
    quality: int = codecs.DEFAULT_QUALITY
    fps: Fraction | None = None  # of pictures; videos have their own times
    side_by_side: bool = False
    cuts: bool = False
    clip_shape: bool = False  # the clip's own shape, in as many pixels as the model's size has
    overwrite: bool = False
    resume: bool = False
    mask: Path | None = None
    feather: int = 8
    text_to_image: bool = False
    count: int | None = None  # of pictures from text alone; 1, or a window of frames where the model animates


def jobs_for(sources: Sequence[Path], target: Path) -> list[Job]:
    """One source makes one film, or goes into a folder; several, or a folder of videos, go into a folder. Raises
    FilmError."""
    if not sources:
        return [Job(None, target)]
    clips = [clip for source in sources for clip in _clips_of(source)]
    into_folder = target.is_dir() or len(sources) > 1 or clips != list(sources)
    if not into_folder:
        return [Job(clips[0], target)]
    if target.suffix and not target.is_dir():
        raise FilmError(f"{target} is one file, and there are {len(clips)} clips: name a folder.")
    jobs = [Job(clip, target / _film_name(clip), makes_folder=True) for clip in clips]
    if twice := {job.target for job in jobs if sum(other.target == job.target for other in jobs) > 1}:
        raise FilmError(f"Two clips would both become {min(twice)}; render them one by one.")
    return jobs


def _clips_of(source: Path) -> list[Path]:
    """A folder's pictures are one clip, its videos one each. Where there are both, nobody knows what is meant."""
    if not source.is_dir():
        return [source]
    videos = sorted(file for file in visible(source) if file.suffix.lower() in VIDEOS)
    pictures = picture_files(source)
    if videos and pictures:
        both = f"{len(videos)} videos and {len(pictures)} pictures"
        raise FilmError(f"{source} holds {both}: name the files, as in {source}/*{videos[0].suffix}.")
    if not videos and not pictures:
        raise FilmError(f"There is neither a video nor a picture in {source}.")
    return videos or [source]


def _film_name(clip: Path) -> str:
    suffix = clip.suffix.lower()
    keeps = suffix in codecs.CONTAINERS or suffix == ".gif" or (is_picture(clip) and clip.is_file())
    return clip.stem + (suffix if keeps else ".mp4")


def check(job: Job, wishes: Wishes) -> None:
    """All that is known to go wrong before a model is loaded. Raises FilmError."""
    target = job.target
    for kind, source in (("clip", job.source), ("mask", wishes.mask)):
        if source is not None and not source.exists() and not is_pattern(source):
            raise FilmError(f"There is no file {source}.")
        if source is not None:
            _check_source(kind, source, target)
    if not target.parent.is_dir() and not (job.makes_folder and target.parent.parent.is_dir()):
        raise FilmError(f"There is no folder {target.parent} to write {target.name} into.")
    if target.is_dir():
        raise FilmError(f"{target} is a folder.")
    if wishes.overwrite or (wishes.resume and segments.is_begun(target)):
        return
    if segments.is_begun(target):
        raise FilmError(
            f"{segments.folder_of(target)} holds what an interrupted run has painted of {target.name}: "
            "--resume goes on with it, --overwrite starts over."
        )
    if not wishes.resume and (taken := _taken(target)):
        raise FilmError(f"{taken[0]} exists already: --overwrite replaces it.")


def _check_source(kind: str, source: Path, target: Path) -> None:
    """kind: what the source is, clip or mask."""
    if target.exists() and source.exists() and target.samefile(source):
        raise FilmError(f"{target} is the {kind} itself: give the film another name.")
    if read := {file.resolve() for file in picture_files(source) or []} & {file.resolve() for file in _taken(target)}:
        raise FilmError(f"{target} would write over {min(read).name}, a picture of the {kind}: give another folder.")


def _taken(target: Path) -> list[Path]:
    """The files that the film would replace."""
    if is_pattern(target):
        return fitting_pattern(target)
    return [target] if target.exists() else []


class Studio:
    """Loads the model when the first clip needs it, and again only for another size.

    load(spec) -> Stylizer. batch: frames painted at once. way: what else decides how pictures look (device, dtype), for
    --resume to compare.
    """

    def __init__(self, spec: ModelSpec, load: Callable[[ModelSpec], Any], batch: int, way: dict[str, Any]):
        self.spec, self.batch, self.way = spec, batch, way
        self._load = load
        self._stylizer: Any = None

    def stylizer(self, spec: ModelSpec) -> Any:
        if self._stylizer is None or self._stylizer.spec != spec:
            self._stylizer = None  # two of them may not fit into memory
            self._stylizer = self._load(spec)
        return self._stylizer


def run(jobs: Sequence[Job], wishes: Wishes, controls: Controls, studio: Studio) -> int:
    """Make every film; returns the exit code. What is wrong with one clip does not keep the others from being made."""
    failed = 0
    with _interruptible() as interrupted:
        for job in jobs:
            try:
                check(job, wishes)
                if not _make(job, wishes, controls, studio, interrupted):
                    return EXIT_INTERRUPTED
            except FilmError as error:
                failed += 1
                print(" ".join(str(error).split()), file=sys.stderr)
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _make(job: Job, wishes: Wishes, controls: Controls, studio: Studio, interrupted: Callable[[], bool]) -> bool:
    """One film; False when it was interrupted."""
    clip = _clip(job, wishes, studio)
    if wishes.fps is not None and isinstance(clip, VideoClip):
        raise FilmError(f"--fps is for pictures: {job.source} has its own timing.")
    spec = _shaped(studio.spec, clip) if wishes.clip_shape else studio.spec
    size = spec.width, spec.height
    film_size = (2 * size[0], size[1]) if wishes.side_by_side else size
    film = order_film(Order(clip, job.target, film_size, wishes.start_s, wishes.end_s, wishes.codec, wishes.quality))
    if wishes.resume and not wishes.overwrite and not segments.is_begun(job.target) and _taken(job.target):
        print(f"{job.target} is there already, and nothing of it is left to resume.", file=sys.stderr)
        film.work.discard()
        return True
    take = Take(
        clip,
        controls,
        size,
        wishes.start_s,
        wishes.end_s,
        wishes.cuts,
        wishes.side_by_side,
        _batch(wishes, studio),
        fresh=job.source is None and spec.motion is None,
        mask=None if wishes.mask is None else open_clip(wishes.mask),
        feather=wishes.feather,
    )
    with _in_words(job, film):
        job.target.parent.mkdir(exist_ok=True)
        plan = _plan(clip, wishes, controls, spec, film, studio)
        if wishes.resume and segments.is_begun(job.target):
            film.work.resume(plan)
        else:
            film.work.begin(plan)
        try:
            _tell(clip, size, wishes, film)
            stylizer = studio.stylizer(spec)
            skips = {"skip_similar": "No effect: every frame of a film is painted."} if controls.skip_similar else {}
            for name, remark in {**stylizer.remarks(controls), **skips}.items():
                print(f"--{name.replace('_', '-')}: {remark}", file=sys.stderr)
            take = dataclasses.replace(take, ahead=stylizer.runs_ahead)
            return _render(job, take, _paint(stylizer, job, wishes, take), film, interrupted)
        finally:
            film.abandon()
            if film.work.done:
                film.work.close()
            else:
                film.work.discard()


def _batch(wishes: Wishes, studio: Studio) -> int:
    """How many frames are painted at once; where they are animated, how many are on the way to that."""
    if studio.spec.motion is not None:
        return ANIMATED
    return 1 if wishes.text_to_image else studio.batch


def _clip(job: Job, wishes: Wishes, studio: Studio) -> Clip:
    fps = wishes.fps or Fraction(25)
    if job.source is None:
        count = wishes.count or (1 if studio.spec.motion is None else ANIMATED)
        return BlankClip(count, fps, (studio.spec.width, studio.spec.height))
    return open_clip(job.source, fps)


def _paint(stylizer: Any, job: Job, wishes: Wishes, take: Take) -> Paint | Animate:
    """The stylizer, or one that paints from the prompt alone and takes the clip, if any, for control images."""
    if stylizer.spec.motion is not None:
        return _animate(stylizer, job, take)
    if not wishes.text_to_image:
        return partial(_repaint, stylizer)

    def imagine(frames: np.ndarray, controls: Sequence[Controls], wait: bool) -> Callable[[], np.ndarray]:
        seen = [None] * len(frames) if job.source is None else [frame[None] for frame in frames]
        try:
            each = [stylizer.imagine(own, control_frames=frame) for own, frame in zip(controls, seen, strict=True)]
        except ValueError as error:
            raise FilmError(str(error)) from error
        return lambda: np.concatenate(each)

    return imagine


def _repaint(
    stylizer: Any, frames: np.ndarray, controls: Sequence[Controls], wait: bool, mask: np.ndarray | None = None
) -> Callable[[], np.ndarray]:
    return stylizer.submit(Batch(frames, tuple(controls), mask=mask)).then(lambda pictures: pictures.rgb)


def _animate(stylizer: Any, job: Job, take: Take) -> Animate:
    def paint(frames: Iterator[np.ndarray], first: int) -> Iterator[np.ndarray]:
        if job.source is not None:
            return stylizer.animate_stream(take.controls, frames, first=first)
        count = take.clip.expected(take.start_s, take.end_s)
        pictures = stylizer.animate_stream(take.controls, count=count, first=first)
        return (picture for _, picture in zip(frames, pictures, strict=True))

    return Animate(paint, lambda done: stylizer.animation_restart(take.controls, done))


@contextlib.contextmanager
def _in_words(job: Job, film: Film) -> Iterator[None]:
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


def _render(job: Job, take: Take, paint: Paint, film: Film, interrupted: Callable[[], bool]) -> bool:
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
    clip: Clip, wishes: Wishes, controls: Controls, spec: ModelSpec, film: Film, studio: Studio
) -> dict[str, Any]:
    """All that decides what the pictures look like; equal plans give equal pictures."""
    files = [clip.path] if isinstance(clip, VideoClip) else clip.files
    if wishes.mask is not None:
        files = [*files, *(picture_files(wishes.mask) or [wishes.mask])]
    return {
        "clip": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "part": [str(wishes.start_s), None if wishes.end_s is None else str(wishes.end_s)],
        "encoder": film.description,
        "quality": wishes.quality,
        "fps": str(clip.rate),
        "side-by-side": wishes.side_by_side,
        "feather": wishes.feather,
        "text to image": [wishes.text_to_image, wishes.count],
        "cuts": wishes.cuts,
        "batch": _batch(wishes, studio),
        "model": {**dataclasses.asdict(spec), **studio.way},
        **controls.model_dump(),
    }


def _tell(clip: Clip, size: tuple[int, int], wishes: Wishes, film: Film) -> None:
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
