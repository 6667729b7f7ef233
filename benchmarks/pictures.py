"""The README's picture of styles: one frame of a clip, and the same frame repainted.

python -m benchmarks.pictures [--out docs/styles.jpg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import cv2
import numpy as np

from pipeline import PRESETS, Controls, load
from tests.chromium import CLIP

FRAME = 60
PROMPTS = ("watercolor", "pop art", "van gogh", "ink drawing", "poster", "pastel", "expressionist painting")
COLUMNS, GAP = 4, 4


def frame_of(clip: Path, number: int) -> np.ndarray:
    """uint8 [H, W, 3] RGB."""
    with av.open(str(clip)) as source:
        return next(frame for i, frame in enumerate(source.decode(video=0)) if i == number).to_ndarray(format="rgb24")


def sheet(pictures: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Captioned pictures of one size in rows of COLUMNS, uint8 [H, W, 3]."""
    tiles = []
    for caption, picture in pictures:
        tile = np.pad(picture, ((0, 28), (0, GAP), (0, 0)), constant_values=255)
        cv2.putText(
            tile, caption, (4, picture.shape[0] + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (60, 60, 60), 1, cv2.LINE_AA
        )
        tiles.append(tile)
    return np.vstack([np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/styles.jpg"))
    options = parser.parse_args()
    stylizer = load(PRESETS["mini"], "cpu", compile=False)
    frame = frame_of(CLIP, FRAME)[None]
    pictures = [("camera", stylizer(frame, Controls(bypass=True))[0])]
    pictures += [(p, stylizer(frame, Controls(prompt=p, strength=0.5, steps=1))[0]) for p in PROMPTS]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.out), cv2.cvtColor(sheet(pictures), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    main()
