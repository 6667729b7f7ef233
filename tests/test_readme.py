"""The README's tables are generated: `python -m tests.test_readme` writes them, the test sees that they are current."""

from __future__ import annotations

import json
import re

from benchmarks.report import table
from pipeline.presets import TABLE
from pipeline.settings import Controls
from tests.paths import ROOT

README = ROOT / "README.md"


def models_table() -> str:
    rows = []
    for name, row in TABLE.items():
        settings = ", ".join(f"{key} {value}" for key, value in row.controls.items() if key not in ("prompt", "seed"))
        size = f"{row.spec.width}x{row.spec.height}"
        rows.append(
            {"preset": f"`{name}`", "what": row.about, "size": size, "starts with": settings, "needs": row.needs}
        )
    return table(rows)


def controls_table() -> str:
    rows = []
    for name, field in Controls.model_json_schema()["properties"].items():
        rows.append(
            {
                "control": f"`{name}`",
                "range": _range(field),
                "default": _default(field),
                "meaning": field["description"],
            }
        )
    return table(rows)


def _range(field: dict) -> str:
    if "minimum" in field:
        return f"{field['minimum']:g} to {field['maximum']:g}" if field["maximum"] < 1e6 else "whole number"
    return {"string": "text", "boolean": "on, off", "object": "name: -4 to 4"}[field["type"]]


def _default(field: dict) -> str:
    value = field.get("default")
    if isinstance(value, bool):
        return "on" if value else "off"
    return {None: "as loaded", "": "empty"}.get(value, str(value))


def results() -> str:
    parts = []
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(file.read_text())
        about = f"{result['device']}, {result['date']}, torch {result['torch']}"
        extra = "; ".join(f"{name}: {result[name]}" for name in result if name.endswith(" ms"))
        parts.append(f"**{result['title']}** ({about})\n\n{table(result['rows'])}" + (f"\n\n{extra}" if extra else ""))
    return "\n\n".join(parts)


SECTIONS = {"models": models_table, "controls": controls_table, "results": results}


def generated(text: str) -> str:
    for name, make in SECTIONS.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.S)
        assert count == 1, f"the README has no section {name}"
    return text


def test_the_tables_are_current():
    text = README.read_text()
    assert generated(text) == text, "run: python -m tests.test_readme"


def test_every_picture_and_file_it_names_is_there():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text()):
        assert (ROOT / target).is_file(), target


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
