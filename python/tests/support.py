"""A server process, and what tests ask of it again and again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from maru import MaruHandler

#: Bytes of a chunk.
CHUNK = 64 * 1024


class Server:
    """A server process."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        program = shutil.which("maru-server")
        assert program, "maru-server is not on the PATH; install the wheel that python/build-wheel makes"
        self.socket = folder / "maru.sock"
        self._command = [program, "--socket", str(self.socket), "--pool", str(folder / "pool")]
        self._command += ["--pool-size", "64MiB", "--grace", "2s", "--log", "warn", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        # The lock of a server that was killed may be held for some milliseconds more.
        deadline = time.monotonic() + 10
        while True:
            self._process = subprocess.Popen(self._command)
            while self._process.poll() is None:
                if listens(self.socket):
                    return
                time.sleep(0.005)
            assert time.monotonic() < deadline, "the server does not start"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def listens(path: Path) -> bool:
    """Whether a server takes connections: its socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Waits for something that happens a moment later, such as the release of a pin."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 30 s"
        time.sleep(0.002)


def pins(maru: MaruHandler) -> int:
    """Pins of all instances."""
    return maru.get_stats()["stats_manager"]["pins"]


def pages_in_use(maru: MaruHandler) -> int:
    """Pages of the handler that are not free."""
    return maru.get_stats()["store_regions"]["total_allocated_pages"]
