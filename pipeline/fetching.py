"""Where a model's files are: reference (hub id, folder, file) -> local path, checked early, fetched when allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .errors import LoadError, first_line
from .settings import ModelSpec

if TYPE_CHECKING:
    from .families import Family

Report = Callable[[str, float | None], None]

PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
PIPELINE_FOLDERS = {"unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"}
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own bound


def references(spec: ModelSpec) -> dict[str, str]:
    """Everything a spec names: part -> reference."""
    parts = {"base": spec.base, "unet": spec.unet, "vae": spec.vae, "adapter": spec.adapter, "motion": spec.motion}
    for number, net in enumerate(spec.controlnets, start=1):
        parts["controlnet" if number == 1 else f"controlnet {number}"] = net.path
    parts |= {f"lora {lora.name}": lora.path for lora in spec.loras}
    return {part: reference for part, reference in parts.items() if reference is not None}


def check(spec: ModelSpec) -> None:
    """What can be said about a spec without loading it: names, suffixes, headers. Raises LoadError."""
    for part, reference in references(spec).items():
        path = Path(reference)
        if path.suffix.lower() in PICKLES:
            raise LoadError(
                f"{reference} is a pickle checkpoint, which can run code when opened: convert it to .safetensors."
            )
        if path.is_dir():
            _check_folder(part, path)
        elif path.is_file():
            (_check_checkpoint if part == "base" else check_safetensors)(path)
        elif path.suffix == ".safetensors" or path.is_absolute() or reference.startswith("."):
            raise LoadError(f"There is no file or folder {reference}.")
        elif not _is_hub_id(reference):
            raise LoadError(
                f"{reference!r} is neither a preset, a file, a folder nor a hub id (owner/name): "
                "`python main.py models` lists the presets."
            )


def _is_hub_id(reference: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(reference)
    except HFValidationError:
        return False
    return reference.count("/") == 1


def _check_checkpoint(path: Path) -> None:
    """Of a single file: is it a whole model? Its key names tell."""
    names = check_safetensors(path)
    if not any(name.startswith("model.diffusion_model.") for name in names):
        kind = "a LoRA: name it with --lora" if any("lora" in name for name in names) else "no whole checkpoint"
        raise LoadError(f"{path} is {kind}.")


def check_safetensors(path: Path) -> dict:
    """The header of a .safetensors file: JSON, tensor name -> {dtype, shape, data_offsets}. Raises LoadError."""
    if path.suffix != ".safetensors":
        raise LoadError(f"{path} is not a .safetensors file.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        try:
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            if not ends or 8 + length + max(ends) != size:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise LoadError(f"{path} is broken or cut off: download it again.") from error
    return header


def is_few_step(spec: ModelSpec) -> bool:
    """Whether a model runs in a few steps as it is: it was saved with an LCM scheduler, or takes guidance as an input.

    Looks at what is on disk; a hub id that was never fetched counts as not.
    """
    path = Path(spec.base)
    if path.is_file():
        return any("cond_proj" in name for name in check_safetensors(path))
    try:
        folder = locate(spec.base, download=False, report=lambda detail, progress: None)
        index = json.loads((folder / "model_index.json").read_text())
        unet = json.loads((folder / "unet" / "config.json").read_text())
    except (LoadError, OSError, ValueError):
        return False
    return index.get("scheduler", ["", ""])[1] == "LCMScheduler" or unet.get("time_cond_proj_dim") is not None


def family(spec: ModelSpec) -> Family:
    """Of what is on disk; a hub id that was never fetched counts as SD1.5."""
    from .families import SD, family_of_folder, family_of_keys

    path = Path(spec.base)
    if path.is_file():
        return family_of_keys(set(check_safetensors(path)))
    try:
        return family_of_folder(locate(spec.base, download=False, report=lambda detail, progress: None))
    except (LoadError, OSError, ValueError):
        return SD


def _check_folder(part: str, folder: Path) -> None:
    if part == "base" and not (folder / "model_index.json").is_file():
        raise LoadError(f"{folder} is not a diffusers model folder: it has no model_index.json.")
    weights = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    if not weights:
        pickles = [file for file in (*folder.glob("*"), *folder.glob("*/*")) if file.suffix in PICKLES]
        if pickles:
            raise LoadError(
                f"{folder} holds pickle weights only ({pickles[0].name}), which can run code when opened: "
                "convert them to .safetensors."
            )
        raise LoadError(f"{folder} holds no .safetensors weights.")
    for file in weights:
        check_safetensors(file)


def needed_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that loading reads: configs, tokenizer, and one set of safetensors weights.

    A pipeline repository (with a model_index.json) is read by folders, any other at its root; where weights come both
    plain and as an fp16 variant, the variant is half the download and enough for the GPU.
    """
    names = sorted(names)
    is_pipeline = "model_index.json" in names
    wanted = []
    for name in names:
        path = PurePosixPath(name)
        folder = str(path.parent)
        if path.suffix not in {".json", ".txt", ".safetensors"} or "non_ema" in path.name:
            continue
        if is_pipeline and not (folder in PIPELINE_FOLDERS or name == "model_index.json"):
            continue
        if not is_pipeline and (folder != "." or path.name.startswith(("taesd_", "taesdxl_"))):
            continue
        if name.endswith(".safetensors") and name.removesuffix(".safetensors") + ".fp16.safetensors" in names:
            continue
        wanted.append(name)
    return wanted


