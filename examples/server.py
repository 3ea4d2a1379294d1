"""A server of an example's own. Engines that share a host share one that runs all the time instead."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_server(pool_size: str = "256MiB") -> Iterator[str]:
    """A `maru-server` with a socket and a pool that go away with it; its URL."""
    program = shutil.which("maru-server")
    if program is None:
        sys.exit("maru-server is not on the PATH: pip install maru-kv")
    with tempfile.TemporaryDirectory(prefix="maru-", dir="/dev/shm") as folder:
        path = Path(folder, "maru.sock")
        options = ["--socket", path, "--pool", f"{folder}/pool", "--pool-size", pool_size, "--log", "error"]
        server = subprocess.Popen([program, *options])
        try:
            while not listens(path):
                if server.poll() is not None:
                    sys.exit("maru-server did not start")
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait()


def listens(path: Path) -> bool:
    """Whether a server takes connections: its socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
