"""Disaggregated prefill: one process computes the KV cache of prompts and ends, another one decodes from it.

The decoder looks a prompt up and pins what is there in one step, so that nothing of it can be evicted until it is read;
then it retrieves the chunks and gives the pins back. Chunks outlive the process that stored them.

    pip install maru-kv lmcache
    python examples/lmcache_disagg_prefill.py
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

PROMPTS = [prompt(tokens, seed=tokens) for tokens in (256, 700, 1000)]


def main() -> None:
    with running_server() as url:
        with start_engine("prefiller", url) as prefiller:
            expect(prefiller, "prefilled 1956 tokens of 3 prompts")
        with start_engine("decoder", url) as decoder:
            for tokens in PROMPTS:
                expect(decoder, f"decoding from {len(tokens)} of {len(tokens)} tokens, bytes equal")
        if prefiller.returncode or decoder.returncode:
            sys.exit("an engine failed")


def prefill(url: str) -> None:
    with engine("prefiller", url) as lmcache:
        for tokens in PROMPTS:
            lmcache.store(tokens, kvcaches=kv_cache_of(tokens))
            wait_until_stored(lmcache, tokens)
        print(f"prefilled {sum(map(len, PROMPTS))} tokens of {len(PROMPTS)} prompts", flush=True)


def decode(url: str) -> None:
    with engine("decoder", url) as lmcache:
        for number, tokens in enumerate(PROMPTS):
            request = f"request-{number}"
            lmcache.lookup(tokens, lookup_id=request, pin=True)
            kv_cache = empty_kv_cache(tokens)
            found = int(lmcache.retrieve(tokens, kvcaches=kv_cache).sum())
            lmcache.lookup_unpin(request)
            verdict = "bytes equal" if torch.equal(kv_cache, kv_cache_of(tokens)) else "BYTES DIFFER"
            print(f"decoding from {found} of {len(tokens)} tokens, {verdict}", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prefiller", url]:
            prefill(url)
        case ["decoder", url]:
            decode(url)
        case _:
            main()
