"""Checkpoints of the published models' exact shapes with random float16 weights, for timing: speed is in the shape.

    python -m benchmarks.shapes sd15 FOLDER [--tiny]

`tiny` makes of each shape one of the same topology that a CPU runs in no time. The last layers are scaled so that
pictures have contrast and a wrong number shows in them; nobody would want to look at them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LORA_TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
LORA_RANK = 64  # of the published LCM-LoRAs
TINY_TEXT, TINY_BLOCKS = 16, (8, 16, 16, 16)


@dataclass(frozen=True)
class Shape:
    """unet, texts, vae, kl: the configs of the parts, `vae` of TAESD and `kl` of the base's own autoencoder.

    size: pixels a side that the model was trained at. sdxl: two text encoders, pooled text and sizes as inputs.
    """

    unet: dict[str, Any]
    texts: tuple[dict[str, Any], ...]
    vae: dict[str, Any]
    kl: dict[str, Any]
    size: int
    conditioning: tuple[int, ...] = (16, 32, 96, 256)  # of a ControlNet's picture encoder
    lora_rank: int = LORA_RANK
    motion_heads: int = 8

    @property
    def sdxl(self) -> bool:
        return len(self.texts) == 2


TEXT = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
CLIP_L = {**TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIG_G = {
    **TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD15 = Shape(
    {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    (CLIP_L,),
    {},
    KL,
    512,
)
SDXL = Shape(
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "norm_num_groups": 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
    (CLIP_L, CLIP_BIG_G),
    {"scaling_factor": 1.0},
    {**KL, "scaling_factor": 0.13025},
    1024,
)
SSD_1B = replace(
    SDXL,
    unet={
        **SDXL.unet,
        "transformer_layers_per_block": (1, (2, 2), (4, 4)),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        "mid_block_type": None,
    },
)
SHAPES = {"sd15": SD15, "sdxl": SDXL, "ssd-1b": SSD_1B}


def tiny(shape: Shape) -> Shape:
    """The same topology in a few hundred kilobytes."""

    def fewer(layers):
        return tuple(fewer(each) for each in layers) if isinstance(layers, tuple) else min(layers, 2)

    blocks = TINY_BLOCKS[: len(shape.unet["block_out_channels"])]
    unet = {
        **shape.unet,
        "sample_size": 8,
        "block_out_channels": blocks,
        "cross_attention_dim": TINY_TEXT * len(shape.texts),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    if shape.sdxl:
        for name in ("transformer_layers_per_block", "reverse_transformer_layers_per_block"):
            if name in unet:
                unet[name] = fewer(unet[name])
        unet |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + TINY_TEXT}
    text = {
        **TEXT,
        "vocab_size": 514,
        "hidden_size": TINY_TEXT,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": TINY_TEXT,
    }
    vae = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    }
    return Shape(
        unet,
        (text,) * len(shape.texts),
        {**shape.vae, **vae},
        {**shape.kl, "block_out_channels": (4,) * 4, "norm_num_groups": 2, "layers_per_block": 1},
        64,
        conditioning=(4, 8, 8, 8),
        lora_rank=4,
        motion_heads=2,
    )


def checkpoint(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """A base with TAESD, in diffusers' folder layout; returns `folder`. Here and below what is there stays as it is.

    device: where the weights are drawn; a GPU does it in seconds.
    """

    def write(scratch: Path) -> None:
        parts: dict[str, Any] = {
            "vae": _drawn_vae(lambda: AutoencoderTiny(**shape.vae), device),
            "unet": _drawn_unet(shape.unet, device),
            "scheduler": LCMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
        }
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        for suffix, text, kind in zip(("", "_2"), shape.texts, kinds, strict=False):
            parts[f"tokenizer{suffix}"] = tokenizer(scratch / f"tokenizer{suffix}")
            encoder = _drawn(lambda kind=kind, text=text: kind(CLIPTextConfig(**text)), device)
            parts[f"text_encoder{suffix}"] = encoder.half()
        if shape.sdxl:
            pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            pipe = StableDiffusionPipeline(**parts, **unused)
        pipe.save_pretrained(scratch)

    return _kept(folder, write)


def autoencoder(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """The base's own AutoencoderKL."""
    return _kept(folder, lambda scratch: _drawn_vae(lambda: AutoencoderKL(**shape.kl), device).save_pretrained(scratch))


def unet(folder: Path, shape: Shape, device: str = "cpu", **changes: Any) -> Path:
    """A UNet with changes to the shape's config: `in_channels=9` inpaints, `time_cond_proj_dim=256` is a full LCM."""
    return _kept(folder, lambda scratch: _drawn_unet({**shape.unet, **changes}, device).save_pretrained(scratch))


