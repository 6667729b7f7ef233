"""LoRAs as plain weights: W = W0 + sum_i w_i * scale_i * B_i A_i (arXiv 2106.09685), written in place.

The layers stay ordinary ones at the same address, so a LoRA costs nothing per frame and compiled code stays valid when
a weight changes. W0 is kept, because adding and subtracting in half precision drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.errors import LoadError, first_line
from pipeline.settings import Lora

_DOWNS = (".lora_A.", "lora_down.", "lora.down.", "lora_linear_layer.down.")  # in the key styles that there are


@dataclass(frozen=True)
class _Patch:
    """What one LoRA adds to one weight."""

    lora: str
    down: Tensor  # A: [rank, in, ...]
    up: Tensor  # B: [out, rank, ...]
    scale: float  # alpha / rank

    def delta(self, weight: float, like: Tensor) -> Tensor:
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return (weight * self.scale) * (up @ down).view(like.shape)


class LoraSet:
    """All LoRAs of a model and the weights they now act with."""

    def __init__(
        self,
        patches: dict[nn.Parameter, list[_Patch]],
        names: tuple[str, ...],
        touch_prompts: bool,
        keep_on: torch.device,
    ):
        """keep_on: where the pristine weights wait, which are as large as the layers that LoRAs change."""
        self.names = names
        self.touch_prompts = touch_prompts  # whether any of them changes the text encoder
        self._patches = patches
        self._pristine = {parameter: parameter.detach().to(keep_on, copy=True) for parameter in patches}
        self._applied: dict[str, float] = {}  # empty while it is not known: all is written then

    def stand_at(self, weights: dict[str, float]) -> bool:
        """Whether the LoRAs act with these weights (name -> weight) already."""
        return weights == self._applied

    @torch.no_grad()
    def apply(self, weights: dict[str, float]) -> None:
        """Write W0 + sum of the LoRAs at `weights` (name -> weight), where they do not stand so already.

        Whatever is raised in the middle leaves a mixture, which the next call writes over, all of it.
        """
        if self.stand_at(weights):
            return
        applied, self._applied = self._applied, {}
        changed = {name for name in weights if weights[name] != applied.get(name)}
        for parameter, patches in self._patches.items():
            if changed.isdisjoint(patch.lora for patch in patches):
                continue
            total = self._pristine[parameter].to(parameter.device).float()
            for patch in patches:
                total = total + patch.delta(weights[patch.lora], parameter)
            parameter.copy_(total)
        self._applied = dict(weights)


def extract(
    pipe: DiffusionPipeline,
    text_encoders: Sequence[nn.Module],
    loras: tuple[Lora, ...],
    files: dict[str, str],
    keep_on: torch.device,
) -> LoraSet:
    """Load each LoRA through diffusers (which knows every key style), keep its factors, leave plain layers behind.

    files: LoRA name -> local .safetensors file. keep_on: see LoraSet. Raises LoadError when a file does not fit the
    model whole.
    """
    patches: dict[nn.Parameter, list[_Patch]] = {}
    for lora in loras:
        expected = _count_layers(files[lora.name])
        _check_width(lora, files[lora.name], pipe.unet.config.cross_attention_dim)
        try:
            pipe.load_lora_weights(files[lora.name], adapter_name=_adapter_name(lora.name))
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
            raise LoadError(f"LoRA {lora.path} does not fit this model: {first_line(error)}.") from error
        found = 0
        for module in chain(*(part.modules() for part in (pipe.unet, *text_encoders))):
            if not isinstance(module, LoraLayer) or _adapter_name(lora.name) not in module.lora_A:
                continue
            name = _adapter_name(lora.name)
            down, up, base = module.lora_A[name].weight, module.lora_B[name].weight, module.base_layer.weight
            assert isinstance(base, nn.Parameter)
            assert isinstance(down, Tensor)
            assert isinstance(up, Tensor)
            patch = _Patch(lora.name, down.data, up.data, module.scaling[name])
            patches.setdefault(base, []).append(patch)
            found += 1
        if found != expected:
            raise LoadError(
                f"LoRA {lora.path} fits {found} of its {expected} layers here: it was made for another kind of model."
            )
        pipe.unload_lora_weights()
    touch_prompts = any(parameter in patches for encoder in text_encoders for parameter in encoder.parameters())
    return LoraSet(patches, tuple(lora.name for lora in loras), touch_prompts, keep_on)


def _check_width(lora: Lora, file: str, expected: int) -> None:
    """The width of the prompts that a LoRA of the UNet was made for tells its family. Raises LoadError."""
    with safe_open(file, framework="pt") as tensors:
        for key in list(tensors.keys()):
            if "attn2" in key and "motion_modules" not in key and "to_k" in key and any(down in key for down in _DOWNS):
                width = tensors.get_slice(key).get_shape()[1]
                if width != expected:
                    kinds = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
                    mine, theirs = (f"{w} ({kinds[w]})" if w in kinds else str(w) for w in (width, expected))
                    raise LoadError(
                        f"LoRA {lora.path} was made for prompts of width {mine}, and this model's have {theirs}: "
                        "it belongs to another kind of model."
                    )
                return


def _adapter_name(name: str) -> str:
    return name.replace(".", "_")  # torch module names take no dots


def _count_layers(file: str) -> int:
    """How many layers a LoRA file holds, in any of the key styles of peft, kohya and diffusers."""
    with safe_open(file, framework="pt") as tensors:
        keys = list(tensors.keys())
    if any("dora_scale" in key for key in keys):
        raise LoadError(f"LoRA {file} is a DoRA, which is not served.")
    return sum(any(down in key for down in _DOWNS) for key in keys)
