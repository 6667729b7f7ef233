"""Did a change alter a picture? Fixed frames and controls on the bundled models, painted by two checkouts, hashed.

    python -m benchmarks.equal OTHER [--json FILE]

OTHER: the folder of another checkout, as `git worktree add` makes it. Both run with this interpreter, one after the
other, and only by the names of their public interface. Exit code 1 where a picture differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from tests.chromium import ROOT

HASHES = """
import hashlib, itertools, json, subprocess, sys, tempfile
from pathlib import Path
import av, numpy as np, torch
from pipeline import PRESETS, Controls, load

torch.set_num_threads(2)
clip = Path("tests/data/carphone.mp4")
with av.open(str(clip)) as source:
    frames = [f.to_ndarray(format="rgb24") for f in itertools.islice(source.decode(video=0), 0, 90, 30)]
three = np.stack(frames)
noise = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), dtype=np.uint8)
mask = np.zeros(three.shape[:3], np.uint8)
mask[:, : mask.shape[1] // 2] = 255
told = {}

def tell(name, pictures):
    told[name] = hashlib.sha256(np.ascontiguousarray(pictures).tobytes()).hexdigest()[:16]

for model in ("mini", "mini-canny"):
    stylizer = load(PRESETS[model], device="cpu", compile=False)
    for strength, steps, guidance in itertools.product((0.0, 0.3, 0.5, 0.8, 1.0), (1, 2, 4), (1.0, 2.0)):
        for seed, prompt in ((0, "watercolor"), (7, "van gogh")):
            asked = Controls(prompt=prompt, negative_prompt="photo", strength=strength, steps=steps,
                             guidance=guidance, seed=seed)
            tell(f"{model} {strength} {steps} {guidance} {prompt}", stylizer(three[:1], asked))
    asked = Controls(prompt="poster", strength=0.5, steps=2)
    tell(f"{model} batch of three", stylizer(three, asked))
    tell(f"{model} three prompts", stylizer(three, [
        Controls(prompt=prompt, strength=0.5, steps=2, seed=seed)
        for seed, prompt in enumerate(("poster", "pastel", "ink drawing"))]))
    tell(f"{model} torch", stylizer(torch.from_numpy(three), asked).numpy())
    tell(f"{model} noise", stylizer(noise, asked))
    tell(f"{model} bypass", stylizer(noise, Controls(bypass=True)))
    tell(f"{model} mask", stylizer(three, asked, mask=mask))
    tell(f"{model} mask, full strength", stylizer(three, asked.model_copy(update={"strength": 1.0}), mask=mask))
    for scale in stylizer.scales:
        tell(f"{model} scale {scale}", stylizer(three, asked, scale=scale))
    if model == "mini":
        tell("mini imagined", stylizer.imagine(Controls(prompt="poster", steps=4, seed=3), 2))
    else:
        tell("canny thresholds", stylizer(three, Controls(prompt="poster", canny_low=30, canny_high=90)))
        tell("control scale", stylizer(three, Controls(prompt="poster", control_scale=0.4)))
        tell("control frames", stylizer(three, asked, control_frames=three[::-1].copy()))
        tell("mini-canny imagined", stylizer.imagine(Controls(prompt="poster", steps=4), 3, control_frames=three))
with tempfile.TemporaryDirectory() as folder:
    short = Path(folder) / "short.mp4"
    with av.open(str(short), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height = three.shape[2], three.shape[1]
        for frame in (*frames, *frames[::-1]):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    for extra in ((), ("--steps", "2", "--seed", "5"), ("--reuse", "2"), ("--skip-similar", "0.05")):
        pictures = Path(folder) / ("-".join(extra) or "plain")
        pictures.mkdir()
        subprocess.run([sys.executable, "main.py", "render", str(short), str(pictures / "%03d.png"), "--device", "cpu",
                        "--model", "mini", "--no-compile", *extra], check=True, capture_output=True)
        files = sorted(pictures.glob("*.png"))
        assert files
        for file in files:
            with av.open(str(file)) as source:
                tell(f"rendered {pictures.name} {file.name}", next(source.decode(video=0)).to_ndarray(format="rgb24"))
print(json.dumps(told))
"""


def hashes(checkout: Path) -> dict[str, str]:
    """Case -> the beginning of its pictures' SHA-256."""
    command = [sys.executable, "-c", HASHES]
    return json.loads(subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    before, after = hashes(options.other.resolve()), hashes(ROOT)
    differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    rows: list[dict[str, Any]] = [
        {"case": name, "before": before.get(name), "after": after.get(name)} for name in differ
    ] or [{"case": f"all {len(before)}", "before": "equal", "after": "equal"}]
    report.publish("Pictures of two checkouts, bit for bit", report.machine("cpu"), rows, options.json)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
