"""FFmpeg publishes into a server in another process and is watched by an aiortc viewer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.ffmpeg import certificate, needs_whip, publish

from .peers import Viewer, until

ROOT = Path(__file__).resolve().parents[2]
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


async def test_ffmpeg_publishes_and_is_watched(server_url, tmp_path):
    async with aiohttp.ClientSession() as http, Viewer(http, f"{server_url}/whep/one") as viewer:
        publishing = asyncio.create_task(
            asyncio.to_thread(publish, f"{server_url}/whip/one", certificate(tmp_path), RED)
        )
        await viewer.sees((40, 40, 200))
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
