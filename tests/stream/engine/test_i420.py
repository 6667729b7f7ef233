"""The colours that leave for the browsers are those of the picture, and are worked out once for all viewers."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Decoder, H264Encoder, H264PayloadDescriptor
from aiortc.codecs.vpx import Vp8Decoder, Vp8Encoder, VpxPayloadDescriptor
from aiortc.jitterbuffer import JitterFrame

from pipeline.settings import Controls
from stream.engine import frames
from stream.engine.frames import Picture
from stream.engine.i420 import to_i420
from stream.webrtc.tracks import PictureTrack
from tests.chromium import CLIP

CODECS = {
    "VP8": (Vp8Encoder, Vp8Decoder, VpxPayloadDescriptor),
    "H264": (H264Encoder, H264Decoder, H264PayloadDescriptor),
}
PATCH = 32
COLOURS = [*np.ndindex(2, 2, 2), (0.5, 0.5, 0.5), (0.9, 0.6, 0.4), (0.2, 0.5, 0.3), (0.4, 0.2, 0.6)]
CHART = (255 * np.array(COLOURS)).astype(np.uint8).reshape(3, 4, 3).repeat(PATCH, 0).repeat(PATCH, 1)  # 96x128


def by_swscale(rgb: np.ndarray) -> av.VideoFrame:
    """What aiortc makes of it by itself."""
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")


def picture(rgb: np.ndarray) -> Picture:
    return Picture(rgb, 0.0, 0.0, 0.0, Controls())


class Watched:
    """A stream that has this picture."""

    def __init__(self, shown: Picture):
        self._shown = shown

    def watch(self, sink):
        sink(self._shown)
        return lambda: None


async def sent(shown: Picture) -> av.VideoFrame:
    """What a new viewer's track gives to the encoder."""
    track = PictureTrack(Watched(shown))
    try:
        return await track.recv()
    finally:
        track.stop()


def through(codec: str, frame: av.VideoFrame, times: int = 4) -> np.ndarray:
    """The frame after aiortc's encoder and decoder, uint8 [h, w, 3]; as still as it is, the quality rises."""
    make_encoder, make_decoder, descriptor = CODECS[codec]
    encoder, decoder = make_encoder(), make_decoder()
    for number in range(times):
        frame.pts, frame.time_base = 3000 * number, Fraction(1, 90_000)
        payloads, timestamp = encoder.encode(frame)
        data = b"".join(descriptor.parse(payload)[1] for payload in payloads)
        decoded = decoder.decode(JitterFrame(data, timestamp))
    return decoded[-1].to_ndarray(format="rgb24")


def patches(rgb: np.ndarray) -> np.ndarray:
    """The colour in the middle of each patch of the chart, float [3, 4, 3]."""
    middle = slice(PATCH // 4, -PATCH // 4)
    return rgb.reshape(3, PATCH, 4, PATCH, 3)[:, middle, :, middle].mean((1, 3))


@pytest.mark.parametrize("codec", CODECS)
async def test_a_chart_arrives_in_its_colours_and_in_those_that_swscale_would_give_it(codec):
    arrived = patches(through(codec, await sent(picture(CHART))))
    assert np.abs(arrived - patches(through(codec, by_swscale(CHART)))).max() <= 1.5
    assert np.abs(arrived - patches(CHART)).max() <= 4


async def test_a_photo_is_that_of_swscale_but_for_rounding_and_the_finest_edges_of_colour():
    with av.open(str(CLIP)) as clip:
        photo = next(clip.decode(video=0)).to_ndarray(format="rgb24", width=176, height=144)
    frame, expected = await sent(picture(photo)), by_swscale(photo)
    assert frame.format.name == "yuv420p"
    assert (frame.width, frame.height) == (176, 144)
    assert (frame.colorspace, frame.color_range) == (expected.colorspace, expected.color_range)
    off = np.abs(frame.to_ndarray().astype(int) - expected.to_ndarray())
    assert off[:144].max() <= 1
    assert off[144:].mean() < 0.5


async def test_the_planes_are_made_once_for_all_viewers_and_stay_as_they_are(monkeypatch):
    made = []
    monkeypatch.setattr(frames, "to_i420", lambda rgb: made.append(rgb) or to_i420(rgb))
    shown = picture(CHART)
    first, second = await sent(shown), await sent(shown)
    for codec, frame in zip(CODECS, (first, second), strict=True):
        through(codec, frame)
    assert len(made) == 1
    assert np.array_equal(shown.i420, to_i420(CHART))
    await sent(picture(CHART))
    assert len(made) == 2


@pytest.mark.parametrize("size", [(8, 8), (40, 72), (104, 24)], ids=str)
@pytest.mark.parametrize("codec", CODECS)
async def test_every_size_a_model_can_have_goes_through(codec, size):
    """(height, width) in multiples of 8, of rows that no encoder has aligned."""
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, : size[1] // 2], rgb[:, size[1] // 2 :] = (200, 40, 40), (40, 40, 200)
    seen = through(codec, await sent(picture(rgb)))
    assert seen.shape == rgb.shape
    assert np.abs(seen[:, [0, -1]].astype(int) - rgb[:, [0, -1]]).max() <= 12