def _kept(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, written if it is not there: whole or not at all, as a benchmark may be cut off."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        write(scratch)
        scratch.rename(folder)
    return folder


def _drawn(make: Callable[[], nn.Module], device: str) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return make().to(device).eval().requires_grad_(False)


@torch.no_grad()
def _drawn_vae(make: Callable[[], nn.Module], device: str) -> nn.Module:
    """Random weights paint flat grey whatever comes in: the last layers are scaled to what trained ones give."""
    vae = _drawn(make, device)
    picture = torch.rand(1, 3, 128, 128, device=device).round() * 2 - 1
    latents = torch.randn(1, 4, 16, 16, device=device)
    if isinstance(vae, AutoencoderTiny):
        vae.encoder.layers[-1].weight /= vae.encode(picture).latents.std()
        vae.decoder.layers[-1].weight *= 0.5 / vae.decode(latents).sample.std()
        vae.decoder.layers[-1].bias += 0.5  # it decodes to 0..1
    else:
        vae.decoder.conv_out.weight *= 0.5 / vae.decode(latents / vae.config.scaling_factor).sample.std()
    return vae.half()


@torch.no_grad()
def _drawn_unet(config: dict[str, Any], device: str) -> nn.Module:
    """As above."""
    net = _drawn(lambda: UNet2DConditionModel(**{"in_channels": 4, "out_channels": 4, **config}), device)
    x = torch.randn(1, net.config.in_channels, 16, 16, device=device)
    prompt = torch.randn(1, 77, net.config.cross_attention_dim, device=device)
    added = None
    if net.config.addition_embed_type == "text_time":
        width = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
        sizes = torch.full((1, 6), 512.0, device=device)
        added = {"text_embeds": torch.randn(1, width, device=device), "time_ids": sizes}
    t = torch.tensor([499], device=device)
    net.conv_out.weight /= net(x, t, encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[0].std()
    return net.half()


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-level, no merges: the prompt's meaning does not matter to its encoder's speed."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )


def controlnet(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """Its zero convolutions are given small weights, so that it acts."""

    def write(scratch: Path) -> None:
        with torch.device("meta"):
            of = UNet2DConditionModel(**shape.unet)
        own = {"conditioning_embedding_out_channels": shape.conditioning, "load_weights_from_unet": False}
        net = _drawn(lambda: ControlNetModel.from_unet(of, **own), device)
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            nn.init.normal_(block.weight, std=0.02)
        net.half().save_pretrained(scratch)

    return _kept(folder, write)


def adapter(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """A T2I-Adapter."""

    def write(scratch: Path) -> None:
        blocks = shape.unet["block_out_channels"]
        kind = {"adapter_type": "full_adapter_xl", "downscale_factor": 16} if shape.sdxl else {}
        channels = [*blocks, *blocks[-1:] * (4 - len(blocks))]
        net = _drawn(lambda: T2IAdapter(in_channels=3, channels=channels, num_res_blocks=2, **kind), device)
        net.half().save_pretrained(scratch)

    return _kept(folder, write)


def motion(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """An AnimateDiff motion adapter; real ones start as identities, this one moves."""

    def write(scratch: Path) -> None:
        own = {
            "block_out_channels": shape.unet["block_out_channels"],
            "motion_num_attention_heads": shape.motion_heads,
            "motion_norm_num_groups": shape.unet["norm_num_groups"],
        }
        net = _drawn(lambda: MotionAdapter(**own), device)
        for name, parameter in net.named_parameters():
            if "proj_out.weight" in name:
                nn.init.normal_(parameter, std=0.02)
        net.half().save_pretrained(scratch)

    return _kept(folder, write)


def lora(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """A LoRA of the shape's UNet; returns its file."""

    def write(scratch: Path) -> None:
        with torch.device(device):
            net = UNet2DConditionModel(**shape.unet).half()
        net.add_adapter(LoraConfig(r=shape.lora_rank, lora_alpha=shape.lora_rank, target_modules=LORA_TARGETS))
        torch.manual_seed(2)
        layers = {name: 0.02 * torch.randn_like(each) for name, each in get_peft_model_state_dict(net).items()}
        StableDiffusionPipeline.save_lora_weights(scratch, unet_lora_layers=layers)

    return _kept(folder, write) / "pytorch_lora_weights.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    print(checkpoint(options.folder, tiny(shape) if options.tiny else shape, options.device))


if __name__ == "__main__":
    main()
