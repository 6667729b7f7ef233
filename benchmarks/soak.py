"""An evening in short: a real server under people and nuisances at once, looked at every few seconds.

    python -m benchmarks.soak [--minutes 30] [--json FILE] [-- serve options]

Beside a publisher of 30 frames a second three viewers come and go, controls change twice a second, a recording is made
every five minutes, a second stream of another colour runs, and 200 hostile requests a minute come in. After a round of
everything, which is the warm-up, the clock starts. The run passes when every frame that came in came out, was dropped
or is in flight, memory is within 5 % of minute five, threads and descriptors are as at the start, latency too, the log
holds no traceback, and no viewer ever saw the other stream's colour. Exit code 1 when it does not. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import report
from tests.chromium import Server, running_server
from tests.stream.peers import Publisher, Viewer, until

FPS, FPS_BESIDE = 30.0, 5.0
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}
VIEWERS = 3
STAY_S, AWAY_S = (8.0, 30.0), (1.0, 8.0)
CONTROLS_EVERY_S = 0.5
RECORD_EVERY_S, RECORD_S = 300.0, 15.0  # shorter than the peers' patience
HOSTILE_PER_MINUTE = 200
SAMPLE_EVERY_S, QUIET_EVERY_S = 5.0, 270.0
WARM_UP_S = 45.0

MEMORY_RATIO = 1.05  # to minute five
MOST_IN_FLIGHT = 4  # in the mailbox, and a batch that is painted behind one that is handed on
LATENCY_RATIO = 1.2  # what is asked for differs from third to third by about a tenth
PROMPTS = ("watercolor", "oil painting", "pencil sketch, red and blue", "pop art", "mosaic")

REQUEST_LINES = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS hello
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /api/status?token=secret HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
    b"POST /whip/x HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    b"POST /whip/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Len",  # and nothing more
)
# (method, path, content type, body): each is refused, or answered with what there is.
REQUESTS = (
    ("POST", "/whip/x", "application/sdp", b"v=0\r\nm=video " + b"9" * 5000 + b" UDP/TLS/RTP/SAVPF 96\r\n"),
    ("POST", "/whep/x", "application/sdp", b"\x00\xff\xfe"),
    ("POST", "/whip/UPPER", "application/sdp", b"v=0\r\n"),
    ("PATCH", "/whip/red/nothing", "application/trickle-ice-sdpfrag", b"a=candidate:x"),
    ("PATCH", "/api/streams/x/controls", "application/json", b'{"steps": true, "strength": NaN}'),
    ("PATCH", "/api/streams/x/controls", "application/json", b"[" * 3000),
    ("PUT", "/api/streams/x/mask", "image/png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("PUT", "/api/streams/x/mask", "image/png", b"\x89PNG\r\n\x1a\n" + bytes(200)),
    ("GET", "/static/../../etc/passwd", "text/plain", b""),
    ("GET", "/api/recordings/..%2f..%2fx.mp4", "text/plain", b""),
    ("DELETE", "/api/streams/x/recording", "text/plain", b""),
    ("POST", "/api/status", "application/json", b"x" * 70_000),
)


@dataclass(frozen=True)
class Sample:
    """One look at the server. in_flight: frames of the first stream that are neither out nor dropped."""

    at_s: float
    memory_mb: float
    threads: int
    descriptors: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    fps_out: float
    in_flight: int
    is_quiet: bool  # the state in which threads and descriptors compare


class Soak:
    """One run against one server."""

    def __init__(self, server: Server, http: aiohttp.ClientSession, seed: int = 0):
        self.server, self.http, self.random = server, http, random.Random(seed)
        self.samples: list[Sample] = []
        self.mixed_up: list[str] = []
        self.looks = self.hostile = self.changes = self.films = 0
        self.answers_5xx: list[str] = []
        self.failures: list[str] = []
        self.is_on = asyncio.Event()  # cleared: viewers leave and stay away, nobody asks for anything
        self.is_on.set()
        self.watching = 0
        self.is_recording = False

    async def run(self, seconds: float) -> dict[str, Any]:
        """Returns the first stream's last statistics, its publisher gone and all its frames settled."""
        url, http = self.server.url, self.http
        async with contextlib.AsyncExitStack() as stack:
            beside = Publisher(http, f"{url}/whip/blue", COLOURS["blue"], fps=FPS_BESIDE)
            await stack.enter_async_context(beside)
            publisher = Publisher(http, f"{url}/whip/red", COLOURS["red"], fps=FPS)
            await publisher.__aenter__()
            last = await stack.enter_async_context(Viewer(http, f"{url}/whep/red"))  # keeps the stream in use
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in self._everything(last)]
                await asyncio.sleep(WARM_UP_S)
                started_s = time.monotonic()
                await self._quiet()
                await self._sampled_for(started_s, seconds)
                for task in tasks:
                    task.cancel()
            await publisher.__aexit__()
            return await self._settled()

    def _everything(self, last: Viewer) -> Sequence[Coroutine]:
        names = ["red"] * (VIEWERS - 1) + ["blue"]
        return [
            *(self._come_and_go(name) for name in names),
            self._watch(last, "red"),
            self._regularly(CONTROLS_EVERY_S, self._change_controls),
            self._regularly(60.0 / HOSTILE_PER_MINUTE, self._be_hostile),
            self._record_now_and_then(),
        ]

    # -- people --------------------------------------------------------------------------------------------------------

    async def _come_and_go(self, name: str) -> None:
        while True:
            await self.is_on.wait()
            try:
                async with Viewer(self.http, f"{self.server.url}/whep/{name}") as viewer:
                    self.watching += 1
                    try:
                        await self._look(viewer, name, time.monotonic() + self.random.uniform(*STAY_S))
                    finally:
                        self.watching -= 1
            except Exception as error:  # whatever a viewer meets is a finding, and the others go on
                self.failures.append(f"a viewer of {name}: {error!r}")
            await asyncio.sleep(self.random.uniform(*AWAY_S))

    async def _look(self, viewer: Viewer, name: str, until_s: float) -> None:
        await viewer.next_frame()
        while self.is_on.is_set() and time.monotonic() < until_s:
            self._judge(viewer, name)
            await asyncio.sleep(0.5)

    async def _watch(self, viewer: Viewer, name: str) -> None:
        while True:
            if viewer.frame is not None:
                self._judge(viewer, name)
            await asyncio.sleep(0.5)

    def _judge(self, viewer: Viewer, name: str) -> None:
        red, _, blue = viewer.colour()
        self.looks += 1
        if (red > blue) != (name == "red"):
            self.mixed_up.append(f"{name}: red {red:.0f}, blue {blue:.0f}")

    async def _change_controls(self) -> None:
        draw = self.random
        change = draw.choice(
            (
                {"prompt": draw.choice(PROMPTS)},
                {"strength": draw.choice((0.2, 0.3, 0.4))},
                {"seed": draw.randrange(1000)},
                {"steps": draw.choice((1, 2))},
                {"bypass": draw.random() < 0.1},
            )
        )
        async with self.http.patch(f"{self.server.url}/api/streams/red/controls", json=change) as response:
            self.changes += 1
            if response.status != 200:
                self.failures.append(f"controls {change}: {response.status}")

    async def _record_now_and_then(self) -> None:
        while True:
            await self._record()
            await asyncio.sleep(RECORD_EVERY_S - RECORD_S)

    async def _record(self) -> None:
        url = f"{self.server.url}/api/streams/red/recording"
        async with self.http.post(url) as response:
            begun = await response.json()
        self.is_recording = True
        await asyncio.sleep(RECORD_S)
        async with self.http.delete(url) as response:
            ended = await response.json()
        self.is_recording = False
        self.films += 1
        if ended.get("state") != "ended" or ended.get("seconds", 0) < RECORD_S / 2:
            self.failures.append(f"the recording {begun} ended as {ended}")

    # -- nuisances -----------------------------------------------------------------------------------------------------

    async def _be_hostile(self) -> None:
        self.hostile += 1
        if self.random.random() < 0.5:
            await self._send_raw(self.random.choice(REQUEST_LINES))
            return
        method, path, content_type, body = self.random.choice(REQUESTS)
        headers = {"Content-Type": content_type}
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it may well hang up on these
            async with self.http.request(method, self.server.url + path, data=body, headers=headers) as response:
                await response.read()
                if response.status >= 500:
                    self.answers_5xx.append(f"{method} {path}: {response.status}")

    async def _send_raw(self, data: bytes) -> None:
        host, port = self.server.url.removeprefix("http://").split(":")
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            async with asyncio.timeout(1.0):
                head = await reader.read(400)
                if re.match(rb"HTTP/1\.[01] 5", head):
                    self.answers_5xx.append(repr(data[:60]))
            writer.close()

    async def _regularly(self, every_s: float, work: Callable[[], Coroutine]) -> None:
        due_s = time.monotonic()
        running: set[asyncio.Task] = set()
        while True:
            if self.is_on.is_set():
                task = asyncio.create_task(work())
                running.add(task)
                task.add_done_callback(running.discard)
            due_s += every_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    # -- what is looked at ---------------------------------------------------------------------------------------------

    async def _statistics(self) -> dict[str, Any]:
        async with self.http.get(f"{self.server.url}/api/streams/red") as response:
            return await response.json()

    async def _quiet(self) -> None:
        """Take a sample with nobody there but the publishers and the one viewer that stays; then all goes on."""
        self.is_on.clear()
        await until(lambda: not self.watching and not self.is_recording)
        await asyncio.sleep(3.0)  # for what was closed to be gone
        await self._sample(is_quiet=True)
        self.is_on.set()

    async def _sampled_for(self, started_s: float, seconds: float) -> None:
        quiet_s = started_s + QUIET_EVERY_S
        while (left_s := started_s + seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(SAMPLE_EVERY_S, left_s))
            await self._sample(is_quiet=False)
            if time.monotonic() >= quiet_s:
                quiet_s += QUIET_EVERY_S
                await self._quiet()
        await self._quiet()

    async def _sample(self, is_quiet: bool) -> None:
        stats, process = await self._statistics(), Path(f"/proc/{self.server.process.pid}")
        self.samples.append(
            Sample(
                time.monotonic(),
                report.resident_mb(self.server.process.pid),
                len(list((process / "task").iterdir())),
                len(list((process / "fd").iterdir())),
                stats["latency_ms"]["p50"],
                stats["latency_ms"]["p95"],
                stats["fps_out"],
                stats["frames_in"] - stats["frames_out"] - stats["frames_dropped"],
                is_quiet,
            )
        )

    async def _settled(self) -> dict[str, Any]:
        async def settled() -> dict[str, Any] | None:
            stats = await self._statistics()
            return stats if stats["frames_in"] == stats["frames_out"] + stats["frames_dropped"] else None

        return await until(settled)


