"""A checkpoint of SDXL's exact shape with random float16 weights and a LoRA for it, for timing and memory."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import sd15_shape

UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SECOND_TEXT = {
    **sd15_shape.TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "sample_size": 1024,
    "force_upcast": True,
}
LORA_LAYERS = r"\.(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2)\.weight$"
RANK = 64  # of the published LCM-LoRAs


def write(folder: Path) -> Path:
    """Write the diffusers folder (7 GB) and return it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**sd15_shape.TEXT)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**SECOND_TEXT)),
            tokenizer=sd15_shape.tokenizer(folder / "tokenizer"),
            tokenizer_2=sd15_shape.tokenizer(folder / "tokenizer_2"),
            unet=UNet2DConditionModel(**UNET),
            scheduler=LCMScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
            ),
            add_watermarker=False,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    pipe.save_pretrained(folder)
    return folder


def write_lora(base: Path, file: Path) -> Path:
    """Of all the UNet's layers that LCM-LoRA changes, too weak to be seen."""
    tensors = {}
    with safe_open(base / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as unet:
        for name in unet.keys():  # noqa: SIM118 - it is no mapping
            if re.search(LORA_LAYERS, name):
                out, *within = unet.get_slice(name).get_shape()
                layer = f"unet.{name.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, *within).half() * 1e-3
                tensors[f"{layer}.lora_B.weight"] = torch.randn(out, RANK, *(1 for _ in within[1:])).half() * 1e-3
    save_file(tensors, file)
    return file
