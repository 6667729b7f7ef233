"""Real WebRTC peers for the tests: an aiortc publisher of one colour and tone, a viewer that keeps what is newest."""

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
from av import AudioFrame, VideoFrame

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


class ToneTrack(MediaStreamTrack):
    """A sine of `hertz`, which may be changed, as loud on the right as on the left; 20 ms pieces in real time."""

    kind = "audio"

    def __init__(self, hertz: float):
        super().__init__()
        self.hertz, self.sent = hertz, 0  # samples
        self._started_s = time.monotonic()

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(max(0.0, self._started_s + self.sent / 48_000 - time.monotonic()))
        wave = np.sin(2 * np.pi * self.hertz * (self.sent + np.arange(960)) / 48_000) * 8000
        frame = AudioFrame.from_ndarray(wave.astype(np.int16).repeat(2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self.sent, Fraction(1, 48_000)
        self.sent += 960
        return frame


def pitch(samples: np.ndarray) -> float:
    """The loudest frequency in Hz of int16 [n, 2]; 0 for silence."""
    if not len(samples) or np.abs(samples).max() < 500:
        return 0.0
    spectrum = np.abs(np.fft.rfft(samples[:, 0] * np.hanning(len(samples))))
    return float(spectrum.argmax() * 48_000 / len(samples))


class Publisher:
    """`async with Publisher(...)`: publishes over WHIP; leaving deletes the resource."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        rgb=(200, 40, 40),
        codec="VP8",
        audio: bool | MediaStreamTrack = False,  # True: silence
        fps=20.0,
    ):
        self.http, self.url, self.codec = http, url, codec
        self.audio = AudioStreamTrack() if audio is True else audio
        self.track = ColourTrack(rgb, fps)
        self.peer = new_peer()
        self.location = ""
        self.headers: dict[str, str] = {}

    async def offer(self) -> str:
        if self.audio:
            self.peer.addTransceiver(self.audio, direction="sendonly")
        prefer(self.peer.addTransceiver(self.track, direction="sendonly"), self.codec)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def __aenter__(self) -> Publisher:
        self.location = await negotiate(self.http, self.url, self.peer, await self.offer())
        return self

    async def __aexit__(self, *_) -> None:
        await leave(self.http, self.url, self.location, self.peer)


class Viewer:
    """`async with Viewer(...)`: watches over WHEP and keeps draining, so that `frame` is the newest; with `sound`,
    `sounds` keeps all that is heard."""

    def __init__(self, http: aiohttp.ClientSession, url: str, codec="VP8", sound=False):
        self.http, self.url, self.codec, self.sound = http, url, codec, sound
        self.peer = new_peer()
        self.frame: VideoFrame | None = None
        self.pts: list[int] = []
        self.sounds: list[AudioFrame] = []
        self.location = ""
        self._came = asyncio.Event()

    async def offer(self) -> str:
        prefer(self.peer.addTransceiver("video", direction="recvonly"), self.codec)
        if self.sound:
            self.peer.addTransceiver("audio", direction="recvonly")
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def __aenter__(self) -> Viewer:
        tracks = []
        self.peer.on("track", tracks.append)
        self.location = await negotiate(self.http, self.url, self.peer, await self.offer())
        self._tasks = [asyncio.create_task(self._drain(track)) for track in tracks]
        return self

    async def __aexit__(self, *_) -> None:
        for task in self._tasks:
            task.cancel()
        await leave(self.http, self.url, self.location, self.peer)

    async def _drain(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "audio":
                    self.sounds.append(frame)
                    continue
                self.frame = frame
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

    def heard(self, pieces: int = 10) -> np.ndarray:
        """The newest sound, int16 [n, 2]."""
        newest = [frame.to_ndarray().reshape(-1, 2) for frame in self.sounds[-pieces:]]
        return np.concatenate(newest) if len(newest) == pieces else np.empty((0, 2), np.int16)

    async def hears(self, hertz: float, within: float = 15.0) -> None:
        """Wait until the newest sound has that pitch."""
        await until(lambda: abs(pitch(self.heard()) - hertz) <= within)

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
