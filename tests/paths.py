"""Where the repository, its clip and the bundled model lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARPHONE = ROOT / "tests" / "data" / "carphone.mp4"  # a man in a car, talking: 176x144, 30 fps
MINI = ROOT / "models" / "mini"
