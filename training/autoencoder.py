"""Stage 1: the autoencoder, an AutoencoderTiny with 16 latent channels at f = 8.

python training/autoencoder.py --data DIR --out DIR/autoencoder.pt --minutes 17
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Average, Run, averaged
from diffusers import AutoencoderTiny

CONFIG = dict(
    encoder_block_out_channels=(32, 32, 32, 32),
    decoder_block_out_channels=(32, 32, 32, 32),
    num_encoder_blocks=(0, 1, 2, 3),
    num_decoder_blocks=(3, 2, 1, 0),
    latent_channels=16,
)
# Standard deviation of the scaled latents. SD has 1; at 256x256 a face is only a few latents, and the noise of
# strength .5 washes it out. More contrast is more signal at every timestep: 1 and 2.2 were tried and lost faces.
LATENT_STD = 7.0
# Chroma on its own scale: without it the red-green axis is lost while PSNR still looks fine.
CHROMA = torch.tensor([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])


def load_autoencoder(path: Path) -> AutoencoderTiny:
    """The trained autoencoder with averaged weights; scaling_factor brings its latents to LATENT_STD."""
    weights = averaged(path, "average")
    scaling = torch.load(path, map_location="cpu", weights_only=True)["scaling"]["factor"]
    vae = AutoencoderTiny(**CONFIG, scaling_factor=round(LATENT_STD * float(scaling), 4))
    vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False)


class Scaling:
    """1 / standard deviation of the latents, a moving average."""

    def __init__(self):
        self.factor = 1.0

    def update(self, latents: torch.Tensor) -> None:
        self.factor += 0.02 * (1 / float(latents.std()) - self.factor)

    def state_dict(self) -> dict:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict) -> None:
        self.factor = state["factor"]


def crops(pools: list[np.ndarray], weights: list[float], count: int, side: int, rng) -> torch.Tensor:
    """[count, 3, side, side] in -1..1: random crops, flips, and channel orders (all colours must be equal to us)."""
    batch = np.empty((count, side, side, 3), np.uint8)
    for i in range(count):
        pool = pools[rng.choice(len(pools), p=weights)]
        picture = pool[rng.integers(len(pool))]
        y, x = rng.integers(0, picture.shape[0] - side + 1, 2)
        patch = picture[y : y + side, x : x + side]
        patch = patch[:, ::-1] if rng.random() < 0.5 else patch
        batch[i] = patch[..., rng.permutation(3)] if rng.random() < 0.3 else patch
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    difference = out - target
    loss = difference.abs().mean() + difference.square().mean()
    for axis in (2, 3):
        loss = loss + 0.5 * torch.diff(difference, dim=axis).abs().mean()
    chroma = torch.einsum("kc,bchw->bkhw", CHROMA, difference)
    for factor in (1, 4):
        loss = loss + 2 * F.avg_pool2d(chroma, factor).abs().mean()
    return loss + F.avg_pool2d(difference, 8).abs().mean()


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng()
    photos = np.load(options.data / "photos.npy")
    pools, weights = [photos], [1.0]
    if (options.data / "paintings.npy").exists():
        paintings = np.load(options.data / "paintings.npy", mmap_mode="r")
        painted = (np.load(options.data / "styles.npy") >= 0).all(axis=1)
        pools.append(paintings[painted].reshape(-1, *photos.shape[1:]))
        weights = [0.5, 0.5]

    vae = AutoencoderTiny(**CONFIG).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average, scaling = Average(vae), Scaling()
    parts = {"vae": vae, "optimizer": optimizer, "average": average, "scaling": scaling}
    run = Run(options.out, options.minutes, parts)
    running = True
    while running:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        x = crops(pools, weights, options.batch, options.side, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            latents = vae.encoder(x)
            scaling.update(latents.detach())
            # The denoiser never returns the exact latents: the decoder learns to live with that.
            noise = torch.rand(len(x), 1, 1, 1) * 0.12 / scaling.factor
            out = vae.decoder(latents + torch.randn_like(latents) * noise)
        loss = reconstruction_loss(out.float(), x) + 1e-4 * latents.float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        if run.step % 200 == 0:
            psnr = -10 * torch.log10((out.float() - x).clamp(-2, 2).square().mean() / 4)
            print(
                f"step {run.step} {run.spent_s / 60:.1f} min loss {float(loss.detach()):.4f} "
                f"PSNR {float(psnr):.2f} scaling {scaling.factor:.3f}",
                flush=True,
            )
        running = run.tick()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("training/data"))
    parser.add_argument("--out", type=Path, default=Path("training/data/autoencoder.pt"))
    parser.add_argument("--minutes", type=float, default=17)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=8, help="small: many steps matter more than calm ones")
    parser.add_argument("--side", type=int, default=96, help="pixels of a crop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
