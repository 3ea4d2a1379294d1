"""Puts what the native client has to say into the log ``maru``."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from . import _native

_started = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Starts the thread that logs, once in a process."""
    global _thread
    with _started:
        if _thread is not None:
            return
        _native.start_log(logging.getLogger("maru").getEffectiveLevel())
        _thread = threading.Thread(target=_log_events, name="maru-log", daemon=True)
        _thread.start()
        # The interpreter must not end while the thread is in the native part.
        atexit.register(_stop, _thread)


def _log_events() -> None:
    logger = logging.getLogger("maru")
    while (event := _native.next_log_event()) is not None:
        level, text = event
        logger.log(level, "%s", text)


def _stop(thread: threading.Thread) -> None:
    _native.stop_log()
    thread.join()


def _after_fork_in_child() -> None:
    # The thread is the parent's; there is none here until a handler connects.
    global _thread, _started
    if _thread is not None:
        atexit.unregister(_stop)
    _thread = None
    _started = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
