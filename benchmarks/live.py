"""A live session as a user has it: the real server, real Chromium, a real clip as its camera, all on this machine.

    python -m benchmarks.live [--seconds 60] [--json FILE] [--screenshot FILE] [-- serve options]
    python -m benchmarks.live --network [OTHER] [--seconds 15] [--loss 0 5] [--codec VP8] [--json FILE]

Measures the time from pressing start to the first stylized frame, the rate and the latency after 10 s and at the end,
the time in which the picture follows a change of the prompt, and what becomes of memory and counters.

With --network: what a bad network between Chromium and the server does to the pictures on their way in, from drawing
to decoding, engine left out. Each way loses as much, singly or five in a row on average. OTHER: the folder of another
checkout, measured in turns with this one; freezes are pauses above 0.2 s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks import report
from tests.chromium import CHROMIUM, CLIP, ROOT, launch_options, running_server, write_camera_file
from tests.stream.webrtc.relay import Plan, Relay
from tests.stream.webrtc.timed import PUBLISH, Timed, Watched, timed_server

WATCHDOG_MS = 120_000
SETTLING_S = 6.0  # the sender's estimate of its bitrate grows
FREEZE_S = 0.2
LOSSES, ROUND_TRIPS_MS, CODECS = (0, 1, 5, 10, 30), (10, 50, 150), ("VP8", "H264")  # losses in percent
BURST = 5

CLICK_TO_FRAME = """() => new Promise(resolve => {
    const output = document.getElementById('output'), before = performance.now();
    output.requestVideoFrameCallback(() => resolve(performance.now() - before));
    document.getElementById('start').click();
})"""

# Grey styles have little colour: the time until the picture's mean saturation crosses the middle between two looks.
PROMPT_TO_PICTURE = """([prompt, below, limit]) => new Promise(resolve => {
    const output = document.getElementById('output'), input = document.getElementById('prompt');
    const canvas = document.createElement('canvas'); canvas.width = canvas.height = 32;
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const colour = () => {
        context.drawImage(output, 0, 0, 32, 32);
        const data = context.getImageData(0, 0, 32, 32).data;
        let sum = 0;
        for (let i = 0; i < data.length; i += 4)
            sum += Math.max(data[i], data[i+1], data[i+2]) - Math.min(data[i], data[i+1], data[i+2]);
        return sum / 1024;
    };
    if (prompt === null) return resolve(colour());
    const before = performance.now();
    input.value = prompt;
    input.dispatchEvent(new Event('input', {bubbles: true}));
    const look = () => (colour() < limit) === below ? resolve(performance.now() - before)
                                                     : output.requestVideoFrameCallback(look);
    look();
})"""


def statistics(url: str, stream: str) -> dict:
    with urllib.request.urlopen(f"{url}/api/streams/{stream}", timeout=10) as response:
        return json.load(response)


def follow_prompt_ms(page: Page) -> float:
    """From typing a prompt to the first frame that shows it, the typist's pause and the network included."""
    colours = {}
    for prompt in ("pop art", "pencil sketch"):
        page.locator("#prompt").fill(prompt)
        page.wait_for_timeout(4000)
        colours[prompt] = page.evaluate(PROMPT_TO_PICTURE, [None, False, 0])
    middle = sum(colours.values()) / 2
    times_ms = []
    for _ in range(3):
        times_ms.append(page.evaluate(PROMPT_TO_PICTURE, ["pop art", False, middle]))
        page.wait_for_timeout(2000)
        times_ms.append(page.evaluate(PROMPT_TO_PICTURE, ["pencil sketch", True, middle]))
        page.wait_for_timeout(2000)
    return max(times_ms)


