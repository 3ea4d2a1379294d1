"""Two processes: a producer stores chunks; a consumer pins the prefix of them that is there, and reads it in place.

pip install maru-kv
python examples/producer_consumer.py
"""

from __future__ import annotations

import subprocess
import sys

from maru import MaruConfig, MaruHandler
from server import running_server

CHUNK = 1 << 20
KEYS = [f"prompt-chunk-{n}" for n in range(8)]
STORED = 6


def connect(url: str, name: str) -> MaruHandler:
    return MaruHandler(MaruConfig(server_url=url, instance_id=name, chunk_size_bytes=CHUNK, pool_size=16 * CHUNK))


def produce(url: str) -> None:
    with connect(url, "producer") as maru:
        handles = [maru.alloc(CHUNK) for _ in range(STORED)]
        for n, handle in enumerate(handles):
            handle.buf[:] = bytes([n]) * CHUNK
        stored = maru.batch_store(KEYS[:STORED], handles)
        print(f"producer: stored {sum(stored)} chunks", flush=True)


def consume(url: str) -> None:
    with connect(url, "consumer") as maru:
        # Pins the chunks up to the first that is not there, so that none of them goes until it was read.
        hits = sum(maru.batch_pin(KEYS))
        infos = maru.batch_retrieve(KEYS[:hits])
        intact = all(info is not None and info.view == bytes([n]) * CHUNK for n, info in enumerate(infos))
        maru.batch_unpin(KEYS[:hits])
        print(f"consumer: {hits} of {len(KEYS)} chunks are there, every byte as written: {intact}", flush=True)


def main() -> None:
    with running_server() as url:
        for role in ("producer", "consumer"):
            subprocess.run([sys.executable, __file__, role, url], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["producer", url]:
            produce(url)
        case ["consumer", url]:
            consume(url)
        case _:
            main()
