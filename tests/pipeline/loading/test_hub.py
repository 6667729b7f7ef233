"""Downloads, against a hub of our own on loopback: what is fetched, found again without a network, and refused."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

import command_line
import options
from pipeline import LoadError, ModelSpec
from pipeline.loading.hub import check, locate, on_disk
from pipeline.loading.layouts import needed_files
from pipeline.presets import LCM_LORA_SD15, LCM_LORA_SDXL, LCM_LORA_SSD_1B
from tests import paths

COMMIT = "a" * 40
MINI = str(paths.MINI)
WITH_VAE = ModelSpec(MINI, vae="own/vae")


def safetensors(payload: bytes = b"\0" * 4, name: str = "w") -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [len(payload) // 4], "data_offsets": [0, len(payload)]}})
    return struct.pack("<Q", len(header)) + header.encode() + payload


def pipeline_of(unet: dict, *encoders: str, scheduler: str = "EulerDiscreteScheduler") -> dict[str, bytes]:
    """A repository in diffusers' layout, with its UNet's true config and no true weights."""
    parts = [part for number in encoders for part in (f"tokenizer{number}", f"text_encoder{number}")]
    index = {part: ["a library", "A class"] for part in ("unet", "vae", *parts)}
    configs = {f"{part}/config.json": unet if part == "unet" else {"part": part} for part in index}
    configs["scheduler/scheduler_config.json"] = {}
    configs["model_index.json"] = {**index, "scheduler": ["diffusers", scheduler]}
    weights = [f"{part}/{'model' if 'text' in part else 'diffusion_pytorch_model'}.safetensors" for part in index]
    files = {name: json.dumps(config).encode() for name, config in configs.items()}
    return files | {name: safetensors(name=name) for name in weights if "tokenizer" not in name}


SD_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
XL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
}
SSD_UNET = {
    **XL_UNET,
    "transformer_layers_per_block": [0, 2, 4],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
VEGA_UNET = {
    **XL_UNET,
    "transformer_layers_per_block": [0, 1, 2],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
REPOSITORIES = {
    "own/sd": pipeline_of(SD_UNET, ""),
    "own/xl": pipeline_of(XL_UNET, "", "_2"),
    "own/ssd": pipeline_of(SSD_UNET, "", "_2"),
    "own/vega": pipeline_of(VEGA_UNET, "", "_2"),
    "own/refiner": pipeline_of(XL_UNET, "_2"),
    "own/lcm": pipeline_of({**SD_UNET, "time_cond_proj_dim": 256}, "", scheduler="LCMScheduler"),
    "own/other": {"model_index.json": b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "Flux"]}'},
    "own/one-file": {"dream.safetensors": safetensors(), "README.md": b""},
    "own/loras": {"ink.safetensors": safetensors(name="ink.lora_A.weight"), "gold.safetensors": safetensors()},
    "own/adapters": {
        file: content
        for kind in ("canny", "depth")
        for file, content in {
            f"{kind}/config.json": json.dumps({"of": kind}).encode(),
            f"{kind}/diffusion_pytorch_model.safetensors": safetensors(name=f"adapter.{kind}"),
        }.items()
    },
    "own/vae": {"config.json": b"{}", "diffusion_pytorch_model.safetensors": safetensors(), "big.bin": b"x" * 99},
    "own/pickles": {"config.json": b"{}", "model.ckpt": b"x"},
}


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub's API that a download asks for. `broken` names a file that is cut off.

    served: the files that were sent.
    """

    broken: str | None = None
    served: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api/models/").strip("/")
        repo = "/".join(path.split("/")[:2])
        files = REPOSITORIES.get(repo)
        if files is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.path.startswith("/api/"):
            if "/tree/" in self.path:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        name = path.split("/", 4)[4]  # owner/name/resolve/revision/...
        if name == Hub.broken and self.command == "GET":
            return self._answer(503, b"", {})
        if self.command == "GET":
            Hub.served.append(name)
        data = files[name]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self._answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": etag})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Points the hub client at our hub and an empty cache."""
    from huggingface_hub import constants, file_download, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for module in (constants, file_download.constants, hf_api.constants):
        monkeypatch.setattr(module, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "broken", None)
    Hub.served.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield tmp_path
    server.shutdown()


def quiet(detail, progress):
    pass


def test_what_was_pulled_is_found_without_a_network(hub, monkeypatch):
    told = []
    folder = locate("own/vae", "vae", download=True, report=lambda detail, progress: told.append((detail, progress)))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert [progress for _, progress in told if progress is not None][-1] == 1.0
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("own/vae", "vae", download=False, report=quiet) == folder
    assert on_disk(WITH_VAE)


def test_an_interrupted_pull_does_not_count_and_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(Hub, "broken", "diffusion_pytorch_model.safetensors")
    with pytest.raises(LoadError, match="own/vae"):
        locate("own/vae", "vae", download=True, report=quiet)
    assert not on_disk(WITH_VAE)
    monkeypatch.setattr(Hub, "broken", None)
    locate("own/vae", "vae", download=True, report=quiet)
    assert on_disk(WITH_VAE)


@pytest.mark.parametrize(("repo", "words"), [("own/nothing", "no public model"), ("own/pickles", "no .safetensors")])
def test_what_the_hub_does_not_have(hub, repo, words):
    with pytest.raises(LoadError, match=words):
        locate(repo, "base", download=True, report=quiet)


