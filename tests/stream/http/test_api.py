"""The JSON routes, live events and metrics, as a page or a script uses them."""

from __future__ import annotations

import asyncio
import io
import json
import threading

import aiohttp
import pytest
from PIL import Image

from pipeline.settings import Controls
from stream.engine import scheduler
from stream.http import api
from stream.http.application import make_app
from stream.streams import Streams
from tests.stream.fakes import FakeStylizer
from tests.stream.peers import Publisher, Viewer, until

CONTROLS = "/api/streams/one/controls"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def test_status_presets_schema_and_health(start_server):
    server = await start_server(presets=[{"name": "mini"}], defaults=Controls(prompt="ink", steps=3))
    status, body = await server.get("/api/status")
    assert (status, body["state"], body["model"], body["device"], body["compiled"]) == (
        200,
        "ready",
        "fake",
        "fake",
        "no",
    )
    assert (body["size"], body["features"], body["loras"]) == ("64x64", ["cfg", "guidance", "lora"], ["ink"])
    assert await server.get("/api/presets") == (200, [{"name": "mini"}])
    schema = (await server.get("/api/schema"))[1]
    assert set(schema["properties"]) == set(Controls.model_fields)
    assert (schema["properties"]["prompt"]["default"], schema["properties"]["steps"]["default"]) == ("ink", 3)
    assert (await server.get("/healthz"))[0] == 200


async def test_controls_are_merged_and_read_back_before_anyone_publishes(server):
    assert await server.get(CONTROLS) == (200, Controls().model_dump())
    status, body = await server.patch(CONTROLS, prompt="watercolor", strength=0.75)
    assert status == 200
    assert await server.patch(CONTROLS, steps=4) == (200, {**body, "steps": 4})
    assert (await server.get(CONTROLS))[1] == Controls(prompt="watercolor", strength=0.75, steps=4).model_dump()
    assert (await server.get("/api/streams/other/controls"))[1] == Controls().model_dump()
    assert (await server.get("/api/streams/one"))[0] == 404
    assert await server.get("/api/streams") == (200, [])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"strength": 1.5}, "strength"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"bypass": "perhaps"}, "bypass"),
        ({"bypass": "yes"}, "bypass"),
        ({"bypass": 1}, "bypass"),
        ({"strength": True}, "strength"),
        ({"strength": "0.5"}, "strength"),
        ({"steps": "3"}, "steps"),
        ({"steps": True}, "steps"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "\ud83c"}, "prompt"),  # half of a character, which no tokenizer and no snapshot takes
        ({"lora_weights": {"ink": True}}, "lora_weights.ink"),
        ({"lora_weights": {"ink": "1"}}, "lora_weights.ink"),
        ({"lora_weights": [["ink", 1]]}, "lora_weights"),
        ({"lora_weights": {"ink": 99}}, "lora_weights.ink"),
        ({"sharpness": 1}, "sharpness"),
        ({"strength": 0.1, "canny_low": 256}, "canny_low"),
    ],
)
async def test_a_control_that_cannot_be_is_named_and_nothing_changes(server, change, field):
    status, body = await server.patch(CONTROLS, **change)
    assert (status, body["field"]) == (422, field)
    assert body["error"].startswith(f"{field}: ")
    assert (await server.get(CONTROLS))[1] == Controls().model_dump()


async def test_numbers_are_taken_however_json_spells_them(server):
    async with server.http.patch(server.url + CONTROLS, data='{"strength": 1, "steps": 3.0, "seed": 4e2}') as response:
        assert response.status == 200
    values = (await server.get(CONTROLS))[1]
    assert [repr(values[name]) for name in ("strength", "steps", "seed")] == ["1.0", "3", "400"]


async def test_what_the_loaded_model_cannot_do_is_refused(server):
    status, body = await server.patch(CONTROLS, lora_weights={"oil": 0.5})
    assert (status, body["field"]) == (422, "lora_weights")
    assert "oil" in body["error"]
    assert (await server.patch(CONTROLS, lora_weights={"ink": 0.5}))[0] == 200


