"""The LCM mathematics: which timesteps run, and the linear maps that each of them is.

A latent consistency model (Luo et al. 2023, arXiv 2310.04378, sec. 4; the boundary scalings are those of consistency
models, arXiv 2303.01469, sec. 3) needs three operations per frame, all linear in tensors the host never looks at:

    enter     x  = a_t * x0 + s_t * z
    denoise   x0 = k_x * x + k_m * m          m: the UNet's output at t
    re-noise  x' = a_t' * x0 + s_t' * z'      the same map as `enter`

so a whole trajectory is a small table of (a, s, k_x, k_m), one row per step, made when a control changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


@dataclass(frozen=True)
class NoiseSchedule:
    """What a checkpoint was trained with. alphas_cumprod: float [train_steps], on the host."""

    alphas_cumprod: np.ndarray
    prediction: str = "epsilon"  # epsilon | v_prediction | sample
    original_steps: int = 50  # the grid that the distillation used

    @property
    def train_steps(self) -> int:
        return len(self.alphas_cumprod)


def timesteps(schedule: NoiseSchedule, steps: int, strength: float) -> list[int]:
    """The `steps` timesteps that run, from noisy to clean.

    Strength cuts the range of the distillation grid and exactly `steps` of what is left run, as in diffusers'
    LatentConsistencyModelImg2ImgPipeline; a strength too small to hold them is raised to the smallest that does.

    >>> timesteps(NoiseSchedule(np.ones(1000)), 2, 0.6)
    [599, 299]
    """
    if not 1 <= steps <= schedule.original_steps:
        raise ValueError(f"{steps} steps do not fit a schedule of {schedule.original_steps}.")
    stride = schedule.train_steps // schedule.original_steps
    length = max(int(schedule.original_steps * strength), steps)
    picks = np.floor(np.linspace(0, length, num=steps, endpoint=False)).astype(int)
    return [int((length - pick) * stride - 1) for pick in picks]


def table(schedule: NoiseSchedule, steps_run: list[int]) -> Tensor:
    """Rows (a, s, k_x, k_m) for the given timesteps: float32 [steps, 4], computed in float64.

    In float16 the cumulative alphas would be half a percent off at the clean end, so latents stay float32 between
    UNet calls and only the UNet's own input is cast.
    """
    t = np.asarray(steps_run)
    abar = schedule.alphas_cumprod.astype(np.float64)[t]
    a, s = np.sqrt(abar), np.sqrt(1.0 - abar)
    tau = t * TIMESTEP_SCALING
    c_skip = SIGMA_DATA**2 / (tau**2 + SIGMA_DATA**2)
    c_out = tau / np.sqrt(tau**2 + SIGMA_DATA**2)
    x0_from_x, x0_from_m = {  # x0 as the model's parameterization implies it: x0 = f * x + g * m
        "epsilon": (1.0 / a, -s / a),
        "v_prediction": (a, -s),
        "sample": (np.zeros_like(a), np.ones_like(a)),
    }[schedule.prediction]
    rows = np.stack([a, s, c_skip + c_out * x0_from_x, c_out * x0_from_m], axis=1)
    return torch.from_numpy(rows.astype(np.float32))


def noised(x0: Tensor, noise: Tensor, row: Tensor) -> Tensor:
    """a * x0 + s * z. x0 [B, C, h, w] and noise [B or 1, C, h, w] float32; row [B or 1, 4]."""
    a, s = row[:, 0, None, None, None], row[:, 1, None, None, None]
    return a * x0 + s * noise


def denoised(x: Tensor, model_output: Tensor, row: Tensor) -> Tensor:
    """k_x * x + k_m * m: the consistency function's estimate of x0. Shapes as in `noised`."""
    k_x, k_m = row[:, 2, None, None, None], row[:, 3, None, None, None]
    return k_x * x + k_m * model_output


def draw_noise(seed: int, count: int, shape: tuple[int, int, int]) -> list[Tensor]:
    """`count` draws of float32 [1, C, h, w] as diffusers makes them, on the CPU: first to enter, then to re-noise."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn((1, *shape), generator=generator) for _ in range(count)]


def guidance_embedding(guidance: float, dim: int) -> Tensor:
    """Embedding of (guidance - 1) * 1000 as [sin | cos], float32 [1, dim]: the `timestep_cond` of a full LCM.

    Source: arXiv 2310.04378, sec. 4.3, with the frequencies of arXiv 2107.00630's reference code.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(np.log(10000.0) / (half - 1)))
    angles = (guidance - 1.0) * 1000.0 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedding, (0, dim % 2))[None]
