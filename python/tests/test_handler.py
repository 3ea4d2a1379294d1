"""What one handler promises."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import threading
from collections.abc import Callable

import pytest

from maru import AllocHandle, MaruConfig, MaruHandler, MemoryInfo
from support import CHUNK, Server, pages_in_use, pins, wait_until

Connect = Callable[..., MaruHandler]


def test_a_chunk_is_written_in_place_and_read_in_place(maru: MaruHandler) -> None:
    handle = maru.alloc(5)
    assert isinstance(handle, AllocHandle)
    assert (len(handle.buf), handle.size) == (5, 5)
    handle.buf[:] = b"chunk"
    assert maru.store("key", handle) is True
    info = maru.retrieve("key")
    assert isinstance(info, MemoryInfo)
    assert (info.region_id, info.page_index) == (handle.region_id, handle.page_index)
    assert bytes(info.view) == b"chunk"
    assert maru.exists("key") and not maru.exists("other")
    assert maru.retrieve("other") is None


def test_views_are_plain_memoryviews_of_bytes(maru: MaruHandler) -> None:
    handle = maru.alloc(100)
    maru.store("key", data=b"x" * 100)
    for view, readonly in [(handle.buf, False), (maru.retrieve("key").view, True)]:
        assert type(view) is memoryview
        assert (view.ndim, view.format, view.itemsize, view.c_contiguous) == (1, "B", 1, True)
        assert view.readonly is readonly


def test_text_and_the_same_bytes_are_one_key_and_numbers_are_none(maru: MaruHandler) -> None:
    maru.store("schlüssel", data=b"1")
    assert maru.exists("schlüssel".encode())
    for key in (7, None, 1.5, ["a"]):
        with pytest.raises(TypeError, match="str or bytes"):
            maru.exists(key)
    with pytest.raises(TypeError, match="list of keys"):
        maru.batch_exists("abc")
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        maru.exists("")


def test_the_first_writer_of_a_key_wins_and_the_second_page_goes_back(maru: MaruHandler) -> None:
    assert maru.store("key", data=b"first")
    used = pages_in_use(maru)
    assert maru.store("key", data=b"second") is True
    assert pages_in_use(maru) == used
    assert bytes(maru.retrieve("key").view) == b"first"


def test_a_chunk_is_pinned_as_long_as_anything_shows_it(maru: MaruHandler) -> None:
    maru.store("key", data=b"chunk")
    info = maru.retrieve("key")
    part = info.view[1:3]
    assert not maru.delete("key")
    del info
    gc.collect()
    assert not maru.delete("key"), "a slice of the view shows it still"
    assert pins(maru) == 1
    del part
    wait_until("the pin is released", lambda: maru.delete("key"))
    assert not maru.delete("key"), "it is gone"


def test_what_was_read_can_be_checked(maru: MaruHandler) -> None:
    maru.store("key", data=b"chunk")
    info = maru.retrieve("key")
    assert bytes(info.view) == b"chunk"
    info.check()
    assert not info.revoked
    handle = maru.alloc(5)
    MemoryInfo(handle.buf[1:]).check()
    region = maru.get_buffer_view(info.region_id, 0, 2 * CHUNK)
    for unknown in (b"chunk", memoryview(b"chunk"), region):
        with pytest.raises(TypeError, match="can't be checked"):
            MemoryInfo(unknown).check()


def test_views_outlive_the_handler(connect: Connect) -> None:
    maru, other = connect(), connect()
    maru.store("key", data=b"chunk")
    info = maru.retrieve("key")
    handle = maru.alloc(10)
    maru.close()
    del maru
    gc.collect()
    handle.buf[:] = b"0123456789"
    assert bytes(handle.buf) == b"0123456789"
    assert bytes(info.view) == b"chunk"
    assert not other.delete("key"), "it is pinned"
    del info
    wait_until("the pin is released", lambda: other.delete("key"))


def test_a_page_that_was_not_stored_goes_back_with_its_last_view(maru: MaruHandler) -> None:
    handle = maru.alloc(CHUNK)
    again = maru.get_buffer_view(handle.region_id, handle.page_index * CHUNK, CHUNK)
    assert pages_in_use(maru) == 1
    del handle
    gc.collect()
    assert pages_in_use(maru) == 1, "another view shows it"
    again[0] = 7
    del again
    gc.collect()
    assert pages_in_use(maru) == 0


def test_free_gives_a_page_back_once(maru: MaruHandler) -> None:
    handle = maru.alloc(10)
    maru.free(handle)
    assert pages_in_use(maru) == 0
    with pytest.raises(ValueError, match="not held"):
        maru.free(handle)
    successor = maru.alloc(10)
    assert successor.page_index == handle.page_index
    with pytest.raises(ValueError, match="not held"):
        maru.free(handle)
    with pytest.raises(ValueError, match="stored or freed already"):
        maru.store("key", handle)
    assert maru.batch_store(["key"], [handle]) == [False]
    del handle
    gc.collect()
    assert pages_in_use(maru) == 1, "a handle that was freed does not free its page's next holder"
    with pytest.raises(KeyError):
        maru.free(AllocHandle(memoryview(b""), 4711, 0, 0))


def test_a_stored_page_can_not_be_freed_nor_stored_again(maru: MaruHandler) -> None:
    handle = maru.alloc(10)
    maru.store("key", handle)
    with pytest.raises(ValueError):
        maru.free(handle)
    with pytest.raises(ValueError, match="stored or freed already"):
        maru.store("other", handle)
    assert maru.batch_store(["other", "third"], [handle, b"3"]) == [False, True]
    assert not maru.exists("other")


def test_a_handle_that_names_its_page_alone_is_enough_to_store(maru: MaruHandler) -> None:
    """As LMCache's backend does it."""
    handle = maru.alloc(CHUNK)
    handle.buf[:3] = b"abc"
    named = AllocHandle(memoryview(b""), handle.region_id, handle.page_index, 3)
    assert maru.store("key", named)
    assert bytes(maru.retrieve("key").view) == b"abc"


