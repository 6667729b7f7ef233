"""The list of what else could paint, in real Chromium: what lies on disk, the presets, and a command for each."""

from __future__ import annotations

import shlex

import pytest
from playwright.sync_api import expect

from .test_studio import PATIENCE_MS, ask

pytestmark = pytest.mark.calm


def test_each_model_comes_with_the_command_that_starts_it(server, page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    expect(page.locator("#model")).to_contain_text("mini", timeout=PATIENCE_MS)
    page.keyboard.press("o")
    entries = page.locator("#models li")
    rows = ask(f"{server.url}/api/presets")
    expect(entries).to_have_count(len(rows))
    assert {row["name"] for row in rows} >= {"my own", "mini", "sdxl"}
    expect(entries.filter(has_text="running").locator("b")).to_have_text("mini")
    own = entries.filter(has_text="my own.safetensors")
    own.get_by_role("button").click()
    expect(own.get_by_role("button")).to_have_text("Copied")
    copied = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert copied[:3] == ["python", "main.py", "--models-dir"]
    assert copied[-2:] == ["--model", "my own"]
    page.keyboard.press("Escape")
    expect(page.locator("#models")).to_be_hidden()
    page.locator("#model").click()
    expect(page.locator("#models")).to_be_visible()


def test_a_list_that_does_not_come_holds_nothing_up(server, page):
    page.route("**/api/presets", lambda route: None)
    page.goto(f"{server.url}/?stream=unlisted")
    page.locator("#steps").fill("3", timeout=PATIENCE_MS)
    expect(page.locator("#reset")).to_be_enabled(timeout=PATIENCE_MS)
    page.locator("#model").click()
    expect(page.locator("#models")).to_be_hidden()