def locate(reference: str, *, download: bool, report: Report) -> Path:
    """The local folder or file of a reference. A hub id comes from the local cache, or from the hub if `download`."""
    path = Path(reference)
    if path.exists():
        return path
    cached = _cached(reference)
    if cached is None and not download:
        raise LoadError(f"The weights of {reference} are not on disk: `python main.py models pull NAME` fetches them.")
    return _download(reference, report) if cached is None else cached


def _cached(repo: str) -> Path | None:
    """A hub repository's folder in the local cache if all that loading needs is there."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except IncompleteSnapshotError as error:  # it misses some of the repository's files: some that matter?
        folder = Path(error.snapshot_path)
        needed = needed_files(file.path for file in get_cached_repo_tree(repo))
        return folder if all((folder / name).is_file() for name in needed) else None
    except LocalEntryNotFoundError:
        return None


def on_disk(spec: ModelSpec) -> bool:
    """Whether everything that a spec names can be had without the network."""

    try:
        for reference in references(spec).values():
            folder = locate(reference, download=False, report=lambda detail, progress: None)
            if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]:
                return False
    except LoadError:
        return False
    return True


def _download(repo: str, report: Report) -> Path:
    """Fetch what loading needs of one hub repository; progress counts bytes over all its files."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from tqdm.auto import tqdm

    report(f"Asking the hub for {repo}", None)
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        wanted = needed_files(sizes)
        if not any(name.endswith(".safetensors") for name in wanted):
            raise LoadError(f"{repo} holds no .safetensors weights that LCMirror can read.")
        total, done = sum(sizes[name] for name in wanted), 0

        class Progress(tqdm):
            """The hub client's progress bar, also told to `report`."""

            def update(self, n=1):
                shown = super().update(n)
                report(f"Downloading {repo}", min(1.0, (done + self.n) / total))
                return shown

        for name in wanted:
            hf_hub_download(repo, name, revision=info.sha, tqdm_class=Progress)
            done += sizes[name]
        # All is here now: this only notes, where later look-ups without a network read it, which commit it was.
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise LoadError(f"The hub has no public model {repo}: check the name.") from error
    except HfHubHTTPError as error:
        raise LoadError(f"The hub refuses {repo}: {first_line(error)}.") from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise LoadError(
            f"The hub cannot be reached for {repo} ({type(error).__name__}): go online, "
            "or use `--model mini`, which needs no download."
        ) from error
    except (OSError, RuntimeError) as error:
        raise LoadError(f"Downloading {repo} failed: {first_line(error)}.") from error
