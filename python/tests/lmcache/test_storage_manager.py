"""LMCache's storage manager over its unchanged MaruBackend: two of them share what one of them puts."""

from __future__ import annotations

import torch
from lmcache.v1.event_manager import EventStatus, EventType

from lmcache_support import BACKEND, CHUNK_TOKENS, HEAD_SIZE, HEADS, LAYERS, StartInstance, key, shape
from support import Server, pages_in_use, pins, wait_until


def test_what_one_puts_another_gets(start_instance: StartInstance) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1, 2, 3])
    assert reader.get(4) is None
    for number in (1, 2, 3):
        assert torch.equal(reader.get(number), torch.full(shape(), number, dtype=torch.float16))
    wait_until("no pin is left", lambda: pins(reader.handler) == 0)


def test_a_chunk_with_fewer_tokens_comes_back_with_as_many(start_instance: StartInstance) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1], tokens=5)
    assert torch.equal(reader.get(1), torch.full(shape(5), 1, dtype=torch.float16))


def test_many_are_got_at_once_and_what_is_missing_is_none(start_instance: StartInstance) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1, 3])
    objs = reader.manager.batched_get([key(number) for number in (1, 2, 3)], location=BACKEND)
    assert [None if obj is None else int(obj.tensor[0, 0, 0, 0]) for obj in objs] == [1, None, 3]


def test_a_lookup_pins_the_prefix_until_it_is_unpinned(start_instance: StartInstance) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1, 2, 4])
    keys = [key(number) for number in (1, 2, 3, 4)]
    hits, found = reader.manager.batched_contains(keys, pin=True)
    assert (hits, found) == (2, {BACKEND: keys[:2]})
    assert [writer.manager.remove(each) for each in keys] == [0, 0, 0, 1]
    reader.manager.batched_unpin(keys[:2])
    assert [writer.manager.remove(each) for each in keys] == [1, 1, 0, 0]


def test_a_prefetch_tells_the_scheduler_and_protects_what_it_found(start_instance: StartInstance) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1])
    writer.put([2], tokens=7)
    keys = [key(number) for number in (1, 2, 3)]
    reader.run(reader.manager.async_lookup_and_prefetch("request", keys, [0, 16, 23, 39], pin=True))
    wait_until("the scheduler is told", lambda: reader.scheduler.answers == {"request": 23})
    assert reader.manager.event_manager.get_event_status(EventType.LOADING, "request") == EventStatus.DONE
    (found,) = reader.manager.event_manager.pop_event(EventType.LOADING, "request").result()
    reader.manager.batched_unpin(keys[:2])
    assert [each for each, _ in found] == keys[:2]
    for number, (_, obj) in enumerate(found, start=1):
        assert writer.manager.remove(key(number)) == 0, "the object protects it, without a pin by name"
        assert bool((obj.tensor == number).all())
        obj.unpin()
        obj.ref_count_down()
    del found, obj
    wait_until("no pin is left", lambda: pins(reader.handler) == 0)
    assert [writer.manager.remove(key(number)) for number in (1, 2)] == [1, 1]


def test_what_is_put_twice_takes_one_page(start_instance: StartInstance) -> None:
    writer = start_instance()
    writer.put([1])
    used = pages_in_use(writer.handler)
    writer.manager.batched_put([key(1)], [writer.allocate(fill=9)])
    wait_until("the second page is back", lambda: pages_in_use(writer.handler) == used)
    assert int(writer.get(1)[0, 0, 0, 0]) == 1


def test_pages_that_are_allocated_and_not_put_come_back(start_instance: StartInstance) -> None:
    # Of a model whose workers all have the same cache only the first stores.
    second = start_instance(use_mla=True, world_size=2, worker_id=1)
    used = pages_in_use(second.handler)
    for number in range(20):
        obj = second.manager.allocate([torch.Size([2, LAYERS, CHUNK_TOKENS, HEADS * HEAD_SIZE])], [torch.float16])
        second.manager.batched_put([key(number)], [obj])
        del obj
    assert pages_in_use(second.handler) == used
    assert second.manager.contains(key(0)) is None


def test_removed_chunks_make_room(start_instance: StartInstance) -> None:
    writer = start_instance()
    pages = writer.handler.get_stats()["store_regions"]["total_page_count"]
    for first in range(0, 3 * pages, 64):
        numbers = range(first, first + 64)
        writer.put(numbers)
        assert sum(writer.manager.remove(key(number)) for number in numbers) == 64
    assert len(writer.handler.get_owned_region_ids()) == 1


def test_without_the_server_nothing_is_found_and_nothing_is_lost(start_instance: StartInstance, server: Server) -> None:
    writer, reader = start_instance(), start_instance()
    writer.put([1])
    held = reader.manager.get(key(1))
    server.kill()
    assert reader.manager.get(key(1)) is None
    assert reader.manager.contains(key(1)) is None
    assert bool((held.tensor == 1).all())
    server.start()
    wait_until("the instances go on by themselves", lambda: reader.manager.contains(key(1)) == BACKEND)
    assert int(reader.get(1)[0, 0, 0, 0]) == 1