def test_sizes(maru: MaruHandler) -> None:
    assert maru.get_chunk_size() == CHUNK
    assert len(maru.alloc(0).buf) == 0
    assert len(maru.alloc(CHUNK).buf) == CHUNK
    with pytest.raises(ValueError, match=f"{CHUNK + 1} bytes"):
        maru.alloc(CHUNK + 1)
    with pytest.raises(ValueError):
        maru.store("key", data=bytes(CHUNK + 1))


def test_an_exhausted_pool_is_a_value_error(connect: Connect) -> None:
    maru = connect(auto_expand=False)
    handles = [maru.alloc(1) for _ in range(16)]
    with pytest.raises(ValueError, match="no page is free"):
        maru.alloc(1)
    assert maru.store("key", data=b"x") is False
    assert maru.batch_store(["key"], [b"x"]) == [False]
    del handles
    gc.collect()
    assert maru.store("key", data=b"x")


def test_chunks_that_are_no_multiple_of_a_page_are_addressed_all_the_same(connect: Connect) -> None:
    maru = connect(chunk_size_bytes=1000, pool_size=100_000)
    handles = [maru.alloc(1000) for _ in range(5)]
    assert maru.get_chunk_size() == 1000
    for n, handle in enumerate(handles):
        handle.buf[:] = bytes([n]) * 1000
        view = maru.get_buffer_view(handle.region_id, handle.page_index * 1000 + 10, 990)
        assert bytes(view) == bytes([n]) * 990
        assert maru.get_buffer_view(handle.region_id, handle.page_index * 1000 + 10, 991) is None


def test_buffers_and_infos_are_copied(maru: MaruHandler) -> None:
    maru.store("key", data=bytearray(b"chunk"))
    assert maru.store("copy", info=maru.retrieve("key"))
    assert bytes(maru.retrieve("copy").view) == b"chunk"
    backwards = memoryview(b"abc")[::-1]
    with pytest.raises(BufferError):
        maru.store("other", data=backwards)
    for given in [{}, {"data": b"", "info": maru.retrieve("key")}]:
        with pytest.raises(ValueError, match="exactly one"):
            maru.store("other", **given)


def test_batches_take_handles_infos_and_buffers_together(maru: MaruHandler) -> None:
    handle = maru.alloc(2)
    handle.buf[:] = b"ha"
    maru.store("source", data=b"info")
    batch = [handle, maru.retrieve("source"), b"bytes", memoryview(b"view"), bytes(CHUNK + 1)]
    assert maru.batch_store(list("abcde"), batch) == [True, True, True, True, False]
    found = maru.batch_retrieve(list("abcde"))
    assert [info and bytes(info.view) for info in found] == [b"ha", b"info", b"bytes", b"view", None]
    with pytest.raises(ValueError, match="one chunk for each key"):
        maru.batch_store(["a", "b"], [b"a"])


def test_a_key_that_comes_twice_in_a_batch_is_stored_once_and_leaks_nothing(maru: MaruHandler) -> None:
    maru.store("there", data=b"old")
    used = pages_in_use(maru)
    assert maru.batch_store(["new", "new", "there"], [b"1", b"2", b"3"]) == [True] * 3
    assert bytes(maru.retrieve("new").view) == b"1"
    assert bytes(maru.retrieve("there").view) == b"old"
    assert pages_in_use(maru) == used + 1


