"""What a film asks of the engine."""

from __future__ import annotations

import weakref

from pipeline.errors import CaptureFailed
from pipeline.settings import ModelSpec
from render.painting import captured


class CapturedStylizer:
    """As far as it is captured."""

    spec = ModelSpec("base")

    def __init__(self, fails: bool):
        self.fails = fails

    def capture_calls(self, call):
        call()
        if self.fails:
            raise CaptureFailed("Capturing a CUDA graph broke off: no reason.")


def test_a_film_whose_capture_breaks_off_is_painted_by_a_model_loaded_anew(capsys):
    loaded, called = [], []

    def load(spec, graphs=None):
        assert not any(ref() is not None for ref, _ in loaded), "two of them may not fit"
        stylizer = CapturedStylizer(fails=graphs is None)
        loaded.append((weakref.ref(stylizer), graphs))
        return stylizer

    def call(stylizer):
        called.append(stylizer.fails)

    assert not captured(load, CapturedStylizer.spec, call).fails
    assert [graphs for _, graphs in loaded] == [None, False]
    assert called == [True]
    assert "loaded anew, without CUDA graphs" in capsys.readouterr().err
