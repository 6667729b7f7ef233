"""Stage 2: the UNet and the text encoder, trained together as a few-step predictor of the styled picture.

    python training/unet.py --data DIR --autoencoder DIR/autoencoder.pt --out DIR/unet.pt --minutes 40

Not a distillation: the network regresses from the noised latents of a photo straight to the latents of its painting,
at every timestep that few-step img2img visits, so one LCM step is enough. It predicts v; the loss lives in x0. Crops
are also decoded and compared by the features of an image network, which is what brings the strokes.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from autoencoder import LATENT_STD, load_autoencoder
from common import Average, Run
from data import TRUNK, file_of
from diffusers import UNet2DConditionModel
from perceptual import Trunk, perceptual_losses
from prompts import WIDTH, make_text, prompt_for

CONFIG = dict(
    sample_size=32,
    in_channels=16,
    out_channels=16,
    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    block_out_channels=(96, 128, 160),
    layers_per_block=1,
    attention_head_dim=5,
    cross_attention_dim=WIDTH,
    # The pooled prompt scales and shifts every block: colours and strokes are global.
    resnet_time_scale_shift="scale_shift",
    addition_embed_type="text",
    addition_embed_type_num_heads=4,
)
CROP = 24  # latents; the network is convolutional, so crops teach what whole frames need
DECODED = 14  # latents of the crop that is decoded and looked at
# What the sampler visits at the usual settings is trained most.
USUAL_TIMESTEPS = (499, 499, 499, 259, 379, 299, 599)
KIND_NOTHING, KIND_ONE, KIND_TWO = range(3)


def alphas_cumprod() -> torch.Tensor:
    """The SD schedule: scaled_linear 0.00085-0.012, 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@torch.no_grad()
