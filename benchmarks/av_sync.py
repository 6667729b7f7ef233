"""How far picture and sound are apart where they are seen and heard: flashes and beeps, from FFmpeg to Chromium.

    python -m benchmarks.av_sync [--events 120] [--json FILE] [-- serve options]

FFmpeg publishes over WHIP, from its own process, pictures that flash and beep at the same instants. The page for OBS
plays the stream in Chromium. Every displayed picture is read at the time it is shown (requestVideoFrameCallback's
expectedDisplayTime), every beep is timed where it leaves for the loudspeaker (getOutputTimestamp of an AudioContext).

Every picture also tells, in black and white fields, when it was taken. So two offsets can be told apart: the *onset* is
from the first picture that shows the flash to the beep, and at 12 pictures a second that picture was taken anywhere in
the 83 ms after the flash began; the *moment* allows for that. Positive: the sound came first.

The measuring is itself off by some tens of ms: an AudioContext takes up what the browser plays a little later than its
video element does. Sound and picture that Chromium sends to itself, measured alike, come out with the sound 30 to 60 ms
late. So *browser* adds what Chromium itself believes to play of either (getStats' estimatedPlayoutTimestamp).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from benchmarks import report
from tests.chromium import CHROMIUM, ROOT, running_server
from tests.ffmpeg import FPS, PER_PICTURE, SAMPLE_RATE, certificate, publish

SIDE = 256  # pixels
BITS = 7  # of what a picture tells; an eighth field makes the number of white ones even
EVERY = 27  # pictures between two flashes: no multiple of any rate at which pictures come out
FLASH = 4  # pictures that a flash lasts, and its beep
SETTLING_S = 25.0  # the browser learns the relation of the two clocks from reports that come once a second
STRENGTH = 0.2  # the fields stay readable; the engine's time is the same at any
STREAM = "in-step"
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]  # as OBS's browser source has it

WATCH = """async () => {
    const video = document.querySelector('video'), seen = window.seen = [], heard = window.heard = [];
    const canvas = document.createElement('canvas'); canvas.width = canvas.height = 16;
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const look = (now, {expectedDisplayTime}) => {
        context.drawImage(video, 0, 0, 16, 16);
        const data = context.getImageData(0, 0, 16, 16).data;
        const field = (column, row) => {  // the middle of one of 4 x 4 fields
            let sum = 0;
            for (const x of [1, 2]) for (const y of [1, 2]) sum += data[((row * 4 + y) * 16 + column * 4 + x) * 4 + 1];
            return sum / 4;
        };
        const fields = [];
        for (let row = 0; row < 4; row++) for (let column = 0; column < 4; column++) fields.push(field(column, row));
        seen.push([expectedDisplayTime, fields]);
        video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
    const audio = new AudioContext({latencyHint: 'interactive', sampleRate: 48000});
    const worklet = `registerProcessor('onsets', class extends AudioWorkletProcessor {
        quiet = 0;
        process([[samples = []]]) {
            for (let i = 0; i < samples.length; i++) {
                const loud = Math.abs(samples[i]) > 0.1;
                if (loud && this.quiet > 0.3 * sampleRate) this.port.postMessage((currentFrame + i) / sampleRate);
                this.quiet = loud ? 0 : this.quiet + 1;
            }
            return true;
        }
    })`;
    await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], {type: 'text/javascript'})));
    const onsets = new AudioWorkletNode(audio, 'onsets');
    onsets.port.onmessage = ({data}) => {
        const {contextTime, performanceTime} = audio.getOutputTimestamp();
        heard.push(performanceTime + (data - contextTime) * 1000);
    };
    audio.createMediaStreamSource(video.srcObject).connect(onsets);
    await audio.resume();
    const believed = window.believed = [];
    setInterval(async () => {
        const at = {};
        for (const told of (await peers.at(-1).getStats()).values())
            if (told.type === 'inbound-rtp') at[told.kind] = told.estimatedPlayoutTimestamp;
        if (at.audio && at.video) believed.push(at.audio - at.video);
    }, 1000);
}"""
KEEP_PEERS = """window.peers = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) { super(...options); peers.push(this); }
};"""


def picture(number: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: the upper half flashes, the lower one tells how many pictures ago the flash began."""
    since = number % EVERY
    bits = [since >> place & 1 for place in range(BITS)]
    fields = np.array([since < FLASH] * 8 + bits + [sum(bits) % 2]).reshape(4, 4)
    grey = np.where(fields, 235, 20).astype(np.uint8).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    return np.broadcast_to(grey[..., None], (SIDE, SIDE, 3)).copy()


def sound(number: int) -> np.ndarray:
    """int16 [PER_PICTURE, 2]: 1 kHz while the picture is bright."""
    wave = np.sin(2 * np.pi * 1000 * np.arange(PER_PICTURE) / SAMPLE_RATE) * 16_000 * (number % EVERY < FLASH)
    return np.repeat(wave.astype(np.int16)[:, None], 2, axis=1)


