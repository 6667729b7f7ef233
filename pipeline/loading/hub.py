"""A model's files: reference (hub id, folder, file) -> local path, checked early, fetched when allowed.

A hub reference is owner/name, or owner/name/folder or owner/name/file.safetensors for a part of a repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.batch import Report
from pipeline.errors import LoadError, first_line
from pipeline.settings import ModelSpec

from . import checkpoints, layouts


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
        if path.suffix.lower() in layouts.PICKLES:
            raise LoadError(
                f"{reference} is a pickle checkpoint, which can run code when opened: convert it to .safetensors."
            )
        if path.exists():
            layouts.check(part, path, replaced={name for name in ("unet", "vae") if getattr(spec, name)})
        elif not _may_be_on_the_hub(reference):
            if path.suffix == ".safetensors" or "/" in reference or reference.startswith("."):
                raise LoadError(f"There is no file or folder {reference}.")
            if part != "base":
                raise LoadError(
                    f"The {checkpoints.called(part)} {reference!r} is neither a file, a folder nor a hub id "
                    "(owner/name)."
                )
            raise LoadError(
                f"{reference!r} is neither a preset, a file, a folder nor a hub id (owner/name): "
                "`python main.py models` lists the presets."
            )


def _may_be_on_the_hub(reference: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, inside = _split(reference)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    if inside and Path(repo.partition("/")[0]).is_dir():
        return False  # a path that begins with a folder of this machine
    return "/" in repo and not (inside and {"", ".", ".."}.intersection(inside.split("/")))


def _split(reference: str) -> tuple[str, str]:
    """owner/name/folder/... -> (owner/name, folder/...)"""
    owner, _, rest = reference.partition("/")
    name, _, inside = rest.partition("/")
    return f"{owner}/{name}" if rest else owner, inside


def configs(reference: str, *, download: bool, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """A base's model_index.json and its UNet's config.json ({} where it has no UNet), which tell what all the rest is.

    Raises LoadError.
    """
    index, unet = "model_index.json", "unet/config.json"
    folder = Path(reference) if Path(reference).exists() else _cached(reference, "base")
    if folder is None:
        if not download:
            raise _not_here(reference, "base")

        def needed(names: list[str], inside: str) -> list[str]:
            wanted = [f"{inside}/{name}".strip("/") for name in (index, unet)]
            return [name for name in wanted if name in names or name == wanted[0]]

        folder = _download(reference, report, needed)
    return layouts.read_json(folder / index), layouts.read_json(folder / unet) if (folder / unet).is_file() else {}


def locate(reference: str, part: str, *, download: bool, report: Report) -> Path:
    """The local folder or file of a reference. A hub id comes from the local cache, or from the hub if `download`."""
    path = Path(reference)
    if path.exists():
        return path
    cached = _cached(reference, part)
    if cached is not None:
        return cached
    if not download:
        raise _not_here(reference, part)

    def needed(names: list[str], inside: str) -> list[str]:
        wanted = layouts.needed_files(names, part, reference, inside)
        if not any(name.endswith(".safetensors") for name in wanted):
            held = layouts.offer(names, reference)
            raise LoadError(f"{reference} holds no .safetensors weights that LCMirror can read{held}.")
        return wanted

    return _download(reference, report, needed)


def _not_here(reference: str, part: str) -> LoadError:
    return LoadError(
        f"The {checkpoints.called(part)} {reference} is not on disk, or not all of it: "
        "`python main.py models pull NAME` fetches a preset's."
    )


def _cached(reference: str, part: str) -> Path | None:
    """A hub reference in the local cache if all that loading needs is there."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    repo, inside = _split(reference)
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
    except IncompleteSnapshotError as error:  # it misses some of the repository's files: some that matter?
        folder = Path(error.snapshot_path)
        names = [file.path for file in get_cached_repo_tree(repo)]
        if not part.startswith("lora"):  # either set of weights will do
            names = [name for name in names if ".safetensors" not in name or (folder / name).is_file()]
    except LocalEntryNotFoundError:
        return None
    needed = layouts.needed_files(names, part, reference, inside)
    if not needed or not all((folder / name).is_file() for name in needed):
        return None
    return None if layouts.lacking(part, folder / inside) else folder / inside


def on_disk(spec: ModelSpec) -> bool:
    """Whether everything that a spec names can be had without the network."""
    try:
        for part, reference in references(spec).items():
            locate(reference, part, download=False, report=lambda detail, progress: None)
    except LoadError:
        return False
    return True


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub's client raises, as one sentence."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except RepositoryNotFoundError as error:
        raise LoadError(f"There is no file or folder {repo} here, and the hub has no public model {repo}.") from error
    except HfHubHTTPError as error:
        raise LoadError(f"The hub refuses {repo}: {first_line(error)}.") from error
    except OfflineModeIsEnabled as error:
        raise LoadError(
            f"{repo} is not on disk and HF_HUB_OFFLINE keeps the network off: unset it, "
            "or use `--model mini`, which needs no download."
        ) from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise LoadError(
            f"The hub cannot be reached for {repo} ({type(error).__name__}): go online, "
            "or use `--model mini`, which needs no download."
        ) from error
    except (OSError, RuntimeError) as error:
        raise LoadError(f"Downloading {repo} failed: {first_line(error)}.") from error


def _download(reference: str, report: Report, needed: Callable[[list[str], str], list[str]]) -> Path:
    """Fetch a part of a hub repository; progress counts bytes over all its files.

    needed(the repository's files, what the reference names inside it) -> those to fetch.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from tqdm.auto import tqdm

    repo, inside = _split(reference)
    report(f"Asking the hub for {repo}", None)
    with _hub_errors(repo):
        info = HfApi().model_info(repo, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = needed([*sizes], inside)
        if absent := [name for name in wanted if name not in sizes]:
            raise LoadError(f"{repo} has no {absent[0]}{layouts.offer(sizes, repo)}.")
        total, done = sum(sizes[name] for name in wanted), 0

        class Progress(tqdm):
            """The hub client's progress bar, also told to `report`."""

            def update(self, n=1):
                shown = super().update(n)
                report(f"Downloading {repo}", min(1.0, (done + self.n) / max(1, total)))
                return shown

        for name in wanted:
            hf_hub_download(repo, name, revision=info.sha, tqdm_class=Progress)
            done += sizes[name]
        # All is here now: this only notes, where later look-ups without a network read it, which commit it was.
        return Path(snapshot_download(repo, allow_patterns=wanted)) / inside
