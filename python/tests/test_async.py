"""What the awaited operations promise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from maru import MaruHandler
from support import CHUNK, Server, pages_in_use, pins, wait_until

Connect = Callable[..., MaruHandler]


def test_every_operation_can_be_awaited(maru: MaruHandler) -> None:
    async def main() -> None:
        handle = maru.alloc(5)
        handle.buf[:] = b"chunk"
        assert await maru.store_async("key", handle)
        assert await maru.store_async("other", data=b"data")
        assert await maru.batch_store_async(["key", "third"], [b"x", b"third"]) == [True, True]
        assert await maru.exists_async("key")
        assert await maru.batch_exists_async(["key", "nothing"]) == [True, False]
        assert bytes((await maru.retrieve_async("key")).view) == b"chunk"
        found = await maru.batch_retrieve_async(["third", "nothing", "other"])
        assert [info and bytes(info.view) for info in found] == [b"third", None, b"data"]
        del found
        assert await maru.pin_async("key")
        assert await maru.batch_pin_async(["other", "nothing", "key"]) == [True, False, False]
        assert not await maru.delete_async("key")
        assert await maru.batch_unpin_async(["key", "other", "third"]) == [True, True, False]
        assert not await maru.unpin_async("key")
        assert await maru.batch_delete_async(["third", "nothing"]) in ([True, False], [False, False])

    asyncio.run(main())


def test_thousands_are_under_way_at_once(maru: MaruHandler) -> None:
    maru.store("key", data=b"chunk")

    async def main() -> list[bool]:
        return await asyncio.gather(*(maru.exists_async("key" if n % 2 else "no") for n in range(3000)))

    assert asyncio.run(main()) == [n % 2 == 1 for n in range(3000)]


def test_what_is_cancelled_loses_neither_page_nor_pin(server: Server, connect: Connect) -> None:
    maru = connect(timeout_ms=10_000)
    maru.store("key", data=b"chunk")
    used = pages_in_use(maru)

    async def main() -> None:
        server.pause()
        tasks = [
            asyncio.create_task(maru.retrieve_async("key")),
            asyncio.create_task(maru.batch_pin_async(["key"])),
            asyncio.create_task(maru.store_async("new", data=b"x")),
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError)
        server.resume()

    asyncio.run(main())
    wait_until("no pin is left", lambda: pins(maru) == 0)
    # The store may have been served before it was cancelled, or still be on its way.
    wait_until("no page is lost", lambda: pages_in_use(maru) == used + maru.exists("new"))


def test_a_dead_server_is_a_full_answer_of_nothing(server: Server, connect: Connect) -> None:
    maru = connect(timeout_ms=300)
    maru.store("key", data=b"chunk")
    server.kill()

    async def main() -> None:
        assert await maru.batch_exists_async(["key", "other"]) == [False, False]
        assert await maru.batch_retrieve_async(["key", "other"]) == [None, None]
        assert await maru.batch_pin_async(["key", "other"]) == [False, False]
        assert await maru.batch_store_async(["a", "b"], [b"a", bytes(CHUNK + 1)]) == [False, False]

    asyncio.run(main())


def test_wrong_keys_are_told_when_the_operation_is_awaited(maru: MaruHandler) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await maru.exists_async(7)
        with pytest.raises(ValueError):
            await maru.store_async("key")

    asyncio.run(main())
