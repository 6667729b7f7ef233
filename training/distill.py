"""Stage 3: LCM-LoRA, the consistency distillation that makes a base few-step (arXiv 2311.05556, 2310.04378).

    python training/distill.py --base models/mini --data DIR                    # the miniature, on its painted pairs
    python training/distill.py --base FOLDER --images FOLDER --out FOLDER       # any SD1.5-shaped base, any pictures

Teacher: the base with classifier-free guidance; one DDIM step of it takes the noised latents from t to t - skip.
Student: the base with the LoRA, as the consistency function f(x, t) = c_skip x + c_out x0(x, t). It is to say at t what
its slow average says at t - skip, by a pseudo-Huber distance. On the miniature the same prediction is also compared
with the painting (painting.py), since there the wanted picture is known.
"""

import random
from pathlib import Path

import cv2
import numpy as np
import torch
from common.bases import Base
from common.lora import TwinLora
from common.packages import TRUNK, file_of
from common.painting import PaintingLoss
from common.pairs import Pairs, target_share, to_tensor
from common.perceptual import Trunk
from common.runs import Means, Run, bf16, command, need, pick_device, refuse, stage_parser

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary condition, as in diffusers' LCMScheduler
FIRST_STEPS = (0.8, 0.12, 0.08)  # few-step sampling sees the photo itself more often than the base's training does
GRID = 20  # timesteps between the points of LCM's inference grid


