"""FFmpeg's own WHIP client as a publisher of H264 and Opus: a program we did not write."""

from __future__ import annotations

import datetime
import itertools
import sys
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FPS = 25
SAMPLE_RATE = 48_000
PER_PICTURE = SAMPLE_RATE // FPS

needs_whip = pytest.mark.skipif("whip" not in av.formats_available, reason="this build of FFmpeg has no WHIP muxer")


def certificate(folder: Path) -> dict[str, str]:
    """The P-256 pair that the muxer needs for DTLS, as its options."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"cert_file": str(folder / "cert.pem"), "key_file": str(folder / "key.pem")}


def publish(
    url: str, options: dict[str, str], pictures: Iterable[np.ndarray], sounds: Iterable[np.ndarray] | None = None
) -> None:
    """Pictures (uint8 [H, W, 3] of one size) FPS a second in real time, each with its sound beside it (int16
    [PER_PICTURE, 2]; silence if None). Not from the server's process."""
    with av.open(url, "w", format="whip", options=options) as output:
        pictures, silence = iter(pictures), itertools.repeat(np.zeros((PER_PICTURE, 2), np.int16))
        first = next(pictures)
        video = output.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "profile": "baseline"})
        video.height, video.width = first.shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = FPS
        audio = output.add_stream("libopus", rate=SAMPLE_RATE, layout="stereo")
        started_s = time.monotonic()
        both = zip(itertools.chain([first], pictures), silence if sounds is None else sounds, strict=False)
        for number, (picture, samples) in enumerate(both):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="stereo")
            sound.sample_rate, sound.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            sound.pts = number * PER_PICTURE
            output.mux(audio.encode(sound))
            time.sleep(max(0.0, started_s + (number + 1) / FPS - time.monotonic()))


if __name__ == "__main__":  # one grey and one tone for a minute, from a process that a test may kill
    url, folder, width, height, grey, hertz = sys.argv[1:]
    flat = np.full((int(height), int(width), 3), int(grey), np.uint8)
    wave = np.sin(2 * np.pi * int(hertz) * np.arange(PER_PICTURE) / SAMPLE_RATE) * 8000
    publish(url, certificate(Path(folder)), [flat] * 60 * FPS, [wave.astype(np.int16)[:, None].repeat(2, 1)] * 60 * FPS)
