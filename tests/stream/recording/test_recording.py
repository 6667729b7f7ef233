"""Recording a stream over HTTP: real files, opened afterwards; a killed process, a full disk, a server that stops."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import Pictures
from stream.engine.frames import SAMPLE_RATE
from stream.http import downloads
from stream.http.downloads import RECORDINGS
from stream.recording import backlog, recording
from stream.recording.mp4 import FragmentFile, Mp4Muxer
from stream.recording.recordings import CannotRecord
from tests.paths import ROOT
from tests.stream.fakes import SIZE, solid
from tests.stream.films import AAC_FRAME_S, tone, watch
from tests.stream.peers import until

ROUTE = "/api/streams/one/recording"
FRAME_S = 1 / 20


class Source:
    kind = "test"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "films"


@pytest.fixture
async def server(start_server, folder):
    return await start_server(recordings=folder)


async def send(server, method: str, path: str = ROUTE, **options):
    async with server.http.request(method, server.url + path, **options) as response:
        return response.status, await response.json()


class Live:
    """A publisher whose every picture is shown, captured FRAME_S after the one before, whatever the clock says."""

    def __init__(self, server, name: str = "one"):
        self.stream = server.streams.get(name)
        self.publication, _ = self.stream.publish(Source())
        self.captured_s = time.monotonic()

    async def show(self, *colours: tuple[int, int, int]) -> None:
        for red, green, blue in colours:
            before = self.stream.last_picture
            self.captured_s += FRAME_S
            self.publication.put(solid(blue, green, red), arrived_s=self.captured_s)  # the engine swaps red and blue
            await until(lambda before=before: self.stream.last_picture is not before)

    async def recorded(self, frames: int) -> None:
        await until(lambda: self.stream.recording.state()["frames"] >= frames)


@asynccontextmanager
async def recorded(server, folder):
    """async with recorded(...) as (live, end): the film of what is shown within is `await end()`."""
    live = Live(server)
    status, started = await send(server, "POST")
    assert (status, started["state"]) == (201, "recording")
    live.captured_s = time.monotonic()

    async def end():
        status, ended = await send(server, "DELETE")
        assert (status, ended["state"], ended["file"]) == (200, "ended", started["file"])
        assert ended["bytes"] == (folder / ended["file"]).stat().st_size
        assert [path.name for path in folder.iterdir()] == [ended["file"]]
        film = watch(folder / ended["file"])
        assert len(film.times) == ended["frames"]
        assert ended["seconds"] == pytest.approx(film.times[-1], abs=0.001)
        return film

    yield live, end


RED, GREEN, BLUE, WHITE, BLACK = (220, 0, 0), (0, 220, 0), (0, 0, 220), (255, 255, 255), (0, 0, 0)


async def test_the_film_holds_every_picture_at_its_time(server, folder):
    async with recorded(server, folder) as (live, end):
        assert (await server.stats("one"))["recording"]["file"].startswith("one-2")
        assert (await server.stats("one"))["viewers"] == 0
        await live.show(*[RED, GREEN, BLUE] * 10)
        await live.recorded(30)
        state = (await send(server, "GET"))[1]
        assert (state["state"], state["detail"], state["frames_dropped"]) == ("recording", "", 0)
        film = await end()
    assert film.times[:30] == pytest.approx([number * FRAME_S for number in range(30)], abs=1e-3)
    assert film.colours[:30].argmax(axis=1).tolist() == [0, 1, 2] * 10
    assert film.sizes == {(SIZE, SIZE)}
    stats = await server.stats("one")
    assert (stats["recording"], stats["last_recording"]["state"]) == (None, "ended")


async def test_a_beep_is_heard_at_the_flash(server, folder):
    async with recorded(server, folder) as (live, end):
        origin_s = live.captured_s + FRAME_S
        sound = np.concatenate([np.zeros((SAMPLE_RATE, 2), np.int16), tone(SAMPLE_RATE // 2)])
        for piece, start in enumerate(range(0, len(sound), 960)):  # all of it is there before the first picture
            live.publication.put_sound(sound[start : start + 960], origin_s + piece / 50)
        await live.show(*[BLACK] * 20, *[WHITE] * 10)
        await live.recorded(30)
        film = await end()
    assert film.flash_s() == pytest.approx(1.0, abs=1e-3)
    assert film.beep_s() == pytest.approx(film.flash_s(), abs=AAC_FRAME_S + FRAME_S)


async def test_a_picture_of_before_does_not_open_the_film(server, folder):
    live = Live(server)
    await live.show(RED)
    shown = live.stream.last_picture
    live.stream.last_picture = replace(shown, captured_s=shown.captured_s - 300, shown_s=shown.shown_s - 300)
    assert (await send(server, "POST"))[0] == 201
    live.captured_s = time.monotonic()
    await live.show(*[GREEN] * 5)
    await live.recorded(5)
    ended = (await send(server, "DELETE"))[1]
    film = watch(folder / ended["file"])
    assert film.colours[0].argmax() == 1
    assert np.diff(film.times[:5]) == pytest.approx(FRAME_S, abs=1e-3)


async def test_while_the_publisher_is_away_the_last_picture_stays(server, folder, monkeypatch):
    monkeypatch.setattr(recording, "HOLD_S", 0.05)
    async with recorded(server, folder) as (live, end):
        await live.show(RED, RED, GREEN)
        live.publication.end()
        await live.recorded(6)
        held_s = live.stream.recording.state()["seconds"]
        back = Live(server)
        await back.show(BLUE, BLUE)
        await live.recorded(8)
        film = await end()
    seen = film.colours.argmax(axis=1)
    assert np.all(np.diff(seen) >= 0)  # red, then green until blue came
    assert set(seen) == {0, 1, 2}
    assert np.all(np.diff(film.times) > 0)
    assert film.times[seen.tolist().index(2)] > held_s - 0.001  # which is rounded to that
    assert len(film.sound) / SAMPLE_RATE == pytest.approx(film.times[-1], abs=0.1)


async def test_without_a_picture_there_is_no_film(server, folder):
    status, started = await send(server, "POST")
    assert (status, started["frames"], started["detail"]) == (201, 0, "Waiting for the first picture.")
    status, ended = await send(server, "DELETE")
    assert (status, ended["state"], ended["file"], ended["url"]) == (200, "ended", None, None)
    assert "No picture came" in ended["detail"]
    assert list(folder.iterdir()) == []


async def test_it_ends_by_itself_when_nothing_comes(server, folder, monkeypatch):
    monkeypatch.setattr(recording, "ABANDONED_S", 0.05)
    assert (await send(server, "POST"))[0] == 201
    await until(lambda: not server.streams.get("one").recording.is_running)
    assert "no picture came" in (await send(server, "GET"))[1]["detail"]
    await until(lambda: server.streams.get("one").evictable)
    assert (await send(server, "DELETE"))[0] == 404


async def test_a_very_long_film_goes_on_in_a_next_file(server, folder, monkeypatch):
    monkeypatch.setattr(recording, "FULL_S", 0.5)
    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    first = live.stream.recording
    await live.show(*[RED] * 11)
    await until(lambda: live.stream.recording is not first)
    await live.show(*[GREEN] * 5)
    await until(lambda: live.stream.recording.state()["frames"] >= 5)
    ended = (await send(server, "DELETE"))[1]
    films = {path.name: watch(path) for path in folder.iterdir()}
    assert set(films) == {first.state()["file"], ended["file"]}
    assert films[first.state()["file"]].times[10] == pytest.approx(0.5, abs=1e-3)
    assert films[ended["file"]].colours[-1].argmax() == 1


async def test_a_slow_encoder_drops_pictures_and_says_so(server, folder, monkeypatch):
    may_write, add_picture = threading.Event(), Mp4Muxer.add_picture

    def held_up(*arguments):
        may_write.wait(20)
        add_picture(*arguments)

    monkeypatch.setattr(Mp4Muxer, "add_picture", held_up)
    monkeypatch.setitem(backlog.MAX_WAITING, recording.Picture, 4)
    async with recorded(server, folder) as (live, end):
        await live.show(*[RED] * 12)  # the engine is not held up
        await until(lambda: live.stream.recording.frames_dropped)
        state = (await send(server, "GET"))[1]
        dropped = state["frames_dropped"]
        assert dropped in (7, 8)  # 12, less 4 that wait, less the one in hand if it was taken in time
        assert state["detail"].startswith(f"{dropped} pictures are missing")
        may_write.set()
        await live.recorded(12 - dropped)
        film = await end()
    assert len(film.times) == 12 - dropped + 1


async def test_two_recordings_of_a_stream_and_too_many_at_once_are_refused(server, folder):
    assert (await send(server, "POST"))[0] == 201
    status, body = await send(server, "POST")
    assert (status, "already" in body["error"]) == (409, True)
    for name in ("two", "three", "four"):
        assert (await send(server, "POST", f"/api/streams/{name}/recording"))[0] == 201
    async with server.http.post(f"{server.url}/api/streams/five/recording") as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
    assert (await send(server, "DELETE"))[0] == 200
    assert (await send(server, "POST", "/api/streams/five/recording"))[0] == 201


async def test_what_is_not_recorded_is_said(server):
    assert (await send(server, "GET"))[0] == 404
    assert (await send(server, "DELETE"))[0] == 404
    assert (await send(server, "POST", "/api/streams/Bad_Name/recording"))[0] == 400
    assert await send(server, "GET", "/api/recordings") == (200, [])


async def test_a_folder_that_cannot_be_is_a_sentence_and_the_server_lives_on(server, folder):
    folder.write_text("a file where the folder should be")
    status, body = await send(server, "POST")
    assert status == 500
    assert "--recordings" in body["error"]
    assert "Traceback" not in body["error"]
    assert (await server.stats("one") if server.streams.get("one").in_use else {"recording": None})["recording"] is None
    folder.unlink()
    assert (await send(server, "POST"))[0] == 201


async def test_a_folder_that_cannot_be_read_is_a_sentence(server, folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    status, body = await send(server, "GET", "/api/recordings")
    assert (status, body["error"]) == (500, f"Recordings in {folder} cannot be read: Permission denied.")


async def test_a_recorded_stream_is_kept(start_server, folder):
    server = await start_server(recordings=folder, max_names=1)
    assert (await send(server, "POST"))[0] == 201
    assert (await server.patch("/api/streams/two/controls", steps=3))[0] == 503
    assert (await send(server, "DELETE"))[0] == 200
    assert (await server.patch("/api/streams/two/controls", steps=3))[0] == 200


async def test_a_server_that_stops_finishes_the_film(server, folder):
    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    await live.show(*[RED] * 10)
    await server.runner.cleanup()
    (film,) = folder.iterdir()
    assert film.name == live.stream.recording.state()["file"]
    assert len(watch(film).times) == 11


async def test_films_are_listed_and_downloaded_and_those_being_made_are_not(server, folder):
    live = Live(server)
    url = (await send(server, "POST"))[1]["url"]
    live.captured_s = time.monotonic()
    await live.show(*[RED] * 10)
    await live.recorded(10)
    (part,) = folder.iterdir()
    assert await send(server, "GET", "/api/recordings") == (200, [])
    for running in (url, f"/api/recordings/{part.name}"):
        status, body = await send(server, "GET", running)
        assert (status, "still" in body["error"]) == (409, True)
    ended = (await send(server, "DELETE"))[1]
    left = folder / "two-20260101-120000.part.mp4"  # of a server that was killed
    left.write_bytes((folder / ended["file"]).read_bytes())
    (folder / "Holiday.mp4").write_bytes(b"not ours")
    listed = {film["file"]: film for film in (await send(server, "GET", "/api/recordings"))[1]}
    assert {name: film["finished"] for name, film in listed.items()} == {ended["file"]: True, left.name: False}
    assert listed[ended["file"]]["bytes"] == ended["bytes"]
    for film in listed.values():
        async with server.http.get(server.url + film["url"]) as response:
            assert (response.status, response.content_type) == (200, "video/mp4")
            assert response.headers["Content-Disposition"] == f'attachment; filename="{film["file"]}"'
            assert await response.read() == (folder / film["file"]).read_bytes()
    async with server.http.get(server.url + ended["url"], headers={"Range": "bytes=4-7"}) as response:
        assert (response.status, await response.read()) == (206, b"ftyp")


@pytest.mark.parametrize(
    "name", ["..%2fsecret.mp4", "%2e%2e%2fsecret.mp4", "..", "%2fetc%2fpasswd", "a%00.mp4", "Holiday.mp4", "a" * 300]
)
async def test_no_name_leads_out_of_the_folder(server, folder, name):
    folder.mkdir()
    (folder.parent / "secret.mp4").write_bytes(b"secret")
    (folder / "Holiday.mp4").write_bytes(b"not ours")
    status, body = await send(server, "GET", f"/api/recordings/{name}")
    assert status == 404
    assert "error" in body


async def test_an_old_film_is_never_written_over(server, folder, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda format: "20260101-120000")
    files = []
    for _ in range(3):
        async with recorded(server, folder) as (live, _):
            await live.show(RED, RED)
            await live.recorded(2)
            files.append((await send(server, "DELETE"))[1]["file"])
    assert files == [f"one-20260101-120000{number}.mp4" for number in ("", "-2", "-3")]
    assert all(len(watch(folder / file).times) >= 3 for file in files)


async def test_the_token_and_the_origin_guard_recordings(start_server, folder):
    server = await start_server(recordings=folder, token="s3cret")
    films = "/api/recordings"
    for method, path in (("POST", ROUTE), ("DELETE", ROUTE), ("GET", films), ("GET", f"{films}/a.mp4")):
        assert (await send(server, method, path))[0] == 401
        stranger = {"Origin": "https://stranger.example", "Authorization": "Bearer s3cret"}
        assert (await send(server, method, path, headers=stranger))[0] == 403
    assert not folder.exists()
    assert (await send(server, "POST", headers={"Authorization": "Bearer s3cret"}))[0] == 201


async def test_a_stop_right_behind_the_start_waits_for_it(server, folder, monkeypatch):
    may_start, starting, start = threading.Event(), threading.Event(), recording.Recording.start

    def held_up(self):
        starting.set()
        may_start.wait(20)
        start(self)

    monkeypatch.setattr(recording.Recording, "start", held_up)
    started = asyncio.create_task(send(server, "POST"))
    await until(starting.is_set)
    stopped = asyncio.create_task(send(server, "DELETE"))
    await asyncio.sleep(0.1)  # it reaches the server
    may_start.set()
    assert ((await started)[0], (await stopped)[0]) == (201, 200)
    assert list(folder.iterdir()) == []


async def test_a_publisher_that_changes_its_resolution_leaves_the_films_as_it_is(server, folder):
    async with recorded(server, folder) as (live, end):
        for size in (48, 96, 33):
            live.captured_s += FRAME_S
            before = live.stream.last_picture
            live.publication.put(np.full((size, 2 * size, 3), BLUE, np.uint8), arrived_s=live.captured_s)
            await until(lambda before=before: live.stream.last_picture is not before)
        await live.recorded(3)
        film = await end()
    assert film.sizes == {(SIZE, SIZE)}
    assert film.colours.argmax(axis=1).tolist() == [0] * 4


async def test_a_finished_recording_holds_no_encoder(server, folder):
    """One took 10 MB for as long as its stream was known."""
    async with recorded(server, folder) as (live, end):
        await live.show(RED, RED)
        await live.recorded(2)
        await end()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Mp4Muxer]
    assert (await send(server, "GET"))[1]["frames"] == 3


needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="there, an open file cannot be removed or moved")


@asynccontextmanager
async def broken_off(server, monkeypatch):
    """async with broken_off(...) as live: what happens within takes the recording its file; yields also its state."""
    monkeypatch.setattr(recording, "LOOK_S", 0.0)
    monkeypatch.setattr(recording, "TICK_S", 0.01)
    live, failed = Live(server), {}
    assert (await send(server, "POST"))[0] == 201
    live.captured_s = time.monotonic()
    await live.show(*[RED] * 30)
    await live.recorded(30)
    yield live, failed
    await until(lambda: live.stream.recording.state()["state"] != "recording")
    failed.update((await server.stats("one"))["last_recording"])
    assert (failed["state"], failed["file"], failed["url"]) == ("failed", None, None)
    assert await send(server, "GET") == (200, failed)
    assert await send(server, "DELETE") == (200, failed)  # who stops it has not heard of that yet


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_file(folder: Path) -> None:
    for part in folder.iterdir():
        part.unlink()


def replace_by_file(folder: Path) -> None:
    """Then nothing of its folder can be looked at, nor removed."""
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was")


@needs_unix
@pytest.mark.parametrize("take_away", [remove, remove_file, replace_by_file])
async def test_a_film_that_is_removed_while_it_is_made_is_told_by_itself(server, folder, monkeypatch, take_away):
    async with broken_off(server, monkeypatch) as (live, failed):
        name = live.stream.recording.state()["file"].replace(".mp4", ".part.mp4")
        take_away(folder)
    assert failed["detail"] == f"The recording broke off: {name} was removed. There is no film."
    if folder.is_file():
        folder.unlink()
    assert (await send(server, "POST"))[0] == 201


@needs_unix
async def test_a_film_that_is_moved_away_ends_plays_there_and_no_file_in_its_place_is_touched(
    server, folder, monkeypatch
):
    async with broken_off(server, monkeypatch) as (_, failed):
        (part,) = folder.iterdir()
        moved = part.rename(folder.parent / "moved.mp4")
        part.write_text("of somebody else")
    assert failed["detail"].endswith("was moved away. What was written plays from where it is now.")
    assert part.read_text() == "of somebody else"
    assert len(watch(moved).times) >= 29


@needs_unix
async def test_before_there_is_a_picture_too(server, folder, monkeypatch):
    monkeypatch.setattr(recording, "LOOK_S", 0.0)
    assert (await send(server, "POST"))[0] == 201
    shutil.rmtree(folder)
    await until(lambda: not server.streams.get("one").recording.is_running)
    assert "was removed. There is no film." in (await send(server, "GET"))[1]["detail"]


@needs_unix
async def test_a_folder_that_is_removed_takes_the_film_with_it_and_that_is_said(server, folder):
    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    await live.show(RED, RED)
    await live.recorded(2)
    (part,) = folder.iterdir()
    shutil.rmtree(folder)
    status, ended = await send(server, "DELETE")
    assert (status, ended["state"], ended["file"]) == (200, "failed", None)
    assert ended["detail"] == f"The recording broke off: {part.name} was removed. There is no film."
    assert (await send(server, "POST"))[0] == 201


@needs_unix
@pytest.mark.prove
async def test_a_removed_folder_is_told_within_two_seconds(server, folder):
    await send(server, "POST")
    shutil.rmtree(folder)
    removed_s = time.monotonic()
    await until(lambda: not server.streams.get("one").recording.is_running)
    assert "was removed" in (await send(server, "GET"))[1]["detail"]
    assert time.monotonic() - removed_s < 2


async def test_a_film_that_cannot_get_its_name_is_kept_under_the_other(server, folder, monkeypatch):
    """As in a folder that was made read-only meanwhile."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    await live.show(*[RED] * 5)
    await live.recorded(5)
    (part,) = folder.iterdir()
    status, failed = await send(server, "DELETE")
    assert (status, failed["state"], failed["file"]) == (200, "failed", part.name)
    assert failed["detail"] == (f"The recording broke off: Permission denied. What was written is kept as {part.name}.")
    assert len(watch(part).times) == failed["frames"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["abandon", "is_in_place", "close", "_settle", "_on_end"])
