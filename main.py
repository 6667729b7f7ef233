"""LCMirror's command line. Each command imports what it needs and nothing else."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import add_limits, count
from exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, leave
from options import (
    UsageError,
    add_control_options,
    add_model_options,
    controls_from,
    model_from,
    shortened,
    size_or_clip,
    whole,
)
from pipeline import load
from pipeline.errors import CaptureFailed, LoadError
from pipeline.presets import TABLE
from pipeline.runtime import environment
from pipeline.settings import Controls, ModelSpec
from stream import logs

if TYPE_CHECKING:
    import torch

    from pipeline.stylizer import Stylizer

DECIMAL = r"([0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18})"
COMMANDS = ("serve", "render", "camera", "models", "bench")


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str):
        command = " ".join(["python main.py", *([self.prog] if self.prog in COMMANDS else []), "--help"])
        raise UsageError(f"{message[0].upper()}{message[1:].rstrip('.')} (see `{command}`).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    environment.prepare()
    logging.basicConfig(handlers=[logs.Handler()], level=logging.WARNING)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (
        arguments[0] not in COMMANDS and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")
    ):
        arguments.insert(0, "serve")
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except (UsageError, LoadError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> Parser:
    parser = Parser(prog="main.py", description="Repaints live video with a latent consistency model.")
    commands = parser.add_subparsers(required=True, metavar="{" + ",".join(COMMANDS) + "}", parser_class=Parser)

    serve = commands.add_parser("serve", prog="serve", help="the studio page and the WebRTC server (the default)")
    serve.set_defaults(run=_serve)
    add_model_options(serve)
    _graphs_option(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (beyond loopback: with --token)")
    serve.add_argument("--port", type=whole(0, 65535, "a port"), default=8080)
    _latency_option(serve)
    serve.add_argument("--token", help="secret that every request must carry")
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="another site that may call")
    serve.add_argument("--recordings", default="recordings", metavar="DIR", help="folder for recorded films")
    serve.add_argument("--virtual-camera", nargs="?", const="auto", metavar="DEVICE", help="show a stream there too")
    serve.add_argument("--from", dest="from_stream", metavar="STREAM", help="the stream that it shows")
    add_control_options(serve)

    render = commands.add_parser("render", prog="render", help="repaint video files, GIFs and pictures, every frame")
    render.set_defaults(run=_render)
    render.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="videos, pictures, folders")
    render.add_argument("output", type=Path, metavar="OUTPUT", help="a file (.mp4, .gif, out/%%05d.png), a folder")
    add_model_options(
        render, size_type=size_or_clip, size_help="output size, multiples of 8, or `clip` for the clip's shape"
    )
    _graphs_option(render)
    render.add_argument("--text-to-image", action="store_true", help="from the prompt alone; INPUT only for a control")
    render.add_argument("--count", type=count, metavar="N", help="pictures from text, seed after seed; or frames")
    render.add_argument("--motion", metavar="PATH", help="an AnimateDiff motion adapter: whole clips, from text too")
    render.add_argument("--mask", type=Path, metavar="FILE", help="picture or video, white where to repaint")
    pixels, quality = whole(0, 1000, "a number of pixels"), whole(1, 100, "a quality")
    render.add_argument("--feather", type=pixels, default=8, metavar="PIXELS", help="how soft the mask's border is")
    render.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    render.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    render.add_argument("--start", type=_time, default=Fraction(0), metavar="TIME", help="seconds, or [H:]M:S")
    render.add_argument("--end", type=_time, metavar="TIME")
    render.add_argument("--codec", metavar="NAME", help="h264, hevc, vp9, av1, prores, ffv1, or an encoder's own name")
    render.add_argument("--quality", type=quality, default=80, metavar="1-100", help="of the encoding; default 80")
    render.add_argument("--fps", type=_fps, metavar="N", help="of pictures that become a video; default 25")
    render.add_argument("--side-by-side", action="store_true", help="the source on the left of the picture")
    render.add_argument("--cuts", action=argparse.BooleanOptionalAction, default=False, help="new noise for each shot")
    add_control_options(render)

    camera = commands.add_parser("camera", prog="camera", help="a local camera repainted as a virtual camera")
    camera.set_defaults(run=_camera)
    add_model_options(camera)
    _graphs_option(camera)
    camera.add_argument(
        "--camera", type=_camera_name, default="0", metavar="NUMBER|FILE", help="which camera, or a video played as one"
    )
    camera.add_argument("--virtual-camera", default="auto", metavar="DEVICE", help="which one, if there are several")
    _latency_option(camera)
    add_control_options(camera)

    models = commands.add_parser("models", prog="models", help="presets: what they need, what is on disk")
    models.set_defaults(run=_models)
    models.add_argument("action", nargs="?", choices=["pull"], help="download a preset's weights")
    models.add_argument("name", nargs="?", metavar="NAME")
    models.add_argument("--models-dir", type=Path, metavar="DIR", help="list what ComfyUI or A1111 have, too")

    bench = commands.add_parser("bench", prog="bench", help="engine time of a frame, beside other pipelines'")
    bench.set_defaults(run=_bench)
    add_model_options(bench)
    add_limits(bench)
    add_control_options(bench)
    return parser


def _latency_option(parser: Parser) -> None:
    number = whole(1, 3_600_000)  # an hour, by which everybody has gone
    parser.add_argument("--max-latency-ms", type=number, default=1000, metavar="N", help="drop older frames unseen")


def _graphs_option(parser: Parser) -> None:
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, default=None, help="CUDA graphs; the default on CUDA"
    )


def _camera_name(text: str) -> str:
    if len(text) > 18 and text.isdecimal():
        raise argparse.ArgumentTypeError(f"there is no camera {shortened(text)}")
    return text


def _time(text: str) -> Fraction:
    """Seconds, M:S or H:M:S, each with decimals. No exponents: that of 1e999999999 would be reckoned out."""
    if not re.fullmatch(rf"{DECIMAL}(:{DECIMAL}){{0,2}}", text):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a time like 12.5 or 1:02:03")
    parts = [Fraction(part) for part in text.split(":")]
    return sum((part * 60**place for place, part in enumerate(reversed(parts))), Fraction(0))


def _fps(text: str) -> Fraction:
    fps = Fraction(0)
    if re.fullmatch(rf"{DECIMAL}|[0-9]{{1,9}}/0*[1-9][0-9]{{0,8}}", text):
        fps = Fraction(text).limit_denominator(1_001_000)  # 23.976023976 means 24000/1001
    if not Fraction(1, 3600) <= fps <= 1000:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a rate like 25 or 30000/1001")
    return fps


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
    from stream.serving import serve

    return serve(
        **live,
        virtual_camera=options.virtual_camera,
        from_stream=options.from_stream,
        presets=[*_preset_rows(), *_library_rows(options.models_dir, live["model"], spec)],
        host=options.host,
        port=options.port,
        token=options.token,
        allow_origins=options.allow_origin,
        recordings=Path(options.recordings),
    )


def _camera(options: argparse.Namespace) -> int:
    _, live = _live(options)
    from stream.local.camera_command import mirror

    return mirror(**live, camera=options.camera, virtual_camera=options.virtual_camera)


def _live(options: argparse.Namespace) -> tuple[ModelSpec, dict[str, Any]]:
    """The model, and what `serve` and `mirror` share: how it is loaded and compiled, and what it starts with."""
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


def _compile_beside(stylizer, report, put_in) -> None:
    from pipeline.compiling import compile_beside  # imports all of the model libraries: after listening

    compile_beside(stylizer, report, put_in)


def _preset_rows() -> list[dict[str, object]]:
    from pipeline.loading import hub

    return [
        {
            "name": name,
            "kind": "preset",
            "about": row.about,
            "needs": row.needs,
            "size": f"{row.spec.width}x{row.spec.height}",
            "controls": row.controls,
            "imagines": row.imagines and not row.spec.annotators,
            "on_disk": hub.on_disk(row.spec),
            "command": _command("--model", name),
        }
        for name, row in TABLE.items()
    ]


def _library_rows(folder: Path | None, model: str, spec: ModelSpec) -> list[dict[str, object]]:
    """What is in --models-dir, each with the command that serves it; `model` is what is served now, LoRAs join it."""
    if folder is None:
        return []
    from pipeline.loading.library import Library

    beside = ("--models-dir", str(folder))
    present = [part for lora in spec.loras for part in ("--lora", f"{lora.path}:{lora.weight:g}")]
    asks = {  # a motion adapter is for films, so none of these
        "base": ("--model",),
        "lora": ("--model", model, *present, "--lora"),
        **{part: ("--model", model, f"--{part}") for part in ("controlnet", "adapter", "vae", "unet")},
    }
    return [
        {
            "name": name,
            "kind": part,
            "about": str(path.relative_to(folder)),
            "command": _command(*beside, *asks[part], name),
        }
        for name, part, path in Library(folder).listed()
        if part in asks
    ]


def _command(*options: str) -> str:
    """A command line for the shell of this system."""
    words = ["python", "main.py", *options]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def _render(options: argparse.Namespace) -> int:
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
    from render import jobs
    from render.errors import FilmError

    wishes = jobs.Wishes(
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
    try:
        work = jobs.jobs_for(options.inputs, options.output)
        for job in work:
            jobs.check(job, wishes)
    except (FilmError, OSError) as error:  # a name may be longer than the system takes
        raise UsageError(str(error)) from error
    device = _device(options)
    _, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    # Elsewhere than on CUDA compiled code is for single frames.
    batch = 1 if options.compile and device.type != "cuda" else jobs.BATCH[device.type]

    def load_for_film(spec: ModelSpec, graphs: bool | None = options.graphs) -> Stylizer:
        return load(spec, str(device), compile=bool(options.compile), graphs=graphs)

    return jobs.run(
        work,
        wishes,
        controls,
        jobs.Studio(
            spec,
            lambda spec: _recorded(load_for_film, spec, _film_call(options, controls, batch)),
            batch=batch,
            way={"device": device.type, "compiled": bool(options.compile)},
        ),
    )


def _film_call(options: argparse.Namespace, controls: Controls, batch: int) -> Callable[[Stylizer], object]:
    """What is asked of a stylizer for each batch of a film, or picture from text."""
    import numpy as np

    def call(stylizer: Stylizer) -> object:
        frames = np.zeros((batch, stylizer.spec.height, stylizer.spec.width, 3), np.uint8)
        if options.text_to_image:
            return stylizer.imagine(controls, control_frames=frames[:1] if options.inputs else None)
        return stylizer(frames, controls, mask=None if options.mask is None else frames[..., 0])

    return call


def _recorded(load: Callable[..., Stylizer], spec: ModelSpec, call: Callable[[Stylizer], object]) -> Stylizer:
    """A stylizer with this call recorded (runtime.graphs); should that break off, one loaded anew without graphs."""
    stylizer = load(spec)
    if spec.motion is not None:
        return stylizer
    try:
        stylizer.record_calls(partial(call, stylizer))
    except CaptureFailed as error:
        print(f"{error} The model is loaded anew, without CUDA graphs.", file=sys.stderr)
    else:
        return stylizer
    del stylizer
    return load(spec, graphs=False)


def _models(options: argparse.Namespace) -> int:
    from pipeline.loading import hub

    if options.action == "pull":
        if options.name not in TABLE:
            raise UsageError(f"There is no preset {options.name!r}: choose from {', '.join(TABLE)}.")
        for part, reference in hub.references(TABLE[options.name].spec).items():
            print(hub.locate(reference, part, download=True, report=lambda detail, progress: None))
        return EXIT_DONE
    for row in _preset_rows():
        where = "on disk" if row["on_disk"] else f"python main.py models pull {row['name']}"
        print(f"{row['name']:22} {row['size']:10} {row['about']}; {row['needs']}. [{where}]")
    if options.models_dir is not None:
        from pipeline.loading import checkpoints
        from pipeline.loading.library import Library

        for name, part, path in Library(options.models_dir).listed():
            print(f"{name:22} {checkpoints.called(part) if part else 'unknown':14} {path}")
    return EXIT_DONE


def _bench(options: argparse.Namespace) -> int:
    device = _device(options)
    name, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from benchmarks import engine

    return engine.run(name, [(spec, controls)], str(device), engine.Limits.of(options))


if __name__ == "__main__":
    leave(main())
