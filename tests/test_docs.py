"""The documents: `python -m tests.test_docs` writes their tables; the tests see that what they say and name is so."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import main
from benchmarks.report import table
from pipeline.presets import TABLE
from pipeline.settings import Controls
from tests import import_graph
from tests.paths import ROOT

MOST_LINES = 170  # of the README: what is longer belongs in docs/
README, ARCHITECTURE, HTTP = ROOT / "README.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "http.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "models" / "mini" / "README.md",
    ROOT / "training" / "README.md",
]
OURS = r"(?:pipeline|render|stream|static|benchmarks|tests|training|models|docs)"

# -- what is generated ------------------------------------------------------------------------------------------------


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


def rooms_table() -> str:
    return table(
        [
            {
                "room": f"`{room}`",
                "may import": ", ".join(f"`{other}`" for other in sorted(others)) or "nothing of ours",
            }
            for room, others in import_graph.ALLOWED.items()
        ]
    )


def benchmarks_table() -> str:
    """Every module of benchmarks/ that is a command, with the first sentence of its docstring."""
    rows = []
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
            said = " ".join((ast.get_docstring(tree) or "").split())
            sentence = re.match(r".*?[.?](?= |$)", said)
            rows.append({"command": f"`python -m benchmarks.{file.stem}`", "what": sentence[0] if sentence else said})
    return table(rows)


def results() -> str:
    parts = []
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(file.read_text())
        about = f"{result['device']}, {result['date']}, torch {result['torch']}"
        extra = "; ".join(f"{name}: {result[name]}" for name in result if name.endswith(" ms"))
        parts.append(f"## {result['title']}\n\n{about}.\n\n{table(result['rows'])}" + (f"\n\n{extra}" if extra else ""))
    return "\n\n".join(parts)


SECTIONS = {
    README: {"controls": controls_table},
    ROOT / "docs" / "models.md": {"models": models_table},
    ROOT / "docs" / "benchmarks.md": {"commands": benchmarks_table, "results": results},
    ARCHITECTURE: {"rooms": rooms_table},
}


def generated(file: Path) -> str:
    text = file.read_text()
    for name, make in SECTIONS[file].items():
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.S)
        assert count == 1, f"{file.name} has no section {name}"
    return text


@pytest.mark.parametrize("file", SECTIONS, ids=lambda file: file.name)
def test_the_tables_are_current(file):
    assert generated(file) == file.read_text(), "run: python -m tests.test_docs"


# -- what is named ----------------------------------------------------------------------------------------------------


def _documents(test):
    return pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))(test)


def _spans(text: str) -> list[str]:
    """What stands as code, between backticks or in a block."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`\n]+)`", rest)]


def _headings(file: Path) -> set[str]:
    """The anchors of a file, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _help(*command: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main.main([*command, "--help"])
    return said.getvalue()


@cache
def _commands() -> tuple[str, ...]:
    return tuple(re.search(r"\{(.*?)\}", _help())[1].split(","))


@cache
def _options(command: str) -> frozenset[str]:
    """Every option that a command's help names."""
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", _help(command)))


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_the_readme_says_at_once_what_has_never_run():
    assert "has ever run on a GPU" in "\n".join(README.read_text().splitlines()[:10])


@_documents
def test_every_link_leads_somewhere(file):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        found = (file.parent / path).resolve() if path else file
        assert found.exists(), target
        assert not anchor or anchor in _headings(found), target


@_documents
def test_every_file_of_ours_that_is_named_is_there(file):
    named = [name for span in _spans(file.read_text()) for name in re.findall(rf"(?<![\w/.]){OURS}/[\w./-]*", span)]
    missing = [name for name in named if not (ROOT / name).exists() and not re.match(r"training/(data|report)\b", name)]
    assert missing == []


@_documents
def test_every_command_can_be_given(file):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for span in _spans(file.read_text()):
        for module in re.findall(r"python -m ((?:benchmarks|tests|training)[\w.]*)", span):
            assert importlib.util.find_spec(module.rstrip(".")) is not None, span
        if re.match(r"make [a-z]", span):
            assert span.split()[1] in targets, span
        if (found := re.search(r"main\.py ?(\w*)(.*)", span)) is not None:
            command = found[1] or "serve"
            assert command in _commands(), span
            assert set(re.findall(r"--[a-z][a-z-]*", found[2])) <= _options(command) | {"--help"}, span
        elif span.startswith("--") and file.parent != ROOT / "training":  # whose scripts have options of their own
            known = frozenset().union(*map(_options, _commands()))
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", span)) <= known, span


def test_every_route_is_described_and_every_described_one_is_there():
    from stream.http.application import make_app

    app = make_app(MagicMock(), MagicMock())  # asked for its routes and nothing else
    there = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    told = {
        (method, path)
        for methods, path in re.findall(r"`([A-Z]+(?:/[A-Z]+)*) (/[^`\s]*)`", HTTP.read_text())
        for method in methods.split("/")
    }
    asked = ("HEAD", "OPTIONS")
    assert {one for one in told if one[0] not in asked} == {one for one in there if one[0] not in asked}


# -- what the architecture tells of the code --------------------------------------------------------------------------


def _product() -> Iterator[tuple[str, ast.Module]]:
    for file in import_graph.modules().values():
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text())


def test_the_architecture_names_every_file_that_makes_a_thread_or_a_lock():
    makers = {"Thread", "ThreadPoolExecutor", "Lock", "RLock", "Condition"}
    places = {
        place
        for place, tree in _product()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and makers & {getattr(node.func, "attr", None), getattr(node.func, "id", None)}
    }
    text = ARCHITECTURE.read_text()
    assert {place for place in places if f"`{place}`" not in text} == set()


def test_the_architecture_names_every_private_name_of_a_library():
    """An attribute that begins with an underscore and that no file of ours makes is somebody else's."""
    ours, used = {"_replace", "_fields", "_exit"}, set()  # documented names of Python
    for _, tree in _product():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute):
                is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if is_own and isinstance(node.ctx, ast.Store):
                    ours.add(node.attr)
                elif not is_own and re.match("_[^_]", node.attr):
                    used.add(re.sub("^_[A-Z].*?__", "__", node.attr))  # as Python mangles it
    text = ARCHITECTURE.read_text()
    assert {name for name in used - ours if name not in text} == set()


if __name__ == "__main__":
    for file in SECTIONS:
        file.write_text(generated(file))
