"""What every training stage shares: a clock that survives interruptions, checkpoints, averaged weights."""

import math
import os
import time
from pathlib import Path

import torch


class Run:
    """A training run of fixed length in minutes, saved every minute and resumed where it was saved.

    parts: name -> anything with state_dict/load_state_dict. At most one save interval is lost when interrupted.
    """

    SAVE_EVERY_S = 60

    def __init__(self, path: Path, minutes: float, parts: dict):
        self.path, self.total_s, self.parts = path, minutes * 60, parts
        self.step, self.spent_s = 0, 0.0
        if path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            self.step, self.spent_s = saved["step"], saved["spent_s"]
            print(f"resumed {path} at step {self.step}, {self.spent_s / 60:.1f} min", flush=True)
        self._ticked = self._saved = time.monotonic()

    @property
    def progress(self) -> float:
        return min(1.0, self.spent_s / self.total_s)

    def learning_rate(self, peak: float, warm_steps: int = 100) -> float:
        """Linear warm-up, cosine to 2% of the peak over the run's time."""
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * self.progress)) / 2
        return peak * min(1.0, (self.step + 1) / warm_steps) * cosine

    def tick(self) -> bool:
        """Counts one step; saves when due; False when the time is up."""
        now = time.monotonic()
        self.step += 1
        self.spent_s += now - self._ticked
        self._ticked = now
        done = self.spent_s >= self.total_s
        if done or now - self._saved > self.SAVE_EVERY_S:
            self.save()
            self._saved = now
        return not done

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        part = self.path.with_suffix(".part")
        torch.save({**state, "step": self.step, "spent_s": self.spent_s}, part)
        os.replace(part, self.path)


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
        self.weights, self.steps = state["weights"], state["steps"]


def averaged(path: Path, name: str) -> dict:
    """The averaged weights `name` of a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)[name]["weights"]
