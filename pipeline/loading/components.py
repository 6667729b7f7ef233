"""ModelSpec -> components on a device, ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    ControlNetModel,
    LCMScheduler,
    MotionAdapter,
    T2IAdapter,
    UNetMotionModel,
)

from pipeline.batch import Report
from pipeline.capabilities import Capabilities
from pipeline.errors import LoadError
from pipeline.pixels.annotators import ANNOTATORS
from pipeline.runtime.devices import pick_dtype
from pipeline.sampling import animatediff
from pipeline.sampling.adapters import AdapterExtra, ControlNetExtra, Extra, InpaintingExtra
from pipeline.sampling.lcm import NoiseSchedule
from pipeline.sampling.model import Components, Family
from pipeline.settings import ModelSpec

from . import checkpoints, hub, layouts, loras
from .families import family_of_index, family_of_keys
from .modules import Loader


def load_components(spec: ModelSpec, device: torch.device, *, download: bool, report: Report) -> Components:
    """Find (or fetch) every part, load it, check that the parts fit, fuse the LoRAs. Raises LoadError."""
    hub.check(spec)
    for name in spec.annotators:
        if name not in ANNOTATORS:
            raise LoadError(f"There is no control image {name!r}: choose from {', '.join(sorted(ANNOTATORS))}.")
    dtype = pick_dtype(spec.dtype, device)
    paths = {
        part: hub.locate(reference, part, download=download, report=report)
        for part, reference in hub.references(spec).items()
    }
    replaced = paths.keys() & {"unet", "vae"}
    for part, path in paths.items():
        layouts.check(part, path, replaced)
    report("Loading weights", None)
    transformers.utils.logging.disable_progress_bar()  # `report` tells progress
    family = _family(paths["base"])
    configs = paths["base"] if paths["base"].is_dir() else paths["base"].with_suffix("")
    loader = Loader(family, configs, dtype, download)
    pipe = loader.pipeline(paths)
    nets = [loader.load(part, ControlNetModel, path) for part, path in paths.items() if part.startswith("controlnet")]
    adapter = loader.load("adapter", T2IAdapter, paths["adapter"]) if spec.adapter else None
    motion = loader.load("motion", MotionAdapter, paths["motion"]) if spec.motion else None
    text_encoders = tuple(getattr(pipe, name) for _, name, _ in family.encoders)
    _check_fit(spec, pipe.unet.config, pipe.vae.config, sum(encoder.config.hidden_size for encoder in text_encoders))
    _check_extras(spec, family, pipe.unet.config, nets, adapter)
    if motion is not None:
        _check_motion(spec, family, pipe.unet.config, motion)
        pipe.unet = UNetMotionModel.from_unet2d(pipe.unet, motion).to(dtype)

    waiting = torch.device("cpu") if spec.low_memory else device
    for module in (pipe.unet, pipe.vae):
        module.to(device)
    for encoder in text_encoders:
        encoder.to(waiting)
    if spec.low_memory:
        pipe.vae.enable_slicing()
    if family.upcasts and pipe.vae.config.get("force_upcast") and dtype == torch.float16:
        pipe.vae.to(torch.float32)
    lora_set = None
    if spec.loras:
        report("Fusing LoRAs", None)
        files = {lora.name: str(_lora_file(paths[f"lora {lora.name}"])) for lora in spec.loras}
        lora_set = loras.extract(pipe, text_encoders, spec.loras, files, waiting)
        lora_set.apply({lora.name: lora.weight for lora in spec.loras})
    extras: list[Extra] = []
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        extras.append(InpaintingExtra())
    extras += [ControlNetExtra(net, of.control, of.weight) for net, of in zip(nets, spec.controlnets, strict=True)]
    if adapter is not None:
        extras.append(AdapterExtra(adapter, spec.control))
    for module in extras:
        module.to(device)
    for module in (*text_encoders, pipe.unet, pipe.vae, *extras):
        module.eval().requires_grad_(False)
    for module in (pipe.unet, pipe.vae, *extras):
        module.to(memory_format=torch.channels_last)
    return Components(
        family,
        tuple(getattr(pipe, name) for name, _, _ in family.encoders),
        text_encoders,
        pipe.unet,
        pipe.vae,
        tuple(extras),
        read_schedule(pipe.scheduler.config),
        lora_set,
        device,
        dtype,
    )


def capabilities_of(spec: ModelSpec, parts: Components) -> Capabilities:
    """Those of a model that was loaded."""
    return Capabilities(
        spec.width,
        spec.height,
        {lora.name: lora.weight for lora in spec.loras},
        parts.schedule.original_steps,
        parts.unet.config.time_cond_proj_dim is not None,
        parts.inpaints,
        spec.annotators,
    )


def read_schedule(config: dict) -> NoiseSchedule:
    """The noise schedule of any diffusers scheduler config, as LCMScheduler reads it."""
    scheduler = LCMScheduler.from_config(config)
    if scheduler.config.clip_sample or scheduler.config.thresholding:
        raise LoadError("The model's scheduler clips its samples, which latent models do not: set clip_sample false.")
    return NoiseSchedule(
        scheduler.alphas_cumprod.double().numpy(),
        scheduler.config.prediction_type,
        scheduler.config.original_inference_steps,
    )


def _lora_file(path: Path) -> Path:
    """The .safetensors file of a LoRA's folder, or the file itself."""
    return path if path.is_file() else path / layouts.lora_file([file.name for file in path.iterdir()], str(path))


