"""A real server for each test that wants one, with a socket and a pool of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maru import MaruConfig, MaruHandler
from support import CHUNK, Server


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers with options."""
    # Paths of sockets are short, and pools lie in memory.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers: list[Server] = []

        def start(*options: str) -> Server:
            own = Path(folder) / str(len(servers))
            own.mkdir()
            servers.append(Server(own, options))
            return servers[-1]

        yield start
        for server in servers:
            server.resume()
            server.kill()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., MaruHandler]]:
    """Connects handlers to the server."""
    handlers: list[MaruHandler] = []

    def connect(**options: object) -> MaruHandler:
        settings = {"server_url": server.url, "chunk_size_bytes": CHUNK, "pool_size": 16 * CHUNK, **options}
        handler = MaruHandler(MaruConfig(**settings))
        assert handler.connect()
        handlers.append(handler)
        return handler

    yield connect
    for handler in handlers:
        handler.close()


@pytest.fixture
def maru(connect: Callable[..., MaruHandler]) -> MaruHandler:
    return connect()
