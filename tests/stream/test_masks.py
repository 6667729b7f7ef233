"""Masks: which bytes are one, what of them is kept and for how long, and that no other program is started for them."""

from __future__ import annotations

import contextlib
import gc
import io
import struct
import subprocess
import sys
import tracemalloc
import weakref
import zlib

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from masks import BadMask, read_mask
from render.errors import FilmError
from render.pictures import opened
from tests.paths import ROOT
from tests.stream.fakes import SIZE
from tests.stream.mutants import SIGNATURE, chunk

OTHERS = ("EPS", "GIF", "JPEG", "BMP", "TIFF", "PPM", "TGA", "ICO", "WEBP", "PCX", "SGI", "DDS")


def coded(picture: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, kind)
    return file.getvalue()


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)


def white(side: int) -> bytes:
    return coded(np.full((side, side), 255, np.uint8))


def header_of(width: int, height: int, colours: int = 0) -> bytes:
    """A PNG that says what it is, and holds nothing."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">II5B", width, height, 8, colours, 0, 0, 0)) + chunk(b"IDAT", b"")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The file that a Ghostscript leaves behind when it is started."""
    mark = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho started > {mark}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once
    with contextlib.suppress(OSError), Image.open(io.BytesIO(coded(photo(), "EPS"))) as image:
        image.load()
    assert mark.exists(), "this test would notice nothing"
    mark.unlink()
    return mark


@pytest.mark.parametrize("kind", OTHERS)
async def test_what_is_no_png_is_no_mask_and_starts_no_program(server, started, kind):
    async with server.http.put(f"{server.url}/api/streams/one/mask", data=coded(photo(), kind)) as response:
        assert (response.status, await response.json()) == (422, {"error": "The mask is not a PNG that can be read."})
    assert not started.exists()
    assert server.streams.find("one") is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_film_is_made_of_these(tmp_path, kind):
    (tmp_path / "1.png").write_bytes(coded(photo(), kind))
    assert np.abs(np.asarray(opened(tmp_path / "1.png").convert("L")).astype(int) - photo()).mean() < 40


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PPM", "TGA", "ICO"])
def test_whatever_its_name_says_a_film_is_made_of_no_others(tmp_path, started, kind):
    (tmp_path / "1.png").write_bytes(coded(photo(), kind))
    with pytest.raises(FilmError, match=r"1\.png is not a picture that can be read"):
        opened(tmp_path / "1.png")
    assert not started.exists()


def test_what_is_too_large_is_refused_by_its_header(tmp_path):
    with pytest.raises(BadMask, match=r"^The mask is 4097x8: pictures larger than 16 megapixels or 4096 a side"):
        read_mask(header_of(4097, 8))
    (tmp_path / "1.png").write_bytes(header_of(9000, 8000))
    with pytest.raises(FilmError, match=r"1.png is 9000x8000: pictures larger than 64 megapixels or 16384 a side are"):
        opened(tmp_path / "1.png")
    with pytest.raises(BadMask, match="is not a PNG"):
        read_mask(header_of(4096, 4096))


def test_what_pillow_thinks_of_a_picture_does_not_go_past_the_log():
    """In a process of its own: pytest hears warnings before anybody else."""
    animated = SIGNATURE + chunk(b"IHDR", struct.pack(">II5B", 1, 1, 8, 0, 0, 0, 0)) + chunk(b"acTL", bytes(8))
    animated += chunk(b"IDAT", zlib.compress(bytes(2))) + chunk(b"IEND", b"")
    read = "import sys; from masks import read_mask; read_mask(sys.stdin.buffer.read(), None); print(7)"
    done = subprocess.run([sys.executable, "-c", read], input=animated, capture_output=True, cwd=ROOT, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([b"7"], b"")


def test_a_palette_picture_without_a_palette_is_no_mask():
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    with pytest.raises(BadMask, match="is not a PNG"):
        read_mask(header_of(1, 1, colours=3) + pixel)
    assert read_mask(header_of(1, 1) + pixel).fitted(1, 1) == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("size", [None, (60, 40)])
def test_at_the_size_of_the_picture_a_mask_is_what_was_sent(mode, size):
    sent = np.where(photo() > 127, 255, 0).astype(np.uint8)
    picture = Image.fromarray(sent)
    if mode.endswith("A"):  # what is opaque is repainted, whatever its colour
        picture = Image.merge(mode, [*[Image.new("L", picture.size, 9)] * (len(mode) - 1), picture])
    elif mode == "I;16":
        picture = Image.fromarray(sent.astype(np.uint16) * 257)
    assert np.array_equal(read_mask(coded(picture.convert(mode)), size).fitted(60, 40), sent)


@pytest.mark.parametrize("size", [None, (64, 64), (48, 80)])
def test_at_another_size_its_border_lies_between_the_pixels_that_were_sent(size):
    grey = cv2.GaussianBlur(photo(300, 500), (0, 0), 9)
    grey = cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX)
    width, height = size or (64, 64)
    expected = np.where(cv2.resize(grey, (width, height)) > 127, 255, 0)
    assert np.array_equal(read_mask(coded(grey), size).fitted(width, height), expected)
    assert 0 < expected.mean() < 255


def test_before_the_model_is_known_as_much_is_kept_as_most_models_paint():
    sent = np.where(photo(720, 1280) > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(read_mask(coded(sent)).fitted(1280, 720), sent)
    large = np.zeros((4096, 4096), np.uint8)
    large[:, 1024:] = 255
    fitted = read_mask(coded(large)).fitted(64, 64)
    assert np.array_equal(fitted, cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_a_large_mask_takes_no_more_room_than_the_picture(start_server, is_loaded):
    def fails(report):
        raise RuntimeError("There is no model.")

    server = await start_server(load=None if is_loaded else fails)
    body, names = white(4096), 6
    url = f"{server.url}/api/streams/s%d/mask"
    tracemalloc.start()
    try:
        for number in range(names):
            async with server.http.put(url % number, data=body) as response:
                assert response.status == 204
        gc.collect()
        masks = sum(block.size for block in tracemalloc.take_snapshot().traces if block.size >= SIZE * SIZE)
    finally:
        tracemalloc.stop()
    assert all(server.streams.get(f"s{number}").mask.fitted(SIZE, SIZE).min() == 255 for number in range(names))
    assert masks / names < (64 * 1024 if is_loaded else 1.2 * 1024 * 1024)


async def test_a_mask_that_is_replaced_is_freed_at_once(server):
    url = f"{server.url}/api/streams/one/mask"
    gc.disable()
    try:
        async with server.http.put(url, data=white(64)) as response:
            assert response.status == 204
        first = weakref.ref(server.streams.get("one").mask)
        first().fitted(32, 32)
        async with server.http.put(url, data=white(64)) as response:
            assert response.status == 204
        assert first() is None
        second = weakref.ref(server.streams.get("one").mask)
        async with server.http.delete(url) as response:
            assert response.status == 204
        assert second() is None
    finally:
        gc.enable()
