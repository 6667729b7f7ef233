"""Complete checkpoints of a few hundred kilobytes with random weights, in the layouts that real ones have on disk.

Random weights prove that our pictures equal diffusers' own; no user ever sees one.
"""

from __future__ import annotations

import json
from pathlib import Path

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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16  # of the text encoder, and so of the UNet's cross attention
SECOND_WIDTH = 32  # of SDXL's second one, whose states are joined to the first's
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (4, 8, 8, 8),
    "layers_per_block": 2,  # the topology of SD1.5: 12 + 1 ControlNet residuals
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
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
# SDXL's topology: no attention at the top, more transformer layers below, added text and sizes.
XL = {
    **UNET,
    "block_out_channels": (4, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": WIDTH + SECOND_WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
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
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "ff.net.2"]


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
    unet: dict = UNET,
    seed: int = 0,
) -> Path:
    """An SD1.5-shaped pipeline in diffusers' folder layout. guidance_embedding makes it a full LCM."""
    torch.manual_seed(seed)
    xl = unet.get("addition_embed_type") == "text_time"
    text_encoder = CLIPTextModel(text_config())
    vae = (
        AutoencoderKL(
            block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )
        if kl
        else AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1), latent_channels=4,
        )
    )  # fmt: skip
    network = UNet2DConditionModel(**unet, time_cond_proj_dim=256 if guidance_embedding else None)
    _give_contrast(vae, network)
    if xl:
        own = {
            "text_encoder_2": CLIPTextModelWithProjection(text_config(SECOND_WIDTH)),
            "tokenizer_2": tokenizer(folder / "tokenizer_2"),
            "add_watermarker": False,
        }
    else:
        own = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline)(
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
    pipe.save_pretrained(folder)
    return folder


def text_config(width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=WIDTH,
    )  # fmt: skip


@torch.no_grad()
def _give_contrast(vae, unet) -> None:
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


def controlnet(folder: Path, *, unet: dict = UNET, gain: float = 1.0, seed: int = 1) -> Path:
    """A ControlNet of the checkpoint's shape. Its zero convolutions are given weights of deviation `gain`."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        UNet2DConditionModel(**unet), conditioning_embedding_out_channels=(4, 8, 8, 8), load_weights_from_unet=False
    )
    with torch.no_grad():
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=gain)
        for layer in net.controlnet_cond_embedding.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    net.save_pretrained(folder)
    return folder


def adapter(folder: Path, *, sdxl: bool = False, seed: int = 3) -> Path:
    """A T2I-Adapter of the checkpoint's shape, strong enough to show."""
    torch.manual_seed(seed)
    blocks = (XL if sdxl else UNET)["block_out_channels"]
    net = T2IAdapter(
        in_channels=3,
        channels=[*blocks, *blocks[-1:] * (4 - len(blocks))],
        num_res_blocks=1,
        downscale_factor=16 if sdxl else 8,
        adapter_type="full_adapter_xl" if sdxl else "full_adapter",
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    net.save_pretrained(folder)
    return folder


def motion(folder: Path, *, seed: int = 4) -> Path:
    """An AnimateDiff motion adapter of the checkpoint's shape; real ones start as identities, this one shows."""
    torch.manual_seed(seed)
    net = MotionAdapter(
        block_out_channels=UNET["block_out_channels"],
        motion_layers_per_block=2,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=32,
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    net.save_pretrained(folder)
    return folder


def lora(
    folder: Path, base: Path, *, name: str = "pytorch_lora_weights.safetensors", text: bool = False, seed: int = 2
) -> Path:
    """A LoRA for `base`, of the UNet or of the text encoder, strong enough to show, by diffusers' own saver."""
    torch.manual_seed(seed)
    if text:
        module = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
        targets, part = ["q_proj", "v_proj", "fc1"], "text_encoder_lora_layers"
    else:
        module = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        targets, part = LORA_TARGETS, "unet_lora_layers"
    module.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    layers = {part: get_peft_model_state_dict(module)}
    StableDiffusionPipeline.save_lora_weights(folder, **layers, weight_name=name)
    return folder / name