def test_batches_answer_in_the_order_of_their_keys(maru: MaruHandler) -> None:
    maru.batch_store(["a", "c"], [b"a", b"c"])
    assert maru.batch_exists(["a", "b", "c"]) == [True, False, True]
    infos = maru.batch_retrieve(["c", "b", "a"])
    assert [info and bytes(info.view) for info in infos] == [b"c", None, b"a"]
    assert maru.batch_pin(["a", "b", "c"]) == [True, False, False], "it stops at the first miss"
    assert maru.batch_unpin(["a", "b", "c"]) == [True, False, False]
    for operation in (maru.batch_exists, maru.batch_retrieve, maru.batch_pin, maru.batch_unpin, maru.batch_delete):
        assert operation([]) == []
    assert maru.batch_store([], []) == []


def test_pins_by_name_are_counted_and_protect(maru: MaruHandler) -> None:
    maru.store("key", data=b"chunk")
    assert not maru.unpin("key"), "it is not pinned"
    assert maru.pin("key") and maru.pin("key")
    assert not maru.pin("other")
    assert not maru.delete("key")
    assert maru.unpin("key")
    assert not maru.delete("key")
    assert maru.unpin("key")
    assert not maru.unpin("key")
    assert maru.delete("key")


def test_a_callback_is_told_of_each_region_once_and_may_use_the_handler(connect: Connect) -> None:
    maru = connect()
    told: list[tuple[int, int]] = []

    def added(region_id: int, pages: int) -> None:
        assert len(maru.get_buffer_view(region_id, 0, CHUNK)) == CHUNK
        told.append((region_id, pages))

    maru.set_on_region_added(added)
    assert told == [(region, 16) for region in maru.get_owned_region_ids()]
    handles = [maru.alloc(1) for _ in range(17)]
    assert [region for region, _ in told] == maru.get_owned_region_ids()
    assert len(told) == 2
    maru.set_on_region_added(None)
    handles += [maru.alloc(1) for _ in range(16)]
    assert len(told) == 2


def test_the_error_of_a_callback_reaches_who_sets_it(maru: MaruHandler) -> None:
    def added(region_id: int, pages: int) -> None:
        raise LookupError("no such pool")

    with pytest.raises(LookupError):
        maru.set_on_region_added(added)


def test_regions_are_seen_by_id(connect: Connect) -> None:
    maru, other = connect(), connect(chunk_size_bytes=2 * CHUNK)
    (region,) = maru.get_owned_region_ids()
    assert maru.get_region_page_count(region) == 16
    assert maru.get_region_page_count(4711) is None
    assert other.get_region_page_count(region) is None, "its pages have another size"
    for bad in [(4711, 0, 1), (region, 16 * CHUNK, 1), (region, -1, 1), (region, 0, 1 << 62)]:
        assert maru.get_buffer_view(*bad) is None
    assert maru.owned_region_manager.get_first_region_id() == region
    assert len(maru._mapper.get_buffer_view(region, 0, 2 * CHUNK)) == 2 * CHUNK
    assert maru.pool_handle.region_id == region


def test_before_connect_nothing_works_and_nothing_breaks() -> None:
    maru = MaruHandler(MaruConfig(server_url="unix:///nowhere"))
    assert maru.get_buffer_view(1, 0, 1) is None
    assert maru.get_region_page_count(1) is None
    assert maru.get_owned_region_ids() == []
    assert maru.healthcheck() is False
    assert maru.pool_handle is None
    maru.set_on_region_added(lambda region, pages: None)
    for operation in (lambda: maru.exists("key"), lambda: maru.alloc(1), lambda: maru.store("key", data=b"x")):
        with pytest.raises(RuntimeError, match="not connected"):
            operation()
    maru.close()


def test_after_close_connect_opens_a_new_instance(connect: Connect) -> None:
    maru = connect(instance_id="engine-0")
    assert maru.connect(), "it is connected already"
    maru.store("key", data=b"chunk")
    maru.close()
    maru.close()
    with pytest.raises(RuntimeError, match="closed"):
        maru.exists("key")
    assert maru.connect()
    assert bytes(maru.retrieve("key").view) == b"chunk"
    assert maru.healthcheck()


def test_with_connects_and_closes(server: Server) -> None:
    config = MaruConfig(server_url=server.url, chunk_size_bytes=CHUNK, pool_size=CHUNK)
    with MaruHandler(config) as maru:
        assert maru.connected
    assert not maru.connected
    config.auto_connect = False
    with MaruHandler(config) as maru:
        assert not maru.connected
    with pytest.raises(RuntimeError, match="could not connect"), MaruHandler(MaruConfig(server_url="unix:///no")):
        pass


