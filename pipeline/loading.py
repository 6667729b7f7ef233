"""ModelSpec -> components on a device, ready to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from . import fetching, loras
from .control import ANNOTATORS
from .devices import pick_dtype
from .errors import LoadError, first_line
from .fetching import Report
from .lcm import NoiseSchedule
from .settings import ModelSpec

VAES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


@dataclass(frozen=True)
class Components:
    """A loaded model: modules in eval mode on one device, weights in one dtype."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    controlnet: ControlNetModel | None
    schedule: NoiseSchedule
    loras: loras.LoraSet | None
    device: torch.device
    dtype: torch.dtype


def load_components(spec: ModelSpec, device: torch.device, *, download: bool, report: Report) -> Components:
    """Find (or fetch) every part, load it, check that the parts fit, fuse the LoRAs. Raises LoadError."""
    fetching.check(spec)
    if spec.controlnet and spec.control not in ANNOTATORS:
        raise LoadError(f"There is no control image {spec.control!r}: choose from {', '.join(sorted(ANNOTATORS))}.")
    if spec.adapter:
        raise LoadError("T2I-Adapters are not served yet: use controlnet.")
    dtype = pick_dtype(spec.dtype, device)
    paths = {
        part: fetching.locate(reference, download=download, report=report)
        for part, reference in fetching.references(spec).items()
    }
    report("Loading weights", None)
    transformers.utils.logging.disable_progress_bar()  # `report` tells progress
    try:
        pipe = _load_pipeline(spec, paths, dtype, download)
        controlnet = _from_folder(ControlNetModel, paths["controlnet"], "", dtype) if spec.controlnet else None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(f"{spec.base} cannot be loaded: {first_line(error)}.") from error
    _check_fit(spec, pipe, controlnet)

    pipe.to(device)
    lora_set = None
    if spec.loras:
        report("Fusing LoRAs", None)
        files = {lora.name: str(lora_file(paths[f"lora {lora.name}"])) for lora in spec.loras}
        lora_set = loras.extract(pipe, spec.loras, files)
        lora_set.apply({lora.name: lora.weight for lora in spec.loras})
    modules = [pipe.text_encoder, pipe.unet, pipe.vae]
    if controlnet is not None:
        modules.append(controlnet.to(device))
    for module in modules:
        module.eval().requires_grad_(False)
    for module in modules[1:]:
        module.to(memory_format=torch.channels_last)
    return Components(
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.unet,
        pipe.vae,
        controlnet,
        read_schedule(pipe.scheduler.config),
        lora_set,
        device,
        dtype,
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


def lora_file(path: Path) -> Path:
    """The one .safetensors file of a LoRA's folder, or the file itself."""
    if path.is_file():
        return path
    files = [path / "pytorch_lora_weights.safetensors"]
    if not files[0].is_file():
        files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise LoadError(f"{path} holds {len(files)} .safetensors files: name the LoRA's own file.")
    return files[0]


def _load_pipeline(
    spec: ModelSpec, paths: dict[str, Path], dtype: torch.dtype, download: bool
) -> StableDiffusionPipeline:
    """The base with the parts that replace its own: a container, whose __call__ is never used."""
    base = paths["base"]
    if base.is_file():
        pipe = _from_single_file(base, dtype, download)
        if spec.unet:
            pipe.unet = _from_folder(UNet2DConditionModel, paths["unet"], "unet", dtype)
        if spec.vae:
            pipe.vae = _from_folder(_vae_class(paths["vae"]), paths["vae"], "vae", dtype)
        return pipe
    index = json.loads((base / "model_index.json").read_text())
    if "text_encoder_2" in index:
        raise LoadError(f"{spec.base} is a {index.get('_class_name')} model: only SD1.5-shaped models are served yet.")
    vae = paths.get("vae", base)
    return StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", local_files_only=True),
        text_encoder=_from_folder(CLIPTextModel, base, "text_encoder", dtype),
        unet=_from_folder(UNet2DConditionModel, paths.get("unet", base), "unet", dtype),
        vae=_from_folder(_vae_class(vae), vae, "vae", dtype),
        scheduler=LCMScheduler.from_config(LCMScheduler.load_config(base, subfolder="scheduler")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _from_single_file(path: Path, dtype: torch.dtype, download: bool) -> StableDiffusionPipeline:
    """A checkpoint of one file. Its configs come from a folder of its name beside it, or the hub's copy of SD1.5's."""
    beside = path.with_suffix("")
    has_configs = (beside / "model_index.json").is_file()
    pipe = StableDiffusionPipeline.from_single_file(
        str(path),
        torch_dtype=dtype,
        safety_checker=None,
        requires_safety_checker=False,
        local_files_only=has_configs or not download,
        **({"config": str(beside)} if has_configs else {}),
    )
    if fetching.is_few_step(ModelSpec(str(path))) and pipe.unet.config.time_cond_proj_dim is None:
        raise LoadError(f"{path} is a full LCM, which loads only from a diffusers folder or hub id.")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def _from_folder(kind: type, path: Path, subfolder: str, dtype: torch.dtype):
    """A module from `path/subfolder` where that exists, else from `path`; the fp16 variant where there is no other."""
    folder = path / subfolder if subfolder and (path / subfolder).is_dir() else path
    variants = {".fp16." in file.name for file in folder.glob("*.safetensors")}
    return kind.from_pretrained(
        folder,
        variant="fp16" if variants == {True} else None,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
    )


def _vae_class(path: Path) -> type:
    folder = path / "vae" if (path / "vae").is_dir() else path
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in VAES:
        raise LoadError(f"{folder} is a {name}: the VAE must be an {' or '.join(VAES)}.")
    return VAES[name]


def _check_fit(spec: ModelSpec, pipe: StableDiffusionPipeline, controlnet: ControlNetModel | None) -> None:
    """Parts of different families load one by one and fail only in the middle of a frame: compare them here."""
    unet, vae = pipe.unet.config, pipe.vae.config
    if unet.in_channels != vae.latent_channels:
        raise LoadError(
            f"The UNet of {spec.unet or spec.base} takes {unet.in_channels} channels and the VAE of "
            f"{spec.vae or spec.base} gives {vae.latent_channels}: they belong to different models."
        )
    width = pipe.text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise LoadError(
            f"The UNet of {spec.unet or spec.base} reads prompts of width {unet.cross_attention_dim} and the text "
            f"encoder of {spec.base} writes {width}: they belong to different models."
        )
    if controlnet is not None:
        mine = (controlnet.config.in_channels, controlnet.config.cross_attention_dim)
        theirs = (unet.in_channels, unet.cross_attention_dim)
        same_blocks = tuple(controlnet.config.block_out_channels) == tuple(unet.block_out_channels)
        if mine != theirs or not same_blocks:
            raise LoadError(
                f"ControlNet {spec.controlnet} (channels {mine[0]}, prompt width {mine[1]}) does not fit the UNet of "
                f"{spec.unet or spec.base} (channels {theirs[0]}, prompt width {theirs[1]})."
            )