def test_a_network_that_is_switched_off(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="own/vae is not on disk and HF_HUB_OFFLINE keeps the network off"):
        locate("own/vae", "vae", download=True, report=quiet)
    with pytest.raises(LoadError, match="The VAE own/vae is not on disk"):
        locate("own/vae", "vae", download=False, report=quiet)


def model_named(*arguments: str) -> ModelSpec:
    """What these options of `serve` ask for."""
    return options.model_from(command_line.parsed(["serve", *arguments]))[1]


@pytest.mark.parametrize(
    ("repo", "side", "loras"),
    [
        ("own/sd", 512, (LCM_LORA_SD15,)),
        ("own/xl", 1024, (LCM_LORA_SDXL,)),
        ("own/ssd", 1024, (LCM_LORA_SSD_1B,)),
        ("own/vega", 1024, ()),
        ("own/lcm", 512, ()),
    ],
)
def test_two_configs_tell_what_an_id_names(hub, repo, side, loras, capsys):
    """Before anything large is fetched: the family, its size, and the LCM-LoRA that fits."""
    spec = model_named("--model", repo)
    assert (spec.width, spec.height, spec.loras) == (side, side, loras)
    assert set(Hub.served) == {"model_index.json", "unet/config.json"}
    told = capsys.readouterr().out
    assert ("not few-step by itself" in told) == (repo != "own/lcm")
    assert ("none is known" in told) == (repo == "own/vega")
    assert not on_disk(ModelSpec(repo))
    locate(repo, "base", download=True, report=quiet)
    assert on_disk(ModelSpec(repo))
    assert set(Hub.served) == set(REPOSITORIES[repo])


def test_what_an_id_names_is_told_from_the_cache_too(hub, monkeypatch):
    from huggingface_hub import constants

    locate("own/ssd", "base", download=True, report=quiet)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_named("--model", "own/ssd").loras == (LCM_LORA_SSD_1B,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "own/refiner"], "own/refiner is an SDXL refiner"),
        (["--model", "own/one-file"], r"has no model_index\.json \(name one part, as own/one-file/dream\.safetensors"),
        (["--model", "own/other"], "own/other is a FluxPipeline: only SD1.5- and SDXL-shaped models"),
        (["--model", "own/nothing"], "no public model own/nothing"),
    ],
)
def test_an_id_that_is_no_base(hub, arguments, words):
    with pytest.raises(LoadError, match=words):
        model_named(*arguments)


def test_a_part_of_a_repository_is_named_by_its_path(hub):
    told = r"own/loras holds 2 \.safetensors files .*own/loras/gold\.safetensors.*gold\.safetensors, ink\.safetensors"
    with pytest.raises(LoadError, match=told):
        locate("own/loras", "lora ink", download=True, report=quiet)
    with pytest.raises(LoadError, match=r"as own/adapters/canny; there are canny, depth"):
        locate("own/adapters", "adapter", download=True, report=quiet)
    with pytest.raises(LoadError, match=r"own/loras has no silver\.safetensors"):
        locate("own/loras/silver.safetensors", "lora ink", download=True, report=quiet)
    assert Hub.served == []
    assert locate("own/loras/ink.safetensors", "lora ink", download=True, report=quiet).name == "ink.safetensors"
    folder = locate("own/adapters/depth", "adapter", download=True, report=quiet)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert set(Hub.served) == {"ink.safetensors", *(f"depth/{file.name}" for file in folder.iterdir())}
    for reference, part in (("own/loras/ink.safetensors", "lora ink"), ("own/adapters/depth", "adapter")):
        locate(reference, part, download=False, report=quiet)
    with pytest.raises(LoadError, match="own/adapters/canny is not on disk"):
        locate("own/adapters/canny", "adapter", download=False, report=quiet)


@pytest.mark.parametrize("reference", ["nonsense", "a/b--c", "a/b//c", "a/b/../c", "tests/b/c", "../x", "a b/c"])
def test_what_is_no_hub_id_is_refused_early(reference):
    with pytest.raises(LoadError):
        check(ModelSpec(reference))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down.lora_down.weight", "--lora"),
        ("something.weight", "is no model: tensors like something.weight"),
    ],
)
def test_a_single_file_that_is_something_else(tmp_path, key, words):
    file = Path(tmp_path / "model.safetensors")
    file.write_bytes(safetensors(name=key))
    with pytest.raises(LoadError, match=words):
        check(ModelSpec(str(file)))


def test_only_what_loading_reads_is_wanted():
    pipeline = [
        "model_index.json", "README.md", "DreamShaper.safetensors", "feature_extractor/preprocessor_config.json",
        "safety_checker/model.safetensors", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
        "tokenizer/vocab.json", "text_encoder/config.json", "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert set(needed_files(pipeline, "base", "a/b")) == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    shards = ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"]
    variants = ["unet/config.json", *(f"unet/diffusion_pytorch_model{shard}" for shard in shards)]
    variants += ["unet/diffusion_pytorch_model.safetensors.index.json"]
    halves = ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    halves += [f"unet/diffusion_pytorch_model.fp16{shard}" for shard in shards]
    assert set(needed_files(variants, "unet", "a/b")) == set(variants)
    assert set(needed_files([*variants, *halves], "unet", "a/b")) == {"unet/config.json", *halves}
    taesd = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors",
             "taesd_decoder.safetensors", "taesd_encoder.safetensors"]  # fmt: skip
    assert set(needed_files(taesd, "vae", "a/b")) == {"config.json", "diffusion_pytorch_model.safetensors"}
    lora = ["README.md", "pytorch_lora_weights.safetensors"]
    assert needed_files(lora, "lora ink", "a/b") == ["pytorch_lora_weights.safetensors"]
