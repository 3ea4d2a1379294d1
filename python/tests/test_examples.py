"""The examples that need nothing but the wheel do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("example", "says"),
    [
        (
            "single_instance.py",
            [
                "wrote 1048576 bytes into page 0 of region 1",
                "stored: True",
                "read 1048576 bytes in place, all as written: True",
                "deleted while it is being read: False",
                "deleted afterwards: True",
            ],
        ),
        (
            "producer_consumer.py",
            ["producer: stored 6 chunks", "consumer: 6 of 8 chunks are there, every byte as written: True"],
        ),
    ],
)
def test_an_example(example: str, says: list[str]) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / example], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == says


def test_a_client_of_nothing_but_the_standard_library(server: Server) -> None:
    """What docs/protocol.md says is enough to write one."""
    command = [sys.executable, "-I", EXAMPLES / "wire.py", server.socket]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "stored: True",
        "read: True b'chunk'",
        "deleted while it is being read: False with 1 pin",
        "deleted afterwards: True",
    ]
