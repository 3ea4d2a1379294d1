"""Leaves these tests out where there is no LMCache; `tests/lmcache/run` makes an environment that has it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from support import Server

if TYPE_CHECKING:
    from lmcache_support import Instance, StartInstance

try:
    importlib.metadata.version("lmcache")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")


def pytest_configure(config: pytest.Config) -> None:
    # pytest puts its own filters of warnings above those of the packages under test.
    config.addinivalue_line("filterwarnings", "ignore:The given buffer is not writable:UserWarning")


@pytest.fixture
def start_instance(server: Server) -> Iterator[StartInstance]:
    """Starts storage managers, and closes them after the test."""
    from lmcache.v1.pin_monitor import PinMonitor

    from lmcache_support import Instance

    instances: list[Instance] = []

    def start(**metadata: object) -> Instance:
        instances.append(Instance(server.url, **metadata))
        return instances[-1]

    yield start
    for instance in instances:
        instance.manager.close()
    PinMonitor.DestroyInstance()
