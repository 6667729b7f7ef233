"""LCMirror's command line. Each command imports what it needs and nothing else."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks import plan
from pipeline import environment, load
from pipeline.errors import LoadError
from pipeline.presets import LCM_LORA_SD15, LCM_LORA_SDXL, TABLE
from pipeline.settings import ControlNet, Controls, Lora, ModelSpec
from stream.exits import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED

COMMANDS = ("serve", "render", "camera", "models", "bench")


class UsageError(Exception):
    """Wrong usage; the text is the one sentence that the user reads."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str):
        raise UsageError(f"{message[0].upper()}{message[1:].rstrip('.')} (see `python main.py {self.prog} --help`).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    environment.prepare()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
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
    _model_options(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (beyond loopback: with --token)")
    serve.add_argument("--port", type=_port, default=8080)
    _latency_option(serve)
    serve.add_argument("--token", help="secret that every request must carry")
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="another site that may call")
    serve.add_argument("--recordings", type=Path, default="recordings", metavar="DIR", help="folder for recorded films")
    serve.add_argument("--virtual-camera", nargs="?", const="auto", metavar="DEVICE", help="show a stream there too")
    serve.add_argument("--from", dest="from_stream", metavar="STREAM", help="the stream that it shows")
    _control_options(serve)

    render = commands.add_parser("render", prog="render", help="repaint video files, GIFs and pictures, every frame")
    render.set_defaults(run=_render)
    render.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="videos, pictures, folders")
    render.add_argument("output", type=Path, metavar="OUTPUT", help="a file (.mp4, .gif, out/%%05d.png), a folder")
    _model_options(render, size=_size_or_clip, size_help="output size, multiples of 8, or `clip` for the clip's shape")
    render.add_argument("--text-to-image", action="store_true", help="from the prompt alone; INPUT only for a control")
    render.add_argument("--count", type=_positive, metavar="N", help="pictures from text, seed after seed; or frames")
    render.add_argument("--motion", metavar="PATH", help="an AnimateDiff motion adapter: whole clips, from text too")
    render.add_argument("--mask", type=Path, metavar="FILE", help="picture or video, white where to repaint")
    render.add_argument("--feather", type=_pixels, default=8, metavar="PIXELS", help="how soft the mask's border is")
    render.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    render.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    render.add_argument("--start", type=_time, default=Fraction(0), metavar="TIME", help="seconds, or [H:]M:S")
    render.add_argument("--end", type=_time, metavar="TIME")
    render.add_argument("--codec", metavar="NAME", help="h264, hevc, vp9, av1, prores, ffv1, or an encoder's own name")
    render.add_argument("--quality", type=_quality, default=80, metavar="1-100", help="of the encoding; default 80")
    render.add_argument("--fps", type=_fps, metavar="N", help="of pictures that become a video; default 25")
    render.add_argument("--side-by-side", action="store_true", help="the source on the left of the picture")
    render.add_argument("--cuts", action=argparse.BooleanOptionalAction, default=False, help="new noise for each shot")
    _control_options(render)

    camera = commands.add_parser("camera", prog="camera", help="a local camera repainted as a virtual camera")
    camera.set_defaults(run=_camera)
    _model_options(camera)
    camera.add_argument("--camera", default="0", metavar="NUMBER|FILE", help="which camera, or a video played as one")
    camera.add_argument("--virtual-camera", default="auto", metavar="DEVICE", help="which one, if there are several")
    _latency_option(camera)
    _control_options(camera)

    models = commands.add_parser("models", prog="models", help="presets: what they need, what is on disk")
    models.set_defaults(run=_models)
    models.add_argument("action", nargs="?", choices=["pull"], help="download a preset's weights")
    models.add_argument("name", nargs="?", metavar="NAME")
    models.add_argument("--models-dir", type=Path, metavar="DIR", help="list what ComfyUI or A1111 have, too")

    bench = commands.add_parser("bench", prog="bench", help="engine time of a frame, beside other pipelines'")
    bench.set_defaults(run=_bench)
    _model_options(bench)
    plan.add_options(bench)
    _control_options(bench)
    return parser


