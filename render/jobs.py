"""Clips and the films they become; all that can be checked is checked here, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from . import codecs, segments
from .clip import VIDEOS
from .errors import FilmError
from .pictures import fitting_pattern, is_pattern, is_picture, picture_files, visible


@dataclass(frozen=True)
class RenderJob:
    """One clip and the film to make of it; without a clip pictures come from the prompt alone."""

    source: Path | None
    target: Path
    makes_folder: bool = False  # the target's folder, if it is not there


@dataclass(frozen=True)
class RenderSettings:
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


def jobs_for(sources: Sequence[Path], target: Path) -> list[RenderJob]:
    """One source makes one film, or goes into a folder; several, or a folder of videos, go into a folder. Raises
    FilmError."""
    if not sources:
        return [RenderJob(None, target)]
    clips = [clip for source in sources for clip in _clips_of(source)]
    into_folder = target.is_dir() or len(sources) > 1 or clips != list(sources)
    if not into_folder:
        return [RenderJob(clips[0], target)]
    if target.suffix and not target.is_dir():
        raise FilmError(f"{target} is one file, and there are {len(clips)} clips: name a folder.")
    jobs = [RenderJob(clip, target / _film_name(clip), makes_folder=True) for clip in clips]
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


def check(job: RenderJob, settings: RenderSettings) -> None:
    """All that is known to go wrong before a model is loaded. Raises FilmError."""
    target = job.target
    for kind, source in (("clip", job.source), ("mask", settings.mask)):
        if source is not None and not source.exists() and not is_pattern(source):
            raise FilmError(f"There is no file {source}.")
        if source is not None:
            _check_source(kind, source, target)
    if not target.parent.is_dir() and not (job.makes_folder and target.parent.parent.is_dir()):
        raise FilmError(f"There is no folder {target.parent} to write {target.name} into.")
    if target.is_dir():
        raise FilmError(f"{target} is a folder.")
    if settings.overwrite or (settings.resume and segments.is_begun(target)):
        return
    if segments.is_begun(target):
        raise FilmError(
            f"{segments.folder_of(target)} holds what an interrupted run has painted of {target.name}: "
            "--resume goes on with it, --overwrite starts over."
        )
    if not settings.resume and (taken := existing_files(target)):
        raise FilmError(f"{taken[0]} exists already: --overwrite replaces it.")


def _check_source(kind: str, source: Path, target: Path) -> None:
    """kind: what the source is, clip or mask."""
    if target.exists() and source.exists() and target.samefile(source):
        raise FilmError(f"{target} is the {kind} itself: give the film another name.")
    read, written = picture_files(source) or [], existing_files(target)
    if both := {file.resolve() for file in read} & {file.resolve() for file in written}:
        raise FilmError(f"{target} would write over {min(both).name}, a picture of the {kind}: give another folder.")


def existing_files(target: Path) -> list[Path]:
    """The files that the film would replace."""
    if is_pattern(target):
        return fitting_pattern(target)
    return [target] if target.exists() else []
