"""What the tests of the LMCache packages share: a real server, handlers, and an allocator over each."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Without LMCache there is nothing to test here; python/tests/lmcache.sh makes an environment that has it.
LMCACHE = importlib.util.find_spec("lmcache") is not None
collect_ignore_glob = [] if LMCACHE else ["test_*.py"]
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")


def pytest_configure(config: pytest.Config) -> None:
    # pytest puts its own filters of warnings above those of the packages under test.
    config.addinivalue_line("filterwarnings", "ignore:The given buffer is not writable:UserWarning")


def pytest_report_header() -> str | None:
    return None if LMCACHE else "lmcache is not installed: tests/lmcache is left out"


class Server:
    """A `maru-server` of its own, with its socket and its pool in a temporary folder."""

    def __init__(self, *options: str, pool_size: str = "64MiB") -> None:
        program = shutil.which("maru-server")
        assert program is not None, "maru-server is not on PATH; the wheel brings it along"
        self._folder = tempfile.TemporaryDirectory(prefix="maru-test-", dir="/dev/shm")
        folder = Path(self._folder.name)
        socket = folder / "maru.sock"
        self.url = f"unix://{socket}"
        self._log = open(folder / "log", "w+")
        command = [program, "--socket", socket, "--pool-dir", folder / "pool", "--pool-size", pool_size, *options]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        _wait_until(lambda: socket.exists() or self._process.poll() is not None, "the server listens")
        assert self._process.poll() is None, (folder / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=10)
        self._log.close()
        self._folder.cleanup()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return _wait_until


def _wait_until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Waits for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come about that {what}"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., Any]]:
    """Makes connected handlers, with chunks of 4096 bytes unless told otherwise, and closes them after the test."""
    from maru import MaruConfig, MaruHandler

    handlers = []

    def connect(**config: Any) -> MaruHandler:
        config = {"server_url": server.url, "chunk_size_bytes": 4096, "pool_size": 2 << 20, **config}
        handler = MaruHandler(MaruConfig(**config))
        assert handler.connect()
        handlers.append(handler)
        return handler

    yield connect
    for handler in handlers:
        handler.close()


@pytest.fixture
def figures(connect: Callable[..., Any]) -> Callable[[], dict[str, int]]:
    """What the server counts."""
    watcher = connect()
    return lambda: watcher.get_stats()["stats_manager"]