def _model_options(parser: Parser, size=None, size_help: str = "output size, multiples of 8") -> None:
    parser.add_argument("--model", default="auto", metavar="NAME|PATH", help="preset, hub id, folder or .safetensors")
    parser.add_argument(
        "--models-dir", type=Path, metavar="DIR", help="models of ComfyUI or A1111, to go by their names"
    )
    parser.add_argument("--lora", action="append", metavar="PATH[:WEIGHT]", help="LoRAs instead of the model's usual")
    parser.add_argument("--unet", metavar="PATH", help="in place of the base's own: a full LCM, for one")
    parser.add_argument("--vae", metavar="PATH", help="in place of the base's own, as madebyollin/taesd")
    parser.add_argument(
        "--controlnet", action="append", metavar="PATH[:CONTROL[:WEIGHT]]", help="ControlNets instead of the model's"
    )
    parser.add_argument("--adapter", metavar="PATH[:CONTROL]", help="a T2I-Adapter")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--size", type=size or _size, metavar="WxH", help=size_help)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)


def _latency_option(parser: Parser) -> None:
    parser.add_argument("--max-latency-ms", type=_positive, default=1000, metavar="N", help="drop older frames unseen")


def _control_options(parser: Parser) -> None:
    """One flag for each control; absent flags leave the preset's value."""
    group = parser.add_argument_group("controls")
    for name, field in Controls.model_fields.items():
        flag, text = "--" + name.replace("_", "-"), field.description.replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif name == "lora_weights":
            group.add_argument(flag, nargs="+", type=_named_weight, metavar="NAME=W", help=text)
        else:
            group.add_argument(flag, metavar=name.upper(), help=text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port (0 to 65535)")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number of pixels from 0 to 1000")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 512x512")
    return int(width), int(height)


def _size_or_clip(text: str) -> tuple[int, int] | str:
    return text if text == "clip" else _size(text)


def _time(text: str) -> Fraction:
    """Seconds, M:S or H:M:S, each with decimals."""
    try:
        parts = [Fraction(part) for part in text.split(":")]
    except (ValueError, ZeroDivisionError):
        parts = []
    if not 1 <= len(parts) <= 3 or min(parts) < 0 or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 12.5 or 1:02:03")
    return sum((part * 60**place for place, part in enumerate(reversed(parts))), Fraction(0))


def _fps(text: str) -> Fraction:
    try:
        fps = Fraction(text).limit_denominator(1_001_000)  # 23.976023976 means 24000/1001
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not Fraction(1, 3600) <= fps <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate like 25 or 30000/1001")
    return fps


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a quality from 1 to 100")
    return int(text)


def _named_weight(text: str) -> tuple[str, str]:
    name, equals, weight = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHT")
    return name, weight