async def test_a_lora_asked_for_before_the_model_was_known_does_not_stand_in_the_way(start_server):
    loaded, stylizer = threading.Event(), FakeStylizer()
    defaults = Controls(lora_weights={"ink": 0.5, "gone": 1.0})
    server = await start_server(
        load=lambda report: loaded.wait(20) and stylizer, wait=False, stream_defaults=defaults, defaults=defaults
    )
    assert (await server.patch(CONTROLS, lora_weights={"ink": 0.25, "oil": 0.5}))[0] == 200
    loaded.set()
    await until(lambda: server.engine.status()["state"] == "ready")
    assert (await server.get(CONTROLS))[1]["lora_weights"] == {"ink": 0.25}
    assert (await server.patch(CONTROLS, steps=3))[0] == 200
    status, body = await server.patch("/api/streams/other/controls", steps=3)
    assert (status, body["lora_weights"]) == (200, {"ink": 0.5})
    schema = (await server.get("/api/schema"))[1]
    assert schema["properties"]["lora_weights"]["default"] == {"ink": 0.5}


async def test_a_mask_comes_as_a_png_and_goes(server):
    url, png = f"{server.url}/api/streams/one/mask", io.BytesIO()
    Image.new("L", (60, 40), 255).save(png, "PNG")
    async with server.http.put(url, data=png.getvalue()) as response:
        assert response.status == 204
    assert server.streams.get("one").mask.fitted(30, 20).shape == (20, 30)
    for bad, words in ((b"no picture", "is not a PNG"), (b"", "is not a PNG")):
        async with server.http.put(url, data=bad) as response:
            assert response.status == 422
            assert words in (await response.json())["error"]
    assert server.streams.get("one").mask is not None
    for _ in range(2):
        async with server.http.delete(url) as response:
            assert response.status == 204
    assert server.streams.get("one").mask is None
    async with server.http.put(url, data=png.getvalue(), headers={"Origin": "http://elsewhere.example"}) as response:
        assert response.status == 403


@pytest.mark.parametrize("key", ["é", "", "x", "====", "AAAAA", "dGhlIHNhbXBsZQ==", "dGhlIHNhbXBsZSBub25jZ٣=="])
async def test_a_key_that_opens_no_websocket_is_refused(server, caplog, key):
    asked = UPGRADE | {"Sec-WebSocket-Key": key}
    async with server.http.get(f"{server.url}/api/streams/one/events", headers=asked) as response:
        assert response.status == 426
        assert "WebSocket" in (await response.json())["error"]
    assert caplog.records == []


async def test_event_requests_that_are_refused_push_no_stream_out(start_server, monkeypatch):
    server = await start_server(max_names=1)
    await server.patch(CONTROLS, steps=3)
    async with server.http.get(f"{server.url}/api/streams/two/events") as response:  # as an <img> on any page asks
        assert (response.status, response.headers["Upgrade"]) == (426, "websocket")
        assert "WebSocket" in (await response.json())["error"]
    monkeypatch.setattr(api, "MAX_SOCKETS", 1)
    async with (
        server.http.ws_connect(f"{server.url}/api/streams/one/events"),
        server.http.get(f"{server.url}/api/streams/one/events", headers=UPGRADE) as response,
    ):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
    await until(lambda: server.streams.get("one").evictable)
    assert (await server.get(CONTROLS))[1]["steps"] == 3
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events"):
        pass  # the place is free again


