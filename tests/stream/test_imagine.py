"""A stream without a camera: pictures from the controls alone, when they change, for real viewers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import av
import numpy as np
import pytest

from stream import imagine
from stream.streams import MAX_IDLE_PICTURES

from .fakes import FakeStylizer
from .peers import Publisher, Viewer, until

ROUTE, CONTROLS = "/api/streams/one/imagine", "/api/streams/one/controls"
RED, RED_SHOWN = (200, 40, 40), (40, 40, 200)  # the fake engine swaps red and blue


def grey(level: int) -> tuple[int, int, int]:
    """What the fake engine imagines with that seed."""
    return level, level, level


async def ask(server, method: str, path: str = ROUTE, **options):
    async with server.http.request(method, server.url + path, **options) as response:
        return response.status, await response.json() if response.status != 204 else None


async def test_a_viewer_sees_each_change_and_the_engine_rests_in_between(server):
    await server.patch(CONTROLS, seed=60)
    async with Viewer(server.http, f"{server.url}/whep/one") as viewer:
        status, body = await ask(server, "PUT")
        assert (status, body["publishing"], body["publisher"]) == (201, True, "imagine")
        await viewer.sees(grey(60))
        await server.patch(CONTROLS, seed=180)
        await viewer.sees(grey(180))
        sent = len(viewer.pts)
        for same in ({"seed": 180}, {"strength": 0.9}, {"bypass": True}):  # nothing of it is in the picture
            await server.patch(CONTROLS, **same)
        await until(lambda: len(viewer.pts) > sent)  # the picture that stands is sent again
        assert np.abs(viewer.colour() - 180).max() < 25
        assert [controls.seed for controls in server.stylizer.imagined] == [60, 180]
        assert (await ask(server, "PUT"))[0] == 200, "it goes on, and paints nothing again"
        stats = await server.stats("one")
        assert (stats["frames_in"], stats["frames_out"], stats["frames_dropped"]) == (2, 2, 0)
        assert (stats["width"], stats["height"], stats["viewers"]) == (64, 64, 1)
        assert (await ask(server, "DELETE"))[0] == 204
        assert not (await server.stats("one"))["publishing"]
        await server.patch(CONTROLS, seed=100)
    await until(lambda: server.streams.get("one").evictable)
    assert len(server.stylizer.calls) == 2
    assert (await ask(server, "DELETE"))[0] == 204


async def test_of_changes_that_come_faster_than_the_engine_the_newest_is_painted(server):
    server.stylizer.gate.clear()
    await ask(server, "PUT")
    stream = server.streams.get("one")
    await until(lambda: stream.mailbox.peek() is None)
    for seed in range(10, 20):
        await server.patch(CONTROLS, seed=seed)
    server.stylizer.gate.set()
    await until(lambda: stream.last_picture is not None and stream.last_picture.rgb[0, 0, 0] == 19)
    assert [controls.seed for controls in server.stylizer.imagined] == [0, 19]
    stats = await server.stats("one")
    assert (stats["frames_in"], stats["frames_out"], stats["frames_dropped"]) == (11, 2, 9)


async def test_a_picture_waits_for_the_model_and_gets_all_of_its_steps(start_server):
    """Neither the age limit nor the lowered quality of moving pictures: no newer one would follow."""
    loaded, stylizer = threading.Event(), FakeStylizer(engine_s=0.05)
    server = await start_server(
        stylizer, load=lambda report: loaded.wait(20) and stylizer, wait=False, room_options={"budget_s": 0.01}
    )
    stream = server.streams.get("one")
    await ask(server, "PUT")
    await asyncio.sleep(0.05)
    loaded.set()
    await until(lambda: stream.last_picture is not None)
    for seed in range(1, 8):
        await server.patch(CONTROLS, seed=seed, steps=8)
        await until(lambda seed=seed: stream.last_picture is not None and stream.last_picture.rgb[0, 0, 0] == seed)
    assert {controls.steps for controls in stylizer.imagined if controls.seed} == {8}
    assert (await server.stats("one"))["quality"] == 0


async def test_whoever_comes_last_publishes(server):
    async with (
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
        Publisher(server.http, f"{server.url}/whip/one", RED) as publisher,
    ):
        await viewer.sees(RED_SHOWN)
        await server.patch(CONTROLS, seed=230)
        await ask(server, "PUT")
        await viewer.sees(grey(230))
        await until(lambda: publisher.peer.connectionState == "closed")
        assert (await server.stats("one"))["publisher"] == "imagine"
        async with Publisher(server.http, f"{server.url}/whip/one", RED):
            await viewer.sees(RED_SHOWN)
            await server.patch(CONTROLS, seed=120)
            assert (await ask(server, "DELETE"))[0] == 204, "what it would have ended is not there any more"
            stats = await server.stats("one")
            assert (stats["publishing"], stats["publisher"]) == (True, "whip")
    assert [controls.seed for controls in server.stylizer.imagined] == [230]
    await until(lambda: server.streams.get("one").evictable)


async def test_a_fault_is_told_and_the_next_change_mends_it(server):
    await server.patch(CONTROLS, prompt="fail")
    await ask(server, "PUT")
    await until(lambda: server.streams.get("one").fault)
    assert (await server.stats("one"))["detail"] == "The paint ran out."
    await server.patch(CONTROLS, prompt="a fox")
    await until(lambda: server.streams.get("one").last_picture is not None)
    assert (await server.stats("one"))["detail"] == ""


async def test_who_left_without_a_word_does_not_keep_the_stream(server, monkeypatch):
    monkeypatch.setattr(imagine, "ABANDONED_S", 0.2)
    monkeypatch.setattr(imagine, "LOOK_EVERY_S", 0.05)
    stream = server.streams.get("one")
    leave = stream.watch(lambda picture: None)
    await ask(server, "PUT")
    await asyncio.sleep(0.5)
    assert (await server.stats("one"))["publishing"], "somebody watches"
    leave()
    await until(lambda: stream.publication is None)
    assert stream.evictable


async def test_what_is_imagined_for_nobody_keeps_nobody_out(start_server):
    server = await start_server(max_names=3)
    imagined = [f"/api/streams/{name}/imagine" for name in ("one", "two", "three")]
    async with Viewer(server.http, f"{server.url}/whep/one") as viewer:
        for path in imagined:
            assert (await ask(server, "PUT", path))[0] == 201
        await until(lambda: server.streams.get("two").last_picture is not None)
        publication = server.streams.get("two").publication
        async with Publisher(server.http, f"{server.url}/whip/real", RED):
            await until(lambda: server.streams.get("real").last_picture is not None)
            assert (await server.get("/api/streams/two"))[0] == 404, "nobody had watched or changed it for longest"
            assert not publication.put(None), "nothing asks for pictures of it any more"
            assert (await ask(server, "PUT", "/api/streams/four/imagine"))[0] == 201, "in the place of three"
            assert (await server.stats("one"))["publishing"]
            async with server.http.ws_connect(f"{server.url}/api/streams/four/events"):
                status, body = await ask(server, "PUT", "/api/streams/five/imagine")
                assert (status, list(body)) == (503, ["error"]), "one is watched, one is published, one is listened to"
        await server.patch(CONTROLS, seed=150)
        await viewer.sees(grey(150))


async def test_a_stream_that_gave_way_in_mid_picture_leaves_nothing_behind(start_server):
    server = await start_server(max_names=1)
    server.stylizer.gate.clear()
    await ask(server, "PUT")
    stream = server.streams.get("one")
    await until(lambda: stream.mailbox.peek() is None)  # the engine has it
    assert (await ask(server, "PUT", "/api/streams/two/imagine"))[0] == 201
    server.stylizer.gate.set()
    await until(lambda: server.streams.get("two").last_picture is not None)
    async with server.http.get(f"{server.url}/metrics") as response:
        told = await response.text()
    assert 'stream="two"' in told
    assert 'stream="one"' not in told


async def test_a_picture_that_is_imagined_waits_for_who_comes_later(server):
    await server.patch(CONTROLS, seed=90)
    await ask(server, "PUT")
    await until(lambda: server.streams.get("one").last_picture is not None)
    for number in range(MAX_IDLE_PICTURES + 4):
        await server.patch(f"/api/streams/idle-{number}/controls", seed=1)
    async with Viewer(server.http, f"{server.url}/whep/one") as viewer:
        await viewer.sees(grey(90))


async def test_a_model_that_needs_a_picture_says_so(start_server):
    stylizer = FakeStylizer()
    stylizer.capabilities = replace(stylizer.capabilities, annotators=("canny",))
    server = await start_server(stylizer)
    status, body = await ask(server, "PUT")
    assert status == 409
    assert "ControlNet" in body["error"]
    assert not server.streams.get("one").in_use
    loaded = threading.Event()
    server = await start_server(load=lambda report: loaded.wait(20) and stylizer, wait=False)
    assert (await ask(server, "PUT"))[0] == 201, "nobody knows yet what the model needs"
    loaded.set()
    await until(lambda: server.streams.get("one").fault)
    assert server.streams.get("one").fault == body["error"]


async def test_what_does_nothing_to_it_is_remarked_and_only_then(server):
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket:

        async def remarked() -> set[str]:
            while (message := await socket.receive_json(timeout=10))["type"] != "controls":
                pass
            return set(message["remarks"])

        assert await remarked() == set()
        await ask(server, "PUT")
        assert await remarked() == {"strength", "bypass", "skip_similar", "steps"}
        await server.patch(CONTROLS, steps=4)
        assert await remarked() == {"strength", "bypass", "skip_similar"}
        await ask(server, "DELETE")
        assert await remarked() == set()


async def test_a_film_begins_with_the_picture_that_stands(start_server, tmp_path):
    """Not with one that a camera left behind."""
    server = await start_server(recordings=tmp_path)
    stream = server.streams.get("one")
    async with Publisher(server.http, f"{server.url}/whip/one", RED):
        await until(lambda: stream.last_picture is not None)
    server.stylizer.gate.clear()
    await server.patch(CONTROLS, seed=200)
    await ask(server, "PUT")
    assert (await ask(server, "POST", "/api/streams/one/recording"))[0] == 201
    server.stylizer.gate.set()
    await until(lambda: stream.recording.state()["seconds"] >= 0.5)
    assert (await ask(server, "DELETE", "/api/streams/one/recording"))[0] == 200
    assert (await ask(server, "POST", "/api/streams/one/recording"))[0] == 201
    await until(lambda: stream.recording.state()["seconds"] >= 0.5)
    await server.patch(CONTROLS, seed=20)
    await until(lambda: stream.last_picture.rgb[0, 0, 0] == 20)
    status, film = await ask(server, "DELETE", "/api/streams/one/recording")
    assert (status, film["state"]) == (200, "ended")
    levels = []
    for file in sorted(tmp_path.glob("*.mp4"), key=lambda file: file.stat().st_mtime):
        with av.open(str(file)) as container:
            levels.append([frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)])
    assert [(film[0] > 150, film[-1] > 150) for film in levels] == [(True, True), (True, False)]


async def test_strangers_start_nothing(start_server):
    server = await start_server(token="s3cret")
    for method in ("PUT", "DELETE"):
        assert (await ask(server, method))[0] == 401
    right = {"Authorization": "Bearer s3cret"}
    assert (await ask(server, "PUT", headers={**right, "Origin": "https://stranger.example"}))[0] == 403
    assert (await ask(server, "PUT", "/api/streams/NO/imagine", headers=right))[0] == 400
    assert (await ask(server, "PUT", headers=right))[0] == 201


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_pages_of_a_permitted_origin_may_use_it(start_server, method):
    friend = "https://friend.example"
    server = await start_server(allow_origins=[friend])
    asked = {"Origin": friend, "Access-Control-Request-Method": method}
    async with server.http.options(server.url + ROUTE, headers=asked) as response:
        assert response.status == 204
        assert method in response.headers["Access-Control-Allow-Methods"].split(", ")
