"""Checkpoints with random weights, in the layouts that real ones have on disk: tiny ones, to prove that pictures are
right, and ones of published models' exact shapes, to time them: speed is in the shape. No user ever sees one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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

WIDTH = 16  # of the text encoder, and so of the UNet's cross attention
SECOND_WIDTH = 32  # of SDXL's second one, whose states are joined to the first's
LORA_FILE = "pytorch_lora_weights.safetensors"

# Topologies, which tiny and published models share.
SD_BLOCKS = {
    "layers_per_block": 2,  # 12 + 1 ControlNet residuals
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
# No attention at the top, more transformer layers below, added text and sizes.
XL_BLOCKS = {
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}

UNET = {
    **SD_BLOCKS,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (4, 8, 8, 8),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SMALLEST = {
    **UNET,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {
    **UNET,
    **XL_BLOCKS,
    "block_out_channels": (4, 8, 8),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": WIDTH + SECOND_WIDTH,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
}
# SSD-1B is SDXL with layers taken out, another number in each direction and none with attention in the middle.
SSD = {
    **XL,
    "transformer_layers_per_block": (1, 1, 1),
    "reverse_transformer_layers_per_block": ((1, 1, 2), (1, 1, 1), 1),
    "mid_block_type": None,
}
PUBLISHED_UNET = {
    **SD_BLOCKS,
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
PUBLISHED_XL = {
    **PUBLISHED_UNET,
    **XL_BLOCKS,
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
PUBLISHED_SSD = {
    **PUBLISHED_XL,
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": None,
}


@dataclass(frozen=True)
class Size:
    """What of a model is as large as its UNet. texts: SD1.5's text encoder, and SDXL's second. gain: of weights that
    real ones start from zero at, so that they act."""

    texts: tuple[dict[str, Any], dict[str, Any]]
    taesd: dict[str, Any]
    kl: dict[str, Any]
    controlnet: dict[str, Any]
    res_blocks: int  # of an adapter
    motion: dict[str, Any]
    lora: dict[str, Any]
    gain: float
    is_half: bool  # float16 on disk


TEXT = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
TINY_TEXT = {
    **TEXT,
    "vocab_size": 514,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": WIDTH,
}
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
KL = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2"]
TINY = Size(
    texts=(TINY_TEXT, {**TINY_TEXT, "hidden_size": SECOND_WIDTH}),
    taesd={
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    },
    kl={**KL, "block_out_channels": (4,) * 4, "norm_num_groups": 2},
    controlnet={"conditioning_embedding_out_channels": (4, 8, 8, 8)},
    res_blocks=1,
    motion={"motion_num_attention_heads": 2, "motion_norm_num_groups": 4},
    lora={"r": 4, "lora_alpha": 8, "target_modules": [*ATTENTION, "conv1", "conv2"]},
    gain=1.0,
    is_half=False,
)
PUBLISHED = Size(
    texts=(CLIP_L, CLIP_BIG_G),
    taesd={},
    kl={**KL, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    controlnet={},
    res_blocks=2,
    motion={},
    lora={"r": 64, "lora_alpha": 8, "target_modules": [*ATTENTION, "proj_out", "ff.net.0.proj"]},
    gain=0.02,
    is_half=True,
)


@dataclass(frozen=True)
class ModelShape:
    """side: pixels that the model was trained at."""

    unet: dict[str, Any]
    size: Size
    side: int

    @property
    def is_xl(self) -> bool:
        return _is_xl(self.unet)

    def kept(self, make: Callable[..., Path], folder: Path, device: str, **options: Any) -> Path:
        """`folder`, with a checkpoint, controlnet, adapter or motion of this shape; as it is, if it is there."""
        given = {"unet": self.unet, "size": self.size, "device": device, **options}
        return kept(folder, lambda scratch: make(scratch, **given))


SHAPES = {
    "sd15": ModelShape(PUBLISHED_UNET, PUBLISHED, 512),
    "sdxl": ModelShape(PUBLISHED_XL, PUBLISHED, 1024),
    "ssd-1b": ModelShape(PUBLISHED_SSD, PUBLISHED, 1024),
}
TINY_SHAPES = {name: ModelShape(unet, TINY, 64) for name, unet in (("sd15", UNET), ("sdxl", XL), ("ssd-1b", SSD))}


def kept(folder: Path, write: Callable[[Path], object]) -> Path:
    """`folder`, written if it is not there: whole or not at all, as a benchmark may be cut off."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        write(scratch)
        scratch.rename(folder)
    return folder


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-level: 512 symbols and the two ends, no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(ByteLevel.alphabet())
    words = symbols + [symbol + "</w>" for symbol in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )


