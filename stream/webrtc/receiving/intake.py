"""A publisher's video on its way in: ties layers, packets and timers to what sends and decodes; on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection

from .bitstream import Malformed, coded_size
from .jitter_buffer import EncodedFrame, Payload
from .layers import Layers
from .nack import RoundTrip
from .network import ReceiverStatistics
from .receiver import Actions, VideoReceiver


async def _nowhere(*_: object) -> None:
    """Before there is a connection."""


class VideoIntake:
    """One video track's. Whoever has its packets calls `takes` with each, `take_in` with those that are taken and those
    that are sent again, and then `answer`.

    decode: takes complete frames. nack, pli: send such a message to an SSRC. is_open: whether the track goes on.
    """

    def __init__(self, layers: Layers, round_trip: RoundTrip | None = None):
        self.layers, self.video = layers, VideoReceiver(round_trip)
        self.decode: Callable[[EncodedFrame], None] = lambda frame: None
        self.nack: Callable[[int, list[int]], Awaitable[None]] = _nowhere
        self.pli: Callable[[int], Awaitable[None]] = _nowhere
        self.is_open: Callable[[], bool] = lambda: True
        self._heard_s: float | None = None
        self._wants_keyframe = False
        self._due = Actions()
        self._timer: asyncio.TimerHandle | None = None
        self._answering: set[asyncio.Task] = set()

    def statistics(self) -> ReceiverStatistics:
        return self.video.statistics(self.layers.ignored)

    def ssrc(self) -> int | None:
        """Whose packets are taken."""
        return self.layers.current

    def last_heard_s(self) -> float | None:
        """When the last packet came, on time.monotonic's clock."""
        return self._heard_s

    def want_keyframe(self) -> None:
        """The decoder cannot go on without one. From any thread; it is asked for with the next packet."""
        self._wants_keyframe = True

    def takes(self, ssrc: int, codec: str, payload: Payload) -> bool:
        """Whether a packet of that SSRC is used."""
        self._heard_s = now_s = time.monotonic()
        size = None
        if payload.begins_key:
            try:
                size = coded_size(codec, payload.data)
            except Malformed:
                size = None
        before = self.layers.current
        is_taken = self.layers.take(ssrc, payload.begins_key, size, now_s)
        if before not in (None, self.layers.current):
            self.video.restart()
        return is_taken

    def retransmitted(self, ssrc: int | None, sequence_number: int) -> int | None:
        """Of which SSRC a packet was sent again. ssrc: as the offer says; where it says nothing, that number may have
        been asked for."""
        return self.layers.current if ssrc is None and self.video.is_asked_for(sequence_number) else ssrc

    def take_in(
        self,
        sequence_number: int,
        timestamp: int,
        marker: bool,
        codec: str,
        payload_type: int,
        payload: Payload,
        is_again: bool,
    ) -> None:
        now_s = time.monotonic()
        if self._wants_keyframe:
            self._wants_keyframe = False
            self.video.want_keyframe(now_s)
        about = (sequence_number, timestamp, marker, codec, payload_type, payload)
        self._do(self.video.receive(*about, now_s, is_again))

    def ends_with(self, ssrcs: Collection[int]) -> bool:
        """Whether nothing is left that comes, once these have said goodbye (BYE, RFC 3550, 6.6)."""
        return self.layers.ends_with(ssrcs, time.monotonic())

    async def answer(self) -> None:
        """Send what is due, and see to what will be."""
        due, self._due = self._due, Actions()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s, current = time.monotonic(), self.layers.current
        if current is not None and due.nacks:
            await self.nack(current, due.nacks)
        if current is not None and due.pli:
            await self.pli(current)
        if (other := self.layers.ask(now_s)) is not None:
            await self.pli(other)
        due_s = self.video.due_s()
        if due_s is not None and self._timer is None and self.is_open():
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self.video.tick(time.monotonic()))
        task = asyncio.ensure_future(self.answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _do(self, outcome: Actions) -> None:
        for frame in outcome.frames:
            self.decode(frame)
        self._due.nacks += outcome.nacks
        self._due.pli = self._due.pli or outcome.pli
