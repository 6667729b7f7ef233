"""Named models: a table. A row says what is loaded, which controls suit it, and what it costs to have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .settings import ControlNet, Controls, Lora, ModelSpec

MINI = Path(__file__).resolve().parent.parent / "models" / "mini"
LCM_LORA_MINI = Lora(str(MINI / "lcm-lora"), name="lcm")
LCM_LORA_SD15 = Lora("latent-consistency/lcm-lora-sdv1-5", name="lcm")
LCM_LORA_SDXL = Lora("latent-consistency/lcm-lora-sdxl", name="lcm")
LCM_LORA_SSD_1B = Lora("latent-consistency/lcm-lora-ssd-1b", name="lcm")
SDXL_BASE, TAESD, TAESDXL = "stabilityai/stable-diffusion-xl-base-1.0", "madebyollin/taesd", "madebyollin/taesdxl"
GPU = "a CUDA GPU, a download of some GB"


@dataclass(frozen=True)
class Preset:
    about: str
    needs: str
    spec: ModelSpec
    controls: dict[str, Any] = field(default_factory=dict)
    imagines: bool = True  # False: made to repaint, it paints texture when there is no picture to start from

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
            imagines=False,
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
            imagines=False,
        ),
        "sd15": Preset(
            "DreamShaper 7 with LCM-LoRA and TAESD, image to image",
            GPU,
            ModelSpec("Lykon/dreamshaper-7", vae=TAESD, loras=(LCM_LORA_SD15,)),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 2, "guidance": 1.0},
        ),
        "sd15-canny": Preset(
            "The same, held to the camera's edges by ControlNet canny",
            GPU,
            ModelSpec(
                "Lykon/dreamshaper-7",
                vae=TAESD,
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
            GPU,
            ModelSpec("SimianLuo/LCM_Dreamshaper_v7"),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 7.5},
        ),
        "lcm-dreamshaper-canny": Preset(
            "The same with ControlNet canny",
            GPU,
            ModelSpec("SimianLuo/LCM_Dreamshaper_v7", controlnet=ControlNet("lllyasviel/sd-controlnet-canny")),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 1.5, "control_scale": 0.8},
        ),
        "sd15-inpainting": Preset(
            "Stable Diffusion's inpainting UNet with LCM-LoRA",
            GPU,
            ModelSpec("stable-diffusion-v1-5/stable-diffusion-inpainting", loras=(LCM_LORA_SD15,)),
            {"prompt": "a castle on a hill", "strength": 1.0, "steps": 4, "guidance": 4.0},
        ),
        "sdxl": Preset(
            "SDXL with LCM-LoRA and its tiny autoencoder",
            GPU,
            ModelSpec(SDXL_BASE, vae=TAESDXL, loras=(LCM_LORA_SDXL,), width=1024, height=1024),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 2, "guidance": 1.0},
        ),
        "animagine": Preset(
            "Animagine XL, anime, with LCM-LoRA",
            GPU,
            ModelSpec("Linaqruf/animagine-xl", vae=TAESDXL, loras=(LCM_LORA_SDXL,), width=1024, height=1024),
            {"prompt": "anime, best quality", "strength": 0.5, "steps": 4, "guidance": 1.0},
        ),
        "ssd-1b": Preset(
            "SSD-1B, half of SDXL, with LCM-LoRA",
            GPU,
            ModelSpec(
                "segmind/SSD-1B",
                vae=TAESDXL,
                loras=(LCM_LORA_SSD_1B,),
                width=1024,
                height=1024,
            ),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 1.0},
        ),
        "lcm-sdxl": Preset(
            "Full LCM of SDXL, guidance by embedding",
            GPU,
            ModelSpec(SDXL_BASE, unet="latent-consistency/lcm-sdxl", vae=TAESDXL, width=1024, height=1024),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 8.0},
        ),
        "lcm-sdxl-papercut": Preset(
            "The same with a style LoRA beside it",
            GPU,
            ModelSpec(
                SDXL_BASE,
                unet="latent-consistency/lcm-sdxl",
                vae=TAESDXL,
                loras=(Lora("TheLastBen/Papercut_SDXL", name="papercut"),),
                width=1024,
                height=1024,
            ),
            {"prompt": "papercut, a cute fox", "strength": 0.5, "steps": 4, "guidance": 8.0},
        ),
        "sdxl-canny-adapter": Preset(
            "SDXL with LCM-LoRA, held to the edges by a T2I-Adapter",
            GPU,
            ModelSpec(
                SDXL_BASE,
                vae=TAESDXL,
                loras=(LCM_LORA_SDXL,),
                adapter="TencentARC/t2i-adapter-canny-sdxl-1.0",
                control="canny-384",
                width=1024,
                height=1024,
            ),
            {"prompt": "oil painting, masterpiece", "strength": 0.5, "steps": 4, "guidance": 1.5, "control_scale": 0.8},
        ),
    }
)

PRESETS = MappingProxyType({name: row.spec for name, row in TABLE.items()})
