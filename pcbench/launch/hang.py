"""Workers that hang: a deadlock of GPUs, or a driver that never answers, would keep a claim for ever.

A process that stands still as a whole touches its claims no more, and loses them by itself (store/claims.py). Where
only its working thread does, another one of it notices: if no denoising step begins for half an hour while it makes a
sample, the process ends, and with it its claims. Others make the sample, and Ray starts the worker anew. The time that
weights take to come does not count: a download has time limits of its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback

from .. import backbones
from ..sampling import generate
from ..store import claims

LIMIT = 1800.0  # seconds: more than a step, or decoding a video takes
CODE = 75  # exit code: a temporary failure
OTHERS = {"vbench"}  # claimed while another program works, and this one rightly waits


def end_if_this_does() -> None:
    """From now on, end this process if the current thread hangs."""
    threading.Thread(target=_watch, args=(threading.get_ident(),), name="hang", daemon=True).start()


def _watch(worker: int) -> None:
    seen, since = None, time.monotonic()
    while True:
        time.sleep(LIMIT / 30)
        held = claims.held() - OTHERS
        now = held, generate.progress()
        if not held or now != seen or backbones.weights_are_coming():
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > LIMIT:
            at = traceback.extract_stack(sys._current_frames()[worker])[-1]
            print(
                f"pcbench: ended: no step for {LIMIT:.0f} s, at {at.filename}:{at.lineno}", file=sys.stderr, flush=True
            )
            os._exit(CODE)
