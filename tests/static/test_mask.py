"""A part of the picture is repainted, the rest stays: drawn on the page with a mouse, in real Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from .test_studio import PATIENCE_MS, start, until

pytestmark = pytest.mark.calm

# Mean difference of the shown picture and the camera's, in the left and the right third.
HALVES = """() => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [90, 90];
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const pixels = (video) => {
        const [width, height] = [video.videoWidth, video.videoHeight], side = Math.min(width, height);
        context.drawImage(video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, 90, 90);
        return context.getImageData(0, 0, 90, 90).data;
    };
    const [before, after] = ['input', 'output'].map((id) => pixels(document.getElementById(id)));
    const sums = [0, 0];
    for (let i = 0; i < before.length; i += 4) {
        const column = (i / 4) % 90;
        if (column < 30 || column >= 60) sums[column < 30 ? 0 : 1] += Math.abs(before[i] - after[i]);
    }
    return sums.map((sum) => sum / 2700);
}"""


def test_a_part_is_drawn_and_alone_repainted(server, page):
    start(page, f"{server.url}/?stream=parts")
    page.locator("#prompt").fill("ink")
    page.keyboard.press("Escape")
    page.locator("#mask").click()
    expect(page.locator("#mask-bar")).to_be_visible()
    box = page.locator("#mask-canvas").bounding_box()
    for height in (0.1, 0.3, 0.5, 0.7, 0.9):
        # The page shows the camera mirrored: what is drawn on the left of it is the picture's right.
        page.mouse.move(box["x"] + box["width"] * 0.05, box["y"] + box["height"] * height)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * height, steps=4)
        page.mouse.up()
    expect(page.locator("#mask")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)
    until(page, f"() => {{ const [left, right] = ({HALVES})(); return right > 20 && left < right / 2; }}")
    page.locator("#mask-clear").click()
    expect(page.locator("#mask")).to_have_attribute("aria-pressed", "false", timeout=PATIENCE_MS)
    until(page, f"() => {{ const [left, right] = ({HALVES})(); return left > right / 2; }}")
    page.locator("#mask-close").click()
    expect(page.locator("#mask-bar")).to_be_hidden()
    expect(page.locator("#mask")).to_be_focused()
