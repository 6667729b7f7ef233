"""What controls mean to a model, asked of facts alone: no model is loaded here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from types import MappingProxyType

import pytest

from pipeline import capabilities
from pipeline.capabilities import Capabilities
from pipeline.settings import Controls
from tests.paths import ROOT

LORA = Capabilities(512, 512, loras=MappingProxyType({"lcm": 1.0, "ink": 0.55}))
FULL = Capabilities(512, 512, guidance_embedding=True, original_steps=4, annotators=("canny",))


def test_features():
    assert LORA.features == {"guidance", "cfg", "lora"}
    assert FULL.features == {"guidance", "control", "canny"}


def test_what_a_model_cannot_do_is_refused_in_one_sentence():
    capabilities.check(LORA, Controls(steps=8, lora_weights={"ink": 0.5}))
    with pytest.raises(ValueError, match=r"^lora_weights: no LoRA 'oil' is loaded \(loaded: lcm, ink\)\.$"):
        capabilities.check(LORA, Controls(lora_weights={"oil": 0.5}))
    with pytest.raises(ValueError, match=r"^lora_weights: .*\(loaded: none\)\.$"):
        capabilities.check(FULL, Controls(lora_weights={"ink": 0.5}))
    with pytest.raises(ValueError, match=r"^steps: this model's schedule holds 4\.$"):
        capabilities.check(FULL, Controls(steps=5))


def test_loras_that_are_not_there_are_left_out_and_nothing_else():
    asked = Controls(steps=3, lora_weights={"oil": 1.0, "ink": 0.5})
    assert capabilities.fitted(LORA, asked) == Controls(steps=3, lora_weights={"ink": 0.5})
    fits = Controls(lora_weights={"ink": 0.5})
    assert capabilities.fitted(LORA, fits) is fits


def test_a_lora_has_the_weight_that_it_was_loaded_with_unless_another_is_asked_for():
    assert capabilities.lora_weights(LORA, Controls()) == {"lcm": 1.0, "ink": 0.55}
    assert capabilities.lora_weights(LORA, Controls(lora_weights={"ink": 0.0})) == {"lcm": 1.0, "ink": 0.0}


def test_frames_share_a_batch_where_the_same_is_run_for_them():
    def key(**controls):
        return capabilities.shape_key(LORA, Controls(**controls))

    assert key() == key(prompt="other", seed=3, strength=0.9, guidance=0.5, lora_weights={"ink": 0.55})
    different = [key(), key(steps=3), key(guidance=2.0), key(lora_weights={"ink": 0.5}), key(reuse=1), key(bypass=True)]
    assert len(set(different)) == len(different)
    assert key(bypass=True) == key(strength=0.0, steps=4)
    assert capabilities.shape_key(FULL, Controls(guidance=8.0)) == capabilities.shape_key(FULL, Controls())


def test_reuse_is_doubtful_where_the_unet_is_compiled():
    assert "reuse" not in capabilities.remarks(LORA, Controls(reuse=1), compiled=False)
    assert "uncompiled" in capabilities.remarks(LORA, Controls(reuse=1), compiled=True)["reuse"]
    assert capabilities.remarks(LORA, Controls(), compiled=True) == {}


def test_they_stay_as_they_are():
    with pytest.raises(FrozenInstanceError):
        LORA.inpaints = True
    with pytest.raises(TypeError):
        LORA.loras["ink"] = 1.0


def test_whoever_asks_loads_no_model_library():
    code = "import sys, pipeline.capabilities; sys.exit('torch' in sys.modules)"
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
