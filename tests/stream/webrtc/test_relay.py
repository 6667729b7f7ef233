"""The relay itself: what it does to packets is what its plan says, and the same each time."""

from __future__ import annotations

import pytest

from tests.stream.peers import Publisher, Viewer, until

from .relay import Link, Plan, Relay, kinds, without_candidates

KINDS = {96: "video", 97: "rtx"}
STUN = b"\x00\x01" + bytes(20)


def packets(count: int, payload_type: int = 96) -> list[bytes]:
    return [bytes([0x80, payload_type]) + number.to_bytes(2, "big") for number in range(count)]


def arrivals(plan: Plan, count: int = 60_000) -> list[list[float]]:
    link = Link(plan, dict(KINDS))
    link.turn_to(plan, 0.0)
    return [link.carry(packet, number / 1000) for number, packet in enumerate(packets(count))]


@pytest.mark.parametrize("burst", [1, 5])
@pytest.mark.parametrize("loss", [0.01, 0.05, 0.3])
def test_so_many_are_lost_and_so_many_in_a_row(loss, burst):
    lost = [not times for times in arrivals(Plan(loss=loss, burst=burst, seed=1))]
    bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / len(lost) == pytest.approx(loss, rel=0.25)
    expected = 1 / (1 - loss) if burst == 1 else burst
    assert sum(lost) / bursts == pytest.approx(expected, rel=0.2)


def test_a_plan_does_the_same_each_time():
    plan = Plan(loss=0.1, late=0.2, late_s=0.5, doubled=0.1, one_way_s=0.02, seed=7)
    assert arrivals(plan, 500) == arrivals(plan, 500)
    assert arrivals(plan, 500) != arrivals(Plan(**{**plan.__dict__, "seed": 8}), 500)


def test_the_connection_itself_is_left_alone_but_for_the_way_it_takes():
    link = Link(Plan(loss=1.0, one_way_s=0.1), dict(KINDS))
    assert link.carry(STUN, 5.0) == [5.1]
    assert link.carry(packets(1)[0], 5.0) == []


def test_a_packet_and_what_is_sent_again_are_lost():
    link = Link(Plan(), dict(KINDS))
    link.turn_to(Plan(lose=(2,), retransmissions=1), 0.0)
    again = packets(3, 97)
    assert [bool(link.carry(packet, 0.0)) for packet in packets(4)] == [True, True, False, True]
    assert [bool(link.carry(packet, 0.0)) for packet in again] == [False, True, True]


def test_it_ends_when_its_time_is_over():
    assert all(arrivals(Plan(loss=1.0, from_s=1.0, until_s=2.0), 3000)[at] for at in (*range(1000), 2000, 2999))


def test_what_it_reads_and_leaves_out_of_an_answer():
    lines = ["v=0", "m=video 9 X 96 97", "a=candidate:1 1 udp 1 h 1 typ host", "a=rtpmap:96 VP8/90000"]
    answer = "\r\n".join([*lines, "a=rtpmap:97 rtx/90000", ""])
    assert kinds(answer) == KINDS
    assert "candidate" not in without_candidates(answer)


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_publisher_whose_packets_get_lost_is_seen_and_told_of(server, codec):
    lossy = Plan(loss=0.2, late=0.1, late_s=0.05, doubled=0.1, one_way_s=0.005, seed=3)
    with Relay(server.url, lossy, lossy) as relay:
        async with (
            Publisher(server.http, f"{relay.url}/whip/one", (200, 40, 40), codec) as publisher,
            Viewer(server.http, f"{server.url}/whep/one") as viewer,
        ):
            await viewer.sees((40, 40, 200))
            publisher.track.rgb = (40, 200, 40)
            await viewer.sees((40, 200, 40))
            network = server.streams.get("one").publication.network
            await until(lambda: network().nacks and network().packets_lost and network().round_trip_ms)
            assert network().packets_received > network().packets_lost
            assert (network().round_trip_ms < 1000, network().layers_ignored) == (True, 0)
