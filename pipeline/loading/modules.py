"""One part of a model -> a module, from a folder or from one file in any of the key styles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    LCMScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from pipeline.errors import LoadError, first_line

from . import checkpoints, layouts
from .families import Family

# diffusers 0.42 warns of every model that is cast, also of those that want nothing kept in float32.
logging.getLogger("diffusers.models.modeling_utils").addFilter(
    lambda record: "should be kept in float32: []" not in record.getMessage()
)

VAES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}
LACKS = "The {} {} lacks weights that its config asks for: is it another model's config?"


@contextmanager
def _loading(part: str, path: Path) -> Iterator[None]:
    """What the model libraries raise over a part, as one sentence that names it."""
    try:
        yield
    except NotImplementedError as error:  # torch's word for moving a weight that was never filled
        raise LoadError(LACKS.format(checkpoints.called(part), path)) from error
    except OSError as error:
        beside = path.with_suffix("")
        if path.is_dir() or (beside / "config.json").is_file() or (beside / "model_index.json").is_file():
            raise LoadError(f"The {checkpoints.called(part)} {path} cannot be loaded: {first_line(error)}.") from error
        raise LoadError(
            f"The {checkpoints.called(part)} {path} is one file without configs: put them into {beside}/, or let them "
            f"be fetched from the hub ({first_line(error)})."
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, SingleFileComponentError) as error:
        raise LoadError(f"The {checkpoints.called(part)} {path} cannot be loaded: {first_line(error)}.") from error


@dataclass(frozen=True)
class Loader:
    """Loads the parts of one model. configs: a folder of the base's configs, which need not be there."""

    family: Family
    configs: Path
    dtype: torch.dtype
    download: bool

    def load(self, part: str, kind: type, path: Path) -> Any:
        """A module from a folder or from one file. Raises LoadError."""
        with _loading(part, path):
            if path.is_dir():
                return _from_folder(kind, layouts.folder_of(part, path), self.dtype)
            config = self._config(part, kind, path)
            if not hasattr(kind, "from_single_file"):
                return _from_tensors(part, kind, path, config).to(self.dtype)
            is_here = bool(config) and Path(config["config"]).is_dir()
            how = {"torch_dtype": self.dtype, "local_files_only": is_here or not self.download, **config}
            if kind is UNet2DConditionModel:
                module = kind.from_single_file(_unet_tensors(path), **how, **_guidance_input(path))
            else:
                module = kind.from_single_file(str(path), **how)
        _check_filled(part, path, module)
        return module

    def _config(self, part: str, kind: type, path: Path) -> dict[str, str]:
        """Where the config of a part in one file lies, as arguments of from_single_file: in a folder of its name beside
        it, in the base's own part of the same class, or in the family's published model. ControlNets and motion
        adapters diffusers tells apart by itself; TAESD's sizes are those that its class has by default."""
        own, the_base_has = path.with_suffix(""), self.configs / part / "config.json"
        if (own / "config.json").is_file():
            return {"config": str(own)}
        if the_base_has.is_file() and layouts.read_json(the_base_has).get("_class_name") == kind.__name__:
            return {"config": str(the_base_has.parent)}
        if kind in (UNet2DConditionModel, AutoencoderKL):
            return {"config": self.family.published, "subfolder": part}
        return {}

    def pipeline(self, paths: dict[str, Path]) -> DiffusionPipeline:
        """The base with the parts that replace its own: a container, whose __call__ is never used."""
        base, parts = paths["base"], {}
        for part, kind_of in (("unet", lambda path: UNet2DConditionModel), ("vae", _vae_class)):
            if part in paths or base.is_dir():
                path = paths.get(part, base)
                parts[part] = self.load(part, kind_of(path), path)
        with _loading("base", base):
            if base.is_file():
                return self._from_single_file(base, parts)
            parts["scheduler"] = LCMScheduler.from_config(LCMScheduler.load_config(base, subfolder="scheduler"))
            for tokenizer, encoder, kind in self.family.encoders:
                parts[tokenizer] = CLIPTokenizer.from_pretrained(base, subfolder=tokenizer, local_files_only=True)
                parts[encoder] = _from_folder(kind, base / encoder, self.dtype)
        return self.family.pipeline(**parts, **self.family.without)

    def _from_single_file(self, path: Path, parts: dict[str, Any]) -> DiffusionPipeline:
        """A checkpoint of one file. Its configs come from a folder of its name beside it, or from the hub."""
        has_configs = (self.configs / "model_index.json").is_file()
        pipe = self.family.pipeline.from_single_file(
            str(path),
            torch_dtype=self.dtype,
            local_files_only=has_configs or not self.download,
            **parts,
            **self.family.without,
            **({"config": str(self.configs)} if has_configs else {}),
        )
        for name, module in pipe.components.items():
            if name not in parts and isinstance(module, torch.nn.Module):
                _check_filled("base", path, module)
        if "unet" not in parts:
            _check_guidance(path, pipe.unet)
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
        return pipe


def _check_filled(part: str, file: Path, module: torch.nn.Module) -> None:
    """diffusers leaves weights that a file lacks without memory. Raises LoadError."""
    if any(weight.is_meta for weight in module.parameters()):
        raise LoadError(LACKS.format(checkpoints.called(part), file))


def _check_guidance(file: Path, unet: UNet2DConditionModel) -> None:
    """diffusers drops what a config does not ask for without a word. Raises LoadError."""
    if _guidance_input(file) and unet.config.time_cond_proj_dim is None:
        raise LoadError(f"{file} is a full LCM, which loads only from a diffusers folder or hub id.")


def _guidance_input(unet: Path) -> dict[str, int]:
    """What a full LCM's config says and its base's does not."""
    widths = [tensor["shape"][1] for name, tensor in checkpoints.header(unet).items() if "cond_proj" in name]
    return {"time_cond_proj_dim": widths[0]} if widths else {}


def _unet_tensors(file: Path) -> dict[str, Tensor]:
    """diffusers knows the original code's names by a prefix, which a UNet alone may come without."""
    tensors = load_file(file)
    bare = any(name.startswith("input_blocks.") for name in tensors)
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()} if bare else tensors


def _from_tensors(part: str, kind: Any, file: Path, config: dict[str, str]) -> torch.nn.Module:
    """A module of which diffusers knows its own key style only."""
    module = kind.from_config(kind.load_config(config["config"]) if config else {})
    tensors = load_file(file)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        source = "the config that was found" if config else "a usual one"
        raise LoadError(
            f"The {checkpoints.called(part)} {file} has other tensors than {source} asks for: "
            f"put its own config.json into {file.with_suffix('')}/."
        )
    module.load_state_dict(tensors)
    return module


def _from_folder(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The fp16 variant where there is no other."""
    if (made := layouts.read_json(folder / "config.json").get("_class_name", kind.__name__)) != kind.__name__:
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
        is_tiny = any(name.startswith(("encoder.layers.", "decoder.layers.")) for name in checkpoints.header(path))
        return AutoencoderTiny if is_tiny else AutoencoderKL
    folder = layouts.folder_of("vae", path)
    name = layouts.read_json(folder / "config.json").get("_class_name")
    if name not in VAES:
        raise LoadError(f"{folder} is a {name}: the VAE must be an {' or '.join(VAES)}.")
    return VAES[name]
