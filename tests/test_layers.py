"""The house: who may import whom, how much lies in one room, and that a name means one thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests import import_graph
from tests.paths import ROOT

ROOMS = ("pipeline", "render", "stream", "static", "benchmarks", "training")
MOST_FILES, MOST_LINES = 14, 400


def _sources() -> list[Path]:
    found = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*"))]
    return [file for file in found if file.suffix in {".py", ".js", ".mjs", ".css", ".html"}]


def test_nothing_is_imported_upwards():
    assert import_graph.upwards(import_graph.graph()) == []


def test_there_is_no_circle_of_rooms_nor_of_modules():
    of_modules = import_graph.graph()
    assert import_graph.circle(import_graph.between_rooms(of_modules)) is None
    assert import_graph.circle(of_modules) is None


def test_the_graph_sees_imports_in_functions_and_for_types(tmp_path):
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream" / "a.py").write_text("def f():\n    from . import b\n")
    (tmp_path / "stream" / "b.py").write_text("if TYPE_CHECKING:\n    from stream.a import f\n")
    of_modules = import_graph.graph(tmp_path)
    assert of_modules == {"stream.a": {"stream.b"}, "stream.b": {"stream.a"}}
    assert import_graph.circle(of_modules) is not None


def test_the_product_imports_neither_tests_nor_benchmarks_nor_training(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "settings.py").write_text("from tests import tiny\n")
    assert import_graph.upwards(import_graph.graph(tmp_path)) == ["pipeline.settings imports tests"]


def test_a_folder_that_the_table_does_not_know_may_import_nothing(tmp_path):
    for folder, source in (("stream", ""), ("newroom", "from stream import streams\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "streams.py").write_text(source)
    assert import_graph.upwards(import_graph.graph(tmp_path)) == ["newroom.streams imports stream.streams"]


def test_nothing_is_imported_behind_the_graphs_back():
    assert {name: found for name, file in import_graph.modules().items() if (found := import_graph.hidden(file))} == {}


def test_what_waits_for_no_model_needs_no_torch():
    modules = [name for name in import_graph.modules() if import_graph.room(name).split(".")[0] in ("stream", "render")]
    modules += ["pipeline", *(f"pipeline.{name}" for name in import_graph.BASE)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_import_upwards_is_told():
    assert import_graph.upwards({"stream.engine.loop": {"stream.streams"}, "stream.streams": set()}) == [
        "stream.engine.loop imports stream.streams"
    ]


def test_no_room_holds_more_files_than_a_listing_explains():
    count: defaultdict[str, int] = defaultdict(int)
    for file in _sources():
        count[str(file.parent.relative_to(ROOT))] += file.name != "__init__.py"
    assert {room: files for room, files in count.items() if files > MOST_FILES} == {}


def test_no_file_is_longer_than_one_reads_at_once():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in _sources()}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_class_name_is_there_twice():
    places: defaultdict[str, list[str]] = defaultdict(list)
    for file in _sources():
        if file.suffix == ".py":
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    places[node.name.strip("_").lower()].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
