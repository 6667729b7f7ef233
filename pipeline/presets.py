"""Named models: a table. A row says what is loaded, which controls suit it, and what it costs to have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .settings import Controls, Lora, ModelSpec

MINI = Path(__file__).resolve().parent.parent / "models" / "mini"
LCM_LORA_MINI = Lora(str(MINI / "lcm-lora"), name="lcm")
LCM_LORA_SD15 = Lora("latent-consistency/lcm-lora-sdv1-5", name="lcm")


@dataclass(frozen=True)
class Preset:
    about: str
    needs: str
    spec: ModelSpec
    controls: dict[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> Controls:
        return Controls(**self.controls)


TABLE = MappingProxyType(
    {
        "mini": Preset(
            "Bundled miniature: no download, no GPU",
            "two CPU cores",
            ModelSpec(str(MINI), loras=(LCM_LORA_MINI,), width=256, height=256),
            {"prompt": "pop art", "strength": 0.5, "steps": 1},
        ),
        "mini-canny": Preset(
            "The same, held to the camera's edges by ControlNet canny",
            "two CPU cores",
            ModelSpec(
                str(MINI), loras=(LCM_LORA_MINI,), controlnet=str(MINI / "controlnet-canny"), width=256, height=256
            ),
            {
                "prompt": "pop art",
                "strength": 0.6,
                "steps": 1,
                "control_scale": 1.0,
                "canny_low": 60,
                "canny_high": 120,
            },
        ),
        "sd15": Preset(
            "DreamShaper 7 with LCM-LoRA and TAESD, image to image",
            "a CUDA GPU, a download of some GB",
            ModelSpec("Lykon/dreamshaper-7", vae="madebyollin/taesd", loras=(LCM_LORA_SD15,)),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 2, "guidance": 1.0},
        ),
        "sd15-canny": Preset(
            "The same, held to the camera's edges by ControlNet canny",
            "a CUDA GPU, a download of some GB",
            ModelSpec(
                "Lykon/dreamshaper-7",
                vae="madebyollin/taesd",
                loras=(LCM_LORA_SD15,),
                controlnet="lllyasviel/sd-controlnet-canny",
            ),
            {
                "prompt": "oil painting, masterpiece",
                "strength": 0.5,
                "steps": 2,
                "guidance": 1.5,
                "control_scale": 0.8,
                "canny_low": 100,
                "canny_high": 200,
            },
        ),
        "lcm-dreamshaper": Preset(
            "Full LCM checkpoint of DreamShaper 7, guidance by embedding",
            "a CUDA GPU, a download of some GB",
            ModelSpec("SimianLuo/LCM_Dreamshaper_v7"),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 7.5},
        ),
    }
)

PRESETS = MappingProxyType({name: row.spec for name, row in TABLE.items()})
