"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def wait_for(happened: Callable[[], object], patience_s: float = 60.0) -> None:
    """A watchdog, not a measurement."""
    until_s = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > until_s:
            pytest.fail("It did not happen.")
        time.sleep(0.01)
