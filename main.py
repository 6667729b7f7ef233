"""LCMirror's command line: a function for each command, which imports what it needs and nothing else."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choices import library_rows, preset_rows
from command_line import parsed
from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, leave
from options import UsageError, controls_from, model_from
from pipeline import load
from pipeline.errors import LoadError
from pipeline.presets import TABLE
from pipeline.runtime import environment
from pipeline.settings import ModelSpec
from stream import logs

if TYPE_CHECKING:
    import torch

    from pipeline.compiling import PutIn
    from pipeline.loading.hub import Report
    from pipeline.stylizer import Stylizer
    from render.jobs import RenderSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    environment.prepare()
    logging.basicConfig(handlers=[logs.StderrHandler()], level=logging.WARNING)
    commands = {"serve": _serve, "render": _render, "camera": _camera, "models": _models, "bench": _bench}
    try:
        options = parsed(list(sys.argv[1:] if arguments is None else arguments))
        return commands[options.command](options)
    except (UsageError, LoadError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _serve(options: argparse.Namespace) -> int:
    from stream.http.access import LOOPBACK_HOSTS, Access

    for name in ("host", "recordings"):  # an unset variable would mean every address, and this very folder
        if not str(getattr(options, name)).strip():
            raise UsageError(f"--{name} is empty: is the variable set that should hold it?")
    if options.token is None and options.host not in LOOPBACK_HOSTS:
        raise UsageError(f"--host {options.host} is reachable from other machines: give a --token SECRET too.")
    try:
        Access(options.host, options.token, options.allow_origin)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if (options.virtual_camera is None) != (options.from_stream is None):
        raise UsageError("--virtual-camera and --from STREAM go together: which stream shall the virtual camera show?")
    from stream.streams import NAME

    if options.from_stream is not None and not NAME.fullmatch(options.from_stream):
        raise UsageError(f"--from: {options.from_stream!r} is no stream's name (1 to 64 characters of a-z, 0-9, '-').")
    spec, live = _live(options)
    from stream.http.serving import serve

    return serve(
        **live,
        virtual_camera=options.virtual_camera,
        from_stream=options.from_stream,
        presets=[*preset_rows(), *library_rows(options.models_dir, live["model"], spec)],
        host=options.host,
        port=options.port,
        token=options.token,
        allow_origins=options.allow_origin,
        recordings=Path(options.recordings),
        give_memory_back=environment.give_memory_back,
    )


def _camera(options: argparse.Namespace) -> int:
    spec, live = _live(options)
    from render.playback import LoopedFile
    from stream.local.camera import open_camera
    from stream.local.camera_command import run_camera

    size = spec.width, spec.height
    source = partial(open_camera, options.camera, size, LoopedFile)
    return run_camera(**live, open_source=source, virtual_camera=options.virtual_camera)


def _live(options: argparse.Namespace) -> tuple[ModelSpec, dict[str, Any]]:
    """The model, and what `serve` and `camera` share: how it is loaded and compiled, and what it starts with."""
    environment.leave_a_core_free()
    device = _device(options)
    name, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from pipeline.runtime.devices import compiling_pays_beside

    compile_wanted = compiling_pays_beside(spec, device) if options.compile is None else options.compile
    return spec, {
        "load": lambda report, graphs=options.graphs: load(
            spec, str(device), compile=False, graphs=graphs, report=report
        ),
        "compile": _compile_beside if compile_wanted else None,
        "model": name,
        "device": str(device),
        "defaults": controls,
        "size": (spec.width, spec.height),
        "budget_s": options.max_latency_ms / 1000,
    }


def _device(options: argparse.Namespace) -> torch.device:
    """What --device asks for. Raises LoadError where it is not here, UsageError for --graphs where it has none."""
    from pipeline.runtime.devices import prepared

    device = prepared(options.device)
    if getattr(options, "graphs", False) and device.type != "cuda":
        raise UsageError(f"--graphs is for CUDA, and this is {device}: leave it out.")
    return device


def _compile_beside(stylizer: Stylizer, report: Report, put_in: PutIn) -> None:
    from pipeline.compiling import compile_beside  # imports all of the model libraries: after listening

    compile_beside(stylizer, report, put_in)


def _render(options: argparse.Namespace) -> int:
    settings = _render_settings(options)
    from render import jobs, painting
    from render.errors import FilmError
    from render.run import StylizerCache, run

    try:
        work = jobs.jobs_for(options.inputs, options.output)
        for job in work:
            jobs.check(job, settings)
    except (FilmError, OSError) as error:  # a name may be longer than the system takes
        raise UsageError(str(error)) from error
    device = _device(options)
    _, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    # Elsewhere than on CUDA compiled code is for single frames.
    batch = 1 if options.compile and device.type != "cuda" else painting.BATCH[device.type]

    def load_for_film(spec: ModelSpec, graphs: bool | None = options.graphs) -> Stylizer:
        return load(spec, str(device), compile=bool(options.compile), graphs=graphs)

    paint_blank = partial(
        painting.paint_blank,
        controls=controls,
        count=batch,
        text_to_image=options.text_to_image,
        sees_clip=bool(options.inputs),
        masked=options.mask is not None,
    )
    cache = StylizerCache(
        spec,
        lambda spec: painting.captured(load_for_film, spec, paint_blank),
        batch,
        circumstances={"device": device.type, "compiled": bool(options.compile)},
    )
    return run(work, settings, controls, cache)


def _render_settings(options: argparse.Namespace) -> RenderSettings:
    """How films are to be made. Raises UsageError for what does not go together."""
    clip_shape = options.size == "clip"
    if clip_shape:
        options.size = None
    if not options.inputs and not options.text_to_image:
        raise UsageError("render needs an INPUT and an OUTPUT (or --text-to-image).")
    if options.mask is not None and options.text_to_image:
        raise UsageError("--mask says what of a clip to repaint: it does not go with --text-to-image.")
    if options.motion is not None:
        for name in ("mask", "cuts", "compile"):
            if getattr(options, name):
                raise UsageError(f"--{name} does not go with --motion.")
        if options.text_to_image and options.inputs:
            raise UsageError("--motion paints a clip or, with --text-to-image and no INPUT, one from the prompt alone.")
    if options.count is not None and (options.inputs or not options.text_to_image):
        raise UsageError("--count is for --text-to-image without an INPUT.")
    if not options.inputs and (options.start or options.end is not None):
        raise UsageError("--start and --end are for an INPUT: from text alone --count says how many pictures.")
    if options.text_to_image and options.strength is not None:
        print("--strength: No effect: pictures from text begin with noise alone.", file=sys.stderr)
    if clip_shape and not options.inputs:
        raise UsageError("--size clip needs a clip: give WxH.")
    if options.end is not None and options.end <= options.start:
        raise UsageError("--end must be later than --start.")
    from render.jobs import RenderSettings

    return RenderSettings(
        start_s=options.start,
        end_s=options.end,
        codec=options.codec,
        quality=options.quality,
        fps=options.fps,
        side_by_side=options.side_by_side,
        cuts=options.cuts,
        clip_shape=clip_shape,
        overwrite=options.overwrite,
        resume=options.resume,
        mask=options.mask,
        feather=options.feather,
        text_to_image=options.text_to_image,
        count=options.count,
    )


def _models(options: argparse.Namespace) -> int:
    from pipeline.loading import hub

    if options.action == "pull":
        if options.name not in TABLE:
            raise UsageError(f"There is no preset {options.name!r}: choose from {', '.join(TABLE)}.")
        for part, reference in hub.references(TABLE[options.name].spec).items():
            print(hub.locate(reference, part, download=True, report=lambda detail, progress: None))
        return EXIT_DONE
    for row in preset_rows():
        where = "on disk" if row["on_disk"] else f"python main.py models pull {row['name']}"
        print(f"{row['name']:22} {row['size']:10} {row['about']}; {row['needs']}. [{where}]")
    if options.models_dir is not None:
        from pipeline.loading import checkpoints
        from pipeline.loading.library import Library

        for name, kind, path in Library(options.models_dir).listed():
            print(f"{name:22} {checkpoints.called(kind) if kind else 'unknown':14} {path}")
    return EXIT_DONE


def _bench(options: argparse.Namespace) -> int:
    device = _device(options)
    name, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from benchmarks import engine

    return engine.run(name, [(spec, controls)], str(device), engine.Limits.of(options))


if __name__ == "__main__":
    leave(main())
