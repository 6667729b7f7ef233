"""Which of the streams that a publisher sends of one picture is taken: simulcast layers, told apart by their SSRC."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

SILENT_S = 0.5  # a layer that sends nothing for so long, while another one does, is switched off, unless it is slow
PAUSES = 3  # how many of its pauses, or of those of who sends, a slow layer is given
PAUSES_OF_S = 5.0  # the longest pause of this long, and of this long before, is a layer's pace
GONE_S = 2.0  # and after this it is no layer any more
ASK_EVERY_S = 1.0  # for the keyframe of one whose size is unknown
MOST_ASKED = 3
MAX_LAYERS = 16  # that are told apart


@dataclass(slots=True)
class Layer:
    heard_s: float
    size: tuple[int, int] | None = None
    asked_s: float = float("-inf")
    asked: int = 0
    pauses_s: tuple[float, float] = (0.0, 0.0)  # the longest, of this while and of the one before
    while_s: float = float("-inf")

    def hear(self, now_s: float) -> None:
        pause_s, self.heard_s = now_s - self.heard_s, now_s
        if now_s - self.while_s >= PAUSES_OF_S:
            self.pauses_s, self.while_s = (0.0, self.pauses_s[0]), now_s
        if pause_s < GONE_S:  # else it was switched off
            self.pauses_s = max(self.pauses_s[0], pause_s), self.pauses_s[1]

    @property
    def patience_s(self) -> float:
        return max(SILENT_S, PAUSES * max(self.pauses_s))


class Layers:
    """The layers of one publisher. The first that comes is taken at once, and left for one that fits better, or for
    another one where it falls silent, at that one's next keyframe.

    size: (width, height) of the model, None where it is unknown: the layer that fits best is the smallest one that is
    not smaller, else the largest.
    """

    def __init__(self, size: tuple[int, int] | None = None):
        self._wanted = size
        self._layers: dict[int, Layer] = {}
        self.current: int | None = None
        self._heard_s = float("-inf")  # any of them

    @property
    def ignored(self) -> int:
        """How many others send."""
        return sum(
            ssrc != self.current and self._heard_s - layer.heard_s < max(GONE_S, layer.patience_s)
            for ssrc, layer in self._layers.items()
        )

    def take(self, ssrc: int, begins_key: bool, size: tuple[int, int] | None, now_s: float) -> bool:
        """Whether a packet of that SSRC is used. begins_key, size: what it tells of a keyframe that begins with it."""
        layer = self._layers.get(ssrc)
        if layer is None:
            self._forget(now_s)
            if len(self._layers) >= MAX_LAYERS:
                return False
            layer = self._layers[ssrc] = Layer(now_s)
        layer.hear(now_s)
        self._heard_s = now_s
        layer.size = size or layer.size
        if self.current is None:
            self.current = ssrc
        if ssrc != self.current and begins_key:
            if self._is_silent(layer, now_s):
                for other in self._layers.values():
                    other.asked = 0  # the best of those that are heard is looked for anew
                self.current = ssrc
            elif size is not None and self._is_better(layer):  # what has its size has its beginning
                self.current = ssrc
        return ssrc == self.current

    def ask(self, now_s: float) -> int | None:
        """The SSRC of a layer that is not taken and whose keyframe is wanted now, if there is one."""
        others = [(ssrc, layer) for ssrc, layer in self._layers.items() if ssrc != self.current]
        for ssrc, layer in sorted(others, key=lambda one: self._rank(one[1].size or (0, 0))):
            if now_s - layer.heard_s >= SILENT_S:
                continue
            is_silent = self._is_silent(layer, now_s)
            fits_better = layer.size is None or self._is_better(layer)
            is_wanted = is_silent or (fits_better and layer.asked < MOST_ASKED)
            if is_wanted and now_s - layer.asked_s >= (SILENT_S if is_silent else ASK_EVERY_S):
                layer.asked_s, layer.asked = now_s, layer.asked + 1
                return ssrc
        return None

    def ends_with(self, ssrcs: Collection[int], now_s: float) -> bool:
        """Whether nothing is left that comes, once these have said goodbye."""
        for ssrc in ssrcs:
            if ssrc in self._layers:
                self._layers[ssrc].heard_s = float("-inf")
        return not any(now_s - layer.heard_s < layer.patience_s for layer in self._layers.values())

    def _is_better(self, layer: Layer) -> bool:
        current = None if self.current is None else self._layers.get(self.current)
        if current is None:
            return True
        return layer.size is not None and current.size is not None and self._rank(layer.size) < self._rank(current.size)

    def _rank(self, size: tuple[int, int]) -> tuple[bool, int]:
        """The least is the best."""
        width, height = size
        if self._wanted is None or width < self._wanted[0] or height < self._wanted[1]:
            return True, -width * height
        return False, width * height

    def _is_silent(self, other: Layer, now_s: float) -> bool:
        """The layer that is taken, while another one sends: for longer than the pace of either explains."""
        current = None if self.current is None else self._layers.get(self.current)
        return current is None or now_s - current.heard_s >= max(current.patience_s, other.patience_s)

    def _forget(self, now_s: float) -> None:
        gone = [
            ssrc
            for ssrc, layer in self._layers.items()
            if ssrc != self.current and now_s - layer.heard_s >= max(GONE_S, layer.patience_s)
        ]
        for ssrc in gone:
            del self._layers[ssrc]


def retransmissions(offer: str) -> dict[int, int]:
    """SSRC of what is sent again -> SSRC of what it is of (RFC 5576, 4.2; RFC 4588)."""
    pairs = re.findall(r"^a=ssrc-group:FID ([0-9]{1,10}) ([0-9]{1,10})\s*$", offer, re.MULTILINE)
    return {int(again): int(first) for first, again in pairs}
