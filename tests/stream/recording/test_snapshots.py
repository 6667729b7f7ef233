"""Pictures that know how they were made: the PNG's settings written, read, and asked for over HTTP."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.settings import Controls
from stream.recording import snapshots
from tests.stream.fakes import SIZE, solid
from tests.stream.peers import until

PROMPT = 'Ölgemälde, 油絵, Гуашь, 🎨 "quoted" \\ \n\x00 end'


class Source:
    kind = "test"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_snapshot_gives_back_its_picture_and_its_settings():
    rgb = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    controls = Controls(prompt=PROMPT, strength=0.3, steps=4, lora_weights={"ink": 0.5})
    settings = snapshots.settings_of(rgb, controls, "one", "mini", "cpu")
    png = snapshots.write(rgb, settings)
    assert snapshots.read(png) == settings
    assert Controls(**settings["controls"]) == controls
    assert (settings["size"], settings["model"], settings["stream"]) == ("40x24", "mini", "one")
    with Image.open(io.BytesIO(png)) as image:  # another reader agrees, and finds no chunk to be damaged
        image.load()
        assert np.array_equal(np.asarray(image.convert("RGB")), rgb)
        assert snapshots.json.loads(image.text["lcmirror"]) == settings


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False)))
def test_any_text_survives(values):
    assert snapshots.read(snapshots.write(solid(1, 2, 3, 8), values)) == values


@pytest.mark.parametrize("chunks", [b"", chunk(b"iTXt", b"Title\0\0\0\0\0hello"), chunk(b"tEXt", b"lcmirror\0{}")])
def test_a_foreign_png_says_that_it_is_none(chunks):
    png = cv2.imencode(".png", solid(1, 2, 3, 8))[1].tobytes()
    with pytest.raises(snapshots.NoSettings, match="holds no settings"):
        snapshots.read(png[:-12] + chunks + png[-12:])


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_settings_are_none(text):
    png = cv2.imencode(".png", solid(1, 2, 3, 8))[1].tobytes()
    with pytest.raises(snapshots.NoSettings):
        snapshots.read(png[:-12] + chunk(b"iTXt", b"lcmirror\0\0\0\0\0" + text) + png[-12:])


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_no_bytes_lead_anywhere(noise, length):
    for png in (noise, snapshots.SIGNATURE + noise, snapshots.SIGNATURE + struct.pack(">Q", length) + noise):
        with pytest.raises(snapshots.NoSettings):
            snapshots.read(png)


@pytest.mark.parametrize("cut", [9, 40, 150])
def test_a_cut_off_snapshot_is_none(cut):
    png = snapshots.write(solid(1, 2, 3, 8), {"version": 1})
    with pytest.raises(snapshots.NoSettings):
        snapshots.read(png[: min(cut, len(png) - 30)])


async def test_the_newest_picture_comes_with_the_controls_that_made_it(server):
    route = "/api/streams/one/snapshot"
    status, body = await server.get(route)
    assert (status, "no picture" in body["error"]) == (404, True)
    assert server.streams.find("one") is None
    await server.patch("/api/streams/one/controls", prompt=PROMPT, steps=3)
    stream = server.streams.get("one")
    publication, _ = stream.publish(Source())
    publication.put(solid(10, 120, 250))
    await until(lambda: stream.last_picture is not None)
    await server.patch("/api/streams/one/controls", prompt="later", steps=1)
    async with server.http.get(server.url + route) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        assert response.headers["Content-Disposition"].startswith('attachment; filename="one-')
        png = await response.read()
    settings = snapshots.read(png)
    assert Controls(**settings["controls"]) == Controls(prompt=PROMPT, steps=3)
    assert (settings["model"], settings["device"], settings["size"]) == ("fake", "fake", f"{SIZE}x{SIZE}")
    with Image.open(io.BytesIO(png)) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (250, 120, 10)


async def test_a_snapshot_is_guarded_like_all_else(start_server):
    server = await start_server(token="s3cret")
    async with server.http.get(f"{server.url}/api/streams/one/snapshot") as response:
        assert response.status == 401
    assert (await server.get("/api/streams/Bad_Name/snapshot?token=s3cret"))[0] == 400
