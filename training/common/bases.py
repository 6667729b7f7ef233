"""A base to train on: any SD1.5-shaped diffusers folder, models/mini among them."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline

from .runs import refuse


class Base:
    """The parts of a base in float32 on a device, frozen, with the few operations that training needs."""

    def __init__(self, folder: Path, device: torch.device):
        check_shape(folder)
        pipe = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.device = pipe.to(device), device
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        for module in (self.unet, self.vae, self.text_encoder):
            module.eval().requires_grad_(False)
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)
        self.abar = DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.to(device)
        self.prediction = pipe.scheduler.config.prediction_type
        self.size = self.unet.config.sample_size * 8  # pixels it was made for

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """float [N, 3, H, W] in -1..1 -> scaled latents."""
        encoded = self.vae.encode(pictures)
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.sample()
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def states(self, prompts: list[str]) -> torch.Tensor:
        """[N, tokens, width]."""
        tokens = self.pipe.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def x0_and_noise(self, out: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet's output `out` at (x, t) says about the clean latents and the noise in x."""
        a, s = self.abar[t].sqrt().view(-1, 1, 1, 1), (1 - self.abar[t]).sqrt().view(-1, 1, 1, 1)
        if self.prediction == "v_prediction":
            return a * x - s * out, s * x + a * out
        if self.prediction == "sample":
            return out, (x - a * out) / s
        return (x - s * out) / a, out


def check_shape(folder: Path) -> None:
    """Refuses what is not SD1.5-shaped, by its model_index.json and the UNet's config."""
    index_file, unet_file = folder / "model_index.json", folder / "unet" / "config.json"
    if not index_file.is_file():
        refuse(f"{folder} is not a diffusers folder: it has no model_index.json.")
    index = json.loads(index_file.read_text())
    kind = index.get("_class_name", "model without a name")
    if "text_encoder_2" in index or "text_encoder" not in index or not unet_file.is_file():
        refuse(f"{folder} is a {kind}, not SD1.5-shaped: one text encoder and a UNet2DConditionModel are needed.")
    unet = json.loads(unet_file.read_text())
    if unet.get("_class_name") != "UNet2DConditionModel" or unet.get("in_channels") != unet.get("out_channels"):
        refuse(f"{folder} is not SD1.5-shaped: its unet is a {unet.get('_class_name')} that repaints no latents.")
    if unet.get("time_cond_proj_dim"):
        refuse(f"{folder} is a full LCM already: distil from the base that it came from.")
