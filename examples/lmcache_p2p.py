"""Two LMCache engines in two processes share a prompt: one computes and stores its KV cache, the other retrieves it.

pip install maru-kv lmcache
python examples/lmcache_p2p.py
"""

from __future__ import annotations

import sys

import torch

from lmcache_engine import (
    empty_kv_cache,
    engine,
    expect,
    kv_cache_of,
    prompt,
    start_engine,
    wait_until_stored,
)
from server import running_server

TOKENS = prompt(700)  # two full chunks and a shorter one


def main() -> None:
    with running_server() as url, start_engine("writer", url) as writer:
        expect(writer, "stored 700 tokens")
        with start_engine("reader", url) as reader:
            expect(reader, "retrieved 700 of 700 tokens, bytes equal")
        writer.communicate("done\n")
        if writer.returncode or reader.returncode:
            sys.exit("an engine failed")


def write(url: str) -> None:
    with engine("writer", url) as lmcache:
        lmcache.store(TOKENS, kvcaches=kv_cache_of(TOKENS))
        wait_until_stored(lmcache, TOKENS)
        print(f"stored {len(TOKENS)} tokens", flush=True)
        sys.stdin.readline()


def read(url: str) -> None:
    with engine("reader", url) as lmcache:
        kv_cache = empty_kv_cache(TOKENS)
        found = int(lmcache.retrieve(TOKENS, kvcaches=kv_cache).sum())
        verdict = "bytes equal" if torch.equal(kv_cache, kv_cache_of(TOKENS)) else "BYTES DIFFER"
        print(f"retrieved {found} of {len(TOKENS)} tokens, {verdict}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["writer", url]:
            write(url)
        case ["reader", url]:
            read(url)
        case _:
            main()
