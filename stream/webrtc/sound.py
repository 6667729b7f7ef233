"""Sound tracks: a publisher's is drained into the stream, one per viewer sends it on in step with the picture."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.codecs.opus import OpusEncoder
from aiortc.mediastreams import MediaStreamError, convert_timebase
from av import AudioFrame
from av.frame import Frame

from stream.clocks import MediaClock
from stream.engine.frames import SAMPLE_RATE, Sound
from stream.publications import Publication
from stream.streams import Stream

CLOCK_HZ = SAMPLE_RATE  # RTP's clock for Opus, whatever is sent (RFC 7587, 4.1)
TIME_BASE = Fraction(1, CLOCK_HZ)
PIECE = SAMPLE_RATE // 50  # samples in an Opus packet: 20 ms
BITRATE_BPS = 128_000  # stereo music is as good as its source from there on; aiortc's 96 kbit/s are meant for speech
STEP = SAMPLE_RATE // 100  # samples; times that are less apart belong to one unbroken sound
MAX_HELD = 250  # pieces, 5 s, 1 MB
MAX_LAG_S = 4.5  # sound is held back as long as pictures take, but never for so long that it would be pushed out
# Sound leaves, and is reported, as if it were of so much earlier: browsers play it later than their synchronisers say.
# Measured in Chromium: 48 ms with sound and picture of its own (see benchmarks/av_sync.py). About half of that is safe
# to allow for, since some of it may be the measuring.
LEAD_S = 0.025
LATE_S = 0.2  # sound that is later than this, with newer behind it, is left out


class MusicEncoder(OpusEncoder):
    """aiortc's is set up for speech: the "voip" mode cuts off the bass and favours vowels.

    And it stamps the first packet behind a gap as if there were none.
    """

    def __init__(self):
        super().__init__()
        self.codec.bit_rate = BITRATE_BPS
        self.codec.options = {"application": "audio"}

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert frame.pts is not None
        assert frame.time_base is not None
        payloads, _ = super().encode(frame, force_keyframe)
        return payloads, convert_timebase(frame.pts, frame.time_base, TIME_BASE)


async def drain_sound(
    track: MediaStreamTrack,
    publication: Publication,
    clock: MediaClock,
    arrived_s: Callable[[int | None], float | None],
) -> None:
    """Hand decoded sound to the stream as it comes. arrived_s: when the packet of a timestamp came in."""
    try:
        while True:
            frame = await track.recv()
            assert isinstance(frame, AudioFrame)
            assert frame.pts is not None
            arrival_s = arrived_s(frame.pts)
            captured_s = clock.captured_s(frame.pts / CLOCK_HZ, time.monotonic() if arrival_s is None else arrival_s)
            publication.put_sound(frame.to_ndarray().reshape(-1, 2), captured_s)
    except MediaStreamError:
        return


@dataclass(frozen=True, slots=True)
class Piece:
    """One packet's worth: int16 [PIECE, 2], its first sample's number in the track, and when that was captured."""

    samples: np.ndarray
    pts: int
    captured_s: float


class Packetizer:
    """Cuts sound into pieces of equal length, numbered by its own times: unbroken sound stays unbroken, what is missing
    becomes a jump, and of what comes twice (a successor's beginning) the second is left out."""

    def __init__(self):
        self._origin_s: float | None = None
        self._end = 0  # number of the sample after the last one taken
        self._rest = np.empty((0, 2), np.int16)  # what does not fill a piece yet

    def cut(self, sound: Sound) -> list[Piece]:
        """The pieces that are complete now."""
        samples = sound.samples
        if self._origin_s is None:
            self._origin_s = sound.captured_s
        begin = round((sound.captured_s - self._origin_s) * SAMPLE_RATE)
        pieces = []
        if begin - self._end > STEP:
            pieces = self._pieces(np.zeros((-len(self._rest) % PIECE, 2), np.int16))  # the rest waits no longer
            self._end = max(self._end, begin)
        elif self._end - begin > STEP:
            samples = samples[self._end - begin :]
        return pieces + self._pieces(samples)

    def _pieces(self, samples: np.ndarray) -> list[Piece]:
        assert self._origin_s is not None  # of the first sound
        begin = self._end - len(self._rest)
        self._end += len(samples)
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) - len(joined) % PIECE
        self._rest = joined[whole:]
        return [
            Piece(joined[at : at + PIECE], begin + at, self._origin_s + (begin + at) / SAMPLE_RATE)
            for at in range(0, whole, PIECE)
        ]


class SoundTrack(MediaStreamTrack):
    """What one viewer hears: each piece leaves when the picture of its moment does; nothing while nothing comes."""

    kind = "audio"

    def __init__(self, stream: Stream):
        super().__init__()
        self._stream = stream
        self._running_loop = asyncio.get_running_loop()
        self._packetizer = Packetizer()
        self._held: deque[Piece] = deque(maxlen=MAX_HELD)
        self._came = asyncio.Event()
        self._leave = stream.listen(self._put)
        self.moment_s = 0.0  # captured_s of the pictures that the newest piece is to be heard with

    async def recv(self) -> AudioFrame:
        while self.readyState == "live":
            now_s = time.monotonic()
            while len(self._held) > 1 and now_s - self._due_s(self._held[0]) > LATE_S:
                self._held.popleft()
            if self._held and self._due_s(self._held[0]) <= now_s:
                return self._frame(self._held.popleft())
            self._came.clear()
            try:
                async with asyncio.timeout(self._due_s(self._held[0]) - now_s if self._held else None):
                    await self._came.wait()
            except TimeoutError:
                continue
        raise MediaStreamError

    def stop(self) -> None:
        self._leave()
        super().stop()

    def _due_s(self, piece: Piece) -> float:
        return piece.captured_s - LEAD_S + min(self._stream.lag.seconds, MAX_LAG_S)

    def _put(self, sound: Sound) -> None:
        if not self._running_loop.is_closed():
            self._running_loop.call_soon_threadsafe(self._take, sound)

    def _take(self, sound: Sound) -> None:
        self._held.extend(self._packetizer.cut(sound))
        self._came.set()

    def _frame(self, piece: Piece) -> AudioFrame:
        self.moment_s = piece.captured_s - LEAD_S
        frame = AudioFrame.from_ndarray(piece.samples.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, piece.pts, TIME_BASE
        return frame
