"""A picture as video encoders take it: I420, YUV 4:2:0 in BT.601 of limited range.

That is what browsers assume of a stream that names no colours, and what swscale makes by default.
"""

from __future__ import annotations

import cv2
import numpy as np

# BT.601, limited range (ITU-R BT.601-7, 2.5.3): rows are U and V; columns red, green, blue and what is added.
_CHROMA = np.array([[-0.148223, -0.290993, 0.439216, 128], [0.439216, -0.367788, -0.071427, 128]], np.float32)


def to_i420(rgb: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] with even sides -> uint8 [h * 3 / 2, w]: the luma, then U and V of each 2x2 pixels' mean.

    As swscale has it to 2 of 255 where colours do not jump from one pixel to the next, and in a fraction of the time
    that one takes which is made anew for every frame.
    """
    height, width = rgb.shape[:2]
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)  # its chroma is that of every fourth pixel: it is replaced
    means = cv2.resize(rgb, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    for plane, channel in zip(chroma, cv2.split(cv2.transform(means, _CHROMA)), strict=True):
        plane[:] = channel
    return planes