def since_flash(fields: list[float]) -> int | None:
    """The number that `picture` wrote; None where a field did not survive the painting."""
    bits = [value > 128 for value in fields[8:]]
    since = sum(bit << place for place, bit in enumerate(bits[:BITS]))
    return since if sum(bits) % 2 == 0 and since < EVERY else None


def flashes(seen: list[tuple[float, list[float]]]) -> Iterator[tuple[float, float]]:
    """(shown at, taken so long after the flash began) in ms, of the first picture of each flash."""
    for (_, before), (shown_ms, fields) in pairwise(seen):
        since = since_flash(fields)
        if np.mean(before[:8]) < 128 <= np.mean(fields[:8]) and since is not None:
            yield shown_ms, since * 1000 / FPS


def offsets(seen: list[tuple[float, list[float]]], heard: list[float]) -> tuple[list[float], list[float]]:
    """(of the onset, of the moment) in ms, for each flash with a beep within half an interval."""
    reach_ms = EVERY / FPS * 500
    onset, moment = [], []
    for shown_ms, since_ms in flashes(seen):
        beep_ms = min(heard, key=lambda at_ms: abs(at_ms - shown_ms), default=float("inf"))
        if abs(beep_ms - shown_ms) < reach_ms:
            onset.append(shown_ms - beep_ms)
            moment.append(shown_ms - since_ms - beep_ms)
    return onset, moment


def row(name: str, values_ms: list[float], due: int | None = None) -> dict[str, object]:
    """due: how many there should be; flashes that could not be read, or have no beep, are missed."""
    sizes = [abs(value) for value in values_ms]
    return {
        "offset": name,
        "events": len(sizes),
        "missed": "" if due is None else max(0, due - len(sizes)),
        "p50 ms": round(report.percentile(sizes, 50), 1),
        "p95 ms": round(report.percentile(sizes, 95), 1),
        "max ms": round(max(sizes), 1),
        "mean, signed ms": round(float(np.mean(values_ms)), 1),
    }


def run(events: int, serve_options: list[str]) -> tuple[list[dict], dict]:
    seconds = SETTLING_S + (events + 2) * EVERY / FPS
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(*serve_options) as server,
        sync_playwright() as playwright,
    ):
        body = json.dumps({"prompt": "", "strength": STRENGTH}).encode()
        url = f"{server.url}/api/streams/{STREAM}"
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/controls", body, headers, method="PATCH")).close()
        command = [sys.executable, "-m", "benchmarks.av_sync", "--publish", f"{server.url}/whip/{STREAM}", folder]
        publisher = subprocess.Popen([*command, str(round((seconds + 10) * FPS))], cwd=ROOT)
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_context(bypass_csp=True, viewport={"width": SIDE, "height": SIDE}).new_page()
            page.add_init_script(KEEP_PEERS)
            page.goto(f"{server.url}/view/{STREAM}")
            page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
            page.evaluate(WATCH)
            page.wait_for_timeout(SETTLING_S * 1000)
            early = offsets(*page.evaluate("[seen, heard]"))[1]
            page.evaluate("() => { seen.length = heard.length = believed.length = 0; }")
            page.wait_for_timeout((seconds - SETTLING_S) * 1000)
            seen, heard, believed = page.evaluate("[seen, heard, believed]")
            with urllib.request.urlopen(url) as response:
                stats = json.load(response)
            browser.close()
        finally:
            publisher.terminate()
            publisher.wait(10)
    onset, moment = offsets(seen, heard)
    if len(moment) < events / 2:
        raise SystemExit(f"Only {len(moment)} of {events} flashes could be read, with {len(heard)} beeps heard.")
    about = {
        "fps out": stats["fps_out"],
        "latency p50 ms": stats["latency_ms"]["p50"],
        "engine p50 ms": stats["engine_ms"]["p50"],
        "unread pictures": sum(since_flash(fields) is None for _, fields in seen),
        "pictures": len(seen),
    }
    due = int((seconds - SETTLING_S) * FPS / EVERY)
    rows = [row("moment", moment, due), row("onset", onset, due), row("browser", believed)]
    return [*rows, row(f"moment, first {SETTLING_S:.0f} s", early, int(SETTLING_S * FPS / EVERY))], about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=120, help="flashes to measure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--publish", nargs=3, metavar=("URL", "FOLDER", "PICTURES"), help=argparse.SUPPRESS)
    parser.add_argument("serve", nargs="*", help="options for `main.py serve`, after --")
    options = parser.parse_args()
    if options.publish is not None:
        url, folder, count = options.publish
        numbers = range(int(count))
        publish(url, certificate(Path(folder)), map(picture, numbers), map(sound, numbers))
        return
    if CHROMIUM is None:
        parser.error("there is no Chromium on this machine: install it first")
    rows, extra = run(options.events, options.serve)
    about = {**report.machine("cpu"), **extra, "serve options": options.serve}
    report.publish("Picture against sound in Chromium, FFmpeg publishing flashes and beeps", about, rows, options.json)
    for name, value in extra.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
