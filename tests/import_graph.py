"""The import graph of the product, read from the sources, imports inside functions and for types alone included.

    python -m tests.import_graph [--files]

prints the rooms from the lowest up, each with those it imports, and every import that the table ALLOWED does not allow.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.paths import ROOT

PRODUCT = ("pipeline", "render", "stream")
BASE = {"settings", "presets", "errors", "batch", "capabilities"}  # of pipeline's flat files, those that need no torch
OTHERS = ("benchmarks", "tests", "training")  # nothing of the product imports them, but that `bench` is a benchmark
COMMANDS = {"main", "command_line", "options", "choices"}

# room -> the rooms it may import. What no row allows is an import upwards. Files beside main.py are "shared".
ALLOWED: dict[str, set[str]] = {
    "shared": set(),
    "pipeline.base": set(),
    "pipeline.trees": set(),
    "pipeline.pixels": {"pipeline.base", "pipeline.trees"},
    "pipeline.runtime": {"pipeline.base", "pipeline.trees"},
    "pipeline.sampling": {"pipeline.base", "pipeline.trees", "pipeline.pixels"},
    "pipeline.loading": {"pipeline.base", "pipeline.pixels", "pipeline.runtime", "pipeline.sampling"},
    "pipeline": {
        *("pipeline.base", "pipeline.trees", "pipeline.pixels"),
        *("pipeline.runtime", "pipeline.sampling", "pipeline.loading"),
    },
    "render": {"pipeline.base", "shared"},
    "stream.engine": {"pipeline.base", "shared"},
    "stream": {"pipeline.base", "shared", "stream.engine"},
    "stream.webrtc.negotiation": set(),
    "stream.webrtc.receiving": set(),
    "stream.webrtc": {
        *("pipeline.base", "shared", "stream.engine", "stream"),
        *("stream.webrtc.negotiation", "stream.webrtc.receiving"),
    },
    "stream.recording": {"pipeline.base", "shared", "stream.engine", "stream"},
    "stream.local": {"pipeline.base", "shared", "stream.engine", "stream"},
    "stream.http": {  # the server: it ties the rooms beside it together
        "pipeline.base",
        "shared",
        "stream.engine",
        "stream",
        "stream.webrtc",
        "stream.webrtc.negotiation",
        "stream.recording",
        "stream.local",
    },
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, of the product's Python: all there is beside OTHERS."""
    folders = [folder for folder in root.iterdir() if folder.name not in OTHERS and not folder.name.startswith(".")]
    files = [*root.glob("*.py"), *(file for folder in folders if folder.is_dir() for file in folder.rglob("*.py"))]
    files = [file for file in files if not {"node_modules", "site-packages"} & set(file.parts)]
    return {_dotted(file.relative_to(root)): file for file in sorted(files)}


def _dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, file: Path, known: Iterable[str]) -> set[str]:
    """Those of the known modules that a file imports, wherever in it."""
    known, found = set(known), set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    others = {each for each in found if each.split(".")[0] in OTHERS}
    return ((found & known) | others) - {name}


def hidden(file: Path) -> list[str]:
    """Calls by which a file could import what no import statement names."""
    calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    names = (call.attr if isinstance(call, ast.Attribute) else f"{getattr(call, 'id', '')}()" for call in calls)
    return [name for name in names if name in ("import_module", "import_module()", "__import__()", "exec()", "eval()")]


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules it imports."""
    known = modules(root)
    return {name: imports(name, file, known) for name, file in known.items()}


def room(module: str) -> str:
    folder, _, name = module.rpartition(".")
    if module.split(".")[0] in OTHERS:
        return module.split(".")[0]
    if module in PRODUCT:
        return module
    if not folder:
        return "commands" if module in COMMANDS else "shared"
    if folder == "pipeline" and name in BASE:
        return "pipeline.base"
    if f"{folder}.{name}" in ALLOWED:  # a room's own __init__
        return f"{folder}.{name}"
    return folder


def between_rooms(of_modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Room -> the other rooms it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in of_modules.items():
        found[room(module)] |= {room(other) for other in imported} - {room(module)}
    return dict(found)


def upwards(of_modules: Mapping[str, set[str]]) -> list[str]:
    """Every import that the table does not allow."""
    return [
        f"{module} imports {other}"
        for module, imported in sorted(of_modules.items())
        for other in sorted(imported)
        if room(module) not in ("commands", room(other)) and room(other) not in ALLOWED.get(room(module), ())
    ]


def circle(edges: Mapping[str, set[str]]) -> list[str] | None:
    """One, if there is any."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="every file, too")
    options = parser.parse_args()
    of_modules = graph()
    rooms = between_rooms(of_modules)
    if (found := circle(rooms)) is None:
        for name in TopologicalSorter(rooms).static_order():
            print(f"{name:18} -> {', '.join(sorted(rooms.get(name, ()))) or 'nothing'}")
            for module in sorted(module for module in of_modules if options.files and room(module) == name):
                print(f"    {module:36} {' '.join(sorted(of_modules[module]))}")
    else:
        print("A circle of rooms:", " -> ".join(found))
    for line in (wrong := upwards(of_modules)):
        print("UPWARDS:", line)
    if (circular := circle(of_modules)) is not None:
        print("A circle of modules:", " -> ".join(circular))
    return int(bool(wrong or found or circular))


if __name__ == "__main__":
    raise SystemExit(main())
