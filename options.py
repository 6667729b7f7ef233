"""The options that commands share, and what they ask for: options -> ModelSpec and Controls."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.errors import LoadError
from pipeline.presets import TABLE
from pipeline.settings import ControlNet, Controls, Lora, ModelSpec

T = TypeVar("T")


class UsageError(Exception):
    """Wrong usage; the text is the one sentence that the user reads."""


def whole(least: int, most: int, what: str = "a whole number") -> Callable[[str], int]:
    """An option's type: what is neither too small nor too large to be reckoned with."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{shortened(text)} is not {what} from {least} to {most}")
        return int(text)

    return number


def shortened(text: str) -> str:
    """What was typed, to be quoted in a sentence."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a size like 512x512")
    return int(found[1]), int(found[2])


def size_or_clip(text: str) -> tuple[int, int] | str:
    return text if text == "clip" else size(text)


def _named_weight(text: str) -> tuple[str, str]:
    name, equals, weight = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHT")
    return name, weight


def add_model_options(
    parser: argparse.ArgumentParser,
    size_type: Callable[[str], tuple[int, int] | str] = size,
    size_help: str = "output size, multiples of 8",
) -> None:
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
    parser.add_argument("--size", type=size_type, metavar="WxH", help=size_help)
    parser.add_argument(
        "--low-memory", action="store_true", help="for small GPUs: only what every frame needs is there"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """One flag for each control; absent flags leave the preset's value."""
    group = parser.add_argument_group("controls")
    for name, field in Controls.model_fields.items():
        flag, text = "--" + name.replace("_", "-"), (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif name == "lora_weights":
            group.add_argument(flag, nargs="+", type=_named_weight, metavar="NAME=W", help=text)
        else:
            group.add_argument(flag, metavar=name.upper(), help=text)


def controls_from(options: argparse.Namespace, spec: ModelSpec, defaults: Controls) -> Controls:
    """The flags that were given, on top of the model's defaults. Raises UsageError."""
    given = {name: getattr(options, name) for name in Controls.model_fields if getattr(options, name) is not None}
    if "lora_weights" in given:
        given["lora_weights"] = dict(given["lora_weights"])
        loaded = [str(lora.name) for lora in spec.loras]
        for name in given["lora_weights"]:
            if name not in loaded:
                raise UsageError(
                    f"--lora-weights: no LoRA is named {name!r} (there is: {', '.join(loaded) or 'none'})."
                )
    try:
        # Flags are text: here, and nowhere else, "3" is a number.
        return Controls.model_validate({**defaults.model_dump(), **given}, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{flag}: {first['msg']}, not {shortened(str(first['input']))}.") from error


def model_from(options: argparse.Namespace) -> tuple[str, ModelSpec, Controls]:
    """(name, spec, default controls) that --model, --lora and --size ask for. Raises LoadError or UsageError."""
    from pipeline.loading import hub

    name = _auto(options.device) if options.model == "auto" else options.model
    called = _names_of(options.models_dir)
    changes: dict[str, Any] = {}
    if name in TABLE:
        spec, defaults = TABLE[name].spec, TABLE[name].defaults
    else:
        spec, defaults = ModelSpec(called("base", name)), TABLE["sd15"].defaults
        hub.check(spec)
        from pipeline.loading.families import traits

        base = traits(spec.base, download=True, report=lambda detail, progress: None)
        if options.lora is None and options.unet is None and not base.few_step:
            print(f"{name} is not few-step by itself: {_lcm_lora_added(base.lcm_lora)}")
            changes["loras"] = () if base.lcm_lora is None else (base.lcm_lora,)
        changes["width"] = changes["height"] = base.family.size
    for part in ("unet", "vae", "motion"):
        if getattr(options, part, None) is not None:
            changes[part] = called(part, getattr(options, part))
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
        changes = {
            "controlnet": spec.controlnets or None,
            **changes,
            "adapter": called("adapter", net.path),
            "control": net.control,
        }
    changes["low_memory"] = options.low_memory
    if options.size is not None:
        changes["width"], changes["height"] = options.size
    try:
        spec = replace(spec, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    hub.check(spec)
    return name, spec, defaults


def _lcm_lora_added(lora: Lora | None) -> str:
    if lora is None:
        return "name an LCM-LoRA with --lora (none is known for a UNet of this shape)."
    return f"adding {lora.path} (name others with --lora)."


def _names_of(folder: Path | None) -> Callable[[str, str], str]:
    """(part, what was written) -> the path that is meant by it: an entry of --models-dir, or what was written."""
    if folder is None:
        return lambda part, name: name
    from pipeline.loading.library import Library

    library = Library(folder)

    def called(part: str, name: str) -> str:
        if Path(name).exists():
            return name
        try:
            return library.find(part, name)
        except LoadError:
            if "/" in name:  # it may be a hub id
                return name
            raise

    return called


def _controlnet(text: str) -> ControlNet:
    """PATH, PATH:CONTROL or PATH:CONTROL:WEIGHT; what follows a colon and is neither belongs to the path."""
    from pipeline.pixels.annotators import ANNOTATORS

    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        path, weight = text, 1.0
    before, _, control = path.rpartition(":")
    names_control = bool(before) and (control in ANNOTATORS or (not Path(path).exists() and "/" not in control))
    if names_control and len(before) > 1:
        return _weighted("--controlnet", lambda: ControlNet(before, control, weight))
    return _weighted("--controlnet", lambda: ControlNet(path, weight=weight))


def _lora(text: str) -> Lora:
    """PATH or PATH:WEIGHT; what follows a colon and is no number belongs to the path."""
    path, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        path = ""
    return _weighted("--lora", lambda: Lora(path, weight) if path else Lora(text))


def _weighted(option: str, part: Callable[[], T]) -> T:
    """A part of a model. Raises UsageError where its weight is none."""
    try:
        return part()
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _auto(device: str) -> str:
    """sd15 where it would be live and its weights are on disk, else the bundled miniature. Never downloads."""
    from pipeline.loading import hub
    from pipeline.runtime.devices import pick_device

    if pick_device(device).type == "cuda":
        if hub.on_disk(TABLE["sd15"].spec):
            return "sd15"
        print("Using the bundled miniature. For Stable Diffusion: python main.py models pull sd15")
    else:
        print("Using the bundled miniature: no CUDA GPU here. `python main.py models` lists what a GPU can run.")
    return "mini"


count = whole(1, 1_000_000_000)  # an option's type


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Options for how much is measured of an engine, and where it is written."""
    parser.add_argument("--frames", type=count, default=200, metavar="N", help="timed calls a row")
    parser.add_argument("--row-s", type=count, default=20, metavar="S", help="a row that would take longer has fewer")
    parser.add_argument("--budget-s", type=count, default=math.inf, metavar="S", help="no new row is begun after that")
    parser.add_argument("--everything", action="store_true", help="every batch, number of steps and guidance")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
