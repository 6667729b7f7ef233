"""One server and one browser for all tests of the pages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.chromium import CHROMIUM, launch_options, running_server, write_camera_file


@pytest.fixture(scope="session")
def server():
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def camera_file(tmp_path_factory) -> Path:
    return write_camera_file(tmp_path_factory.mktemp("camera") / "carphone.y4m")


@pytest.fixture(scope="session")
def chromium(camera_file) -> Browser:
    if CHROMIUM is None:
        if os.environ.get("LCMIRROR_REQUIRE_BROWSER"):
            pytest.fail("LCMIRROR_REQUIRE_BROWSER is set and there is no Chromium: install the package chromium.")
        pytest.skip("no Chromium on this machine: install it to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options(camera_file))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium) -> Page:
    """A fresh tab without memory. The test fails if the page logs an error."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.errors = errors
    yield page
    context.close()
    assert errors == []