def run(seconds: float, screenshot: Path | None, serve_options: list[str]) -> tuple[list[dict], dict]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(*serve_options) as server,
        sync_playwright() as playwright,
    ):
        camera = write_camera_file(Path(folder) / "camera.y4m", CLIP, 640, 480)
        browser = playwright.chromium.launch(**launch_options(camera))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WATCHDOG_MS)
        page.goto(f"{server.url}/?stream=benchmark")
        page.wait_for_function("() => !document.getElementById('start').disabled")
        first_ms = page.evaluate(CLICK_TO_FRAME)
        rows, started_s = [], time.monotonic()
        for moment_s in (10.0, seconds):
            page.wait_for_timeout(max(0.0, 1000 * (started_s + moment_s - time.monotonic())))
            stats = statistics(server.url, "benchmark")
            rows.append(
                {
                    "after s": round(moment_s),
                    "fps in": stats["fps_in"],
                    "fps out": stats["fps_out"],
                    "latency p50 ms": stats["latency_ms"]["p50"],
                    "latency p95 ms": stats["latency_ms"]["p95"],
                    "engine p50 ms": stats["engine_ms"]["p50"],
                    "in": stats["frames_in"],
                    "out": stats["frames_out"],
                    "dropped": stats["frames_dropped"],
                    "server MB": report.resident_mb(server.process.pid),
                }
            )
        about = {"first frame ms": round(first_ms), "prompt followed within ms": round(follow_prompt_ms(page))}
        if screenshot is not None:
            page.screenshot(path=screenshot)
        browser.close()
    return rows, about


def arriving(browser: Browser, server: Timed, codec: str, round_trip_ms: int, loss: Plan, seconds: float) -> dict:
    """One publisher through one network: what comes in, in a while."""
    clean = Plan(one_way_s=round_trip_ms / 2000)
    lossy = [replace(loss, one_way_s=clean.one_way_s, seed=seed) for seed in (1, 2)]
    with Relay(server.url, clean, clean) as relay:
        page = browser.new_page()
        page.goto(f"{relay.url}/empty")
        page.evaluate(PUBLISH, [f"{relay.url}/whip/benchmark", codec, 30, {}])
        page.wait_for_timeout(1000 * SETTLING_S)
        relay.turn_to(*lossy)
        since_s = time.time()
        page.wait_for_timeout(1000 * seconds)
        seen = Watched(since_s, server.since(since_s))
        page.close()
    last_s = time.time() - (seen.pictures[-1][0] if seen.pictures else since_s)
    freezes = [gap_s for gap_s in [*seen.gaps_s, last_s] if gap_s > FREEZE_S]
    return {
        "p50 ms": round(report.percentile(seen.ages_ms, 50)) if seen.ages_ms else "",
        "p95 ms": round(report.percentile(seen.ages_ms, 95)) if seen.ages_ms else "",
        "freezes": len(freezes),
        "frozen s": round(sum(freezes), 1),
        "out": len(seen.pictures),
    }


def network(other: Path | None, seconds: float, losses: list[int], codecs: list[str]) -> list[dict]:
    checkouts = {**({"before": other} if other else {}), "now": ROOT}
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers = {name: stack.enter_context(timed_server(checkout)) for name, checkout in checkouts.items()}
        playwright = stack.enter_context(sync_playwright())
        camera = write_camera_file(Path(folder) / "camera.y4m", CLIP, 640, 480)
        browser = playwright.chromium.launch(**launch_options(camera))
        for codec, loss, round_trip_ms, burst in itertools.product(codecs, losses, ROUND_TRIPS_MS, (1, BURST)):
            if burst > 1 and not loss:
                continue
            row = {"codec": codec, "round trip ms": round_trip_ms, "loss %": loss, "in a row": burst if loss else ""}
            for name, server in servers.items():
                plan = Plan(loss=loss / 100, burst=burst)
                measured = arriving(browser, server, codec, round_trip_ms, plan, seconds)
                row |= {f"{name}: {what}": value for what, value in measured.items()}
            rows.append(row)
            print(row, flush=True)
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="60; of each network 15")
    parser.add_argument("--network", type=Path, nargs="?", const=ROOT, metavar="OTHER")
    parser.add_argument("--loss", type=int, nargs="+", default=LOSSES, help="percent")
    parser.add_argument("--codec", nargs="+", default=CODECS, choices=CODECS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("serve", nargs="*", help="options for `main.py serve`, after --")
    options = parser.parse_args()
    if CHROMIUM is None:
        parser.error("there is no Chromium on this machine: install it first")
    if options.network is not None:
        other = None if options.network == ROOT else options.network.resolve()
        rows = network(other, options.seconds or 15.0, options.loss, options.codec)
        report.publish("Chromium's pictures through a bad network", report.machine("cpu"), rows, options.json)
        return
    rows, extra = run(options.seconds or 60.0, options.screenshot, options.serve)
    about = {**report.machine("cpu"), **extra, "serve options": options.serve}
    title = " ".join(["A live session in Chromium on the same machine", *options.serve])
    report.publish(title, about, rows, options.json)
    for name, value in extra.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