async def test_whatever_fails_in_ending_it_ends_and_says_so(server, folder, monkeypatch, where):
    """The disk takes nothing more, and then the clean-up fails too."""

    def full(*_):
        raise OSError(28, "No space left on device")

    def fail(*_):
        raise RuntimeError("a fault in the clean-up")

    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    await live.show(RED, RED)
    await live.recorded(2)
    owner = {"abandon": Mp4Muxer, "is_in_place": FragmentFile, "close": FragmentFile, "_settle": recording.Recording}
    with monkeypatch.context() as faulty:
        if where != "_on_end":
            faulty.setattr(owner[where], where, fail)
        else:
            faulty.setattr(live.stream.recording, "_ended", fail)
        faulty.setattr(Mp4Muxer, "add_picture", full)
        await live.show(RED)
        await until(live.stream.recording.over.done)
    state, detail = live.stream.recording.state()["state"], live.stream.recording.state()["detail"]
    assert state == "failed"
    assert detail.startswith("The recording broke off: ")
    assert str(folder) not in detail
    assert (await send(server, "DELETE"))[0] == 200
    if where != "_on_end":
        assert (await send(server, "POST"))[0] == 201


async def test_without_a_thread_for_it_the_next_one_can_still_start(server, folder, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(recording.threading.Thread, "start", refuse)
        with pytest.raises(CannotRecord, match="can't start new thread"):
            server.runner.app[RECORDINGS].start(server.streams.get("one"))
    assert list(folder.iterdir()) == []
    assert server.streams.get("one").evictable
    assert (await send(server, "POST"))[0] == 201


async def test_films_that_are_being_finished_keep_no_encoder_waiting(server, folder, monkeypatch):
    """aiortc encodes in the loop's own executor."""
    may_end, close = threading.Event(), Mp4Muxer.close

    def held_up(*arguments):
        may_end.wait(20)
        close(*arguments)

    monkeypatch.setattr(Mp4Muxer, "close", held_up)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    live = [Live(server, name) for name in ("one", "two", "three", "four")]
    routes = [f"/api/streams/{each.stream.name}/recording" for each in live]
    for each, route in zip(live, routes, strict=True):
        assert (await send(server, "POST", route))[0] == 201
        each.captured_s = time.monotonic()
        await each.show(RED)
        await each.recorded(1)
    stops = [asyncio.create_task(send(server, "DELETE", route)) for route in routes]
    await until(lambda: all(each.stream.recording._backlog.is_closed for each in live))
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(lambda: "encoded") == "encoded"
        async with server.http.get(f"{server.url}/api/streams/one/snapshot") as response:
            assert response.status == 200
    assert not any(stop.done() for stop in stops)
    may_end.set()
    assert [status for status, _ in await asyncio.gather(*stops)] == [200] * 4


async def test_a_server_that_ends_waits_for_a_stuck_disk_no_longer_than_it_says(server, folder, monkeypatch, caplog):
    may_write, add_picture = threading.Event(), Mp4Muxer.add_picture

    def stuck(*arguments):
        may_write.wait(20)
        add_picture(*arguments)

    monkeypatch.setattr(Mp4Muxer, "add_picture", stuck)
    monkeypatch.setattr(downloads, "FINISH_S", 0.05)
    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    await live.show(RED)
    await server.runner.cleanup()
    assert not live.stream.recording.over.done()
    assert "could not be finished" in caplog.text
    may_write.set()
    await until(live.stream.recording.over.done)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources there")
async def test_a_disk_that_is_full_from_the_first_leaves_no_file(server, folder):
    import resource

    live = Live(server)
    await send(server, "POST")
    live.captured_s = time.monotonic()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        while live.stream.recording.is_running:
            await live.show(RED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    failed = (await send(server, "GET"))[1]
    assert (failed["state"], failed["file"], failed["url"]) == ("failed", None, None)
    assert failed["detail"].endswith(". There is no film.")
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources there")
async def test_a_full_disk_ends_the_film_with_a_sentence_and_what_was_written_plays(server, folder):
    """The kernel refuses what goes beyond a file's size limit as it does on a full disk, in the middle of a write."""
    import resource

    noise, live = np.random.default_rng(0), Live(server)
    server.stylizer.painted = lambda batch: Pictures(batch.frames)  # noise fills a disk soon
    await send(server, "POST")
    live.captured_s = time.monotonic()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        while live.stream.recording.is_running:
            live.captured_s += FRAME_S
            before = live.stream.last_picture
            picture = noise.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
            live.publication.put(picture, arrived_s=live.captured_s)
            await until(lambda before=before: live.stream.last_picture is not before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    stats = await server.stats("one")
    failed = stats["last_recording"]
    assert (stats["recording"], failed["state"]) == (None, "failed")
    assert failed["detail"].startswith("The recording broke off: ")
    assert failed["file"] in failed["detail"]
    (part,) = folder.iterdir()
    assert (part.name, part.name.endswith(".part.mp4")) == (failed["file"], True)
    assert failed["seconds"] - 1 < watch(part).times[-1] <= failed["seconds"]
    async with server.http.get(server.url + failed["url"]) as response:
        assert response.status == 200
    assert (await send(server, "POST"))[0] == 201


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from stream.engine.runner import EngineRunner
from stream.recording.recordings import Recordings
from stream.streams import Streams
from tests.stream.fakes import FakeStylizer, solid
from tests.stream.films import tone

engine = EngineRunner(lambda report: FakeStylizer())
engine.start()
stream = Streams(engine).get("one")
Recordings(Path(sys.argv[1])).start(stream)
publication, _ = stream.publish(type("Source", (), {"kind": "test"})())
for number in range(10_000):
    captured_s = time.monotonic()
    publication.put_sound(tone(2400), captured_s)
    publication.put(solid(number % 256, 0, 0), arrived_s=captured_s)
    time.sleep(1 / 20)
    print(stream.recording.state()["seconds"], flush=True)
"""


def test_what_a_killed_server_leaves_plays(folder):
    """kill -9 in mid-recording: the film lacks at most its last second."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while (seconds := float(process.stdout.readline())) < 3:
                pass
        finally:
            process.kill()
    assert process.returncode == (-signal.SIGKILL if sys.platform != "win32" else 1)
    (part,) = folder.iterdir()
    assert part.name.endswith(".part.mp4")
    film = watch(part)
    assert film.times[-1] > seconds - 1
    assert len(film.sound) / SAMPLE_RATE > seconds - 1
    assert np.abs(film.sound).max() > 0.3
