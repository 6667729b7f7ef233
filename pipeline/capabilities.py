"""A loaded model's capabilities, and the meaning of controls to it: facts that no call changes, for any thread."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .settings import Controls

SOURCE = "source"  # the shape key of frames that pass through
NEEDS = {"control_scale": "control", "canny_low": "canny", "canny_high": "canny"}  # control -> feature


@dataclass(frozen=True)
class Capabilities:
    """loras: name -> the weight that each was loaded with. original_steps: how many timesteps the schedule holds.
    guidance_embedding: guidance is an input of the UNet, as in full LCMs, in place of a second pass (CFG). inpaints:
    the UNet takes the mask as an input. annotators: what its control images are made by."""

    width: int
    height: int
    loras: Mapping[str, float] = field(default_factory=dict)
    original_steps: int = 50
    guidance_embedding: bool = False
    inpaints: bool = False
    annotators: tuple[str, ...] = ()

    @property
    def features(self) -> frozenset[str]:
        """Which of the controls' `x-needs` this model meets."""
        here = {
            "guidance": True,
            "cfg": not self.guidance_embedding,
            "lora": bool(self.loras),
            "control": bool(self.annotators),
            "canny": any(name.startswith("canny") for name in self.annotators),
        }
        return frozenset(name for name, present in here.items() if present)


def check(model: Capabilities, controls: Controls) -> None:
    """Raise ValueError, one sentence, when controls name what the model does not have."""
    unknown = sorted(set(controls.lora_weights) - set(model.loras))
    if unknown:
        loaded = ", ".join(model.loras) or "none"
        raise ValueError(f"lora_weights: no LoRA {unknown[0]!r} is loaded (loaded: {loaded}).")
    if controls.steps > model.original_steps:
        raise ValueError(f"steps: this model's schedule holds {model.original_steps}.")


def fitted(model: Capabilities, controls: Controls) -> Controls:
    """The controls without the LoRAs that the model does not have; the same object where there are none."""
    known = {name: weight for name, weight in controls.lora_weights.items() if name in model.loras}
    return controls if known == controls.lora_weights else controls.model_copy(update={"lora_weights": known})


def remarks(model: Capabilities, controls: Controls, compiled: bool = False) -> dict[str, str]:
    """control -> a sentence, for each setting that has no effect with the model, or a doubtful one. compiled: whether
    its UNet runs as compiled code."""
    guided = not model.guidance_embedding
    said = {}
    if controls.negative_prompt and not guided:
        said["negative_prompt"] = "No effect: a full LCM takes its guidance as an input, without a second pass."
    elif controls.negative_prompt and not uses_cfg(model, controls):
        said["negative_prompt"] = "No effect at a guidance of 1 or less."
    with_lcm_lora = any("lcm" in name.lower() for name in model.loras)
    if guided and with_lcm_lora and controls.guidance > (4 if model.inpaints else 2):
        said["guidance"] = "High for LCM-LoRA, which was made for 1 to 2, or up to 4 to inpaint."
    if not guided and 1 < controls.guidance < 3 and not model.annotators:
        said["guidance"] = "Low for a full LCM, which was made for 3 to 13, or 1; only a control image bears less."
    if controls.reuse and compiled:
        said["reuse"] = "The UNet runs uncompiled while this is on: look whether it is faster."
    for name, feature in NEEDS.items():
        if feature not in model.features and getattr(controls, name) != Controls.model_fields[name].default:
            said[name] = "No effect: nothing in this model looks at a control image."
    return said


def paints(controls: Controls) -> bool:
    """Else the source passes through."""
    return not controls.bypass and controls.strength > 0


def from_text(controls: Controls) -> Controls:
    """Those of a picture that starts from noise alone, where strength and bypass have no meaning."""
    return controls.model_copy(update={"strength": 1.0, "bypass": False})


def uses_cfg(model: Capabilities, controls: Controls) -> bool:
    """Is every step two passes, with the prompt and with the negative prompt?"""
    return not model.guidance_embedding and controls.guidance > 1.0


def lora_weights(model: Capabilities, controls: Controls) -> dict[str, float]:
    """LoRA -> the weight it is to have: the one it was loaded with, unless the controls say another."""
    return {name: controls.lora_weights.get(name, weight) for name, weight in model.loras.items()}


def shape_key(model: Capabilities, controls: Controls) -> Hashable:
    """Frames whose controls have equal keys can share a batch."""
    if not paints(controls):
        return SOURCE
    weights = tuple(sorted(lora_weights(model, controls).items()))
    return controls.steps, uses_cfg(model, controls), weights, controls.reuse > 0