def minutes_of(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """By minute, from 1 on."""
    began_s = samples[0].at_s
    grouped: dict[int, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(int((sample.at_s - began_s) // 60) + 1, []).append(sample)
    return grouped


def row(minute: int, samples: Sequence[Sample]) -> dict[str, Any]:
    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    return {
        "minute": minute,
        "memory MB": middle(one.memory_mb for one in samples),
        "threads": max(one.threads for one in samples),
        "descriptors": max(one.descriptors for one in samples),
        "latency p50 ms": middle(one.latency_p50_ms for one in samples),
        "latency p95 ms": middle(one.latency_p95_ms for one in samples),
        "fps out": middle(one.fps_out for one in samples),
        "in flight, most": max(one.in_flight for one in samples),
    }


def growth(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The median of the last three minutes over minute five, or the last before where there are less."""
    return statistics.median(one[name] for one in rows[-3:]) / rows[min(5, len(rows)) - 1][name]


def drift(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The last third's median over the first's: what is asked for changes by the second, so shorter spans differ."""
    span = max(1, len(rows) // 3)
    first, last = (statistics.median(one[name] for one in part) for part in (rows[:span], rows[-span:]))
    return last / first


def verdicts(soak: Soak, rows: Sequence[dict[str, Any]], last: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """What has to hold -> whether it does, and the figures."""
    quiet = [sample for sample in soak.samples if sample.is_quiet]
    threads, descriptors = [one.threads for one in quiet], [one.descriptors for one in quiet]
    memory, *latency = growth(rows, "memory MB"), *(drift(rows, f"latency {name} ms") for name in ("p50", "p95"))
    settled = last["frames_in"] == last["frames_out"] + last["frames_dropped"]
    settled = settled and all(0 <= sample.in_flight <= MOST_IN_FLIGHT for sample in soak.samples)
    counts = f"{last['frames_in']} in, {last['frames_out']} out, {last['frames_dropped']} dropped"
    said = len(soak.server.output)
    tracebacks = sum("Traceback" in line for line in soak.server.output)
    wrong, refused, failed = len(soak.mixed_up), len(soak.answers_5xx), len(soak.failures)
    return {
        "in = out + dropped + in flight": (settled, counts),
        "memory, last minutes / minute five": (memory <= MEMORY_RATIO, f"{memory:.3f}"),
        # Pools start their few threads when they are first needed: those of the first five minutes are the start's.
        "threads as at the start": (threads[-1] <= max(threads[:2]), " -> ".join(map(str, threads))),
        "descriptors as at the start": (descriptors[-1] <= max(descriptors[:2]), " -> ".join(map(str, descriptors))),
        "latency, last third / first": (
            max(latency) <= LATENCY_RATIO,
            "p50 {:.2f}, p95 {:.2f}".format(*latency),
        ),
        "no traceback in the log": (tracebacks == 0, f"{said} lines, {tracebacks} tracebacks"),
        "no mix-up of colours": (wrong == 0 < soak.looks, f"{soak.looks} looks, {wrong} wrong"),
        "no 5xx": (refused == 0 < soak.hostile, f"{soak.hostile} hostile requests, {refused} answers 5xx"),
        "all else answered": (failed == 0 < soak.films, f"{soak.changes} changes, {soak.films} films, {failed} failed"),
    }


async def soaked(server: Server, seconds: float) -> tuple[Soak, dict[str, Any]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        soak = Soak(server, http)
        return soak, await soak.run(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("serve", nargs="*", help="options for `main.py serve`, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as films, running_server("--recordings", films, *options.serve) as server:
        soak, last = asyncio.run(soaked(server, 60 * options.minutes))
        log = list(server.output)
    rows = [row(minute, samples) for minute, samples in minutes_of(soak.samples).items()]
    found = verdicts(soak, rows, last)
    about = {
        **report.machine("cpu"),
        "minutes": options.minutes,
        "verdicts": {name: {"holds": holds, "figures": figures} for name, (holds, figures) in found.items()},
    }
    report.publish(f"A soak of {options.minutes:g} minutes", about, rows, options.json)
    for name, (holds, figures) in found.items():
        print(f"{'holds' if holds else 'FAILS'}  {name}: {figures}")
    for finding in (*soak.mixed_up[:5], *soak.answers_5xx[:5], *soak.failures[:5]):
        print(f"  {finding}")
    if not all(holds for holds, _ in found.values()):
        print("The log ends:", *log[-20:], sep="\n  ")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
