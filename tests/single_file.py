"""Diffusers folders as single .safetensors files with the key names of the original code (SD1.5, SDXL)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(folder: Path, file: Path) -> None:
    """A whole checkpoint with an AutoencoderKL: SD1.5's topology (four blocks, two layers each) or SDXL's (three)."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    tensors = {f"model.diffusion_model.{unet_key(key, unet)}": value for key, value in unet.items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in _vae(folder / "vae").items()}
    texts = {_text_key(key): value for key, value in text.items()}
    if (folder / "text_encoder_2").is_dir():
        tensors |= {f"conditioner.embedders.0.transformer.{key}": value for key, value in texts.items()}
        second = load_file(folder / "text_encoder_2" / "model.safetensors")
        tensors |= {f"conditioner.embedders.1.model.{key}": value for key, value in _open_clip(second).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.{key}": value for key, value in texts.items()}
    _save(tensors, file)


def write_vae(folder: Path, file: Path) -> None:
    """An AutoencoderKL alone."""
    _save(_vae(folder), file)


def write_unet(folder: Path, file: Path) -> None:
    unet = load_file(folder / "diffusion_pytorch_model.safetensors")
    _save({unet_key(key, unet): value for key, value in unet.items()}, file)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})


def _vae(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {_vae_key(key): _vae_value(key, value) for key, value in tensors.items()}


def unet_key(key: str, unet: Collection[str]) -> str:
    """unet: all of its keys."""
    for ours, theirs in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ):
        if key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    if ".resnets." in key:
        for ours, theirs in _RESNET.items():
            key = key.replace(f".{ours}.", f".{theirs}.")

    def upsampler(found: re.Match) -> str:
        behind = 2 if any(name.startswith(f"up_blocks.{found[1]}.attentions.") for name in unet) else 1
        return f"output_blocks.{3 * int(found[1]) + 2}.{behind}"

    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0"),
        (r"down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1"),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
        (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
        (r"up_blocks\.(\d)\.upsamplers\.0", upsampler),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
    ]
    for pattern, replacement in rules:
        key = re.sub("^" + pattern, replacement, key)
    return key


def _vae_key(key: str) -> str:
    if ".attentions." in key:
        for ours, theirs in _VAE_ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    rules = [
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _vae_value(key: str, value: Tensor) -> Tensor:
    """The original's attention is made of 1x1 convolutions."""
    is_linear = ".attentions." in key and key.endswith("weight") and "norm" not in key
    return value[:, :, None, None] if is_linear else value


def _text_key(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIP text encoder as open_clip names it, which has q, k and v in one matrix."""
    names = [
        (r"^text_model\.", ""),
        (r"embeddings\.token_embedding\.", "token_embedding."),
        (r"embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"encoder\.layers\.", "transformer.resblocks."),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.", "attn."),
        (r"final_layer_norm", "ln_final"),
        (r"text_projection\.weight", "text_projection"),
    ]
    out, thirds = {}, {}
    for key, value in text.items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        if found := re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", key):
            thirds.setdefault(f"{found[1]}.in_proj_{found[3]}", {})[found[2]] = value
        else:
            out[key] = value.T if key == "text_projection" else value
    return out | {key: torch.cat([each[part] for part in "qkv"]) for key, each in thirds.items()}
