"""`render` as users type it: what goes where, what is refused in one sentence, interruption, kill, a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import main
from pipeline import Controls, Lora, ModelSpec, load
from render.clip import open_clip
from render.errors import FilmError
from render.jobs import RenderJob, RenderSettings, check, jobs_for
from render.segments import SEGMENT, WorkFolder
from tests import tiny
from tests.paths import ROOT

from .clips import CARPHONE, assert_same_film, carphone, constant, look, make_clip, pictures_of


def render(*arguments) -> int:
    return main.main(["render", "--model", "mini", "--bypass", "--size", "64x64", *map(str, arguments)])


@pytest.fixture(scope="module")
def animated(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A base, a motion adapter and a LoRA for it."""
    folder = tmp_path_factory.mktemp("animated")
    base = tiny.checkpoint(folder / "base")
    return base, tiny.motion(folder / "motion"), tiny.lora(folder / "lora", base)


@pytest.fixture
def clip(tmp_path) -> Path:
    return make_clip(tmp_path / "in.mp4", carphone(10), constant(10, Fraction(25)), audio="aac")


def sentence(capsys) -> str:
    """The one line on stderr, progress bars aside."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "frames/s]" not in line]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def test_renders(clip, tmp_path, capsys):
    assert render(clip, tmp_path / "out.mp4", "--size", "clip") == 0
    film = look(tmp_path / "out.mp4")
    assert len(film.times_s) == 10
    assert film.size == (312, 208)  # 3:2 in about 256x256 pixels, in multiples of 8
    assert {file.name for file in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


def test_says_that_edges_are_cut_off(clip, tmp_path, capsys):
    assert render(clip, tmp_path / "out.mp4") == 0
    assert "The clip is 96x64, the film 64x64: its edges are cut off (--size clip keeps its shape)." in sentence(capsys)


BAD_CLIPS = {
    "missing": (None, "There is no file"),
    "empty": (b"", "is empty"),
    "corrupt": (bytes(range(256)) * 40, "is not a video that can be read"),
    "text": (b"This is not a film.\n" * 100, "is not a video that can be read"),
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_bad_clips(tmp_path, capsys, kind):
    data, words = BAD_CLIPS[kind]
    if data is not None:
        (tmp_path / "in.mp4").write_bytes(data)
    assert render(tmp_path / "in.mp4", tmp_path / "out.mp4") == 2
    assert words in sentence(capsys)
    assert not list(tmp_path.glob("out*"))


def test_sound_only(tmp_path, capsys):
    whole = make_clip(tmp_path / "whole.mkv", carphone(5), constant(5, Fraction(25)), audio="aac")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "in.m4a"), "w", format="mp4") as output:
        track = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = track
                output.mux(packet)
    assert render(tmp_path / "in.m4a", tmp_path / "out.mp4") == 2
    assert "holds no video, only sound" in sentence(capsys)


def test_a_clip_without_frames(tmp_path, capsys):
    (tmp_path / "in.y4m").write_bytes(b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg\n")
    assert render(tmp_path / "in.y4m", tmp_path / "out.mp4") == 2
    assert "no picture that can be decoded" in sentence(capsys)


def test_a_truncated_mp4(clip, tmp_path, capsys):
    clip.write_bytes(clip.read_bytes()[:3000])
    assert render(clip, tmp_path / "out.mp4") == 2
    assert "is not a video that can be read" in sentence(capsys)


@pytest.mark.parametrize(("width", "words"), [(30_000, "is not a video that can be read"), (17_000, "is 17000x64")])
def test_an_absurd_size(tmp_path, capsys, width, words):
    height = 30_000 if width == 30_000 else 64
    frame = b"FRAME\n" + bytes(min(width * height * 3 // 2, 10_000_000))
    (tmp_path / "in.y4m").write_bytes(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (width, height) + frame)
    assert render(tmp_path / "in.y4m", tmp_path / "out.mp4") == 2
    assert words in sentence(capsys)


def test_bad_outputs(clip, tmp_path, capsys):
    before = clip.read_bytes()
    cases = {
        tmp_path / "no" / "out.mp4": "There is no folder",
        clip: "is the clip itself",
        tmp_path / "out.txt": "is of no kind that can be written",
        tmp_path / "out": "is of no kind that can be written",
        tmp_path / "out.png": "holds one picture only",
    }
    for target, words in cases.items():
        assert render(clip, target, "--overwrite") == 2
        assert words in sentence(capsys)
    (tmp_path / "there.mp4").write_bytes(b"precious")
    assert render(clip, tmp_path / "there.mp4") == 2
    assert "--overwrite replaces it" in sentence(capsys)
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    assert clip.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"in.mp4", "there.mp4"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--start", "2", "--end", "1"], "--end must be later than --start"),
        (["--start", "abc"], "is not a time"),
        (["--start", "100"], "has no picture in the part"),
        (["--codec", "nonsense"], "there is no 'nonsense'"),
        (["--codec", "prores"], "does not go into a .mp4"),
        (["--quality", "0"], "is not a quality"),
        (["--fps", "0"], "is not a rate"),
        (["--fps", "10"], "has its own timing"),
        (["--strength", "2"], "--strength"),
    ],
)
def test_bad_options(clip, tmp_path, capsys, options, words):
    assert render(clip, tmp_path / "out.mp4", *options) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_failed_model_leaves_nothing(clip, tmp_path, capsys):
    assert main.main(["render", str(clip), str(tmp_path / "out.mp4"), "--model", str(tmp_path / "none")]) == 2
    assert not list(tmp_path.glob("out*"))


def test_several_clips_go_into_a_folder(clip, tmp_path, capsys):
    make_clip(tmp_path / "two.mov", carphone(5), constant(5, Fraction(25)))
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    assert render(clip, tmp_path / "bad.mp4", tmp_path / "two.mov", tmp_path / "films") == 2
    assert "bad.mp4 is not a video" in capsys.readouterr().err
    # What is wrong with one does not keep the others from being made.
    assert sorted(file.name for file in (tmp_path / "films").iterdir()) == ["in.mp4", "two.mov"]


def test_what_goes_where(tmp_path):
    videos, pictures = tmp_path / "videos", tmp_path / "pictures"
    videos.mkdir(), pictures.mkdir()
    for name in ("a.mp4", "b.wmv", "notes.txt"):
        (videos / name).touch()
    for name in ("1.png", "2.png"):
        (pictures / name).touch()
    out = tmp_path / "out"
    assert jobs_for([videos], out) == [
        RenderJob(videos / "a.mp4", out / "a.mp4", makes_folder=True),
        RenderJob(videos / "b.wmv", out / "b.mp4", makes_folder=True),
    ]
    assert jobs_for([pictures], tmp_path / "out.gif") == [RenderJob(pictures, tmp_path / "out.gif")]
    assert jobs_for([pictures / "1.png"], tmp_path / "x.png") == [RenderJob(pictures / "1.png", tmp_path / "x.png")]
    assert jobs_for([videos / "a.mp4"], pictures) == [
        RenderJob(videos / "a.mp4", pictures / "a.mp4", makes_folder=True)
    ]
    with pytest.raises(FilmError, match="name a folder"):
        jobs_for([videos], tmp_path / "out.mp4")
    with pytest.raises(FilmError, match="both become"):
        jobs_for([videos / "a.mp4", tmp_path / "a.avi"], out)
    (pictures / "film.mp4").touch()
    with pytest.raises(FilmError, match="1 videos and 2 pictures: name the files"):
        jobs_for([pictures], out)
    (tmp_path / "bare").mkdir()
    with pytest.raises(FilmError, match="neither a video nor a picture"):
        jobs_for([tmp_path / "bare"], out)


def test_numbered_pictures_are_not_written_over(clip, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0003.png").write_bytes(b"precious")
    assert render(clip, tmp_path / "out" / "%04d.png") == 2
    assert "0003.png exists already" in sentence(capsys)


def test_an_interrupted_run_is_not_thrown_away_by_accident(clip, tmp_path):
    (tmp_path / "out.mp4.partial").mkdir()
    # Without a plan: what a run did not get to throw away.
    check(RenderJob(clip, tmp_path / "out.mp4"), RenderSettings())
    (tmp_path / "out.mp4.partial" / "plan.json").write_text("{}")
    with pytest.raises(FilmError, match="--resume goes on with it, --overwrite starts over"):
        check(RenderJob(clip, tmp_path / "out.mp4"), RenderSettings())


def test_pictures_do_not_write_over_themselves(tmp_path, capsys):
    for number, picture in enumerate(carphone(3), start=1):
        Image.fromarray(picture).save(tmp_path / f"{number:04d}.png")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for source in (tmp_path, tmp_path / "%04d.png", tmp_path / "*.png"):
        assert render(source, tmp_path / "%04d.png", "--overwrite") == 2
        assert "would write over 0001.png, a picture of the clip" in sentence(capsys)
    assert render(tmp_path / "0001.png", tmp_path / "%d.png", "--overwrite") == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert render(tmp_path, tmp_path / "painted_%d.png") == 0
    assert len(list(tmp_path.glob("painted_*.png"))) == 3


def test_a_corrupt_picture_among_others(tmp_path, capsys):
    for number, picture in enumerate(carphone(3)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"not a picture")
    assert render(tmp_path, tmp_path / "out.mp4") == 2
    assert "1.png is not a picture that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_what_is_finished_is_not_painted_again(clip, tmp_path, capsys):
    """A run that was killed while it threw its work away."""
    (tmp_path / "out.mp4").write_bytes(b"finished")
    (tmp_path / "out.mp4.partial").mkdir()
    (tmp_path / "out.mp4.partial" / "00000000-24.segment").write_bytes(bytes(100))
    assert render(clip, tmp_path / "out.mp4", "--resume", "--size", "clip") == 0
    assert "is there already" in sentence(capsys)
    assert (tmp_path / "out.mp4").read_bytes() == b"finished"
    assert not (tmp_path / "out.mp4.partial").exists()


def test_other_settings_leave_the_work_alone(clip, tmp_path, capsys):
    before = WorkFolder(tmp_path / "out.mp4")
    before.begin({"seed": 1})
    before.seal(1)
    before.close()
    assert render(clip, tmp_path / "out.mp4", "--resume", "--size", "clip") == 2
    assert "give the same settings, or --overwrite to start over" in sentence(capsys)
    before.resume({"seed": 1})
    assert before.done == 1


def test_work_that_is_removed_meanwhile_is_not_called_kept(tmp_path, monkeypatch, capsys):
    seal = WorkFolder.seal

    def removed(work, count, part):
        if work.done:
            shutil.rmtree(work.folder)
        seal(work, count, part)

    monkeypatch.setattr(WorkFolder, "seal", removed)
    assert render(CARPHONE, tmp_path / "out.mp4") == 2
    assert "out.mp4 cannot be written: No such file or directory.\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_share_a_film(clip, tmp_path, capsys):
    first = WorkFolder(tmp_path / "out.mp4")
    first.begin({})
    for option in ("--resume", "--overwrite"):
        assert render(clip, tmp_path / "out.mp4", option, "--size", "clip") == 2
        assert "Another run is painting" in sentence(capsys)
    assert (tmp_path / "out.mp4.partial" / "plan.json").exists()
    first.discard()
    assert render(clip, tmp_path / "out.mp4") == 0


def test_odd_names(clip, tmp_path, capsys):
    assert render(clip, tmp_path / "1:2 %s [x].mp4", "--size", "clip") == 0
    assert len(look(tmp_path / "1:2 %s [x].mp4").times_s) == 10
    capsys.readouterr()
    assert render(clip, tmp_path / ("x" * 300 + ".mp4")) == 2
    assert "name too long" in sentence(capsys).lower()


def test_one_frame_of_a_film(clip, tmp_path):
    assert render(clip, tmp_path / "one.png", "--start", "0.2", "--end", "0.23") == 0
    assert Image.open(tmp_path / "one.png").size == (64, 64)


def test_a_mask_keeps_what_lies_outside(clip, tmp_path, capsys):
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--model", "mini", "--size", "96x64", "--prompt", "ink", "--skip-similar", "3", "--reuse", "2"]
    options += ["--mask", tmp_path / "mask.png"]
    assert main.main(["render", *map(str, [clip, tmp_path / "out_%d.png", *options])]) == 0
    told = capsys.readouterr().err
    assert "--skip-similar: No effect" in told
    assert "--reuse: No effect" in told
    source = [still.rgb for still in open_clip(clip).stills((96, 64))]
    for number in (1, 10):
        painted = np.asarray(Image.open(tmp_path / f"out_{number}.png")).astype(int)
        np.testing.assert_allclose(painted[:, :28], source[number - 1][:, :28], atol=1)
        assert np.abs(painted[:, 64:] - source[number - 1][:, 64:]).mean() > 10
    assert main.main(["render", *map(str, [clip, tmp_path / "two.mp4", *options[:-1], tmp_path / "none.png"])]) == 2


def test_words_alone(tmp_path, capsys):
    base = tiny.checkpoint(tmp_path / "base", guidance_embedding=True)
    words = ["render", "--text-to-image", "--model", str(base), "--size", "96x64", "--guidance", "8", "--steps", "1"]
    assert main.main([*words, str(tmp_path / "one.png"), "--seed", "4", "--strength", "0.3"]) == 0
    assert "--strength: No effect" in sentence(capsys)
    assert main.main([*words, str(tmp_path / "%d.png"), "--seed", "3", "--count", "3"]) == 0
    one, *many = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "1.png", "2.png", "3.png"))
    assert np.array_equal(one, many[1])  # picture i has the seed + i
    assert not np.array_equal(many[0], many[1])
    assert main.main([*words, str(tmp_path / "film.mp4"), "--count", "5", "--fps", "5"]) == 0
    assert look(tmp_path / "film.mp4").times_s == constant(5, Fraction(5))
    capsys.readouterr()
    assert main.main(["render", str(tmp_path / "film.mp4")]) == 2
    assert "render needs an INPUT and an OUTPUT" in sentence(capsys)


def test_a_motion_adapter_makes_clips(clip, animated, tmp_path, capsys):
    base, motion, lora = animated
    model = ["--model", str(base), "--motion", str(motion), "--lora", f"{lora}:0.55", "--size", "64x64", "--steps", "1"]
    assert main.main(["render", "--text-to-image", str(tmp_path / "words.gif"), *model, "--fps", "8"]) == 0
    assert look(tmp_path / "words.gif").times_s == [Fraction(round(12.5 * n), 100) for n in range(16)]
    assert main.main(["render", str(clip), str(tmp_path / "out.mp4"), *model]) == 0
    assert len(look(tmp_path / "out.mp4").times_s) == 10


def test_a_long_clip_is_animated_as_if_it_were_in_memory_and_goes_on_after_a_fault(
    animated, tmp_path, monkeypatch, capsys
):
    base, motion, lora = animated
    options = ["--model", str(base), "--motion", str(motion), "--lora", str(lora)]
    options += ["--size", "64x64", "--steps", "1", "--seed", "5", "--prompt", "a boat"]
    command = ["render", str(CARPHONE), str(tmp_path / "%d.png"), *options, "--start", "0.4", "--end", "1.9"]
    with monkeypatch.context() as faulty:
        seal = WorkFolder.seal

        def full_disk(work, count):
            if work.done == 40:
                raise OSError(28, "No space left on device")
            seal(work, count)

        faulty.setattr(WorkFolder, "seal", full_disk)
        assert main.main(command) == 2
    assert "is kept; --resume goes on with it" in capsys.readouterr().err
    assert main.main([*command, "--resume"]) == 0
    assert "Resuming: 40 pictures are there already." in capsys.readouterr().err
    source = np.stack([still.rgb for still in open_clip(CARPHONE).stills((64, 64), Fraction("0.4"), Fraction("1.9"))])
    spec = ModelSpec(str(base), motion=str(motion), loras=(Lora(str(lora)),), width=64, height=64)
    controls = Controls(prompt="a boat", steps=1, seed=5, strength=0.5)
    in_memory = load(spec, "cpu", compile=False).animate(controls, source)
    written = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(1, len(source) + 1)]
    assert len(written) > 40
    assert np.abs(np.stack(written).astype(int) - in_memory).max() <= 1
    assert np.abs(np.diff(in_memory.astype(int), axis=0)).max() > 20


def test_a_part_of_nothing_is_refused(tmp_path, capsys):
    words = ["render", "--text-to-image", "--model", "mini", str(tmp_path / "one.png")]
    for part in (["--start", "2"], ["--end", "3"]):
        assert main.main([*words, *part]) == 2
        assert "--start and --end are for an INPUT" in sentence(capsys)


def paint(*arguments) -> int:
    """With the bundled model, in this process: one of its own would import for as long as it paints."""
    return main.main(["render", *map(str, arguments), "--model", "mini"])


def start(*arguments, **options) -> subprocess.Popen:
    """The same in a process of its own."""
    command = [sys.executable, "main.py", "render", *map(str, arguments), "--model", "mini"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def pictures_in(folder: Path) -> int:
    """How many there are for sure, whatever happens to the run."""
    return sum(int(file.stem.split("-")[1]) for file in folder.glob("*.segment"))


def wait_for_pictures(folder: Path, count: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if pictures_in(folder) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(process.stderr.read())


def test_killed_and_resumed_is_the_same_film(tmp_path, capsys):
    options = ["--size", "64x64", "--seed", "3"]
    killed = start(CARPHONE, tmp_path / "out.mp4", *options)
    wait_for_pictures(tmp_path / "out.mp4.partial", 20, killed)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out.mp4").exists()
    kept = pictures_in(tmp_path / "out.mp4.partial")
    assert paint(CARPHONE, tmp_path / "out.mp4", *options, "--resume") == 0
    assert f"Resuming: {kept} pictures are there already." in capsys.readouterr().err
    assert paint(CARPHONE, tmp_path / "whole.mp4", *options) == 0
    assert_same_film(tmp_path / "out.mp4", tmp_path / "whole.mp4")


def test_the_same_command_gives_the_same_pictures(tmp_path):
    """In another process, too, if it has as many threads: their number decides how sums are rounded."""
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    options = ["--size", "64x64", "--end", "0.5", "--prompt", "ink"]
    assert paint(CARPHONE, tmp_path / "one" / "%d.png", *options) == 0
    process = start(CARPHONE, tmp_path / "two" / "%d.png", *options, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = process.communicate()[1]
    assert process.returncode == 0, said
    ones, twos = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert len(ones) == len(twos) == 15
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(ones, twos, strict=True))


def test_control_c_leaves_a_film_that_plays(tmp_path):
    process = start(CARPHONE, tmp_path / "out.mp4", "--size", "64x64")
    wait_for_pictures(tmp_path / "out.mp4.partial", 8, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "--resume goes on from there" in said
    count = len(pictures_of(tmp_path / "out.mp4"))
    assert 8 <= count < 120
    assert paint(CARPHONE, tmp_path / "out.mp4", "--size", "64x64", "--resume") == 0
    assert len(pictures_of(tmp_path / "out.mp4")) == 120
    assert not (tmp_path / "out.mp4.partial").exists()


def test_a_full_disk_is_one_sentence_and_can_be_resumed(tmp_path, capsys):
    """The limit on the size of files stands in for the end of the disk."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), np.uint8)
    noise[:20] = 128  # so that the first segment is small, the second too large
    clip = make_clip(tmp_path / "in.mp4", list(noise), constant(40, Fraction(25)))
    limit = (100_000, resource.RLIM_INFINITY)
    options = [clip, tmp_path / "out.mp4", "--bypass", "--size", "128x128"]
    process = start(*options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    said = process.communicate()[1]
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "out.mp4 cannot be written: File too large. What is painted so far is kept" in said
    assert not (tmp_path / "out.mp4").exists()
    assert paint(*options, "--resume") == 0
    assert f"Resuming: {SEGMENT} pictures are there already." in capsys.readouterr().err
    assert len(pictures_of(tmp_path / "out.mp4")) == 40