def _family(base: Path) -> Family:
    if base.is_file():
        return family_of_keys(base, checkpoints.header(base))
    return family_of_index(base, layouts.read_json(base / "model_index.json"))


def _check_fit(spec: ModelSpec, unet: Any, vae: Any, prompt_width: int) -> None:
    """Parts of different families load one by one and fail only in the middle of a frame: compare them here."""
    if vae.get("latents_mean") is not None:
        raise LoadError(f"The VAE of {spec.vae or spec.base} shifts its latents (latents_mean), which is not served.")
    if unet.in_channels not in (vae.latent_channels, 2 * vae.latent_channels + 1):  # the latter for inpainting
        raise LoadError(
            f"The UNet of {spec.unet or spec.base} takes {unet.in_channels} channels and the VAE of "
            f"{spec.vae or spec.base} gives {vae.latent_channels}: they belong to different models."
        )
    if unet.cross_attention_dim != prompt_width:
        raise LoadError(
            f"The UNet of {spec.unet or spec.base} reads prompts of width {unet.cross_attention_dim} and the text "
            f"encoder of {spec.base} writes {prompt_width}: they belong to different models."
        )


def _check_extras(
    spec: ModelSpec, family: Family, unet: Any, nets: list[ControlNetModel], adapter: T2IAdapter | None
) -> None:
    blocks = tuple(unet.block_out_channels)
    for net, of in zip(nets, spec.controlnets, strict=True):
        mine = (net.config.in_channels, net.config.cross_attention_dim)
        theirs = (unet.out_channels, unet.cross_attention_dim)
        if mine != theirs or tuple(net.config.block_out_channels) != blocks:
            raise LoadError(
                f"ControlNet {of.path} (channels {mine[0]}, prompt width {mine[1]}, blocks "
                f"{list(net.config.block_out_channels)}) does not fit the UNet of {spec.unet or spec.base} (channels "
                f"{theirs[0]}, prompt width {theirs[1]}, blocks {list(blocks)})."
            )
        if net.config.get("global_pool_conditions"):
            raise LoadError(f"ControlNet {of.path} pools its conditions (shuffle), which is not served.")
    if adapter is not None:
        for_sdxl = adapter.config.adapter_type == "full_adapter_xl"
        channels = tuple(adapter.config.channels)
        if adapter.config.adapter_type == "light_adapter":
            channels += channels[-1:]
        step = adapter.config.downscale_factor
        if spec.width % step or spec.height % step:
            raise LoadError(
                f"T2I-Adapter {spec.adapter} needs sizes in multiples of {step}, not {spec.width}x{spec.height}."
            )
        if for_sdxl != family.pooled or channels[: len(blocks)] != blocks:
            raise LoadError(
                f"T2I-Adapter {spec.adapter} is an {adapter.config.adapter_type} of channels "
                f"{list(adapter.config.channels)}: it does not fit the {family.name} UNet of {spec.unet or spec.base} "
                f"(channels {list(blocks)})."
            )


def _check_motion(spec: ModelSpec, family: Family, unet: Any, motion: MotionAdapter) -> None:
    if spec.controlnets or spec.adapter:
        raise LoadError("A motion adapter does not go together with a ControlNet or T2I-Adapter yet.")
    if motion.config.get("conv_in_channels"):
        raise LoadError(f"Motion adapter {spec.motion} wants a picture as a further input, which is not served.")
    if family.pooled:
        raise LoadError(f"Motion adapter {spec.motion} needs an SD1.5 base: {spec.base} is {family.name}.")
    if unet.in_channels != unet.out_channels:
        raise LoadError(f"Motion adapter {spec.motion} needs a base that takes no mask, which {spec.base} does.")
    if (length := motion.config.motion_max_seq_length) < animatediff.WINDOW:
        raise LoadError(f"Motion adapter {spec.motion} sees {length} frames at once; {animatediff.WINDOW} are needed.")
    theirs, mine = list(unet.block_out_channels), list(motion.config.block_out_channels)
    if mine != theirs:
        kind = "an SDXL" if len(mine) < len(theirs) else "another"
        raise LoadError(
            f"Motion adapter {spec.motion} was made for {kind} UNet, of channels {mine}: that of "
            f"{spec.unet or spec.base} has {theirs}."
        )
