"""The code that a command ends with, and its end."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import NoReturn

EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130
ENGINE_THREAD = "engine"


def leave(code: int) -> NoReturn:
    """End the process, after an orderly end. While the engine still loads, at once: taking Python apart beneath it
    makes torch's threads abort."""
    if not any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
