"""One server and one browser for all tests of the pages, gone before others run: the browser driver holds a loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from safetensors.torch import save_file

from tests.chromium import CHROMIUM, launch_options, running_server, write_camera_file


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    (models / "checkpoints").mkdir()
    save_file({"cond_stage_model.w": torch.zeros(1)}, models / "checkpoints" / "my own.safetensors")
    films = tmp_path_factory.mktemp("films")
    with running_server("--recordings", str(films), "--models-dir", str(models)) as running:
        yield running


# A silent publisher is let go after 8 s instead of a minute, one that is not there after 12 s instead of half a minute.
HASTY = """
import aioice.ice
from stream.webrtc import tracks
tracks.SILENCE_S, aioice.ice.CONSENT_INTERVAL = 8.0, 2.0
"""


@pytest.fixture(scope="package")
def hasty_server():
    with running_server(first=HASTY) as running:
        yield running


@pytest.fixture(scope="package")
def camera_file(tmp_path_factory) -> Path:
    return write_camera_file(tmp_path_factory.mktemp("camera") / "carphone.y4m")


@pytest.fixture(scope="package")
def chromium(camera_file) -> Browser:
    if CHROMIUM is None:
        if os.environ.get("LCMIRROR_REQUIRE_BROWSER"):
            pytest.fail("LCMIRROR_REQUIRE_BROWSER is set and there is no Chromium: install the package chromium.")
        pytest.skip("no Chromium on this machine: install it to run the browser tests")
    options = launch_options(camera_file)
    options["args"].append("--js-flags=--expose-gc")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture
def new_tab(chromium) -> Callable[[], Page]:
    """Opens fresh tabs without memory. The test fails if one of them logs an error; `tab.errors` holds them."""
    tabs: list[Page] = []

    def open_tab() -> Page:
        tab = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.context.close()
    assert [tab.errors for tab in tabs] == [[] for _ in tabs]


@pytest.fixture
def page(new_tab) -> Page:
    return new_tab()
