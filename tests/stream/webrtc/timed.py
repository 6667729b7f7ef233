"""Pictures that tell when they were taken, published by a real browser into a server that writes down what it gets.

`python tests/stream/webrtc/timed.py` serves, in whatever checkout it is started, and prints its port; then a line for
each picture that reaches the engine: when, how old it is, in seconds of the machine's clock, and its size. With URL,
FOLDER (for a certificate) and SECONDS FFmpeg publishes such pictures.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]
COLUMNS, ROWS, BITS = 8, 4, 24  # of fields; behind the time come eight bits that prove it

# Publishes what a canvas shows: the camera, and over its upper half the time in black and white fields. Or the plain
# camera, as Firefox draws once a second on what is not looked at.
PUBLISH = """async ([url, codec, fps, options]) => {
    const {width, height, plain, still, kbps, startKbps, rids, layers} = {width: 640, height: 480, ...options};
    const camera = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 480}});
    const video = Object.assign(document.createElement('video'), {srcObject: camera, muted: true});
    await video.play();
    const canvas = Object.assign(document.createElement('canvas'), {width, height});
    const context = canvas.getContext('2d');
    const stream = plain ? camera : canvas.captureStream(0), [track] = stream.getVideoTracks();
    const draw = () => {
        if (!still) context.drawImage(video, 0, 0, width, height);
        const now = Math.round(performance.timeOrigin + performance.now()) % 2 ** 24;
        const proof = (now ^ now >> 8 ^ now >> 16) & 255;
        for (let bit = 0; bit < 32; bit++) {
            context.fillStyle = (bit < 24 ? now >> bit : proof >> bit - 24) & 1 ? '#fff' : '#000';
            context.fillRect(bit % 8 * width / 8, Math.floor(bit / 8) * height / 8, width / 8, height / 8);
        }
        track.requestFrame();
    };
    const worker = new Worker(URL.createObjectURL(new Blob([  // timers of pages that are not looked at are slow
        `setInterval(() => postMessage(0), ${1000 / fps})`])));
    if (!plain) worker.onmessage = draw;
    const peer = window.peer = new RTCPeerConnection();
    const transceiver = peer.addTransceiver(track, {direction: 'sendonly', streams: [stream],
        ...(rids ? {sendEncodings: rids} : {})});
    if (kbps) {
        const parameters = transceiver.sender.getParameters();
        parameters.encodings[0].maxBitrate = kbps * 1000;
        await transceiver.sender.setParameters(parameters);
    }
    const all = RTCRtpSender.getCapabilities('video').codecs;
    const wanted = all.filter(({mimeType, sdpFmtpLine = ''}) => mimeType === 'video/rtx' ||
        mimeType === `video/${codec}` && (codec !== 'H264' || /42e01f|42001f/.test(sdpFmtpLine) &&
                                          /packetization-mode=1/.test(sdpFmtpLine)));
    transceiver.setCodecPreferences(wanted);
    let offer = await peer.createOffer();
    if (layers) {  // a=ssrc-group:SIM, as browsers made it before there were rids
        const {sdp} = offer, [, media, rtx] = /a=ssrc-group:FID (\\d+) (\\d+)/.exec(sdp);
        const lines = [...sdp.matchAll(new RegExp(`a=ssrc:${media} (.*)`, 'g'))].map(match => match[1]);
        const ssrcs = Array.from({length: layers}, (_, at) => [+media + at, +rtx + at]);
        const groups = [`a=ssrc-group:SIM ${ssrcs.map(pair => pair[0]).join(' ')}`,
                        ...ssrcs.map(pair => `a=ssrc-group:FID ${pair.join(' ')}`)];
        const said = ssrcs.flat().flatMap(ssrc => lines.map(line => `a=ssrc:${ssrc} ${line}`));
        offer = {type: 'offer', sdp: sdp.replace(/a=ssrc-group:[^]*?(?=(m=|$(?![^])))/,
                                                 [...groups, ...said].join('\\r\\n') + '\\r\\n')};
    }
    await peer.setLocalDescription(offer);
    const answer = await fetch(url, {method: 'POST', body: peer.localDescription.sdp,
                                     headers: {'Content-Type': 'application/sdp'}});
    if (answer.status !== 201) throw new Error(await answer.text());
    let sdp = await answer.text();
    if (startKbps) sdp = sdp.replace(/a=fmtp:96 /, `a=fmtp:96 x-google-start-bitrate=${startKbps};`);
    await peer.setRemoteDescription({type: 'answer', sdp});
    if (layers) {
        const parameters = transceiver.sender.getParameters();
        parameters.encodings.forEach((one, at, all) => { one.scaleResolutionDownBy = 2 ** (all.length - 1 - at); });
        await transceiver.sender.setParameters(parameters);
    }
}"""

STATS = """async () => [...(await peer.getStats()).values()].filter(({type}) => type === 'outbound-rtp')"""


def taken_ms(picture: np.ndarray) -> int | None:
    """What the page wrote into uint8 [H, W, 3]; None where it cannot be read."""
    high, wide = picture.shape[0] // 2 // ROWS, picture.shape[1] // COLUMNS
    fields = picture[high // 2 : high * ROWS : high, wide // 2 :: wide, 1][:ROWS, :COLUMNS].reshape(-1) > 128
    number = int(sum(1 << at for at in range(BITS) if fields[at]))
    proof = sum(1 << at for at in range(8) if fields[BITS + at])
    return number if proof == (number ^ number >> 8 ^ number >> 16) & 255 else None


def stamped(now_s: float, width: int = 640, height: int = 480) -> np.ndarray:
    """uint8 [height, width, 3] as the page draws it, over grey noise that moves."""
    number = round(now_s * 1000) % 2**BITS
    proof = (number ^ number >> 8 ^ number >> 16) & 255
    bits = [number >> at & 1 for at in range(BITS)] + [proof >> at & 1 for at in range(8)]
    picture = np.random.default_rng(number).integers(96, 160, (height // 16, width // 16), np.uint8)
    picture = picture.repeat(16, 0).repeat(16, 1)
    fields = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 255
    picture[: height // 2] = fields.repeat(height // 2 // ROWS, 0).repeat(width // COLUMNS, 1)
    return np.repeat(picture[..., None], 3, axis=2)


def age_s(number: int, now_s: float) -> float:
    return ((round(now_s * 1000) - number + 2**23) % 2**24 - 2**23) / 1000


async def serve() -> None:
    sys.path.insert(0, ".")
    from aiohttp import web

    from stream.engine.runner import EngineRunner
    from stream.http import listening
    from stream.http.application import make_app
    from stream.streams import Streams
    from tests.stream.fakes import FakeStylizer

    class Reading(FakeStylizer):
        def painted(self, batch):
            now_s = time.time()
            for frame in batch.frames if batch.frames is not None else ():
                number = taken_ms(frame)
                age = None if number is None else age_s(number, now_s)
                print(json.dumps([now_s, age, frame.shape[1], frame.shape[0]]), flush=True)
            return super().painted(batch)

    engine = EngineRunner(lambda report: Reading(), model="fake")
    engine.start()
    runner = web.AppRunner(make_app(engine, Streams(engine)))
    await runner.setup()
    sockets = listening.bind("127.0.0.1", 0)
    async with listening.accepting(runner.server, sockets):
        print(sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


class Timed:
    """A running server, and `pictures` that have come: (when, age or None, width, height), times in seconds."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        self.pictures: list[tuple[float, float | None, int, int]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.pictures.append(tuple(json.loads(line)))

    def since(self, moment_s: float) -> list[tuple[float, float | None, int, int]]:
        return [picture for picture in list(self.pictures) if picture[0] >= moment_s]


