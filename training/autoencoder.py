"""Stage 1: the autoencoder, an AutoencoderTiny with 16 latent channels at f = 8.

python training/autoencoder.py --data DIR
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common.packages import TRUNK, file_of
from common.pairs import LATENT_STD, open_pairs
from common.perceptual import Trunk, perceptual_losses
from common.runs import Average, Means, Run, averaged, bf16, command, pick_device, stage_parser
from diffusers import AutoencoderTiny

CONFIG = dict(
    encoder_block_out_channels=(32, 32, 32, 32),
    decoder_block_out_channels=(32, 32, 32, 32),
    num_encoder_blocks=(0, 1, 2, 3),
    num_decoder_blocks=(6, 3, 1, 0),
    latent_channels=16,
)
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


def crops(pool: np.ndarray, count: int, side: int, rng) -> torch.Tensor:
    """[count, 3, side, side] in -1..1: random crops, flips, and channel orders (all colours must be equal to us)."""
    batch = np.empty((count, side, side, 3), np.uint8)
    for i in range(count):
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
    chroma = torch.einsum("kc,bchw->bkhw", CHROMA.to(difference), difference)
    for factor in (1, 4):
        loss = loss + 2 * F.avg_pool2d(chroma, factor).abs().mean()
    return loss + F.avg_pool2d(difference, 8).abs().mean()


def train(options) -> None:
    device = pick_device(options)
    rng = np.random.default_rng()  # a resumed run draws what it has not seen
    photos, paintings, _ = open_pairs(options.data)
    paintings = paintings.reshape(-1, *photos.shape[1:])
    trunk = Trunk(file_of(options.data, *TRUNK)).bfloat16().to(device)

    vae = AutoencoderTiny(**CONFIG).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average, scaling = Average(vae), Scaling()
    parts = {"vae": vae, "optimizer": optimizer, "average": average, "scaling": scaling}
    run, means, half = Run(options.data / "autoencoder.pt", options.steps, parts), Means(), options.batch // 2
    if options.decoder_only:
        vae.encoder.load_state_dict({k[8:]: v for k, v in average.weights.items() if k.startswith("encoder.")})
        vae.encoder.requires_grad_(False)
    while not run.over:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        x = torch.cat([crops(pool, half, options.side, rng) for pool in (photos, paintings)])
        x = x.to(device, memory_format=torch.channels_last)
        with bf16(device):
            latents = vae.encoder(x)
            if not options.decoder_only:
                scaling.update(latents.detach())
            # The denoiser never returns the exact latents: the decoder learns to live with that.
            noise = torch.rand(len(x), 1, 1, 1, device=device) * 0.12 / scaling.factor
            out = vae.decoder(latents + torch.randn_like(latents) * noise)
            # A photo should come back exactly, a painting with all of its strokes, be they a little elsewhere.
            style, content = perceptual_losses(trunk, out[half:], x[half:])
        loss = reconstruction_loss(out.float(), x) + 1e-4 * latents.float().square().mean()
        loss = loss + options.style_weight * style + options.content_weight * content
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        error = (out.float() - x)[:half].clamp(-2, 2).square().mean((1, 2, 3)) / 4
        means.add(loss=loss, photo_db=-10 * error.log10().mean(), gram=style)
        run.tick()
        run.tell(means)


def main() -> None:
    parser = stage_parser(__doc__, steps=8000, batch=8, lr=2e-3)
    parser.add_argument("--side", type=int, default=96, help="pixels of a crop")
    parser.add_argument(
        "--decoder-only", action="store_true", help="keep the latents: a UNet trained on them stays valid"
    )
    parser.add_argument("--style-weight", type=float, default=0.25)
    parser.add_argument("--content-weight", type=float, default=0.15)
    train(parser.parse_args())


if __name__ == "__main__":
    command(main)
