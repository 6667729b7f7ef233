"""What does folding the autoencoder save on a CPU (runtime.folding)? The bundled model with and without, in turns.

python -m benchmarks.folding [--rounds 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import conversions, report
from pipeline import PRESETS, Controls, load
from pipeline.sampling.sampler import Decoder, Encoder
from pipeline.stylizer import Stylizer

ONE_STEP = Controls(prompt="watercolor", steps=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folded, plain = (load(PRESETS["mini"], "cpu", compile=False) for _ in range(2))
    plain.use(Encoder(plain.components.vae), plain.painter.denoise, Decoder(plain.components.vae))
    frame = conversions.photo(256, 256)[None]
    ways = {"autoencoder as it is": plain, "folded": folded}
    calls = {name: functools.partial(stylizer, frame, ONE_STEP) for name, stylizer in ways.items()}
    rows = [{**row, "autoencoder GFLOP": gflop(ways[row["way"]])} for row in conversions.measure(calls, options.rounds)]
    apart = np.abs(plain(frame, ONE_STEP).astype(int) - folded(frame, ONE_STEP))
    about: dict[str, Any] = {
        **report.machine("cpu"),
        "threads": torch.get_num_threads(),
        "differs, mean": float(apart.mean()),
        "differs, most": int(apart.max()),
    }
    report.publish("Folding the autoencoder, mini in one step", about, rows, options.json)


@torch.inference_mode()
def gflop(stylizer: Stylizer) -> float:
    """Of encoding and decoding one picture."""
    with FlopCounterMode(display=False) as counter:
        picture = torch.zeros(1, 3, *stylizer.sizes.picture())
        stylizer.painter.decode(stylizer.painter.encode(picture))
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
