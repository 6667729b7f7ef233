"""Bars from given rows; the committed picture is a function of the committed result."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import bars
from tests.paths import ROOT

SVG = "{http://www.w3.org/2000/svg}"
ABOUT = {"title": "A <title>", "device": "a device", "date": "2026-01-01", "torch": "2"}


def row(engine: str, ms: float, **more) -> dict:
    return {"engine": engine, "steps": 1, "p50 ms": ms, "fps": 1000 / ms, **more}


def test_bars_are_as_long_as_their_times():
    rows = [row("diffusers img2img", 40.0), row("ours", 10.0, **{"floor ms": 5.0}), row("ours, compiled", 20.0)]
    rows += [row("ours", 99.0, batch=8), row("ours", 99.0, cfg="on"), row("ours", 99.0, control="yes")]
    tree = ElementTree.fromstring(bars.svg({**ABOUT, "rows": rows}))
    lengths = [float(rect.get("width")) for rect in tree.iter(f"{SVG}rect")][1:]  # the first is the ground
    assert lengths == pytest.approx([max(lengths) * ms / 40 for ms in (10, 20, 40)], abs=0.1)
    mark = list(tree.iter(f"{SVG}line"))[-1]
    assert float(mark.get("x1")) == pytest.approx(bars.LEFT + lengths[2] * 5 / 40, abs=0.1)
    text = " ".join(each.text for each in tree.iter(f"{SVG}text"))
    for word in ("A <title>", "10.0 ms, 100 fps", "ours, compiled", "1 step", "a device", "floor"):
        assert word in text


def test_nothing_to_draw_is_a_picture_too():
    ElementTree.fromstring(bars.svg({**ABOUT, "rows": []}))


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("engine-*.svg")), ids=lambda file: file.stem)
def test_the_committed_pictures_are_current(picture):
    result = json.loads((ROOT / "benchmarks" / "results" / f"{picture.stem}.json").read_text())
    written = f"run: python -m benchmarks.bars benchmarks/results/{picture.stem}.json docs/{picture.name}"
    assert picture.read_text() == bars.svg(result), written
    assert re.search(rf"\]\(docs/{picture.name}\)", (ROOT / "README.md").read_text())
