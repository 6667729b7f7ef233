"""Stage 2: the base, a UNet and its text encoder trained together, and the decoder along with them.

    python training/unet.py --data DIR

From the noised latents of a photo (or of a picture on its way to the painting) and a prompt to the latents of the
painting, at every timestep. It predicts v; the loss lives in x0 and in decoded crops. An empty prompt, or one that
names no style, has the photo itself as its target. The encoder stays, and so do the latents; the decoder goes on
learning, to paint from what the UNet predicts and still to give photos back.
"""

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from autoencoder import load_autoencoder, reconstruction_loss
from common.packages import TRUNK, file_of
from common.painting import PaintingLoss
from common.pairs import PairBatch, Pairs, alphas_cumprod, signal_and_noise, target_share
from common.perceptual import Trunk
from common.prompts import WIDTH, make_text
from common.runs import Average, Means, Peers, Run, bf16, command, need, pick_device, stage_parser
from diffusers import UNet2DConditionModel

CONFIG = dict(
    sample_size=32,
    in_channels=16,
    out_channels=16,
    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    # No attention in the middle: two blocks beside it have it, and a ControlNet must fit into 25 MB with this.
    mid_block_type="UNetMidBlock2D",
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
TWINS = 2  # of a batch, that are another as the camera's next frame would show it


def start_from(model: torch.nn.Module, checkpoint: Path) -> None:
    """Takes what fits from the averaged weights of another run."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]["weights"]
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict({**own, **fitting})
    print(f"started from {checkpoint}: {len(fitting)} of {len(own)} tensors", flush=True)


def photos_given_back(decoder, batch: PairBatch, scale: float, few: int = 3, side: int = 10) -> torch.Tensor:
    """How far the decoded latents of some photos' corners are from these photos."""
    latents, pixels = batch.photo[:few, :, :side, :side], batch.photo_picture[:few, :, : 8 * side, : 8 * side]
    with bf16(latents.device):
        out = decoder(latents / scale)
    return reconstruction_loss(out.float(), pixels)


def a_moment_later(picture: torch.Tensor, rng) -> torch.Tensor:
    """[N, 3, S, S] as the next frame shows it: something in the middle has moved by some pixels, and the camera's noise
    is another."""
    away = rng.choice((-3, -2, -1, 1, 2, 3)), rng.randint(-2, 2)
    across = torch.linspace(-1, 1, picture.shape[-1], device=picture.device)
    from_middle = (across[:, None].square() + across.square()).sqrt()
    thing = ((rng.uniform(0.3, 0.8) - from_middle) * 8).clamp(0, 1)
    noise = F.interpolate(torch.randn_like(picture[..., ::2, ::2]), scale_factor=2.0, mode="bilinear")
    return torch.lerp(picture, picture.roll(away, (2, 3)), thing) + rng.choice((0.0, 0.01, 0.03)) * noise


class Twins:
    """The last of a batch are its first again a moment later, so that what flickers can be seen and trained against."""

    SIDE = 12  # latents, each way, within which they differ

    def __init__(self, batch: PairBatch, vae, rng):
        self.vae, self.scale = vae, vae.config.scaling_factor
        y, x = (rng.randrange(size - self.SIDE + 1) for size in batch.photo.shape[-2:])
        self.latents = (..., slice(y, y + self.SIDE), slice(x, x + self.SIDE))
        pixels = (..., slice(8 * y, 8 * (y + self.SIDE)), slice(8 * x, 8 * (x + self.SIDE)))
        for value in vars(batch).values():
            value[-TWINS:] = value[:TWINS]
        picture = batch.photo_picture[:TWINS].clone()
        picture[pixels] = a_moment_later(picture[pixels], rng)
        self.change = (picture[pixels] - batch.photo_picture[:TWINS][pixels]).abs().mean()
        with torch.no_grad(), bf16(picture.device):
            batch.photo[-TWINS:] = (vae.encoder(picture) * self.scale).float()

    def unrest(self, x0: torch.Tensor) -> torch.Tensor:
        """How many times as far as the frames the pictures lie apart."""
        both = torch.cat([x0[:TWINS][self.latents], x0[-TWINS:][self.latents]])
        with bf16(x0.device):
            first, later = self.vae.decoder(both / self.scale).float().chunk(2)
        return (later - first).abs().mean() / self.change


def train(options) -> None:
    device = pick_device(options)
    need(options.data / "autoencoder.pt", f"python training/autoencoder.py --data {options.data}")
    vae = load_autoencoder(options.data / "autoencoder.pt").to(device, memory_format=torch.channels_last)
    trunk = Trunk(file_of(options.data, *TRUNK)).bfloat16().to(device)
    text = make_text(options.data / "tokenizer")
    unet = UNet2DConditionModel(**CONFIG).to(memory_format=torch.channels_last)
    decoder = vae.decoder.requires_grad_(True)
    model = torch.nn.ModuleDict({"unet": unet, "text_encoder": text.encoder, "decoder": decoder}).to(device)
    path = options.data / "unet.pt"
    if options.peer and path.exists():
        path = options.data / f"unet.peer{options.peer}.pt"
        if not path.exists():
            shutil.copy2(options.data / "unet.pt", path)
    if options.start_from and not path.exists():
        start_from(model, options.start_from)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(model)
    run = Run(path, options.steps, {"model": model, "optimizer": optimizer, "average": average})
    seed = run.step + 100_000 * options.peer  # a resumed run draws what it has not seen
    torch.manual_seed(seed)
    pairs = Pairs(options.data, vae, device, seed)
    judge = PaintingLoss(vae, trunk, few=options.batch // 2)
    peers = Peers(options.data / "peers", options.peer, model)
    abar, means = alphas_cumprod().to(device), Means()
    while not run.over:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        batch = pairs.draw(options.batch, CROP).to(device)
        twins = Twins(batch, vae, pairs.rng)
        t = pairs.timesteps(options.batch).to(device)
        base = pairs.base_share(options.batch).to(device)
        noise = torch.randn_like(batch.photo)
        for drawn in (t, base, noise):
            drawn[-TWINS:] = drawn[:TWINS]
        a, s = signal_and_noise(abar, t)
        share = torch.maximum(base, target_share(t))
        noised = a * batch.latents_at(base) + s * noise
        with bf16(device):
            states = text.encoder(text.ids(batch.prompts).to(device))[0]
            v = unet(noised.contiguous(memory_format=torch.channels_last), t, states, return_dict=False)[0]
        x0 = a * noised - s * v.float()
        losses = judge(x0, batch.latents_at(share), batch.picture_at(share), pairs.rng)
        losses["unrest"] = options.unrest_weight * twins.unrest(x0)
        losses["photos"] = photos_given_back(decoder, batch, vae.config.scaling_factor)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        peers.meet()
        average.update(model)
        means.add(**losses)
        run.tick()
        run.tell(means)


def main() -> None:
    parser = stage_parser(__doc__, steps=5000, batch=8, lr=8e-4)
    parser.add_argument("--start-from", type=Path, help="an earlier unet.pt, of this or a similar shape")
    parser.add_argument("--peer", type=int, default=0, help="number of a further process that trains along: 1, 2, ...")
    parser.add_argument("--unrest-weight", type=float, default=0.1, help="against flicker")
    train(parser.parse_args())


if __name__ == "__main__":
    command(main)