def checkpoint(
    folder: Path,
    *,
    guidance_embedding: bool = False,
    prediction: str = "epsilon",
    kl: bool = False,
    unet: dict[str, Any] = UNET,
    size: Size = TINY,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """A pipeline in diffusers' folder layout, of the UNet's family. guidance_embedding makes it a full LCM. device:
    where weights are drawn; a GPU does large ones in seconds."""
    torch.manual_seed(seed)
    is_xl = _is_xl(unet)
    with torch.device(device):
        text_encoder = CLIPTextModel(CLIPTextConfig(**size.texts[0]))
        vae = AutoencoderKL(**size.kl) if kl else AutoencoderTiny(**size.taesd)
        network = UNet2DConditionModel(**unet, time_cond_proj_dim=256 if guidance_embedding else None)
        _give_contrast(vae, network)
        own: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if is_xl:
            own = {
                "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**size.texts[1])),
                "tokenizer_2": tokenizer(folder / "tokenizer_2"),
                "add_watermarker": False,
            }
    pipe = (StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline)(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(folder / "tokenizer"),
        unet=network,
        scheduler=LCMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
            set_alpha_to_one=False, steps_offset=1, clip_sample=False,
        ),
        **own,
    )  # fmt: skip
    for module in pipe.components.values():
        if size.is_half and isinstance(module, nn.Module):
            module.half()
    pipe.save_pretrained(folder)
    return folder


def _is_xl(unet: dict[str, Any]) -> bool:
    return unet.get("addition_embed_type") == "text_time"


@torch.no_grad()
def _give_contrast(vae: nn.Module, unet: nn.Module) -> None:
    """Random weights paint flat grey whatever comes in: scale each module's last layer so that a wrong step shows."""
    picture = torch.rand(1, 3, 64, 64).round() * 2 - 1
    if isinstance(vae, AutoencoderTiny):
        vae.encoder.layers[-1].weight /= vae.encode(picture).latents.std(dim=(2, 3)).mean()
        vae.decoder.layers[-1].weight *= 0.6 / vae.decode(torch.randn(1, 4, 8, 8)).sample.std()
    else:
        vae.decoder.conv_out.weight *= 3
    unet.conv_out.weight *= 3
    if unet.config.time_cond_proj_dim:
        unet.time_embedding.cond_proj.weight *= 10


def controlnet(
    folder: Path,
    *,
    unet: dict[str, Any] = UNET,
    size: Size = TINY,
    device: str = "cpu",
    gain: float | None = None,
    seed: int = 1,
) -> Path:
    """A ControlNet of the checkpoint's shape. Its zero convolutions are given weights of deviation `gain`."""
    torch.manual_seed(seed)
    with torch.device(device), torch.no_grad():
        of = UNet2DConditionModel(**unet)
        net = ControlNetModel.from_unet(of, load_weights_from_unet=False, **size.controlnet)
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            nn.init.normal_(block.weight, std=size.gain if gain is None else gain)
        for layer in net.controlnet_cond_embedding.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return _saved(net, folder, size)


def adapter(
    folder: Path,
    *,
    sdxl: bool = False,
    unet: dict[str, Any] | None = None,
    size: Size = TINY,
    device: str = "cpu",
    seed: int = 3,
) -> Path:
    """A T2I-Adapter of the checkpoint's shape, strong enough to show."""
    torch.manual_seed(seed)
    blocks = (unet or (XL if sdxl else UNET))["block_out_channels"]
    with torch.device(device), torch.no_grad():
        net = T2IAdapter(
            in_channels=3,
            channels=[*blocks, *blocks[-1:] * (4 - len(blocks))],
            num_res_blocks=size.res_blocks,
            downscale_factor=16 if sdxl else 8,
            adapter_type="full_adapter_xl" if sdxl else "full_adapter",
        )
        for parameter in net.parameters():
            parameter.mul_(2)
    return _saved(net, folder, size)


def motion(folder: Path, *, unet: dict[str, Any] = UNET, size: Size = TINY, device: str = "cpu", seed: int = 4) -> Path:
    """An AnimateDiff motion adapter of the checkpoint's shape; real ones start as identities, this one shows."""
    torch.manual_seed(seed)
    with torch.device(device), torch.no_grad():
        net = MotionAdapter(block_out_channels=unet["block_out_channels"], **size.motion)
        for name, parameter in net.named_parameters():
            if "proj_out" in name:
                nn.init.normal_(parameter, std=size.gain / 2)
    return _saved(net, folder, size)


def _saved(net: nn.Module, folder: Path, size: Size) -> Path:
    (net.half() if size.is_half else net).save_pretrained(folder)
    return folder


def lora(
    folder: Path,
    base: Path,
    *,
    name: str = LORA_FILE,
    text: bool = False,
    size: Size = TINY,
    seed: int = 2,
) -> Path:
    """A LoRA for `base`, of the UNet or of the text encoder, strong enough to show, by diffusers' own saver."""
    torch.manual_seed(seed)
    asked = {**size.lora, "target_modules": ["q_proj", "v_proj", "fc1"]} if text else size.lora
    if text:
        module, part = CLIPTextModel.from_pretrained(base, subfolder="text_encoder"), "text_encoder_lora_layers"
    else:
        module, part = UNet2DConditionModel.from_pretrained(base, subfolder="unet"), "unet_lora_layers"
    module.add_adapter(LoraConfig(**asked, init_lora_weights=False))
    layers = get_peft_model_state_dict(module.half() if size.is_half else module)
    StableDiffusionPipeline.save_lora_weights(folder, **{part: layers}, weight_name=name)
    return folder / name
