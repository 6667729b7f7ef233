"""The command line: which commands there are, and which options each has."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from options import (
    UsageError,
    add_control_options,
    add_limits,
    add_model_options,
    count,
    shortened,
    size_or_clip,
    whole,
)

DECIMAL = r"([0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18})"


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        command = " ".join(["python main.py", *([self.prog] if self.prog in COMMANDS else []), "--help"])
        raise UsageError(f"{message[0].upper()}{message[1:].rstrip('.')} (see `{command}`).")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """`command`, which is serve where none is named, and its options. Raises UsageError."""
    no_command = not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"))
    return _parser().parse_args(["serve", *arguments] if no_command else arguments)


def _parser() -> Parser:
    parser = Parser(prog="main.py", description="Repaints live video with a latent consistency model.")
    names = "{" + ",".join(COMMANDS) + "}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names, parser_class=Parser)
    for name, (add_options, about) in COMMANDS.items():
        add_options(commands.add_parser(name, prog=name, help=about))
    return parser


def _serve(parser: Parser) -> None:
    add_model_options(parser)
    _graphs_option(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (beyond loopback: with --token)")
    parser.add_argument("--port", type=whole(0, 65535, "a port"), default=8080)
    _latency_option(parser)
    parser.add_argument("--token", help="secret that every request must carry")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="another site that may call")
    parser.add_argument("--recordings", default="recordings", metavar="DIR", help="folder for recorded films")
    parser.add_argument("--virtual-camera", nargs="?", const="auto", metavar="DEVICE", help="show a stream there too")
    parser.add_argument("--from", dest="from_stream", metavar="STREAM", help="the stream that it shows")
    add_control_options(parser)


def _render(parser: Parser) -> None:
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="videos, pictures, folders")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a file (.mp4, .gif, out/%%05d.png), a folder")
    add_model_options(
        parser, size_type=size_or_clip, size_help="output size, multiples of 8, or `clip` for the clip's shape"
    )
    _graphs_option(parser)
    parser.add_argument("--text-to-image", action="store_true", help="from the prompt alone; INPUT only for a control")
    parser.add_argument("--count", type=count, metavar="N", help="pictures from text, seed after seed; or frames")
    parser.add_argument("--motion", metavar="PATH", help="an AnimateDiff motion adapter: whole clips, from text too")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="picture or video, white where to repaint")
    pixels, quality = whole(0, 1000, "a number of pixels"), whole(1, 100, "a quality")
    parser.add_argument("--feather", type=pixels, default=8, metavar="PIXELS", help="how soft the mask's border is")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--start", type=_time, default=Fraction(0), metavar="TIME", help="seconds, or [H:]M:S")
    parser.add_argument("--end", type=_time, metavar="TIME")
    parser.add_argument("--codec", metavar="NAME", help="h264, hevc, vp9, av1, prores, ffv1, or an encoder's own name")
    parser.add_argument("--quality", type=quality, default=80, metavar="1-100", help="of the encoding; default 80")
    parser.add_argument("--fps", type=_fps, metavar="N", help="of pictures that become a video; default 25")
    parser.add_argument("--side-by-side", action="store_true", help="the source on the left of the picture")
    parser.add_argument("--cuts", action=argparse.BooleanOptionalAction, default=False, help="new noise for each shot")
    add_control_options(parser)


def _camera(parser: Parser) -> None:
    add_model_options(parser)
    _graphs_option(parser)
    parser.add_argument(
        "--camera", type=_camera_name, default="0", metavar="NUMBER|FILE", help="which camera, or a video played as one"
    )
    parser.add_argument("--virtual-camera", default="auto", metavar="DEVICE", help="which one, if there are several")
    _latency_option(parser)
    add_control_options(parser)


def _models(parser: Parser) -> None:
    parser.add_argument("action", nargs="?", choices=["pull"], help="download a preset's weights")
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="list what ComfyUI or A1111 have, too")


def _bench(parser: Parser) -> None:
    add_model_options(parser)
    add_limits(parser)
    add_control_options(parser)


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


COMMANDS: dict[str, tuple[Callable[[Parser], None], str]] = {
    "serve": (_serve, "the studio page and the WebRTC server (the default)"),
    "render": (_render, "repaint video files, GIFs and pictures, every frame"),
    "camera": (_camera, "a local camera repainted as a virtual camera"),
    "models": (_models, "presets: what they need, what is on disk"),
    "bench": (_bench, "engine time of a frame, beside other pipelines'"),
}
