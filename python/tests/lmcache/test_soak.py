"""Threads that put, get and remove through LMCache leave nothing behind: no pin, no page, no memory.

`MARU_SOAK_SECONDS=600 pytest tests/lmcache/test_soak.py` is a long run.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmcache_support import CHUNK_TOKENS, Instance, StartInstance, key, shape
from support import pins, wait_until

SECONDS = float(os.environ.get("MARU_SOAK_SECONDS", "6"))
THREADS = 8
KEYS = 200


def anonymous_memory() -> int:
    """Bytes of this process that it shares with nobody."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def work(instances: list[Instance], seed: int, end: float) -> None:
    choose = random.Random(seed)
    while time.monotonic() < end:
        instance = choose.choice(instances)
        numbers = choose.sample(range(KEYS), choose.randint(1, 8))
        match choose.choice(["put", "put", "get", "get", "get", "look up", "remove"]):
            case "put":
                # As many tokens as the number says, so that everybody knows what is right.
                objs = [instance.allocate(number, tokens=1 + number % CHUNK_TOKENS) for number in numbers]
                instance.manager.batched_put([key(number) for number in numbers], objs)
            case "get":
                for number, obj in zip(numbers, instance.manager.batched_get([key(n) for n in numbers]), strict=True):
                    if obj is not None:
                        expected = torch.full(shape(1 + number % CHUNK_TOKENS), number, dtype=torch.float16)
                        assert torch.equal(obj.tensor, expected)
                        obj.ref_count_down()
            case "look up":
                keys = [key(number) for number in numbers]
                hits, _ = instance.manager.batched_contains(keys, pin=True)
                instance.manager.batched_unpin(keys[:hits])
            case "remove":
                instance.manager.batched_remove([key(number) for number in numbers])


def in_threads(task: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            task(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.timeout(60 + 2 * SECONDS)
def test_nothing_is_left_behind(start_instance: StartInstance) -> None:
    instances = [start_instance(), start_instance()]
    # What is made once is there after a while.
    in_threads(lambda number: work(instances, number, time.monotonic() + SECONDS / 3))
    before = anonymous_memory()
    in_threads(lambda number: work(instances, 100 + number, time.monotonic() + SECONDS * 2 / 3))
    assert anonymous_memory() - before < 16 << 20

    for instance in instances:
        wait_until("all is stored", lambda instance=instance: not instance.backend.put_tasks)
        instance.manager.batched_remove([key(number) for number in range(KEYS)])
    wait_until("no pin is left", lambda: pins(instances[0].handler) == 0)
    for instance in instances:
        instance.manager.batched_remove([key(number) for number in range(KEYS)])
        regions = instance.handler.get_owned_region_ids()
        pages = instance.handler.get_stats()["store_regions"]["total_page_count"]
        all_pages = instance.manager.batched_allocate([shape()], [torch.float16], pages)
        assert len(all_pages) == pages
        assert instance.handler.get_owned_region_ids() == regions, "no page is lost"
        del all_pages
