"""models/mini -> checkpoints to go on from, where those of its own training are not at hand.

    python training/unpack.py --model models/mini --data DIR
    python training/unet.py --data DIR --start-from DIR/start.pt --lr 2e-4

The optimizer's state is not in a published model, so a run begins anew from its weights.
"""

import argparse
from pathlib import Path

import torch
from common.pairs import LATENT_STD
from common.runs import command, need, need_space, refuse
from diffusers import StableDiffusionPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini"), help="what export.py wrote")
    parser.add_argument("--data", type=Path, default=Path("training/data"), help="pictures and checkpoints")
    options = parser.parse_args()
    need(options.model / "model_index.json", f"python training/export.py --out {options.model}")
    autoencoder, start = options.data / "autoencoder.pt", options.data / "start.pt"
    for path in (autoencoder, start):
        if path.exists():
            refuse(f"{path} exists: delete it or name another --data.")
    need_space(options.data, 100)
    pipe = StableDiffusionPipeline.from_pretrained(options.model, local_files_only=True, safety_checker=None)
    pipe.tokenizer.save_pretrained(options.data / "tokenizer")
    scaling = {"factor": pipe.vae.config.scaling_factor / LATENT_STD}
    torch.save({"average": {"weights": pipe.vae.state_dict()}, "scaling": scaling}, autoencoder)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "decoder": pipe.vae.decoder}
    torch.save({"average": {"weights": torch.nn.ModuleDict(parts).state_dict()}}, start)
    print(f"{start}: `python training/unet.py --data {options.data} --start-from {start}` goes on from it.")


if __name__ == "__main__":
    command(main)
