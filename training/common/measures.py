"""What the report measures: plain functions of pictures, uint8 [N, H, W, 3] RGB."""

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from .pairs import to_tensor
from .perceptual import Trunk, gram_error

CHROMA = {"cb": (-0.169, -0.331, 0.5), "cr": (0.5, -0.419, -0.081)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels between two uint8 pictures."""
    return float(-10 * np.log10(((a.astype(np.float32) - b) ** 2).mean() / 255**2 + 1e-12))


def chroma_correlation(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Correlation of the colour-difference planes of two pictures."""
    return {name: float(np.corrcoef((a @ axis).ravel(), (b @ axis).ravel())[0, 1]) for name, axis in CHROMA.items()}


@torch.inference_mode()
def gram_distance(trunk: Trunk, out: np.ndarray, aim: np.ndarray) -> float:
    """Relative Gram error, mean over pictures and feature levels: 0 is the same texture and palette."""
    pairs = zip(trunk(to_tensor(out)), trunk(to_tensor(aim)), strict=True)
    return float(torch.stack([gram_error(a, b).mean() for a, b in pairs]).mean())


def contours(pictures: np.ndarray) -> np.ndarray:
    """Gradient magnitude of the lightly blurred grey picture, float32 [N, H, W]."""
    found = []
    for picture in pictures:
        grey = cv2.GaussianBlur(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
        grey = grey.astype(np.float32)
        found.append(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)))
    return np.stack(found)


def contour_correlation(out: np.ndarray, source: np.ndarray, window: tuple[slice, slice]) -> float:
    """How well the contours in `window` (the face) are the source's; a stand-in for "still recognisable"."""
    a, b = (contours(p)[(slice(None), *window)] for p in (out, source))
    return float(np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]))


def mixture(first: np.ndarray, second: np.ndarray, both: np.ndarray) -> float:
    """Where `both` lies on the way from `first` (0) to `second` (1), by projection."""
    way = second.astype(np.float32) - first
    return float(((both.astype(np.float32) - first) * way).sum() / (way**2).sum())


def change(frames: np.ndarray) -> float:
    """Mean absolute change from frame to frame, in grey levels."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())


def median_ms(work: Callable[[], object], runs: int = 20, warm_up: int = 4) -> float:
    """Median milliseconds of `work()`."""
    taken = []
    for i in range(warm_up + runs):
        start = time.perf_counter()
        work()
        if i >= warm_up:
            taken.append(time.perf_counter() - start)
    return 1000 * float(np.median(taken))
