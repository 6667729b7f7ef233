"""Training batches: (photo, painting, prompt) as latents and pixels, and what of them is noised to which timestep."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import LCMScheduler

from .prompts import prompt_for
from .runs import bf16, need, refuse
from .styles import STYLES

# What the sampler visits at the usual settings is trained most.
USUAL_TIMESTEPS = (499, 499, 499, 499, 259, 259, 379, 299, 599, 799)
PIXELS = 8  # of a latent, each way
# Standard deviation of the scaled latents. SD has 1; at 256x256 a face is only a few latents, and the noise of
# strength .5 washes it out. More contrast is more signal at every timestep: 1 and 2.2 were tried and lost faces.
LATENT_STD = 7.0
# The cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17) leaves more of the photo than SD's own where a
# face would drown in noise: .31 of it at strength .8, in place of .19.
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_schedule="squaredcos_cap_v2",
    original_inference_steps=50,
    set_alpha_to_one=False,
    steps_offset=1,
    prediction_type="v_prediction",
    clip_sample=False,
)


def alphas_cumprod() -> torch.Tensor:
    """How much of the latents' variance is left at each timestep, float32 [1000]."""
    return LCMScheduler(**SCHEDULE).alphas_cumprod


def signal_and_noise(abar: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), each [N, 1, 1, 1]."""
    at = abar[t].view(-1, 1, 1, 1)
    return at.sqrt(), (1 - at).sqrt()


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def encode_all(vae, pictures: np.ndarray, path: Path, device: torch.device) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> scaled latents bf16 [N, C, H/8, W/8], kept in a file until the encoder changes."""
    key = float(sum(p.double().abs().sum() for p in vae.encoder.parameters())) * vae.config.scaling_factor
    if path.exists():
        saved = torch.load(path, weights_only=True, mmap=True)
        if math.isclose(saved["encoder"], key, rel_tol=1e-4):  # its float16 copy counts as the same
            return saved["latents"]
    pictures = pictures.reshape(-1, *pictures.shape[-3:])
    latents = []
    for i in range(0, len(pictures), 32):
        with bf16(device):
            encoded = vae.encoder(to_tensor(pictures[i : i + 32]).to(device)) * vae.config.scaling_factor
        latents.append(encoded.bfloat16().cpu())
        if i % 1600 == 0:
            print(f"encoding {path.name} {i}/{len(pictures)}", flush=True)
    torch.save({"encoder": key, "latents": torch.cat(latents)}, path)
    return torch.cat(latents)


def open_pairs(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(photos uint8 [N, 256, 256, 3], paintings uint8 [N, 2, 256, 256, 3], their styles int8 [N, 2])."""
    command = f"python training/data.py pairs --data {data}"
    need(data / "photos.npy", f"python training/data.py photos --data {data}")
    photos, paintings = (
        np.load(need(data / f"{name}.npy", command), mmap_mode="r") for name in ("photos", "paintings")
    )
    styles = np.load(need(data / "styles.npy", command))
    if len(photos) != len(paintings) or (styles < 0).any():
        refuse(f"The paintings in {data} are not complete: run `{command}` again, it goes on where it stopped.")
    return photos, paintings, styles


@dataclass
class PairBatch:
    """N crops of one size. Latents are scaled; pictures are float32 [N, 3, H, W] in -1..1."""

    photo: torch.Tensor
    painting: torch.Tensor
    prompts: list[str]
    photo_picture: torch.Tensor
    painting_picture: torch.Tensor

    def to(self, device: torch.device) -> "PairBatch":
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "prompts"}
        return PairBatch(prompts=self.prompts, **moved)

    def picture_at(self, share: torch.Tensor) -> torch.Tensor:
        """The picture between photo (share 0) and painting (1); share [N, 1, 1, 1]."""
        return torch.lerp(self.photo_picture, self.painting_picture, share)

    def latents_at(self, share: torch.Tensor) -> torch.Tensor:
        return torch.lerp(self.photo, self.painting, share)


class Pairs:
    """Draws batches: usually one style, now and then none (the painting is then the photo) or the mean of two."""

    CHANCES = (0.12, 0.76, 0.12)  # of no style, one, two

    def __init__(self, data: Path, vae, device: torch.device, seed: int):
        self.photos, self.paintings, self.styles = open_pairs(data)
        self.photo_latents = encode_all(vae, self.photos, data / "photos.pt", device)
        self.painting_latents = encode_all(vae, self.paintings, data / "paintings.pt", device).unflatten(0, (-1, 2))
        self.often = np.array([style.often for style in STYLES.values()])[self.styles]  # [photos, 2]
        self.up_to = self.often.sum(1).cumsum().tolist()
        self.rng = random.Random(seed)

    def one(self, side: int):
        rng = self.rng
        i = rng.choices(range(len(self.photos)), cum_weights=self.up_to)[0]
        kind = rng.choices((0, 1, 2), self.CHANCES)[0]
        size = self.photo_latents.shape[-1]
        y, x = rng.randrange(size - side + 1), rng.randrange(size - side + 1)
        inner = (..., slice(y, y + side), slice(x, x + side))
        pixels = (slice(y * PIXELS, (y + side) * PIXELS), slice(x * PIXELS, (x + side) * PIXELS))
        photo, picture = self.photo_latents[i][inner].float(), to_tensor(self.photos[i][pixels][None])[0]
        chosen = rng.choices((0, 1), self.often[i]) if kind == 1 else rng.sample((0, 1), kind)
        if kind == 0:
            return photo, photo, prompt_for((), rng), picture, picture
        painting = self.painting_latents[i, chosen][inner].float().mean(0)
        painted = to_tensor(np.stack([self.paintings[i, k][pixels] for k in chosen])).mean(0)
        return photo, painting, prompt_for(tuple(int(self.styles[i, k]) for k in chosen), rng), picture, painted

    def draw(self, count: int, side: int) -> PairBatch:
        photo, painting, prompts, picture, painted = zip(*(self.one(side) for _ in range(count)), strict=True)
        stack = torch.stack
        return PairBatch(stack(photo), stack(painting), list(prompts), stack(picture), stack(painted))

    def timesteps(
        self, count: int, usual: tuple[int, ...] = USUAL_TIMESTEPS, often: float = 0.7, last: int = 45
    ) -> torch.Tensor:
        """int64 [count] on LCM's grid of 50: one of `usual` so `often`, else any up to the `last` point."""
        rng = self.rng
        draws = (rng.choice(usual) if rng.random() < often else rng.randint(1, last) * 20 - 1 for _ in range(count))
        return torch.tensor(list(draws))

    def base_share(self, count: int, chances: tuple[float, float, float] = (0.6, 0.25, 0.15)) -> torch.Tensor:
        """How much painting is in what is noised, [count, 1, 1, 1].

        chances: of none, as in a first step; of all and of some, as in a second.
        """
        shares = [self.rng.choices((0.0, 1.0, self.rng.random()), chances)[0] for _ in range(count)]
        return torch.tensor(shares).view(-1, 1, 1, 1)


def target_share(t: torch.Tensor) -> torch.Tensor:
    """How far the target has moved from the photo to the painting at timestep t, [N, 1, 1, 1].

    This is what makes `strength` fade a style in: .3 is already most of it.
    """
    return ((t.float() / 400).clamp(0, 1) ** 0.75).view(-1, 1, 1, 1)
