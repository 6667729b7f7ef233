"""FFmpeg publishes into a server in another process and is watched, and heard, by an aiortc viewer."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import aiohttp
import numpy as np
import pytest

from tests.ffmpeg import PER_PICTURE, SAMPLE_RATE, certificate, needs_whip, publish
from tests.paths import ROOT
from tests.stream.peers import Viewer, until

WAVE = np.sin(2 * np.pi * 1000 * np.arange(PER_PICTURE) / SAMPLE_RATE) * 8000
TONE = [WAVE.astype(np.int16)[:, None].repeat(2, axis=1)] * 75  # 1 kHz
RED = [np.full((128, 128, 3), (200, 40, 40), np.uint8)] * 75  # three seconds

pytestmark = needs_whip


@pytest.fixture
def server_url():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stream.serve_fake"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.terminate()
    process.wait(10)


async def test_ffmpeg_publishes_and_is_watched_and_heard(server_url, tmp_path):
    async with aiohttp.ClientSession() as http, Viewer(http, f"{server_url}/whep/one", sound=True) as viewer:
        publishing = asyncio.create_task(
            asyncio.to_thread(publish, f"{server_url}/whip/one", certificate(tmp_path), RED, TONE)
        )
        await viewer.sees((40, 40, 200))
        await viewer.hears(1000)
        await publishing

        async def stats():
            async with http.get(f"{server_url}/api/streams/one") as response:
                return await response.json()

        await until(lambda: ended(stats))
        told = await stats()
    assert told["frames_in"] >= len(RED) - 5, told
    assert told["frames_in"] - told["frames_out"] - told["frames_dropped"] in range(4)


async def ended(stats) -> bool:
    return (await stats())["publishing"] is False
