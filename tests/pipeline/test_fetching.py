"""Downloads, against a hub of our own on loopback: what is fetched, found again without a network, and refused."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import LoadError, ModelSpec
from pipeline.fetching import check, locate, needed_files, on_disk

COMMIT = "a" * 40


def safetensors(payload: bytes = b"\0" * 4, name: str = "w") -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [len(payload) // 4], "data_offsets": [0, len(payload)]}})
    return struct.pack("<Q", len(header)) + header.encode() + payload


REPOSITORIES = {
    "own/vae": {"config.json": b"{}", "diffusion_pytorch_model.safetensors": safetensors(), "big.bin": b"x" * 99},
    "own/pickles": {"config.json": b"{}", "model.ckpt": b"x"},
}


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub's API that a download asks for. `broken` names a file that is cut off."""

    broken: str | None = None

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
        name = path.rsplit("/", 1)[1]
        if name == Hub.broken and self.command == "GET":
            return self._answer(503, b"", {})
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
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield tmp_path
    server.shutdown()


def quiet(detail, progress):
    pass


def test_what_was_pulled_is_found_without_a_network(hub, monkeypatch):
    told = []
    folder = locate("own/vae", download=True, report=lambda detail, progress: told.append((detail, progress)))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert [progress for _, progress in told if progress is not None][-1] == 1.0
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("own/vae", download=False, report=quiet) == folder
    assert on_disk(ModelSpec("own/vae"))


def test_an_interrupted_pull_does_not_count_and_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(Hub, "broken", "diffusion_pytorch_model.safetensors")
    with pytest.raises(LoadError, match="own/vae"):
        locate("own/vae", download=True, report=quiet)
    assert not on_disk(ModelSpec("own/vae"))
    monkeypatch.setattr(Hub, "broken", None)
    locate("own/vae", download=True, report=quiet)
    assert on_disk(ModelSpec("own/vae"))


@pytest.mark.parametrize(("repo", "words"), [("own/nothing", "no public model"), ("own/pickles", "no .safetensors")])
def test_what_the_hub_does_not_have(hub, repo, words):
    with pytest.raises(LoadError, match=words):
        locate(repo, download=True, report=quiet)


def test_an_unreachable_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="cannot be reached"):
        locate("own/vae", download=True, report=quiet)


@pytest.mark.parametrize("reference", ["nonsense", "a/b--c", "a/b/c", "../x", "a b/c"])
def test_what_is_no_hub_id_is_refused_early(reference):
    with pytest.raises(LoadError):
        check(ModelSpec(reference))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down.lora_down.weight", "--lora"),
        ("something.weight", "no whole checkpoint"),
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
    assert set(needed_files(pipeline)) == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    taesd = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors",
             "taesd_decoder.safetensors", "taesd_encoder.safetensors"]  # fmt: skip
    assert set(needed_files(taesd)) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert needed_files(["README.md", "pytorch_lora_weights.safetensors"]) == ["pytorch_lora_weights.safetensors"]
