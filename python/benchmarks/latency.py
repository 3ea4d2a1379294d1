"""How long the operations of the Python handler take, beside those of the Rust client, in one run.

    python/benchmarks/latency.py [--rounds N] [--seconds S] [--json FILE]

It needs `maru-server` and `maru-bench` on the PATH, as the wheel brings them. One server serves both; Rust and Python
take turns, and a figure is the median over the rounds of each round's median, with the least and the greatest. Python's
times include the objects that it makes; to let go of them is not part of a call, and happens between two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from maru import MaruConfig, MaruHandler

# The server of the examples serves here as well.
sys.path.append(str(Path(__file__).parents[2] / "examples"))
from server import running_server

BATCH = 512
CHUNK = 1 << 20


@dataclass
class Row:
    """A figure of Python beside one of Rust, in µs."""

    path: str
    python: float
    python_min: float
    python_max: float
    rust: float | None
    ratio: float | None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.0, help="of each path in a round")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    config = MaruConfig(chunk_size_bytes=CHUNK, pool_size=600 * CHUNK)
    with running_server("1GiB") as config.server_url, MaruHandler(config) as maru:
        rows = measure(maru, config.server_url.removeprefix("unix://"), options.rounds, options.seconds)
    print(f"{'µs, medians':36}{'Python':>9}{'least':>9}{'most':>9}{'Rust':>9}{'ratio':>7}")
    for row in rows:
        rust = f"{row.rust:9.1f}{row.ratio:7.2f}" if row.rust and row.ratio else f"{'-':>9}{'-':>7}"
        print(f"{row.path:36}{row.python:9.1f}{row.python_min:9.1f}{row.python_max:9.1f}{rust}")
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))


def measure(maru: MaruHandler, server: str, rounds: int, seconds: float) -> list[Row]:
    keys = [f"vllm@meta-llama/Llama-3.1-8B-Instruct@1@0@{n:016x}" for n in range(BATCH)]
    assert all(maru.batch_store(keys, [b"chunk"] * BATCH))
    chunk = bytes(CHUNK)
    stored = iter(range(1 << 62))

    def store() -> str:
        key = f"stored-{next(stored)}"
        assert maru.store(key, data=chunk)
        return key

    paths: list[tuple[str, Callable[[], object], Callable[[object], object], list[str] | None]] = [
        ("exists", lambda: maru.exists(keys[0]), nothing, ["exists", "1"]),
        ("batch_exists of 512", lambda: maru.batch_exists(keys), nothing, ["exists", "512"]),
        ("batch_pin of 512", lambda: maru.batch_pin(keys), lambda _: maru.batch_unpin(keys), ["pin", "512"]),
        ("batch_retrieve of 512 (acquire)", lambda: maru.batch_retrieve(keys), nothing, ["acquire", "512"]),
        ("store of 1 MiB, copied", store, lambda key: maru.delete(key), None),
    ]
    python: dict[str, list[float]] = {path: [] for path, *_ in paths}
    rust: dict[str, list[float]] = {path: [] for path, *_ in paths}
    for _ in range(rounds):
        for path, call, undo, operation in paths:
            if operation is not None:
                rust[path].append(rust_median(server, operation, seconds))
            python[path].append(python_median(call, undo, seconds))
    result = []
    for path, *_ in paths:
        times, beside = python[path], rust[path]
        middle = statistics.median(times)
        least = statistics.median(beside) if beside else None
        result.append(Row(path, middle, min(times), max(times), least, middle / least if least else None))
    return result


def python_median(call: Callable[[], object], undo: Callable[[object], object], seconds: float) -> float:
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        answer = call()
        times.append(time.perf_counter() - began)
        undo(answer)
        del answer
    return statistics.median(times) * 1e6


def rust_median(server: str, operation: list[str], seconds: float) -> float:
    name, batch = operation
    with tempfile.NamedTemporaryFile("r") as answer:
        command = ["maru-bench", "latency", "--op", name, "--batch", batch, "--connect", server, "--json", answer.name]
        command += ["--keys", "2000", "--duration", f"{seconds}s"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return float(json.load(answer)["latency_us"]["p50"])


def nothing(_: object) -> None:
    """There is nothing to undo."""


if __name__ == "__main__":
    main()
