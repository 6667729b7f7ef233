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
    DiffusionPipeline,
    LCMScheduler,
    MotionAdapter,
    T2IAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from . import animation, fetching, loras
from .annotators import ANNOTATORS
from .devices import pick_dtype
from .errors import LoadError, first_line
from .extras import AdapterExtra, ControlNetExtra, Extra, InpaintingExtra
from .families import Family, family_of_folder, family_of_keys
from .fetching import Report
from .lcm import NoiseSchedule
from .settings import ModelSpec

VAES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


@dataclass(frozen=True)
class Components:
    """A loaded model: modules in eval mode on one device, weights in one dtype."""

    family: Family
    tokenizers: tuple[CLIPTokenizer, ...]
    text_encoders: tuple[CLIPTextModel, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    extras: tuple[Extra, ...]
    schedule: NoiseSchedule
    loras: loras.LoraSet | None
    device: torch.device
    dtype: torch.dtype

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes the mask as an input."""
        return any(isinstance(extra, InpaintingExtra) for extra in self.extras)


def load_components(spec: ModelSpec, device: torch.device, *, download: bool, report: Report) -> Components:
    """Find (or fetch) every part, load it, check that the parts fit, fuse the LoRAs. Raises LoadError."""
    fetching.check(spec)
    for name in spec.annotators:
        if name not in ANNOTATORS:
            raise LoadError(f"There is no control image {name!r}: choose from {', '.join(sorted(ANNOTATORS))}.")
    dtype = pick_dtype(spec.dtype, device)
    paths = {
        part: fetching.locate(reference, download=download, report=report)
        for part, reference in fetching.references(spec).items()
    }
    report("Loading weights", None)
    transformers.utils.logging.disable_progress_bar()  # `report` tells progress
    try:
        family, pipe = _load_pipeline(spec, paths, dtype, download)
        nets = [
            _from_path(ControlNetModel, paths[part], "", dtype, download)
            for part in fetching.references(spec)
            if part.startswith("controlnet")
        ]
        adapter = _from_folder(T2IAdapter, paths["adapter"], "", dtype) if spec.adapter else None
        motion = _from_folder(MotionAdapter, paths["motion"], "", dtype) if spec.motion else None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(f"{spec.base} cannot be loaded: {first_line(error)}.") from error
    text_encoders = tuple(getattr(pipe, name) for _, name, _ in family.encoders)
    _check_fit(spec, pipe.unet.config, pipe.vae.config, sum(encoder.config.hidden_size for encoder in text_encoders))
    _check_extras(spec, family, pipe.unet.config, nets, adapter)
    if motion is not None:
        _check_motion(spec, family, pipe.unet.config, motion)
        pipe.unet = UNetMotionModel.from_unet2d(pipe.unet, motion).to(dtype)

    pipe.to(device)
    if family.upcasts and pipe.vae.config.get("force_upcast") and dtype == torch.float16:
        pipe.vae.to(torch.float32)
    lora_set = None
    if spec.loras:
        report("Fusing LoRAs", None)
        files = {lora.name: str(lora_file(paths[f"lora {lora.name}"])) for lora in spec.loras}
        lora_set = loras.extract(pipe, text_encoders, spec.loras, files)
        lora_set.apply({lora.name: lora.weight for lora in spec.loras})
    extras: list[Extra] = []
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        extras.append(InpaintingExtra())
    extras += [ControlNetExtra(net, of.control, of.weight) for net, of in zip(nets, spec.controlnets, strict=True)]
    if adapter is not None:
        extras.append(AdapterExtra(adapter, spec.control))
    for module in (*text_encoders, pipe.unet, pipe.vae, *extras):
        module.to(device).eval().requires_grad_(False)
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
) -> tuple[Family, DiffusionPipeline]:
    """The base with the parts that replace its own: a container, whose __call__ is never used."""
    base = paths["base"]
    if base.is_file():
        family, pipe = _from_single_file(base, dtype, download)
        if spec.unet:
            pipe.unet = _from_folder(UNet2DConditionModel, paths["unet"], "unet", dtype)
        if spec.vae:
            pipe.vae = _from_path(_vae_class(paths["vae"]), paths["vae"], "vae", dtype, download)
        return family, pipe
    family = family_of_folder(base)
    vae = paths.get("vae", base)
    parts = {
        "unet": _from_folder(UNet2DConditionModel, paths.get("unet", base), "unet", dtype),
        "vae": _from_path(_vae_class(vae), vae, "vae", dtype, download, like=base),
        "scheduler": LCMScheduler.from_config(LCMScheduler.load_config(base, subfolder="scheduler")),
    }
    for tokenizer, encoder, kind in family.encoders:
        parts[tokenizer] = CLIPTokenizer.from_pretrained(base, subfolder=tokenizer, local_files_only=True)
        parts[encoder] = _from_folder(kind, base, encoder, dtype)
    return family, family.pipeline(**parts, **family.without)


def _from_single_file(path: Path, dtype: torch.dtype, download: bool) -> tuple[Family, DiffusionPipeline]:
    """A checkpoint of one file. Its configs come from a folder of its name beside it, or from the hub."""
    family = family_of_keys(set(fetching.check_safetensors(path)))
    beside = path.with_suffix("")
    has_configs = (beside / "model_index.json").is_file()
    pipe = family.pipeline.from_single_file(
        str(path),
        torch_dtype=dtype,
        local_files_only=has_configs or not download,
        **family.without,
        **({"config": str(beside)} if has_configs else {}),
    )
    if fetching.is_few_step(ModelSpec(str(path))) and pipe.unet.config.time_cond_proj_dim is None:
        raise LoadError(f"{path} is a full LCM, which loads only from a diffusers folder or hub id.")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return family, pipe


def _from_path(kind: type, path: Path, subfolder: str, dtype: torch.dtype, download: bool, like: Path | None = None):
    """A module from a folder, or from one file, whose config lies in a folder of its name beside it, in `like` (a whole
    model's folder) or on the hub."""
    if path.is_dir():
        return _from_folder(kind, path, subfolder, dtype)
    beside = path.with_suffix("")
    own = {"config": str(beside)} if (beside / "config.json").is_file() else {}
    if not own and like is not None:
        own = {"config": str(like), "subfolder": subfolder}
    return kind.from_single_file(str(path), torch_dtype=dtype, local_files_only=bool(own) or not download, **own)


def _from_folder(kind: type, path: Path, subfolder: str, dtype: torch.dtype):
    """A module from `path/subfolder` where that exists, else from `path`; the fp16 variant where there is no other."""
    folder = path / subfolder if subfolder and (path / subfolder).is_dir() else path
    config = json.loads((folder / "config.json").read_text())
    if (made := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise LoadError(f"{folder} is a {made}, not a {kind.__name__}.")
    names = [file.name for file in folder.glob("*.safetensors") if "non_ema" not in file.name]
    variants = {".fp16" in name for name in names if name.startswith(("model", "diffusion_pytorch_model"))}
    return kind.from_pretrained(
        folder,
        variant="fp16" if variants == {True} else None,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
    )


def _vae_class(path: Path) -> type:
    if path.is_file():
        return AutoencoderKL
    folder = path / "vae" if (path / "vae").is_dir() else path
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in VAES:
        raise LoadError(f"{folder} is a {name}: the VAE must be an {' or '.join(VAES)}.")
    return VAES[name]


def _check_fit(spec: ModelSpec, unet: dict, vae: dict, prompt_width: int) -> None:
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
    spec: ModelSpec, family: Family, unet: dict, nets: list[ControlNetModel], adapter: T2IAdapter | None
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


def _check_motion(spec: ModelSpec, family: Family, unet: dict, motion: MotionAdapter) -> None:
    if spec.controlnets or spec.adapter:
        raise LoadError("A motion adapter does not go together with a ControlNet or T2I-Adapter yet.")
    if motion.config.get("conv_in_channels"):
        raise LoadError(f"Motion adapter {spec.motion} wants a picture as a further input, which is not served.")
    if (length := motion.config.motion_max_seq_length) < animation.WINDOW:
        raise LoadError(f"Motion adapter {spec.motion} sees {length} frames at once; {animation.WINDOW} are needed.")
    theirs, mine = list(unet.block_out_channels), list(motion.config.block_out_channels)
    if family.pooled or mine != theirs or unet.in_channels != unet.out_channels:
        raise LoadError(
            f"Motion adapter {spec.motion} was made for an SD1.5 UNet of channels {mine}: {spec.unet or spec.base} is "
            f"an {family.name} one of {theirs} that takes {unet.in_channels}."
        )