class PictureFolder:
    """A folder of images; the prompt of each is the text file of its name, or the one given for all."""

    def __init__(self, folder: Path, prompt: str, size: int, seed: int):
        self.files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        if not self.files:
            refuse(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
        self.prompt, self.size, self.rng = prompt, size, random.Random(seed)

    def one(self) -> tuple[np.ndarray, str]:
        file = self.rng.choice(self.files)
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:
            refuse(f"{file} is not a readable picture.")
        height, width = picture.shape[:2]
        side = min(height, width)
        y, x = self.rng.randint(0, height - side), self.rng.randint(0, width - side)
        way = cv2.INTER_AREA if side > self.size else cv2.INTER_CUBIC
        picture = cv2.resize(picture[y : y + side, x : x + side], (self.size, self.size), interpolation=way)[..., ::-1]
        caption = file.with_suffix(".txt")
        prompt = caption.read_text(encoding="utf-8").strip() if caption.is_file() else self.prompt
        return picture[:, ::-1] if self.rng.random() < 0.5 else picture, prompt

    def draw(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """(float32 [count, 3, size, size] in -1..1, prompts)."""
        pictures, prompts = zip(*(self.one() for _ in range(count)), strict=True)
        return to_tensor(np.stack(pictures)), list(prompts)


def consistency(x0: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """f(x, t): the prediction x0, but x itself at t = 0."""
    tau = TIMESTEP_SCALING * t.float().view(-1, 1, 1, 1)
    c_skip = SIGMA_DATA**2 / (tau**2 + SIGMA_DATA**2)
    return c_skip * x + tau / (tau**2 + SIGMA_DATA**2).sqrt() * x0


def pseudo_huber(a: torch.Tensor, b: torch.Tensor, c: float = 1e-3) -> torch.Tensor:
    """sqrt(d^2 + c^2) - c: quadratic near 0, linear far away."""
    return (((a - b).square() + c**2).sqrt() - c).mean()


class Distillation:
    """One step's losses. guidance: the range from which each sample's teacher guidance is drawn (1 is none)."""

    def __init__(self, base: Base, lora: TwinLora, skip: int, guidance: tuple[float, float]):
        self.base, self.lora, self.skip, self.guidance = base, lora, skip, guidance
        self.empty = base.states([""])

    def predict(self, x, t, states):
        with bf16(x.device):
            out = self.base.unet(x.contiguous(memory_format=torch.channels_last), t, states, return_dict=False)[0]
        return self.base.x0_and_noise(out.float(), x, t)

    @torch.no_grad()
    def teacher_step(self, x, t, earlier, states):
        """One guided DDIM step of the plain base from t to `earlier`."""
        self.lora.use(None)
        x0, noise = self.predict(x, t, states)
        if self.guidance[1] > 1:
            free_x0, free_noise = self.predict(x, t, self.empty.expand(len(x), -1, -1))
            low, high = self.guidance
            g = low + (high - low) * torch.rand(len(x), 1, 1, 1, device=x.device)
            x0, noise = free_x0 + g * (x0 - free_x0), free_noise + g * (noise - free_noise)
        at = self.base.abar[earlier].view(-1, 1, 1, 1)
        return at.sqrt() * x0 + (1 - at).sqrt() * noise

    def __call__(self, latents, states, t, scale: float):
        """(consistency loss, the student's picture at t). latents: what is noised; scale: their deviation."""
        at = self.base.abar[t].view(-1, 1, 1, 1)
        x = at.sqrt() * latents + (1 - at).sqrt() * torch.randn_like(latents)
        earlier = (t - self.skip).clamp_min(0)
        x_earlier = self.teacher_step(x, t, earlier, states)
        with torch.no_grad():
            self.lora.use("target")
            target = consistency(self.predict(x_earlier, earlier, states)[0], x_earlier, earlier)
        self.lora.use("online")
        student = consistency(self.predict(x, t, states)[0], x, t)
        return pseudo_huber(student / scale, target / scale), student


def train(options) -> None:
    device = pick_device(options)
    base = Base(options.base, device)
    lora = TwinLora(base.unet, options.rank, options.decay)
    optimizer = torch.optim.AdamW(lora.online.values(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    out = options.out or options.base / "lcm-lora"
    checkpoint = options.data / f"{out.name}-of-{options.base.resolve().name}.pt"
    run = Run(checkpoint, options.steps, {"lora": lora, "optimizer": optimizer})
    torch.manual_seed(run.step)  # a resumed run draws what it has not seen
    if options.images:
        pictures = PictureFolder(options.images, options.prompt, options.size or base.size, seed=run.step)
        scale, skip, guidance = 1.0, options.skip or 20, options.guidance or (3.0, 8.0)
    else:
        need(options.data / "photos.npy", f"python training/data.py photos --data {options.data}")
        pairs = Pairs(options.data, base.vae, device, seed=run.step)
        trunk = Trunk(file_of(options.data, *TRUNK)).bfloat16().to(device)
        judge = PaintingLoss(base.vae, trunk, few=options.batch // 2)
        scale, skip, guidance = float(pairs.photo_latents[:500].float().std()), options.skip or 100, options.guidance
    distillation, means = Distillation(base, lora, skip, tuple(guidance or (1.0, 1.3))), Means()
    while not run.over:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        if options.images:
            picture, prompts = pictures.draw(options.batch)
            t = torch.randint(1, 1000 // GRID + 1, (options.batch,), device=device) * GRID - 1
            loss, _ = distillation(base.encode(picture.to(device)), base.states(prompts), t, scale)
            losses = {"consistency": loss}
        else:
            batch = pairs.draw(options.batch, options.crop).to(device)
            share = pairs.base_share(options.batch, FIRST_STEPS).to(device)
            t = pairs.timesteps(options.batch, often=0.85).to(device)
            loss, x0 = distillation(batch.latents_at(share), base.states(batch.prompts), t, scale)
            share = torch.maximum(share, target_share(t))
            losses = judge(x0, batch.latents_at(share), batch.picture_at(share), pairs.rng)
            losses = {"consistency": options.consistency_weight * loss, **losses}
        optimizer.zero_grad(set_to_none=True)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            refuse(f"The loss is no number after step {run.step}: delete {checkpoint} and give a smaller --lr.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.online.values(), 1.0)
        optimizer.step()
        lora.follow()
        means.add(**losses)
        run.tick()
        run.tell(means)
    print(f"{out}: LoRA of {lora.save(out) / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = stage_parser(__doc__, steps=1300, batch=8, lr=2e-3)
    parser.add_argument("--base", type=Path, default=Path("models/mini"), help="an SD1.5-shaped diffusers folder")
    parser.add_argument("--images", type=Path, help="a folder of pictures in place of the painted pairs")
    parser.add_argument("--prompt", default="", help="for pictures without a text file of their name")
    parser.add_argument("--size", type=int, help="pixels of the pictures; the base's own size without it")
    parser.add_argument("--out", type=Path, help="folder of the LoRA; BASE/lcm-lora without it")
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--decay", type=float, default=0.98, help="of the slow average that is the target")
    parser.add_argument("--skip", type=int, help="timesteps of one teacher step: 20 as in the paper, 100 on pairs")
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("LOW", "HIGH"), help="3 8; on pairs 1 1.3")
    parser.add_argument("--crop", type=int, default=24, help="latents of a crop of a painted pair")
    parser.add_argument("--consistency-weight", type=float, default=0.5, help="beside the painting loss, on pairs")
    train(parser.parse_args())


if __name__ == "__main__":
    command(main)
