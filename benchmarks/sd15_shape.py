"""A checkpoint of SD1.5's exact shape with TAESD's autoencoder and random float16 weights, for timing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


def write(folder: Path) -> Path:
    """Write the diffusers folder (2.1 GB) and return it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        pipe = StableDiffusionPipeline(
            vae=AutoencoderTiny(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
            tokenizer=tokenizer(folder / "tokenizer"),
            unet=UNet2DConditionModel(**UNET),
            scheduler=LCMScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    pipe.save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-level: the prompt's meaning does not matter to its encoder's speed."""
    folder.mkdir(parents=True)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )
