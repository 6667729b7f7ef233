"""Stage 3: checkpoints -> a diffusers folder in float16 safetensors, replaced in one move.

    python training/export.py --data DIR --out models/mini

Loads with `StableDiffusionImg2ImgPipeline.from_pretrained("models/mini", local_files_only=True)`.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from autoencoder import load_autoencoder
from common.pairs import SCHEDULE
from common.prompts import make_text
from common.runs import averaged, command, need, need_space, refuse
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from unet import CONFIG

LIMIT_BYTES = 25_000_000


def assemble(autoencoder: Path, unet_checkpoint: Path) -> StableDiffusionPipeline:
    """The trained pipeline in float32, averaged weights."""
    weights = averaged(unet_checkpoint, "average")
    text, unet = make_text(unet_checkpoint.with_name("tokenizer")), UNet2DConditionModel(**CONFIG)
    for name, module in (("unet", unet), ("text_encoder", text.encoder)):
        prefix = name + "."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        module.eval()
    vae = load_autoencoder(autoencoder)
    vae.decoder.load_state_dict({k[8:]: v for k, v in weights.items() if k.startswith("decoder.")})
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        unet=unet,
        scheduler=LCMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_bpe_files(tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json: programs other than transformers 5 read these."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def load_as_float32(folder: Path) -> None:
    """transformers loads in the dtype that the config names, diffusers in float32: agree on the latter."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def export(pipeline: StableDiffusionPipeline, out: Path) -> int:
    """Writes beside `out`, keeps the documents that are there, swaps, returns the bytes of the weights."""
    new, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(new, safe_serialization=True)
    load_as_float32(new / "text_encoder")
    write_bpe_files(pipeline.tokenizer, new / "tokenizer")
    size = sum(f.stat().st_size for f in new.rglob("*.safetensors"))
    if size > LIMIT_BYTES:
        refuse(f"The weights have {size / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.0f}: nothing was replaced.")
    if out.exists():
        for document in out.iterdir():
            if document.is_file() and not (new / document.name).exists():
                shutil.copy2(document, new)
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("training/data"), help="where the checkpoints are")
    parser.add_argument("--out", type=Path, default=Path("models/mini"))
    options = parser.parse_args()
    for name in ("autoencoder", "unet"):
        need(options.data / f"{name}.pt", f"python training/{name}.py --data {options.data}")
    need_space(options.out.parent, 60)
    pipeline = assemble(options.data / "autoencoder.pt", options.data / "unet.pt")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    size = export(pipeline, options.out)
    print(f"{options.out}: weights {size / 1e6:.1f} MB")


if __name__ == "__main__":
    command(main)