def test_figures(maru: MaruHandler) -> None:
    maru.store("key", data=b"chunk")
    stats = maru.get_stats()
    assert stats["kv_manager"] == {"total_entries": 1, "total_size": 5}
    assert stats["allocation_manager"]["active_clients"] == 1
    assert stats["allocation_manager"]["total_allocated"] == 16 * CHUNK
    regions = stats["store_regions"]
    assert (regions["num_regions"], regions["total_page_count"], regions["total_free_pages"]) == (1, 16, 15)
    assert regions["utilization"] == 1 / 16
    assert stats["allocator"] == regions["regions"][0]
    (usage,) = maru.get_usage()
    assert (usage["instance_id"], usage["entries"], usage["used_bytes"]) == (maru.instance_id, 1, 5)


def test_a_handler_that_is_told_to_reports_how_long_its_calls_take(server: Server, connect: Connect) -> None:
    reporting, silent = connect(enable_stats=True), connect()
    for maru in (reporting, silent):
        assert not maru.exists("key")

    def calls() -> list[tuple[str, str, int]]:
        command = ["maru", "--socket", str(server.socket), "calls", "--json"]
        said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return [(row["name"], row["operation"], row["calls"]) for row in said["calls"]]

    wait_until("it reports", lambda: calls() != [])
    assert calls() == [(reporting.instance_id, "exists", 1)]


def test_many_threads_use_one_handler(connect: Connect) -> None:
    maru = connect(pool_size=128 * CHUNK)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for n in range(50):
                key = f"{thread}-{n}"
                assert maru.store(key, data=key.encode())
                assert bytes(maru.retrieve(key).view) == key.encode()
                if n % 2:
                    wait_until("it is deleted", lambda key=key: maru.delete(key))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert maru.get_stats()["kv_manager"]["total_entries"] == 100


def test_a_wait_for_the_server_does_not_hold_other_threads(server: Server, connect: Connect) -> None:
    maru = connect(timeout_ms=10_000)
    server.pause()
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(maru.exists("key")))
    waiting.start()
    for _ in range(1000):
        assert sum(range(100)) == 4950
    assert waiting.is_alive() and not answers
    server.resume()
    waiting.join()
    assert answers == [False]


def test_a_dead_server_is_a_full_answer_of_nothing(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    maru = connect(timeout_ms=300)
    maru.store("key", data=b"chunk")
    info = maru.retrieve("key")
    logging.getLogger("maru_handler").addHandler(caplog.handler)
    server.kill()
    keys = ["key", "other", "third"]
    for operation in (maru.batch_exists, maru.batch_pin, maru.batch_unpin, maru.batch_delete):
        assert operation(keys) == [False] * 3
    assert maru.batch_retrieve(keys) == [None] * 3
    assert maru.batch_store(keys, [b"1", b"2", b"3"]) == [False] * 3
    assert not maru.exists("key") and not maru.pin("key") and not maru.delete("key")
    assert maru.retrieve("key") is None
    assert maru.store("key", data=b"x") is False
    assert not maru.healthcheck()
    assert bytes(info.view) == b"chunk", "what is held stays readable"
    assert "batch_exists failed: the connection to the server is lost" in caplog.text
    server.start()
    wait_until("the session goes on", maru.healthcheck)
    assert maru.exists("key")
    assert not maru.delete("key"), "the view still pins it"
    del info
    wait_until("all pages of stores that failed are back", lambda: maru.delete("key") and pages_in_use(maru) <= 1)


def test_private_access_lets_consumers_write_into_their_own_copy(connect: Connect) -> None:
    owner, reader = connect(), connect(shared_access="private")
    owner.store("key", data=b"chunk")
    info = reader.retrieve("key")
    assert not info.view.readonly
    info.view[0:1] = b"X"
    assert bytes(info.view) == b"Xhunk"
    assert bytes(owner.retrieve("key").view) == b"chunk"


def test_a_chunk_that_is_not_what_was_stored_is_taken_for_missing(server: Server, connect: Connect) -> None:
    owner, readers = connect(checksum=True), [connect(), connect()]
    owner.store("key", data=b"chunk")
    info = owner.retrieve("key")
    assert bytes(readers[0].retrieve("key").view) == b"chunk"
    with (server.socket.parent / "pool" / f"region-{info.region_id}").open("r+b") as region:
        region.seek(info.page_index * CHUNK + 2)
        region.write(b"?")
    assert readers[1].retrieve("key") is None
    assert readers[1].batch_retrieve(["key"]) == [None]
    assert readers[1].get_stats()["store_regions"]["stale_chunks"] == 2