def encode_all(vae, pictures: np.ndarray, path: Path) -> torch.Tensor:
    """uint8 [..., 256, 256, 3] -> scaled latents bf16 [N, 16, 32, 32], kept in a file beside the data."""
    if path.exists():
        return torch.load(path, weights_only=True)
    pictures = pictures.reshape(-1, *pictures.shape[-3:])
    latents = torch.empty(len(pictures), 16, 32, 32, dtype=torch.bfloat16)
    for i in range(0, len(pictures), 32):
        x = torch.from_numpy(pictures[i : i + 32]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents[i : i + 32] = vae.encoder(x) * vae.config.scaling_factor
    torch.save(latents, path)
    return latents


class Batches:
    """Draws (photo latents, target latents when fully styled, prompt) with random crops."""

    def __init__(self, photos: torch.Tensor, paintings: torch.Tensor, styles: np.ndarray, seed: int):
        self.photos, self.paintings, self.styles = photos, paintings, styles
        self.rng = random.Random(seed)

    def one(self):
        rng = self.rng
        i = rng.randrange(len(self.photos))
        kind = rng.choices((KIND_NOTHING, KIND_ONE, KIND_TWO), (0.12, 0.80, 0.08))[0]
        photo, first, second = self.photos[i], self.paintings[2 * i], self.paintings[2 * i + 1]
        if kind == KIND_NOTHING:
            styled, named = photo, ()
        elif kind == KIND_ONE:
            k = rng.randrange(2)
            styled, named = (first, second)[k], (int(self.styles[i, k]),)
        else:
            styled, named = (first + second) / 2, (int(self.styles[i, 0]), int(self.styles[i, 1]))
        y, x = rng.randrange(32 - CROP + 1), rng.randrange(32 - CROP + 1)
        photo, styled = (z[:, y : y + CROP, x : x + CROP].float() for z in (photo, styled))
        return photo, styled, prompt_for(named, rng)

    def draw(self, count: int):
        photos, styled, prompts = zip(*(self.one() for _ in range(count)), strict=True)
        return torch.stack(photos), torch.stack(styled), list(prompts)

    def timesteps(self, count: int) -> torch.Tensor:
        """int64 [count] on LCM's grid of 50."""
        rng = self.rng
        return torch.tensor(
            [rng.choice(USUAL_TIMESTEPS) if rng.random() < 0.5 else rng.randint(1, 45) * 20 - 1 for _ in range(count)]
        )

    def bases(self, photos, styled):
        """What is noised: mostly the photo, sometimes the painting (a second step sees that), or something between.

        Returns (base, share of the painting in it, [N, 1, 1, 1])."""
        share = torch.tensor(
            [self.rng.choices((0.0, 1.0, self.rng.random()), (0.6, 0.25, 0.15))[0] for _ in range(len(photos))]
        ).view(-1, 1, 1, 1)
        return photos + (styled - photos) * share, share


def target_share(t: torch.Tensor) -> torch.Tensor:
    """How far the target has moved from the photo to the painting at timestep t: strength .3 is already most of it."""
    return (t.float() / 400).clamp(0, 1) ** 0.75


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vae = load_autoencoder(options.autoencoder)
    photos = encode_all(vae, np.load(options.data / "photos.npy", mmap_mode="r"), options.data / "photos.pt")
    paintings = encode_all(vae, np.load(options.data / "paintings.npy", mmap_mode="r"), options.data / "paintings.pt")
    styles = np.load(options.data / "styles.npy")
    print(
        f"latents: std {photos[:500].float().std():.3f} {paintings[:500].float().std():.3f}",
        flush=True,
    )
    trunk = Trunk(file_of(options.data, *TRUNK)).bfloat16()
    decoder = vae.decoder.to(memory_format=torch.channels_last)

    text = make_text(options.out.with_name("tokenizer"))
    unet = UNet2DConditionModel(**CONFIG).to(memory_format=torch.channels_last)
    model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text.encoder})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(model)
    run = Run(options.out, options.minutes, {"model": model, "optimizer": optimizer, "average": average})
    batches = Batches(photos, paintings, styles, seed=run.step + 1)
    abar = alphas_cumprod()
    scale = vae.config.scaling_factor
    sums = torch.zeros(3)
    running = True
    while running:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        photo, styled, prompts = batches.draw(options.batch)
        t = batches.timesteps(options.batch)
        a, s = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
        base, share = batches.bases(photo, styled)
        target = photo + (styled - photo) * torch.maximum(share, target_share(t).view(-1, 1, 1, 1))
        x = a * base + s * torch.randn_like(base)
        with torch.autocast("cpu", torch.bfloat16):
            states = text.encoder(text.ids(prompts))[0]
            v = unet(x.contiguous(memory_format=torch.channels_last), t, states, return_dict=False)[0]
        x0 = a * x - s * v.float()
        latent = F.huber_loss(x0 / LATENT_STD, target / LATENT_STD, delta=0.5) * 2
        style = content = torch.zeros(())
        if run.progress >= options.perceptual_from:
            # A few pictures are enough: this half costs as much as the UNet.
            few = options.batch // 2
            y, z = (batches.rng.randrange(CROP - DECODED + 1) for _ in range(2))
            window = (slice(few), slice(None), slice(y, y + DECODED), slice(z, z + DECODED))
            with torch.autocast("cpu", torch.bfloat16):
                out = decoder(x0[window] / scale)
                with torch.no_grad():
                    wanted = decoder(target[window] / scale)
                style, content = perceptual_losses(trunk, out, wanted)
        loss = latent + options.style_weight * style + options.content_weight * content
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        sums += torch.tensor([float(latent), float(style), float(content)])
        if run.step % 50 == 49:
            latent_mean, style_mean, content_mean = (sums / 50).tolist()
            sums.zero_()
            print(
                f"step {run.step + 1} {run.spent_s / 60:.1f} min latent {latent_mean:.4f} "
                f"gram {style_mean:.3f} content {content_mean:.3f}",
                flush=True,
            )
        running = run.tick()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("training/data"))
    parser.add_argument("--autoencoder", type=Path, default=Path("training/data/autoencoder.pt"))
    parser.add_argument("--out", type=Path, default=Path("training/data/unet.pt"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--perceptual-from", type=float, default=0.2, help="share of the run without it")
    parser.add_argument("--style-weight", type=float, default=0.4)
    parser.add_argument("--content-weight", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
