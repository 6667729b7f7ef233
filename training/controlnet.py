"""Stage 4: a ControlNet that holds the picture to the photo's Canny edges, for strengths at which the face is lost.

    python training/controlnet.py --base models/mini --data DIR

It starts as a copy of the base's encoder (arXiv 2302.05543) without attention, so that it stays small, and is trained
for few steps: with the LoRA in place, mostly at high timesteps, against the painting.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from common.bases import Base
from common.packages import TRUNK, file_of
from common.painting import PaintingLoss
from common.pairs import Pairs, signal_and_noise, target_share
from common.perceptual import Trunk
from common.runs import Average, Means, Run, averaged, bf16, command, need, pick_device, stage_parser
from diffusers import ControlNetModel

CROP = 24
TIMESTEPS = (499, 599, 699, 799, 799, 799, 899)
CANNY_LOW = (50, 150)  # the higher threshold is twice the lower one


def make_controlnet(unet) -> ControlNetModel:
    """A ControlNet of the UNet's shape, with its weights where the names and shapes are the same."""
    config = unet.config
    controlnet = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        resnet_time_scale_shift=config.resnet_time_scale_shift,
        conditioning_embedding_out_channels=(8, 16, 24, 48),
    )
    own, theirs = controlnet.state_dict(), unet.state_dict()
    same = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    controlnet.load_state_dict({**own, **same})
    return controlnet


def edges(pictures: torch.Tensor, rng) -> torch.Tensor:
    """float [N, 3, H, W] in -1..1 -> Canny edges of 0 and 1, [N, 3, H, W], at random thresholds."""
    found = []
    for picture in ((pictures + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy():
        low = rng.randint(*CANNY_LOW)
        grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
        found.append(torch.from_numpy(cv2.Canny(grey, low, 2 * low) > 0).float().expand(3, -1, -1))
    return torch.stack(found)


def train(options) -> None:
    device = pick_device(options)
    base = Base(options.base, device)
    if options.lora != "none":
        lora = need(Path(options.lora) if options.lora else options.base / "lcm-lora", "python training/distill.py")
        base.pipe.load_lora_weights(lora)
        base.pipe.fuse_lora()
        base.pipe.unload_lora_weights()
        base.unet.requires_grad_(False)
    controlnet = make_controlnet(base.unet).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(controlnet, decay=0.99)
    checkpoint = options.data / f"controlnet-of-{options.base.resolve().name}.pt"
    run = Run(checkpoint, options.steps, {"model": controlnet, "optimizer": optimizer, "average": average})
    torch.manual_seed(run.step)  # a resumed run draws what it has not seen
    pairs = Pairs(options.data, base.vae, device, seed=run.step + 2)
    trunk = Trunk(file_of(options.data, *TRUNK)).bfloat16().to(device)
    judge, means = PaintingLoss(base.vae, trunk, few=options.batch // 2, content_weight=0.8), Means()
    while not run.over:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(options.lr)
        batch = pairs.draw(options.batch, CROP).to(device)
        t = pairs.timesteps(options.batch, TIMESTEPS, last=50).to(device)
        a, s = signal_and_noise(base.abar, t)
        share = pairs.base_share(options.batch).to(device)
        noised = batch.latents_at(share)
        noised = (a * noised + s * torch.randn_like(noised)).contiguous(memory_format=torch.channels_last)
        image = edges(batch.photo_picture, pairs.rng).to(device, memory_format=torch.channels_last)
        states = base.states(batch.prompts)
        with bf16(device):
            down, mid = controlnet(noised, t, states, controlnet_cond=image, return_dict=False)
            joins = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
            out = base.unet(noised, t, states, return_dict=False, **joins)[0]
        x0, _ = base.x0_and_noise(out.float(), noised, t)
        share = torch.maximum(share, target_share(t))
        losses = judge(x0, batch.latents_at(share), batch.picture_at(share), pairs.rng)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        average.update(controlnet)
        means.add(**losses)
        run.tick()
        run.tell(means)
    controlnet.load_state_dict(averaged(checkpoint))
    out = options.out or options.base / "controlnet-canny"
    controlnet.half().save_pretrained(out, safe_serialization=True)
    print(f"{out}: {sum(p.numel() for p in controlnet.parameters()) * 2 / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = stage_parser(__doc__, steps=1500, batch=8, lr=2e-3)
    parser.add_argument("--base", type=Path, default=Path("models/mini"))
    parser.add_argument("--lora", default="", help="LoRA folder, BASE/lcm-lora without it; `none` for the plain base")
    parser.add_argument("--out", type=Path, help="folder of the ControlNet; BASE/controlnet-canny without it")
    train(parser.parse_args())


if __name__ == "__main__":
    command(main)
