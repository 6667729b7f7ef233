"""Muxing a live film: pictures and sound at their own times, into an MP4 that plays wherever it breaks off."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from stream.engine.frames import SAMPLE_RATE

VIDEO_HZ = 90_000
KEYFRAME_S = 2.0  # how far apart players can seek
FRAGMENT_S = 0.4  # what the file's end may lack when the process is killed, beside what SOUND_WAIT_S holds back
HOLD_S = 1.0  # while nothing new comes, the last picture is written again after so long
SOUND_WAIT_S = 0.4  # sound that comes later than this after its picture is left out; silence has taken its place
JITTER_S = 0.02  # steps in the times of sound up to one Opus packet are no gaps
SILENCE_PIECE = SAMPLE_RATE // 2  # samples

# x264 for a texture that is new in every frame: no look-ahead, which would hold pictures back, one thread and a fast
# preset, since the engine needs the cores more: against "veryfast" two thirds of the time, and a tenth more bytes.
X264 = {"preset": "superfast", "tune": "zerolatency", "crf": "20", "forced-idr": "1"}
AAC_BPS = 128_000

# Fragments first, so that a killed process leaves a film; an ordinary MP4 with one index once it is closed.
MP4 = {
    "movflags": "hybrid_fragmented+delay_moov",
    "frag_duration": str(round(FRAGMENT_S * 1e6)),
    "flush_packets": "1",
}
MOOF, FREE = b"moof", b"free"  # the types of a fragment's head and of free space (ISO 14496-12, 8.8.4 and 8.1.2)


class FragmentFile:
    """A new file of whole fragments, whenever its writing ends. A fragment's head is written as free space, which
    players skip, until `commit` makes a fragment of it: so a killed process leaves no half one, nor does a full disk.
    That fault makes every later write fail too, so that closing the film cannot spoil it."""

    def __init__(self, path: Path):
        """Raises OSError; FileExistsError when there is such a file."""
        self.fault: OSError | None = None
        self.bytes = 0
        self.is_playable = False  # it holds something that was committed
        self._head: int | None = None  # where the fragment that is being written begins
        self._path = path
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._made = os.fstat(self._file.fileno())

    def write(self, data: bytes) -> int:
        if data[4:8] == MOOF:
            self._head = self._file.tell()
            data = data[:4] + FREE + data[8:]
        self._write(data)
        return len(data)

    def commit(self) -> None:
        """What was written up to here is complete."""
        if self._head is not None:
            end = self._file.tell()
            self._file.seek(self._head + 4)
            self._write(MOOF)
            self._file.seek(end)
            self._head, self.is_playable = None, True

    def _write(self, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.fault = error
            raise
        finally:
            self.bytes = max(self.bytes, self._file.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def is_in_place(self) -> bool:
        """Whether its path still leads to it: on Unix, what was removed or moved can be written for ever. Raises
        OSError."""
        try:
            return os.path.samestat(os.stat(self._path), self._made)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_removed(self) -> bool:
        """Whether no path leads to it. It must be open."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        self._file.close()


class Mp4Muxer:
    """One film: H264 beside AAC, whose times count from `origin_s` on the clock of captured_s.

    There is always sound, silence where none came, since a track cannot be added later. The pictures keep the size of
    the first one: others are scaled to it.
    """

    def __init__(self, file: FragmentFile, width: int, height: int, origin_s: float):
        self.frames = 0
        self._origin_s = origin_s
        self._pts = self._keyframe_pts = -1
        self._samples = 0  # written of the sound
        self._is_silent = True  # the last of them
        self._last: np.ndarray | None = None
        self._file = file
        self._reformatter = VideoReformatter()  # one for all: making one takes as long as using it
        self._mp4 = av.open(file, "w", format="mp4", options=MP4)
        self._video = self._mp4.add_stream("libx264", rate=30, options=X264)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.thread_count = Fraction(1, VIDEO_HZ), 1
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._audio = self._mp4.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        self._audio.codec_context.bit_rate = AAC_BPS

    @property
    def seconds(self) -> float:
        """From the first picture to the last."""
        return max(0, self._pts) / VIDEO_HZ

    @property
    def until_s(self) -> float:
        """The last picture's time on the clock of captured_s."""
        return self._origin_s + self.seconds

    def add_picture(self, rgb: np.ndarray, captured_s: float) -> None:
        """rgb: uint8 [height, width, 3]. One captured before its predecessor follows it at once: pts strictly
        increase."""
        context = self._video.codec_context
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(rgb, format="rgb24"),
            context.width,
            context.height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        self._pts = max(self._pts + 1, round((captured_s - self._origin_s) * VIDEO_HZ))
        frame.pts, frame.time_base = self._pts, context.time_base
        if self._keyframe_pts < 0 or self._pts - self._keyframe_pts >= KEYFRAME_S * VIDEO_HZ:
            frame.pict_type, self._keyframe_pts = PictureType.I, self._pts
        self._mux(self._video.encode(frame))
        self._last = rgb
        self.frames += 1
        self._fill_silence(captured_s - SOUND_WAIT_S)

    def add_sound(self, samples: np.ndarray, captured_s: float) -> None:
        """samples: int16 [n, 2] at SAMPLE_RATE. Gaps become silence; what overlaps with written sound is cut."""
        start = round((captured_s - self._origin_s) * SAMPLE_RATE)
        jitter = 0 if self._is_silent else JITTER_S * SAMPLE_RATE
        if start > self._samples + jitter:
            self._fill_silence(captured_s)
        elif start < self._samples - jitter:
            samples = samples[self._samples - start :]
        self._write_sound(samples)
        self._is_silent = self._is_silent and not len(samples)

    def hold(self, now_s: float) -> None:
        """Nothing new has come up to now_s: the last picture lasts so long, in silence."""
        if self._last is not None:
            self.add_picture(self._last, now_s)

    def close(self, now_s: float) -> None:
        """The film ends at now_s, in order."""
        if self._last is not None and (now_s - self._origin_s) * VIDEO_HZ > self._pts + 1:
            self.hold(now_s)
        self._fill_silence(now_s)
        for stream in (self._video, self._audio):
            self._mux(stream.encode(None))
        self._mp4.close()
        self._file.commit()

    def abandon(self) -> None:
        """Let go of a file that takes no more; what it holds plays up to its last whole fragment."""
        with contextlib.suppress(OSError, av.FFmpegError):
            self._mp4.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        self._mp4.mux(packets)
        self._file.commit()  # a fragment that is due is written within mux, all of it

    def _fill_silence(self, until_s: float) -> None:
        """Silence up to until_s, where there is no sound yet."""
        end = round((until_s - self._origin_s) * SAMPLE_RATE)
        while (missing := end - self._samples) > 0:
            self._write_sound(np.zeros((min(missing, SILENCE_PIECE), 2), np.int16))
            self._is_silent = True

    def _write_sound(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self._samples, Fraction(1, SAMPLE_RATE)
        self._mux(self._audio.encode(frame))
        self._samples += len(samples)
