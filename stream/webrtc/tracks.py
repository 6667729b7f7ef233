"""Video tracks: one per viewer that sends the newest picture, a publisher's that is drained, and fitting bitrates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from fractions import Fraction

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from stream.engine.frames import Picture
from stream.engine.mailbox import Outbox
from stream.publications import Publication
from stream.streams import Stream

from .aiortc_compat import set_bitrates
from .bitrates import CEILING_BPS, FLOOR_BPS, bitrate_bps

CLOCK_HZ = 90_000  # RTP's clock for video
TIME_BASE = Fraction(1, CLOCK_HZ)
MIN_STEP = CLOCK_HZ // 1000  # libvpx rounds to microseconds and may return two timestamps that differ by 1 as equal
REPEAT_S = (
    1.0  # a still picture is sent again so often: lost packets, late joiners and receivers that wait for the next
)
SILENCE_S = 60.0  # a publisher that is there but sends no frame for so long is let go


def fit_bitrates(width: int, height: int) -> None:
    """Set what encoders are made with: one set for the process, as is the size of our pictures, the loaded model's."""
    set_bitrates(FLOOR_BPS, bitrate_bps(width, height))


class PictureTrack(MediaStreamTrack):
    """What one viewer gets: the newest picture, never a queue of them; the last one again while nothing new comes.

    Timestamps derive from capture times, so dropped frames become gaps, and strictly increase whatever happens.
    """

    kind = "video"

    def __init__(self, stream: Stream):
        super().__init__()
        self._outbox: Outbox[Picture] = Outbox(asyncio.get_running_loop())
        self._picture: Picture | None = None
        self._pts = 0
        self.moment_s = 0.0  # captured_s of the picture that was sent with self._pts
        self._sent_s = 0.0
        self.deserves_bps = CEILING_BPS  # until the size of what is sent is known
        self._leave = stream.watch(self._outbox.put)

    async def recv(self) -> VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        picture = await self._outbox.get(None if self._picture is None else REPEAT_S)
        now_s = time.monotonic()
        if self._picture is None:
            assert picture is not None  # it was waited for, however long
            height, width = picture.rgb.shape[:2]
            fit_bitrates(width, height)
            self.deserves_bps = bitrate_bps(width, height)
            # One that is left of before counts as new, or the next live picture would seem to come from the future.
            self.moment_s = max(picture.captured_s, now_s - REPEAT_S)
        elif picture is None:
            # Time passes in the timestamps too, or the next live picture would seem to jump.
            self._advance(self.moment_s + now_s - self._sent_s)
        else:
            self._advance(picture.captured_s)
        self._sent_s = now_s
        self._picture = sent = picture or self._picture
        assert sent is not None
        planes = sent.planes
        if planes is None:
            planes = await asyncio.to_thread(lambda: sent.i420)
        frame = VideoFrame.from_numpy_buffer(planes, format="yuv420p")
        frame.pts, frame.time_base = self._pts, TIME_BASE
        return frame

    def repeat(self) -> None:
        """Send the newest picture now, the last one again if nothing is newer: whoever asked for a keyframe waits."""
        if self._picture is not None:
            self._outbox.wake()

    def stop(self) -> None:
        self._leave()
        super().stop()

    def _advance(self, captured_s: float) -> None:
        self._pts += max(MIN_STEP, round((captured_s - self.moment_s) * CLOCK_HZ))
        self.moment_s = captured_s


async def drain_video(
    track: MediaStreamTrack,
    publication: Publication,
    arrived_s: Callable[[int | None], float | None],
    first_within_s: float,
    heard_s: Callable[[], float | None] = lambda: None,
) -> None:
    """Take decoded frames as fast as they come, so that latency cannot grow; returns when the sender is gone.

    arrived_s: when the frame of a timestamp came in, decoding included; None where that is not known. heard_s: when
    its last packet came; one whose packets come, though no frame can be made of them, is not gone.
    """
    patience_s = left_s = first_within_s
    try:
        while True:
            try:
                frame = await asyncio.wait_for(track.recv(), left_s)
            except TimeoutError:
                last_s = heard_s()
                if last_s is None or (left_s := last_s + patience_s - time.monotonic()) <= 0:
                    return
                continue
            assert isinstance(frame, VideoFrame)
            patience_s = left_s = SILENCE_S
            publication.put(frame, frame.time, arrived_s(frame.pts))
    except MediaStreamError:
        return


async def drain(track: MediaStreamTrack) -> None:
    """Receive and discard: aiortc queues without bound what nobody takes."""
    try:
        while True:
            await track.recv()
    except MediaStreamError:
        return
