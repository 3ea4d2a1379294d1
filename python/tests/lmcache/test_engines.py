"""Whole LMCache engines in processes of their own: the examples, and engines that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from maru import MaruHandler
from support import Server, pins, wait_until

EXAMPLES = Path(__file__).parents[3] / "examples"
# LMCache names chunks by Python's hashes, which are the same in processes with the same seed.
ENVIRONMENT = {
    **os.environ,
    "PYTHONHASHSEED": "0",
    "LMCACHE_LOG_LEVEL": "WARNING",
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path]),
}

# Stores another ten prompts for each line that it is sent, and says how many there are.
WRITER = """
import sys
from lmcache_engine import engine, kv_cache_of, prompt, wait_until_stored

stored = 0
with engine("writer", sys.argv[1]) as lmcache:
    for _ in sys.stdin:
        for seed in range(stored, stored + 10):
            tokens = prompt(700, seed)
            lmcache.store(tokens, kvcaches=kv_cache_of(tokens))
        wait_until_stored(lmcache, tokens)
        stored += 10
        print(stored, flush=True)
"""

# For each number that it is sent retrieves so many prompts, compares all bytes, and says how many tokens there were.
READER = """
import sys, torch
from lmcache_engine import empty_kv_cache, engine, kv_cache_of, prompt

with engine("reader", sys.argv[1]) as lmcache:
    for line in sys.stdin:
        found = 0
        for seed in range(int(line)):
            tokens = prompt(700, seed)
            kv_cache = empty_kv_cache(tokens)
            mask = lmcache.retrieve(tokens, kvcaches=kv_cache)
            assert torch.equal(kv_cache[:, :, mask], kv_cache_of(tokens)[:, :, mask]), seed
            assert not kv_cache[:, :, ~mask].any(), seed
            found += int(mask.sum())
        print(found, flush=True)
"""

# Each process imports torch, which takes seconds where others are at work.
pytestmark = pytest.mark.timeout(300)

StartEngine = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    """Engines want 64 MiB each, to begin with."""
    return start_server("--pool-size", "256MiB", "--grace", "1s")


@pytest.fixture
def start_engine(server: Server) -> Iterator[StartEngine]:
    engines: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, server.url]
        pipe = subprocess.PIPE
        engines.append(subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True))
        return engines[-1]

    yield start
    for engine in engines:
        engine.kill()
        engine.communicate()


def ask(engine: subprocess.Popen[str], line: object = "") -> int:
    """What an engine answers."""
    print(line, file=engine.stdin, flush=True)
    answer = engine.stdout.readline()
    assert answer, "the engine ended"
    return int(answer)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("lmcache_p2p.py", ["stored 700 tokens", "retrieved 700 of 700 tokens, bytes equal"]),
        (
            "lmcache_disagg_prefill.py",
            [
                "prefilled 1956 tokens of 3 prompts",
                "decoding from 256 of 256 tokens, bytes equal",
                "decoding from 700 of 700 tokens, bytes equal",
                "decoding from 1000 of 1000 tokens, bytes equal",
            ],
        ),
    ],
)
def test_examples_say_what_they_promise(example: str, expected: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / example], capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines() == expected, done.stderr
    assert done.returncode == 0
    assert "not writable" not in done.stderr, "torch warns of read-only memory"


def test_an_engine_that_is_killed_leaves_right_bytes_and_no_pins(
    server: Server, start_engine: StartEngine, connect: Callable[..., MaruHandler]
) -> None:
    writer, reader = start_engine(WRITER), start_engine(READER)
    assert ask(writer) == 10
    assert ask(reader, 10) == 10 * 700
    # Thirty more, of which some are there and some are on their way when their writer ends.
    writer.stdin.write("\n" * 3)
    writer.stdin.flush()
    print(40, file=reader.stdin, flush=True)
    time.sleep(0.2)
    writer.kill()
    found = int(reader.stdout.readline())
    assert 40 * 700 >= found >= 10 * 700
    assert ask(reader, 40) == ask(reader, 40) >= found
    reader.kill()
    watcher = connect()
    wait_until("the pins of both have ended", lambda: pins(watcher) == 0)
