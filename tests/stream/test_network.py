"""What is told of the network: of the last 5 s, from the publisher's start, and of the viewer who has it worst."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pipeline.settings import Controls
from stream.metrics import Metrics
from stream.network import LossWindow, Network, SenderStatistics

from .peers import Publisher, until

VIEWER = SenderStatistics(0, 0, 0, 0, None, 8_000_000)


@dataclass(frozen=True)
class Received:
    """What a receiver counts."""

    packets_received: int = 0
    packets_lost: int = 0
    nacks: int = 0
    plis: int = 0
    freezes: int = 0
    round_trip_ms: float | None = None
    layers_ignored: int = 0


@dataclass
class Told:
    network: Network
    metrics: Metrics

    def series(self, name: str, role: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"lcmirror_{name}", {"stream": "one", "role": role})


@pytest.fixture
def told() -> Told:
    metrics = Metrics()
    metrics.expect("one")
    return Told(Network("one", metrics), metrics)


def test_loss_is_that_of_the_last_5_seconds():
    window = LossWindow()
    assert window.loss is None
    for second in range(10):  # one of ten is lost for 10 s, and none after that
        window.add(float(second), 100 * second, 10 * second)
    assert window.loss == 0.1
    for second in range(10, 13):
        window.add(float(second), 100 * second, 90)
    assert window.loss == pytest.approx(20 / 500)
    for second in range(13, 20):
        window.add(float(second), 100 * second, 90)
    assert window.loss == 0.0


def test_counters_that_fall_are_no_negative_loss():
    window = LossWindow()
    window.add(0.0, 100, 10)
    window.add(1.0, 200, 8)
    assert window.loss == 0.0


def test_nobody_is_nothing(told):
    assert told.network.snapshot() == {"publisher": None, "viewers": None}


def test_a_publisher_is_told_with_its_counters_until_it_is_gone(told):
    told.network.begin()
    told.network.received(0.0, Received())
    told.network.received(1.0, Received(95, 5, 3, 2, 1, 41.5, 2))
    assert told.network.snapshot()["publisher"] == {
        "packets_received": 95,
        "packets_lost": 5,
        "loss": 0.05,
        "nacks": 3,
        "plis": 2,
        "freezes": 1,
        "round_trip_ms": 41.5,
        "layers_ignored": 2,
    }
    assert told.series("packets_lost_total", "publisher") == 5
    assert told.series("nacks_total", "publisher") == 3
    assert told.series("plis_total", "publisher") == 2
    assert told.series("round_trip_seconds", "publisher") == pytest.approx(0.0415)
    told.network.end()
    assert told.network.snapshot()["publisher"] is None
    assert told.series("round_trip_seconds", "publisher") is None
    assert told.series("packets_lost_total", "publisher") == 5


def test_the_next_publisher_begins_at_nothing_and_prometheus_counts_on(told):
    for _ in range(2):
        told.network.begin()
        told.network.received(0.0, Received())
        told.network.received(1.0, Received(packets_received=90, packets_lost=10, nacks=4))
        assert told.network.snapshot()["publisher"]["packets_lost"] == 10
    assert told.series("packets_lost_total", "publisher") == 20
    assert told.series("nacks_total", "publisher") == 8


def test_the_next_publisher_has_no_round_trip_of_the_one_before(told):
    told.network.begin()
    told.network.received(0.0, Received(round_trip_ms=42.0))
    assert told.series("round_trip_seconds", "publisher") == 0.042
    told.network.begin()
    assert not told.series("round_trip_seconds", "publisher")


def test_of_the_viewers_the_one_is_told_who_has_it_worst(told):
    told.network.sent("a", 0.0, VIEWER)
    told.network.sent("b", 0.0, VIEWER)
    told.network.sent("a", 1.0, replace(VIEWER, packets_expected=100, packets_lost=10, nacks=5, round_trip_ms=20.0))
    told.network.sent("b", 1.0, replace(VIEWER, packets_expected=100, plis=2, round_trip_ms=90.0, bitrate_bps=300_000))
    expected = {"loss": 0.1, "nacks": 5, "plis": 2, "round_trip_ms": 90.0, "bitrate_bps": 300_000}
    assert told.network.snapshot()["viewers"] == expected
    assert told.series("packets_lost_total", "viewers") == 10
    assert told.series("round_trip_seconds", "viewers") == pytest.approx(0.09)
    told.network.left("a")
    told.network.left("never heard of")
    assert told.network.snapshot()["viewers"] == {**expected, "loss": 0.0}
    told.network.left("b")
    assert told.network.snapshot()["viewers"] is None
    assert told.series("round_trip_seconds", "viewers") is None


def test_what_viewers_asked_for_before_the_publisher_began_is_not_counted_for_it(told):
    told.network.sent("a", 0.0, replace(VIEWER, nacks=7, plis=1))
    told.network.begin()
    assert (told.network.snapshot()["viewers"]["nacks"], told.network.snapshot()["viewers"]["plis"]) == (0, 0)
    told.network.sent("a", 1.0, replace(VIEWER, nacks=9, plis=1))
    assert (told.network.snapshot()["viewers"]["nacks"], told.network.snapshot()["viewers"]["plis"]) == (2, 0)


def test_a_forgotten_stream_takes_its_series_along_and_is_counted_no_more(told):
    told.network.sent("a", 0.0, replace(VIEWER, nacks=7, round_trip_ms=5.0))
    told.metrics.forget("one")
    told.network.sent("a", 1.0, replace(VIEWER, nacks=9, round_trip_ms=5.0))
    assert b'stream="one"' not in told.metrics.text()


async def test_whoever_asks_for_a_stream_is_told_what_its_publishers_receiver_counts(server):
    async with Publisher(server.http, f"{server.url}/whip/one"):
        publication = server.streams.get("one").publication
        publication.network = lambda: Received(packets_received=77, round_trip_ms=12.0)

        async def told() -> bool:
            network = (await server.stats("one"))["network"]["publisher"]
            return network is not None and (network["packets_received"], network["round_trip_ms"]) == (77, 12.0)

        await until(told)
    await until(lambda: server.streams.get("one").publication is None)
    assert server.streams.get("one").snapshot()["network"]["publisher"] is None


async def test_a_stream_that_no_network_feeds_tells_of_none(server):
    stream = server.streams.get("one")
    stream.set_controls(Controls())
    stream.publish(type("Camera", (), {"kind": "camera"})())
    assert stream.snapshot()["network"] == {"publisher": None, "viewers": None}
