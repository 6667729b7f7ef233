"""Real WebRTC peers for the tests: an aiortc publisher of one colour, and a viewer that keeps the newest frame."""

from __future__ import annotations

import asyncio
import contextlib
import time
from fractions import Fraction

import aiohttp
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from aiortc.rtcrtpsender import RTCRtpSender
from av import VideoFrame

PATIENCE_S = 20.0  # a watchdog, not a measurement


def new_peer() -> RTCPeerConnection:
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


def prefer(transceiver, codec: str) -> None:
    codecs = RTCRtpSender.getCapabilities("video").codecs
    transceiver.setCodecPreferences([c for c in codecs if c.mimeType.lower() == f"video/{codec}".lower()])


class ColourTrack(MediaStreamTrack):
    """One colour, which may be changed, at `fps` frames a second."""

    kind = "video"

    def __init__(self, rgb: tuple[int, int, int], fps: float = 20.0, size: int = 96):
        super().__init__()
        self.rgb, self.fps, self.size, self.sent = rgb, fps, size, 0
        self._started_s = time.monotonic()

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(max(0.0, self._started_s + self.sent / self.fps - time.monotonic()))
        frame = VideoFrame.from_ndarray(np.full((self.size, self.size, 3), self.rgb, np.uint8), format="rgb24")
        frame.pts, frame.time_base = round(self.sent / self.fps * 90_000), Fraction(1, 90_000)
        self.sent += 1
        return frame


class Publisher:
    """`async with Publisher(...)`: publishes over WHIP; leaving deletes the resource."""

    def __init__(self, http: aiohttp.ClientSession, url: str, rgb=(200, 40, 40), codec="VP8", audio=False, fps=20.0):
        self.http, self.url, self.codec, self.audio = http, url, codec, audio
        self.track = ColourTrack(rgb, fps)
        self.peer = new_peer()
        self.location = ""
        self.headers: dict[str, str] = {}

    async def offer(self) -> str:
        if self.audio:
            self.peer.addTransceiver(AudioStreamTrack(), direction="sendonly")
        prefer(self.peer.addTransceiver(self.track, direction="sendonly"), self.codec)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def __aenter__(self) -> Publisher:
        self.location = await negotiate(self.http, self.url, self.peer, await self.offer())
        return self

    async def __aexit__(self, *_) -> None:
        await leave(self.http, self.url, self.location, self.peer)


class Viewer:
    """`async with Viewer(...)`: watches over WHEP and keeps draining, so that `frame` is the newest."""

    def __init__(self, http: aiohttp.ClientSession, url: str, codec="VP8"):
        self.http, self.url, self.codec = http, url, codec
        self.peer = new_peer()
        self.frame: VideoFrame | None = None
        self.pts: list[int] = []
        self.location = ""
        self._came = asyncio.Event()

    async def __aenter__(self) -> Viewer:
        prefer(self.peer.addTransceiver("video", direction="recvonly"), self.codec)
        tracks = []
        self.peer.on("track", tracks.append)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        self.location = await negotiate(self.http, self.url, self.peer, self.peer.localDescription.sdp)
        self._task = asyncio.create_task(self._drain(tracks[0]))
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        await leave(self.http, self.url, self.location, self.peer)

    async def _drain(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                self.frame = await track.recv()
                self.pts.append(self.frame.pts)
                self._came.set()

    def colour(self) -> np.ndarray | None:
        """Mean red, green, blue of the newest frame."""
        return None if self.frame is None else self.frame.to_ndarray(format="rgb24").mean(axis=(0, 1))

    async def sees(self, rgb: tuple[int, int, int], within: float = 25.0) -> np.ndarray:
        """Wait until the newest frame has that colour."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await self._came.wait()
                self._came.clear()
                if np.abs(self.colour() - rgb).max() <= within:
                    return self.colour()

    async def next_frame(self) -> VideoFrame:
        self._came.clear()
        await asyncio.wait_for(self._came.wait(), PATIENCE_S)
        return self.frame


async def negotiate(http: aiohttp.ClientSession, url: str, peer: RTCPeerConnection, offer: str) -> str:
    """POST the offer, apply the answer; the session's path."""
    async with http.post(url, data=offer, headers={"Content-Type": "application/sdp"}) as response:
        answer = await response.text()
        assert response.status == 201, answer
        assert response.content_type == "application/sdp"
        assert response.headers["ETag"]
    await peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    return response.headers["Location"]


async def leave(http: aiohttp.ClientSession, url: str, location: str, peer: RTCPeerConnection) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        async with http.delete(aiohttp.client.URL(url).join(aiohttp.client.URL(location))) as response:
            assert response.status in (200, 404)
    await peer.close()


async def until(condition, *arguments):
    """Poll an (async or plain) condition until it returns something true; the watchdog fails the test otherwise."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            result = condition(*arguments)
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.02)