def controls_from(options: argparse.Namespace, spec: ModelSpec, defaults: Controls) -> Controls:
    """The flags that were given, on top of the model's defaults. Raises UsageError."""
    given = {name: getattr(options, name) for name in Controls.model_fields if getattr(options, name) is not None}
    if "lora_weights" in given:
        given["lora_weights"] = dict(given["lora_weights"])
        loaded = [lora.name for lora in spec.loras]
        for name in given["lora_weights"]:
            if name not in loaded:
                raise UsageError(
                    f"--lora-weights: no LoRA is named {name!r} (there is: {', '.join(loaded) or 'none'})."
                )
    try:
        return defaults.merged(given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{flag}: {first['msg']}, not {first['input']!r}.") from error


def model_from(options: argparse.Namespace) -> tuple[str, ModelSpec, Controls]:
    """(name, spec, default controls) that --model, --lora and --size ask for. Raises LoadError or UsageError."""
    from pipeline import fetching

    name = _auto(options.device) if options.model == "auto" else options.model
    called = _names_of(options.models_dir)
    changes: dict[str, Any] = {}
    if name in TABLE:
        spec, defaults = TABLE[name].spec, TABLE[name].defaults
    else:
        spec, defaults = ModelSpec(called("checkpoint", name)), TABLE["sd15"].defaults
        fetching.check(spec)
        family = fetching.family(spec)
        if options.lora is None and options.unet is None and not fetching.is_few_step(spec):
            lora = {"SD1.5": LCM_LORA_SD15, "SDXL": LCM_LORA_SDXL}[family.name]
            print(f"{name} is not few-step by itself: adding {lora.path} (name others with --lora).")
            changes["loras"] = (lora,)
        changes["width"] = changes["height"] = family.size
    if options.unet is not None:
        changes["unet"] = options.unet
    if getattr(options, "motion", None) is not None:
        changes["motion"] = options.motion
    if options.vae is not None:
        changes["vae"] = called("vae", options.vae)
    if options.lora is not None:
        loras = [_lora(text) for text in options.lora]
        changes["loras"] = tuple(replace(lora, path=called("lora", lora.path)) for lora in loras)
    if options.controlnet is not None:
        nets = [_controlnet(text) for text in options.controlnet]
        changes["controlnet"] = tuple(replace(net, path=called("controlnet", net.path)) for net in nets)
    if options.adapter is not None:
        net = _controlnet(options.adapter)
        if net.weight != 1:
            raise UsageError("--adapter takes no weight: --control-scale is for that.")
        # What the model's own ControlNets look at stays.
        changes = {"controlnet": spec.controlnets or None, **changes, "adapter": net.path, "control": net.control}
    if options.size is not None:
        changes["width"], changes["height"] = options.size
    try:
        spec = replace(spec, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    fetching.check(spec)
    return name, spec, defaults


def _names_of(folder: Path | None) -> Callable[[str, str], str]:
    """(kind, what was written) -> the path that is meant by it: a file of --models-dir, or what was written."""
    if folder is None:
        return lambda kind, name: name
    from pipeline.library import Library

    library = Library(folder)
    return lambda kind, name: name if Path(name).exists() else library.find(kind, name) or name


def _controlnet(text: str) -> ControlNet:
    """PATH, PATH:CONTROL or PATH:CONTROL:WEIGHT; what follows a colon and is neither belongs to the path."""
    from pipeline.annotators import ANNOTATORS

    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        path, weight = text, 1.0
    if not math.isfinite(weight):
        raise UsageError(f"--controlnet: {last} is no weight.")
    before, _, control = path.rpartition(":")
    names_control = bool(before) and (control in ANNOTATORS or (not Path(path).exists() and "/" not in control))
    return ControlNet(before, control, weight) if names_control and len(before) > 1 else ControlNet(path, weight=weight)


def _lora(text: str) -> Lora:
    path, _, weight = text.rpartition(":")
    try:
        return Lora(path, float(weight)) if path else Lora(text)
    except ValueError:
        return Lora(text)


def _auto(device: str) -> str:
    """sd15 where it would be live and its weights are on disk, else the bundled miniature. Never downloads."""
    from pipeline import fetching
    from pipeline.devices import pick_device

    if pick_device(device).type == "cuda":
        if fetching.on_disk(TABLE["sd15"].spec):
            return "sd15"
        print("Using the bundled miniature. For Stable Diffusion: python main.py models pull sd15")
    else:
        print("Using the bundled miniature: no CUDA GPU here. `python main.py models` lists what a GPU can run.")
    return "mini"


def _serve(options: argparse.Namespace) -> int:
    from stream.access import LOOPBACK_HOSTS

    if options.token is None and options.host not in LOOPBACK_HOSTS:
        raise UsageError(f"--host {options.host} is reachable from other machines: give a --token SECRET too.")
    if (options.virtual_camera is None) != (options.from_stream is None):
        raise UsageError("--virtual-camera and --from STREAM go together: which stream shall the virtual camera show?")
    from stream.streams import NAME

    if options.from_stream is not None and not NAME.fullmatch(options.from_stream):
        raise UsageError(f"--from: {options.from_stream!r} is no stream's name (1 to 64 characters of a-z, 0-9, '-').")
    live = _live(options)
    from stream.serving import serve

    return serve(
        **live,
        virtual_camera=options.virtual_camera,
        from_stream=options.from_stream,
        presets=_preset_rows(),
        host=options.host,
        port=options.port,
        token=options.token,
        allow_origins=options.allow_origin,
        recordings=options.recordings,
    )


def _camera(options: argparse.Namespace) -> int:
    live = _live(options)
    from stream.mirror import mirror

    return mirror(**live, camera=options.camera, virtual_camera=options.virtual_camera)


def _live(options: argparse.Namespace) -> dict[str, Any]:
    """What `serve` and `mirror` share: how the model is loaded and compiled, and what it starts with."""
    environment.leave_a_core_free()
    name, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from pipeline.devices import compiling_pays, pick_device

    device = pick_device(options.device)
    compile_wanted = compiling_pays(device) if options.compile is None else options.compile
    return {
        "load": lambda report: load(spec, str(device), compile=False, report=report),
        "compile": _compile_beside if compile_wanted else None,
        "model": name,
        "device": str(device),
        "defaults": controls,
        "size": (spec.width, spec.height),
        "budget_s": options.max_latency_ms / 1000,
    }


def _compile_beside(stylizer, report) -> None:
    from pipeline.compiling import compile_beside  # imports all of the model libraries: after listening

    compile_beside(stylizer, report)


def _preset_rows() -> list[dict[str, object]]:
    from pipeline import fetching

    return [
        {
            "name": name,
            "about": row.about,
            "needs": row.needs,
            "size": f"{row.spec.width}x{row.spec.height}",
            "controls": row.controls,
            "on_disk": fetching.on_disk(row.spec),
        }
        for name, row in TABLE.items()
    ]


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
    if clip_shape and not options.inputs:
        raise UsageError("--size clip needs a clip: give WxH.")
    if options.end is not None and options.end <= options.start:
        raise UsageError("--end must be later than --start.")
    from stream import jobs
    from stream.film.errors import FilmError

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
    _, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from pipeline.devices import pick_device

    device = pick_device(options.device)
    return jobs.run(
        work,
        wishes,
        controls,
        jobs.Studio(
            spec,
            lambda spec: load(spec, str(device), compile=bool(options.compile)),
            batch=1 if options.compile else jobs.BATCH[device.type],  # compiled code is for single frames
            way={"device": device.type, "compiled": bool(options.compile)},
        ),
    )


def _models(options: argparse.Namespace) -> int:
    from pipeline import fetching

    if options.action == "pull":
        if options.name not in TABLE:
            raise UsageError(f"There is no preset {options.name!r}: choose from {', '.join(TABLE)}.")
        for reference in fetching.references(TABLE[options.name].spec).values():
            print(fetching.locate(reference, download=True, report=lambda detail, progress: None))
        return EXIT_DONE
    for row in _preset_rows():
        where = "on disk" if row["on_disk"] else f"python main.py models pull {row['name']}"
        print(f"{row['name']:22} {row['size']:10} {row['about']}; {row['needs']}. [{where}]")
    if options.models_dir is not None:
        from pipeline.library import FOLDERS, Library

        library = Library(options.models_dir)
        for kind in FOLDERS:
            for file in library.files(kind):
                print(f"{file.stem:22} {kind:10} {file}")
    return EXIT_DONE


def _bench(options: argparse.Namespace) -> int:
    name, spec, defaults = model_from(options)
    controls = controls_from(options, spec, defaults)
    from benchmarks import engine

    return engine.run(name, [(spec, controls)], options.device, plan.plan_from(options))


if __name__ == "__main__":
    sys.exit(main())
