"""Leaves these tests out where there is no LMCache; `tests/lmcache/run` makes an environment that has it."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

try:
    importlib.metadata.version("lmcache")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")


def pytest_configure(config: pytest.Config) -> None:
    # pytest puts its own filters of warnings above those of the packages under test.
    config.addinivalue_line("filterwarnings", "ignore:The given buffer is not writable:UserWarning")
