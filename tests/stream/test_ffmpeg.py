"""FFmpeg's own WHIP client publishes H264 and Opus: a program we did not write, in a process of its own."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .peers import Viewer, until

ROOT = Path(__file__).resolve().parents[2]
FPS, FRAMES = 25, 75

pytestmark = pytest.mark.skipif("whip" not in av.formats_available, reason="this build of FFmpeg has no WHIP muxer")


@pytest.fixture
def server_url():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stream.serve_fake"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.terminate()
    process.wait(10)


@pytest.fixture
def certificate(tmp_path):
    """The P-256 pair that the muxer needs for DTLS: its options."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}


def publish(url: str, certificate: dict[str, str], rgb: tuple[int, int, int]) -> None:
    """Three seconds of one colour with silence beside it, in real time."""
    with av.open(url, "w", format="whip", options=certificate) as output:
        video = output.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "profile": "baseline"})
        video.width = video.height = 128
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = FPS
        audio = output.add_stream("libopus", rate=48_000, layout="stereo")
        started_s, silence = time.monotonic(), np.zeros((1, 2 * 48_000 // FPS), np.int16)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((128, 128, 3), rgb, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, number * 48_000 // FPS, Fraction(1, 48_000)
            output.mux(audio.encode(sound))
            time.sleep(max(0.0, started_s + (number + 1) / FPS - time.monotonic()))


async def test_ffmpeg_publishes_and_is_watched(server_url, certificate):
    import asyncio

    async with aiohttp.ClientSession() as http, Viewer(http, f"{server_url}/whep/one") as viewer:
        publishing = asyncio.create_task(
            asyncio.to_thread(publish, f"{server_url}/whip/one", certificate, (200, 40, 40))
        )
        await viewer.sees((40, 40, 200))
        await publishing

        async def stats():
            async with http.get(f"{server_url}/api/streams/one") as response:
                return await response.json()

        await until(lambda: ended(stats))
        told = await stats()
    assert told["frames_in"] >= FRAMES - 5, told
    assert told["frames_in"] - told["frames_out"] - told["frames_dropped"] in range(4)


async def ended(stats) -> bool:
    return (await stats())["publishing"] is False
