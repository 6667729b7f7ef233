"""Settings: ModelSpec (what is loaded; a change rebuilds) and Controls (what a viewer turns between frames)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat
from pydantic_core import PydanticCustomError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


LEAST_WEIGHT, MOST_WEIGHT = -4.0, 4.0  # of a LoRA, or a ControlNet beside others


def _check_weight(owner: str, weight: float) -> None:
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:  # so that nan is refused, too
        raise ValueError(f"{owner}: a weight is from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight:g}.")


@dataclass(frozen=True)
class Lora:
    """One LoRA file (or hub id, or folder) and the weight it starts with, from -4 to 4. Raises ValueError."""

    path: str
    weight: float = 1.0
    name: str = None  # type: ignore[assignment]  # None is the path's stem, which __post_init__ puts in its place

    def __post_init__(self):
        if self.name is None:
            object.__setattr__(self, "name", PurePath(self.path).stem)
        _check_weight(f"LoRA {self.path}", self.weight)


@dataclass(frozen=True)
class ControlNet:
    """One ControlNet, the annotator that feeds it, and its weight beside others, from -4 to 4 (times the live
    `control_scale`). Raises ValueError."""

    path: str
    control: str = "canny"
    weight: float = 1.0

    def __post_init__(self):
        _check_weight(f"ControlNet {self.path}", self.weight)


@dataclass(frozen=True)
class ModelSpec:
    """The key of a loaded engine: everything whose change means loading or compiling again.

    Each of `base`, `unet`, `vae`, `controlnet`, `adapter` is a hub id, a local diffusers folder, or (base) one
    .safetensors file. `vae=None` keeps the base's own. Several ControlNets are a tuple of ControlNet; a single one
    given by its path is fed by `control`, and so is an adapter. `motion` is an AnimateDiff motion adapter: such a model
    makes clips, not pictures. Sizes are in pixels, multiples of 8. `low_memory` keeps on the device only what every
    frame needs: text encoders, and the weights that LoRAs start from, wait in host memory, and a batch's pictures pass
    through the VAE one by one.
    """

    base: str
    unet: str | None = None
    vae: str | None = None
    loras: tuple[Lora, ...] = ()
    controlnet: str | ControlNet | tuple[ControlNet, ...] | None = None
    adapter: str | None = None
    control: str = "canny"
    motion: str | None = None
    width: int = 512
    height: int = 512
    dtype: Dtype = "auto"
    low_memory: bool = False

    def __post_init__(self):
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels % 8 or not 64 <= pixels <= 4096:
                raise ValueError(f"{side} {pixels} must be a multiple of 8 from 64 to 4096.")
        object.__setattr__(self, "loras", tuple(_made(Lora, lora) for lora in self.loras))
        if isinstance(self.controlnet, list | tuple):
            object.__setattr__(self, "controlnet", tuple(_made(ControlNet, each) for each in self.controlnet))
        else:
            object.__setattr__(self, "controlnet", _made(ControlNet, self.controlnet))
        names = [lora.name for lora in self.loras]
        if len(set(names)) < len(names):
            raise ValueError(f"Two LoRAs have the same name (of {', '.join(names)}): give them names of their own.")

    @property
    def controlnets(self) -> tuple[ControlNet, ...]:
        if isinstance(self.controlnet, str):
            return (ControlNet(self.controlnet, self.control),)
        return (self.controlnet,) if isinstance(self.controlnet, ControlNet) else self.controlnet or ()

    @property
    def annotators(self) -> tuple[str, ...]:
        """Of every part that looks at a control image."""
        return (*(each.control for each in self.controlnets), *((self.control,) if self.adapter else ()))


def _made(kind: type, value: Any) -> Any:
    """From a dict, as JSON keeps it."""
    return kind(**value) if isinstance(value, dict) else value


def _ui(
    step: float | None = None, unit: str = "", needs: str | None = None, widget: str | None = None
) -> dict[str, Any]:
    """Hints for the page, carried in the JSON schema: step, unit, widget, and the model feature a control needs."""
    hints = {"step": step, "unit": unit or None, "x-needs": needs, "x-widget": widget}
    return {name: value for name, value in hints.items() if value is not None}


def _whole(value: Any) -> Any:
    """3.0 is an integer to JSON Schema, which asks for the value and not for how it is written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unicode(text: str) -> str:
    """JSON can spell half a character ("\\ud800"), which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "Input should be whole Unicode characters") from error
    return text


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, AfterValidator(_unicode)]
LoraWeight = Annotated[FiniteFloat, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]


class Controls(BaseModel):
    """What a viewer may change between two frames, without a reload and without a compilation.

    Takes what its JSON schema takes: "3", true and "yes" are no numbers, and 1 is no boolean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: Text = Field(
        default="",
        max_length=2000,
        title="Prompt",
        description="What the picture should look like.",
        json_schema_extra=_ui(widget="text"),
    )
    negative_prompt: Text = Field(
        default="",
        max_length=2000,
        title="Negative prompt",
        description="What to avoid; acts only with a guidance above 1 on a model with true guidance (CFG).",
        json_schema_extra=_ui(needs="cfg", widget="text"),
    )
    strength: FiniteFloat = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        title="Strength",
        description="How far a frame is taken into noise: 0 returns the camera's picture, 1 keeps little of it.",
        json_schema_extra=_ui(0.01),
    )
    steps: Whole = Field(
        default=2,
        ge=1,
        le=8,
        title="Steps",
        description="Denoising steps run on every frame: more detail, fewer frames.",
        json_schema_extra=_ui(1),
    )
    guidance: FiniteFloat = Field(
        default=1.0,
        ge=0.0,
        le=13.0,
        title="Guidance",
        description="How strictly the prompt is followed: LCM-LoRA 1 to 2 (1 is off and fastest), full LCM 3 to 13.",
        json_schema_extra=_ui(0.1, needs="guidance"),
    )
    seed: Whole = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        title="Seed",
        description="Draws the stream's fixed noise: same seed, same texture.",
        json_schema_extra=_ui(1, widget="number"),
    )
    lora_weights: dict[Text, LoraWeight] = Field(
        default_factory=dict,
        title="LoRA weights",
        description="Weight of each loaded LoRA, by its name.",
        json_schema_extra=_ui(0.05, needs="lora"),
    )
    control_scale: FiniteFloat = Field(
        default=1.0,
        ge=0.0,
        le=2.0,
        title="Control scale",
        description="How strongly the edges hold the picture's shapes.",
        json_schema_extra=_ui(0.05, needs="control"),
    )
    canny_low: Whole = Field(
        default=100,
        ge=0,
        le=255,
        title="Canny low",
        description="Weaker edges are kept where they join strong ones.",
        json_schema_extra=_ui(1, needs="canny"),
    )
    canny_high: Whole = Field(
        default=200,
        ge=0,
        le=255,
        title="Canny high",
        description="Edges above this are always kept.",
        json_schema_extra=_ui(1, needs="canny"),
    )
    reuse: Whole = Field(
        default=0,
        ge=0,
        le=8,
        title="Reuse",
        description="Live, for so many frames that hardly changed only the UNet's outermost blocks run; the others' "
        "features stay. Faster, a little less exact; 0 is off.",
        json_schema_extra=_ui(1),
    )
    skip_similar: FiniteFloat = Field(
        default=0.0,
        ge=0.0,
        le=32.0,
        title="Skip similar",
        description="Live, a frame that nowhere differs from the last painted one by so many levels of 255 keeps its "
        "picture, for a second at most: 2 to 4 pass a camera's noise over, 0 paints every frame.",
        json_schema_extra=_ui(0.5),
    )
    bypass: bool = Field(
        default=False,
        title="Bypass",
        description="Pass the camera's picture through untouched.",
        json_schema_extra=_ui(widget="toggle"),
    )

    def merged(self, changes: dict[str, Any]) -> Controls:
        """A validated copy with `changes` on top; pydantic.ValidationError names the field at fault."""
        return type(self).model_validate({**self.model_dump(), **changes})
