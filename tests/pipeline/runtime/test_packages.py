"""Which calls compiled code serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import Controls, ModelSpec, load
from pipeline.compiling import STAGES
from pipeline.runtime.packages import MOST, CallRecorder, Compiled, signature
from tests import tiny


def test_one_piece_of_code_serves_every_batch_of_several_up_to_the_most():
    def of(batch, *sides):
        return signature((torch.zeros(batch, *sides), None, torch.zeros(2 * batch, 3)))

    assert of(2, 4) == of(3, 4) == of(MOST, 4)
    assert len({of(1, 4), of(2, 4), of(2, 5), of(MOST + 1, 4), of(MOST + 2, 4)}) == 5
    assert signature((torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(4, 3))) != of(2, 4)


class FullSize(Exception):
    """Compiled code was called."""


def test_compiled_code_of_the_full_size_is_not_asked_for_another(tmp_path):
    """Packages are for fixed shapes: a smaller picture goes through the modules they were made of."""
    stylizer = load(ModelSpec(str(tiny.checkpoint(tmp_path)), width=96, height=64, dtype="float32"), "cpu")
    frames = np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), np.uint8)
    plain = stylizer(frames, Controls(), scale=0.5)
    modules = {name: getattr(stylizer.sampler, name) for name in STAGES}
    recorders = {name: CallRecorder(module) for name, module in modules.items()}

    def runner(present):
        raise FullSize

    stylizer.use(**recorders)
    stylizer(frames, Controls())
    code = {name: dict.fromkeys(recorder.calls, runner) for name, recorder in recorders.items()}
    stylizer.use(**{name: Compiled(modules[name], code[name]) for name in modules})
    assert np.array_equal(stylizer(frames, Controls(), scale=0.5), plain)
    with pytest.raises(FullSize):
        stylizer(frames, Controls())
