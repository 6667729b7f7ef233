"""The stages are scripts that import each other by name from their own folder."""

import sys
from pathlib import Path

import pytest
import torch

from tests import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random SD1.5-shaped base."""
    return tiny.checkpoint(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def stage(monkeypatch):
    """Runs a stage as its command would: stage("distill", "--steps", 3)."""

    def run(name: str, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [f"training/{name}.py", *map(str, arguments)])
        threads = torch.get_num_threads()
        try:
            __import__(name).main()
        finally:
            torch.set_num_threads(threads)  # a stage sets them for its process, which the tests share

    return run


@pytest.fixture
def refusal(stage, capsys):
    """The one sentence with which a stage ends with code 2."""

    def run(name: str, *arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            stage(name, *arguments)
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2
        assert said.count("\n") == 0
        return said

    return run