class Watched:
    """What came in a while."""

    def __init__(self, since_s: float, pictures: list[tuple]):
        self.since_s, self.pictures = since_s, pictures
        self.ages_ms = [1000 * age for _, age, _, _ in pictures if age is not None]

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.ages_ms, percent))

    @property
    def gaps_s(self) -> list[float]:
        """Between two pictures, and before the first."""
        times_s = [self.since_s, *(picture[0] for picture in self.pictures)]
        return [after - before for before, after in pairwise(times_s)]

    @property
    def longest_gap_s(self) -> float:
        return max(self.gaps_s, default=float("inf"))

    def after(self, seconds: float) -> Watched:
        since_s = self.since_s + seconds
        return Watched(since_s, [picture for picture in self.pictures if picture[0] >= since_s])


@contextmanager
def timed_server(checkout: Path = ROOT):
    process = subprocess.Popen([sys.executable, __file__], cwd=checkout, stdout=subprocess.PIPE, text=True)
    try:
        yield Timed(process)
    finally:
        process.terminate()
        process.wait(10)


def publish_by_ffmpeg(url: str, folder: str, seconds: str) -> None:
    sys.path.insert(0, str(ROOT))
    from tests import ffmpeg

    pictures = (stamped(time.time()) for _ in range(round(float(seconds) * ffmpeg.FPS)))
    ffmpeg.publish(url, ffmpeg.certificate(Path(folder)), pictures)


if __name__ == "__main__":
    if sys.argv[1:]:
        publish_by_ffmpeg(*sys.argv[1:])
    else:
        asyncio.run(serve())