@pytest.mark.parametrize(
    "body", ["", "{", "nonsense", "[1]", '"text"', "3", "null", b"\xff", "[" * 30_000, '{"a":NaN}x']
)
async def test_a_body_that_is_no_json_object_is_refused(server, body):
    async with server.http.patch(server.url + CONTROLS, data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"].endswith(".")


@pytest.mark.parametrize("body", ['{"strength": NaN}', '{"guidance": Infinity}', '{"seed": 1e400}'])
async def test_numbers_that_are_none_are_refused(server, body):
    async with server.http.patch(server.url + CONTROLS, data=body) as response:
        assert response.status == 422


async def test_unknown_paths_and_methods_are_told_in_json(server):
    assert (await server.get("/nothing/here"))[0] == 404
    assert "error" in (await server.get("/static/nothing.js"))[1]
    assert (await server.get("/static/../stream/server.py"))[0] == 404
    assert (await server.get("/static/%2e%2e/stream/server.py"))[0] == 404
    assert (await server.get("/static/%2fetc/passwd"))[0] == 404
    assert (await server.get("/static/a%00b"))[0] == 404
    assert (await server.get(f"/static/{'a' * 300}"))[0] == 404
    assert (await server.get(f"/static/{'a/' * 3000}"))[0] == 404
    async with server.http.delete(f"{server.url}/api/status") as response:
        assert response.status == 405
        assert "error" in await response.json()


async def test_a_mistake_of_ours_is_a_sentence_without_a_traceback_and_the_server_lives_on(server, monkeypatch):
    def stumble():
        raise KeyError("secret detail")

    monkeypatch.setattr(server.engine, "status", stumble)
    status, body = await server.get("/api/status")
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert (await server.get("/healthz"))[0] == 200


async def test_events_tell_status_controls_and_statistics_and_changes_by_others(server):
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket:
        first = {}
        while set(first) != {"status", "controls", "stats"}:
            message = await socket.receive_json(timeout=10)
            first.setdefault(message["type"], message)
        assert first["status"]["state"] == "ready"
        assert first["controls"]["controls"] == Controls().model_dump()
        assert first["stats"]["frames_in"] == 0
        await server.patch(CONTROLS, prompt="by another")
        told = await wait_for_event(socket, "controls")
        assert told["controls"]["prompt"] == "by another"
        assert (told["remarks"], told["masked"]) == ({}, False)
        server.engine._status.change(compiled="compiling")
        assert (await wait_for_event(socket, "status"))["compiled"] == "compiling"
        async with Publisher(server.http, f"{server.url}/whip/one"):
            while (stats := await wait_for_event(socket, "stats"))["frames_out"] < 2:
                pass
        expected = {"frames_in", "frames_out", "frames_dropped", "fps_in", "fps_out", "latency_ms", "engine_ms"}
        assert expected | {"in_flight", "width", "height", "steps", "viewers", "quality"} <= set(stats)
        assert {"frames_skipped", "steps_asked", "scale"} <= set(stats)
        assert stats["latency_ms"]["p95"] > 0
    await until(lambda: server.streams.get("one").evictable)


async def test_an_engine_that_failed_is_told_to_all_who_ask_publish_and_listen(server, monkeypatch):
    assert await server.get("/healthz") == (200, {"serving": True})
    url = f"{server.url}/whip/one"
    async with (
        server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket,
        Viewer(server.http, f"{server.url}/whep/one") as viewer,
        Publisher(server.http, url) as publisher,
    ):
        async with server.http.put(f"{server.url}/api/streams/two/imagine") as response:
            assert response.status == 201
        await viewer.next_frame()
        monkeypatch.setattr(scheduler, "plan", lambda *args: 1 / 0)
        while (told := await wait_for_event(socket, "status"))["state"] != "failed":
            pass
        await until(lambda: publisher.peer.connectionState == "closed")
        sentence = told["detail"]
        assert "division by zero" in sentence
        assert await server.get("/healthz") == (503, {"serving": False, "error": sentence})
        assert (await server.get("/api/status"))[1]["state"] == "failed"
        await until(lambda: not server.streams.get("two").publication)
        stats = await server.stats("one")
        assert (stats["publishing"], stats["detail"], stats["viewers"]) == (False, sentence, 1)
        assert stats["frames_in"] == stats["frames_out"] + stats["frames_dropped"] + stats["in_flight"]
        late = Publisher(server.http, url)
        async with server.http.post(
            url, data=await late.offer(), headers={"Content-Type": "application/sdp"}
        ) as refused:
            assert (refused.status, await refused.json()) == (503, {"error": sentence})
            assert int(refused.headers["Retry-After"]) > 0
        async with server.http.put(f"{server.url}/api/streams/two/imagine") as refused:
            assert (refused.status, await refused.json()) == (503, {"error": sentence})
        async with Viewer(server.http, f"{server.url}/whep/one") as another:
            await another.next_frame()  # the last picture stays
        await late.peer.close()
    assert len(server.sessions) == 0


async def test_who_publishes_while_the_engine_fails_is_sent_away_too(server, monkeypatch):
    """Its offer was being answered at that moment."""
    negotiate = server.sessions._negotiate

    async def slowly(peer, offer):
        monkeypatch.setattr(scheduler, "plan", lambda *args: 1 / 0)
        for _ in range(3):
            server.engine.wake()
            await asyncio.sleep(0.05)
        await until(lambda: server.engine.status()["state"] == "failed")
        return await negotiate(peer, offer)

    monkeypatch.setattr(server.sessions, "_negotiate", slowly)
    url, late = f"{server.url}/whip/one", Publisher(server.http, f"{server.url}/whip/one")
    async with server.http.post(url, data=await late.offer(), headers={"Content-Type": "application/sdp"}) as refused:
        assert refused.status == 503
    await until(lambda: len(server.sessions) == 0)
    assert server.streams.get("one").publication is None
    await late.peer.close()


async def test_only_the_engine_thread_touches_the_model(start_server):
    touched = []

    class Bound(FakeStylizer):
        def __getattribute__(self, name):
            if threading.current_thread().name != "engine":
                touched.append(name)
            return super().__getattribute__(name)

    server = await start_server(load=lambda report: Bound())
    async with (
        server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket,
        Publisher(server.http, f"{server.url}/whip/one"),
    ):
        assert (await server.patch(CONTROLS, negative_prompt="blurry", lora_weights={"ink": 0.5}))[0] == 200
        assert (await server.patch(CONTROLS, lora_weights={"oil": 0.5}))[0] == 422
        while "negative_prompt" not in (await wait_for_event(socket, "controls"))["remarks"]:
            pass
        assert (await server.get("/api/schema"))[0] == (await server.get("/api/status"))[0] == 200
        async with server.http.put(f"{server.url}/api/streams/two/imagine") as response:
            assert response.status == 201
        await until(lambda: server.streams.get("two").last_picture)
    assert touched == []


async def wait_for_event(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict:
    while (message := await socket.receive_json(timeout=10))["type"] != kind:
        pass
    return message


async def test_a_listener_keeps_its_stream_and_a_talkative_one_does_no_harm(start_server):
    server = await start_server(max_names=1)
    async with server.http.ws_connect(f"{server.url}/api/streams/one/events") as socket:
        await socket.send_str("hello")
        await socket.send_bytes(b"\x00")
        assert (await server.patch("/api/streams/two/controls", steps=3))[0] == 503
        await wait_for_event(socket, "stats")
    await until(lambda: server.streams.get("one").evictable)
    assert (await server.patch("/api/streams/two/controls", steps=3))[0] == 200


async def test_streams_in_use_are_listed(server):
    async with (
        Publisher(server.http, f"{server.url}/whip/one"),
        Viewer(server.http, f"{server.url}/whep/two"),
    ):
        listed = {stream["stream"]: stream for stream in (await server.get("/api/streams"))[1]}
        assert (listed["one"]["publishing"], listed["two"]["publishing"]) == (True, False)
        assert (listed["one"]["viewers"], listed["two"]["viewers"]) == (0, 1)


async def test_prometheus_finds_its_series_and_an_evicted_stream_takes_its_own_along(start_server):
    server = await start_server(max_names=1)

    async def scrape() -> str:
        async with server.http.get(f"{server.url}/metrics") as response:
            assert response.content_type == "text/plain"
            return await response.text()

    async with Publisher(server.http, f"{server.url}/whip/one"), Viewer(server.http, f"{server.url}/whep/one"):
        await until(lambda: server.streams.get("one").last_picture is not None)
        text = await scrape()
        assert "lcmirror_streams 1.0" in text
        assert "lcmirror_viewers 1.0" in text
    await until(lambda: server.streams.get("one").evictable)
    text = await scrape()
    for kind in ("in", "out", "dropped"):
        assert f'lcmirror_frames_total{{kind="{kind}",stream="one"}}' in text
    assert "lcmirror_latency_seconds_bucket" in text
    assert "lcmirror_engine_seconds_count" in text
    await server.patch("/api/streams/two/controls", steps=3)
    assert 'stream="one"' not in await scrape()


async def test_two_applications_in_one_process_count_apart(server, start_server):
    other = await start_server()
    async with Publisher(server.http, f"{server.url}/whip/one"):
        await until(lambda: server.streams.get("one").last_picture is not None)
        async with other.http.get(f"{other.url}/metrics") as response:
            assert 'stream="one"' not in await response.text()


async def test_leaving_sockets_and_sessions_do_not_hold_up_the_end(start_server):
    server = await start_server()
    socket = await server.http.ws_connect(f"{server.url}/api/streams/one/events")
    viewer = await Viewer(server.http, f"{server.url}/whep/one").__aenter__()
    app_end = asyncio.create_task(server.runner.cleanup())
    await asyncio.wait_for(app_end, 10)
    while (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
        pass
    assert socket.closed
    assert len(server.sessions) == 0
    await viewer.peer.close()


def test_an_application_can_be_made_before_any_loop_runs(tmp_path):
    (tmp_path / "index.html").write_text("")
    from stream.engine.runner import EngineRunner

    engine = EngineRunner(lambda report: None)
    assert make_app(engine, Streams(engine), static=tmp_path)
