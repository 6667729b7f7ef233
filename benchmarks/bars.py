"""A result of benchmarks.engine as a picture: horizontal bars, shorter is faster. SVG written by hand, no library.

python -m benchmarks.bars RESULT.json PICTURE.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT = 880, 250, 130
BAR, GAP, GROUP, HEAD, FOOT = 20, 6, 40, 64, 36
INK, DIM, GRID, GROUND, FLOOR = "#e6e9ef", "#8b94a7", "#262d3b", "#12161f", "#f2cc60"
OURS, OURS_PLAIN, OTHER = "#58a6ff", "#35608f", "#4a5265"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def svg(result: dict[str, Any]) -> str:
    """The rows of single frames without CFG and ControlNet, grouped by steps, fastest first. result: as in its JSON."""
    rows = [one for one in result["rows"] if shown(one)]
    longest = max((one["p50 ms"] for one in rows), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / longest
    y, parts = HEAD, []
    for steps in sorted({one["steps"] for one in rows}):
        parts.append(_text(24, y + 14, f"{steps} step{'s' if steps > 1 else ''}", DIM, 13))
        y += GROUP - BAR
        for one in sorted((one for one in rows if one["steps"] == steps), key=lambda one: one["p50 ms"]):
            parts += _bar(one, y, scale)
            y += BAR + GAP
        y += GROUP - BAR
    has_floor = any(one.get("floor ms") for one in rows)
    foot = f"{result['device']}, {result['date']}, torch {result['torch']}. Milliseconds of a frame, median; " + (
        "the mark is the arithmetic floor." if has_floor else "shorter is faster."
    )
    height = y + FOOT
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
            f"height='{height}' role='img' aria-label='{escape(result['title'], quote=True)}'>",
            f"<rect width='{WIDTH}' height='{height}' rx='12' fill='{GROUND}'/>",
            _text(24, 36, result["title"], INK, 17),
            f"<line x1='{LEFT}' y1='{HEAD}' x2='{LEFT}' y2='{y - GAP}' stroke='{GRID}'/>",
            *parts,
            _text(24, height - 16, foot, DIM, 12),
            "</svg>\n",
        ]
    )


def shown(one: dict[str, Any]) -> bool:
    return (one.get("batch", 1), one.get("cfg", "off"), one.get("control", "no")) == (1, "off", "no")


def _bar(one: dict[str, Any], y: int, scale: float) -> Sequence[str]:
    length, middle = one["p50 ms"] * scale, y + BAR - 5
    label = f"{one['p50 ms']:.1f} ms, {one['fps']:.{0 if one['fps'] >= 10 else 1}f} fps"
    parts = [
        _text(LEFT - 12, middle, one["engine"], INK, 13, anchor="end"),
        f"<rect x='{LEFT}' y='{y}' width='{length:.1f}' height='{BAR}' rx='3' fill='{_colour(one['engine'])}'/>",
        _text(LEFT + length + 10, middle, label, INK, 13),
    ]
    if one.get("floor ms"):
        x = LEFT + one["floor ms"] * scale
        parts.append(
            f"<line x1='{x:.1f}' y1='{y - 2}' x2='{x:.1f}' y2='{y + BAR + 2}' stroke='{FLOOR}' stroke-width='2'/>"
        )
    return parts


def _colour(engine: str) -> str:
    if not engine.startswith("ours"):
        return OTHER
    return OURS if "compiled" in engine else OURS_PLAIN


def _text(x: float, y: float, text: str, colour: str, size: int, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' font-size='{size}' text-anchor='{anchor}' {FONT}>"
        f"{escape(text)}</text>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    options.picture.write_text(svg(json.loads(options.result.read_text())))


if __name__ == "__main__":
    main()
