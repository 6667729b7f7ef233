"""GStreamer's webrtcbin publishes: its certificate is RSA, and as it comes it bundles nothing."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from tests.paths import ROOT
from tests.stream.peers import Viewer

PYTHON = "/usr/bin/python3"  # the system's, for which the bindings are built
PARTS = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstWebRTC', '1.0'); "
    "from gi.repository import Gst, GstWebRTC; Gst.init(None); "
    "assert all(map(Gst.ElementFactory.find, 'webrtcbin nicesink vp8enc x264enc opusenc rtpvp8pay srtpenc'.split()))"
)


def has_parts() -> bool:
    try:
        return subprocess.run([PYTHON, "-c", PARTS], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


pytestmark = [
    pytest.mark.calm,
    pytest.mark.skipif(not has_parts(), reason="needs GStreamer's webrtcbin, libnice, x264 and python3-gi"),
]


@pytest.mark.parametrize("codec", ["VP8", "H264"])
@pytest.mark.parametrize("bundle", ["none", "max-bundle"])
async def test_gstreamer_publishes_picture_and_sound(server, codec, bundle):
    command = [PYTHON, "tests/gstreamer.py", f"{server.url}/whip/one", codec, bundle, "--sound"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        async with Viewer(server.http, f"{server.url}/whep/one", sound=True) as viewer:
            await viewer.sees((0, 0, 255))  # the fake engine swaps red and blue
            await viewer.hears(1000)
    finally:
        process.terminate()
        await process.wait()
