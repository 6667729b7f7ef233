"""What every training stage shares: options, checkpoints that a run resumes from, averaged weights, refusals."""

import argparse
import errno
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch


def refuse(sentence: str) -> NoReturn:
    """Ends the command with one sentence on stderr and code 2."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def command(main: Callable[[], None]) -> None:
    """Runs a stage's main; an interruption and a full disk end it with a sentence too."""
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        refuse("The disk is full: make room and run the same command again, it goes on from the last checkpoint.")


def need(path: Path, command: str) -> Path:
    """`path`, or a refusal that names the command which makes it."""
    if not path.exists():
        refuse(f"{path} is missing: run `{command}` first.")
    return path


def need_space(folder: Path, megabytes: int) -> None:
    """Refuses to begin what the disk cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        refuse(
            f"{folder} has {free} MB free and this stage writes up to {megabytes} MB: make room or choose another disk."
        )


def stage_parser(description: str, steps: int, batch: int, lr: float) -> argparse.ArgumentParser:
    """The options that all training stages have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("training/data"), help="pictures and checkpoints")
    parser.add_argument("--steps", type=int, default=steps, help="length of the run and of its learning rate's curve")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--float32", action="store_true", help="no bfloat16: faster on processors that lack it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 2, 8))
    return parser


def pick_device(options: argparse.Namespace) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one. Also sets threads and precision."""
    global _float32
    _float32 = options.float32
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        refuse("--device cuda: torch sees no CUDA device here.")
    return torch.device(options.device)


def bf16(device: torch.device) -> torch.autocast:
    """Convolutions and matrix products in bfloat16, weights in float32; all in float32 after --float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=not _float32)


_float32 = False


class Run:
    """A training run of so many steps, saved every minute and resumed where it was saved.

    parts: name -> anything with state_dict/load_state_dict. At most one save interval is lost when interrupted.
    """

    SAVE_EVERY_S = 60
    TELL_EVERY = 50

    def __init__(self, path: Path, steps: int, parts: dict):
        self.path, self.steps, self.parts = path, steps, parts
        self.step = 0
        if path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            try:
                for name, part in parts.items():
                    part.load_state_dict(saved[name])
            except (KeyError, RuntimeError, ValueError):
                refuse(f"{path} was made with other options or by another stage: delete it or name another --data.")
            self.step = saved["step"]
            print(f"resumed {path} at step {self.step}", flush=True)
        else:
            need_space(path.parent, 500)
        self._told = self._saved = time.monotonic()

    @property
    def over(self) -> bool:
        return self.step >= self.steps

    def learning_rate(self, peak: float) -> float:
        """Linear warm-up, then a cosine down to 2% of the peak at the last step."""
        warm_steps = min(100, self.steps // 10 + 1)
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps))) / 2
        return peak * min(1.0, (self.step + 1) / warm_steps) * cosine

    def tick(self) -> None:
        """Counts one step; saves when due."""
        self.step += 1
        if self.over or time.monotonic() - self._saved > self.SAVE_EVERY_S:
            self.save()
            self._saved = time.monotonic()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        part = self.path.with_suffix(".part")
        torch.save({**state, "step": self.step}, part)
        os.replace(part, self.path)

    def tell(self, means: "Means") -> None:
        """A line of progress every TELL_EVERY steps."""
        if self.step % self.TELL_EVERY:
            return
        now, values = time.monotonic(), means.take()
        named = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        seconds = (now - self._told) / self.TELL_EVERY
        print(f"step {self.step}/{self.steps}, {seconds:.2f} s a step: {named}", flush=True)
        self._told = now


class Means:
    """Means of named losses between two lines of progress."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, **values: torch.Tensor) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def take(self) -> dict[str, float]:
        means = {name: total / self.count for name, total in self.sums.items()}
        self.__init__()
        return means


class Peers:
    """Several processes of one stage that average their weights every EVERY steps (local SGD, arXiv 1805.09767).

    On a CPU, one thread each, they use cores that threads of one process would spend waiting for each other.
    folder: where each leaves its weights; me: this one's number; those not heard of for FRESH_S seconds do not count.
    """

    EVERY, FRESH_S = 20, 120

    def __init__(self, folder: Path, me: int, module: torch.nn.Module):
        self.folder, self.me, self.module, self.steps = folder, me, module, 0
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def meet(self) -> None:
        self.steps += 1
        if self.steps % self.EVERY:
            return
        mine = self.module.state_dict()
        part = self.folder / f"{self.me}.part"
        torch.save(mine, part)
        os.replace(part, self.folder / f"{self.me}.pt")
        files = [f for f in self.folder.glob("*.pt") if f.stem != str(self.me)]
        states = [torch.load(f, weights_only=True) for f in files if time.time() - f.stat().st_mtime < self.FRESH_S]
        for name, value in mine.items():
            if value.is_floating_point():
                value.copy_(torch.stack([value, *(state[name].to(value) for state in states)]).mean(0))


class Average:
    """Exponential moving average of a module's weights; the decay grows with the steps, so early noise is forgotten."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.998):
        self.decay, self.steps = decay, 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)

    def state_dict(self) -> dict:
        return {"weights": self.weights, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.steps = state["steps"]


def averaged(path: Path, name: str = "average") -> dict:
    """The averaged weights `name` of a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)[name]["weights"]
