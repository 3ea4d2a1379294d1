"""What memory objects promise: the shapes that were asked for, and a page that stays what it is while it is used."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from maru import MaruHandler
from maru_lmcache import CxlMemoryAdapter
from support import pins, wait_until

TOKENS = 16
SHAPE = torch.Size([2, 2, TOKENS, 32])
DTYPE = torch.float16
TOKEN_BYTES = 2 * 2 * 32 * 2
CHUNK_BYTES = TOKENS * TOKEN_BYTES
KEY = "chunk"

Connect = Callable[..., MaruHandler]


def of_tokens(tokens: int) -> torch.Size:
    return torch.Size([2, 2, tokens, 32])


def make_adapter(
    handler: MaruHandler, shapes: Sequence[torch.Size] = (SHAPE,), dtypes: Sequence[torch.dtype] = (DTYPE,)
) -> CxlMemoryAdapter:
    chunk_size = handler.get_chunk_size()
    return CxlMemoryAdapter(
        handler=handler, shapes=list(shapes), dtypes=list(dtypes), fmt=MemoryFormat.KV_2LTD, chunk_size=chunk_size
    )


class Engine:
    """A handler and an allocator over it, used the way in which MaruBackend uses them."""

    def __init__(self, handler: MaruHandler, **layout: Sequence[object]) -> None:
        self.handler = handler
        self.adapter = make_adapter(handler, **layout)

    def allocate(self, tokens: int = TOKENS, fill: int = 0) -> TensorMemoryObj:
        obj = self.adapter.allocate(of_tokens(tokens), DTYPE)
        assert obj is not None
        obj.raw_data.fill_(fill)
        return obj

    def store(self, key: str, obj: TensorMemoryObj) -> bool:
        return self.handler.store(key, self.adapter.create_store_handle(obj))

    def put(self, key: str, fill: int, tokens: int = TOKENS) -> TensorMemoryObj:
        obj = self.allocate(tokens, fill)
        assert self.store(key, obj)
        return obj

    def get(self, key: str) -> TensorMemoryObj | None:
        info = self.handler.retrieve(key)
        if info is None:
            return None
        return self.adapter.get_by_location(info.region_id, info.page_index, len(info.view), TOKEN_BYTES)

    def delete(self, key: str) -> bool:
        return self.handler.delete(key)

    def free_pages(self) -> int:
        return self.handler.get_stats()["store_regions"]["total_free_pages"]


@pytest.fixture
def connect(connect: Connect) -> Connect:
    """The pool of each is one region of 2 MiB, to begin with."""
    return partial(connect, **{"chunk_size_bytes": CHUNK_BYTES, "pool_size": 2 << 20})


@pytest.fixture
def engine(connect: Connect) -> Engine:
    return Engine(connect())


@pytest.fixture
def other(connect: Connect) -> Engine:
    return Engine(connect())


def assert_deletes(engine: Engine, key: str) -> None:
    """Nobody protects the chunk, though its last pin may still be on its way back to the server."""
    wait_until(f"{key} is deleted", lambda: engine.delete(key))


def assert_stays(writer: Engine, reader: Engine, key: str) -> None:
    """`reader` protects the chunk, also after all the pins that it gave back so far have reached the server."""
    writer.put("control", fill=0)
    reader.get("control")
    assert_deletes(writer, "control")
    assert not writer.delete(key)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_a_chunk_has_the_shape_that_was_asked_for_with_fewer_tokens_too(engine: Engine) -> None:
    for tokens in (1, 5, TOKENS):
        obj = engine.allocate(tokens)
        assert obj.get_shape() == obj.tensor.shape == of_tokens(tokens)
        assert obj.get_dtype() == obj.tensor.dtype == DTYPE
        assert obj.get_size() == obj.get_physical_size() == obj.raw_tensor.nbytes == tokens * TOKEN_BYTES
        assert obj.get_num_tokens() == tokens
        assert len(obj.byte_array) == tokens * TOKEN_BYTES
        assert obj.get_memory_format() == MemoryFormat.KV_2LTD


def test_a_single_group_can_be_asked_for_by_its_index(engine: Engine) -> None:
    obj = engine.allocate(3)
    obj.tensor.copy_(torch.arange(obj.tensor.numel()).reshape(obj.tensor.shape))
    assert obj.get_shapes() == [of_tokens(3)] and obj.get_dtypes() == [DTYPE]
    assert torch.equal(obj.get_tensor(0), obj.tensor)
    assert engine.store(KEY, obj)
    assert torch.equal(engine.get(KEY).get_tensor(0), obj.tensor)


@pytest.mark.parametrize("tokens", [5, TOKENS])
@pytest.mark.parametrize("dtypes", [(DTYPE, DTYPE), (torch.float32, torch.bfloat16)])
def test_groups_lie_one_after_the_other(connect: Connect, dtypes: tuple[torch.dtype, torch.dtype], tokens: int) -> None:
    full = [torch.Size([2, 2, TOKENS, 24]), torch.Size([1, 3, TOKENS, 8])]
    cut = [torch.Size([2, 2, tokens, 24]), torch.Size([1, 3, tokens, 8])]
    writer, reader = (Engine(connect(chunk_size_bytes=8192), shapes=full, dtypes=dtypes) for _ in range(2))
    obj = writer.adapter.allocate(cut, list(dtypes))
    assert obj is not None
    for index, shape in enumerate(cut):
        obj.get_tensor(index).copy_(torch.rand(shape))
    assert writer.store(KEY, obj)

    found = reader.get(KEY)
    assert found.get_shapes() == cut and found.get_dtypes() == list(dtypes)
    assert found.get_size() == sum(s.numel() * d.itemsize for s, d in zip(cut, dtypes, strict=True))
    for index in range(2):
        assert torch.equal(found.get_tensor(index), obj.get_tensor(index))
    # No shape fits all groups, so the whole is bytes.
    assert torch.equal(found.tensor, torch.cat([obj.get_tensor(i).flatten().view(torch.uint8) for i in range(2)]))


def test_groups_that_cannot_be_shown_are_refused_at_once(connect: Connect) -> None:
    with pytest.raises(ValueError, match="group 1 of a chunk has elements of 4 bytes"):
        make_adapter(connect(), [torch.Size([1, 1, 8, 3]), torch.Size([1, 1, 8, 2])], [torch.int8, torch.float32])


def test_what_is_no_chunk_of_this_model_is_refused(engine: Engine) -> None:
    before = engine.free_pages()
    with pytest.raises(ValueError, match="or fewer tokens of it"):
        engine.adapter.allocate(torch.Size([2, 2, TOKENS, 31]), DTYPE)
    assert engine.adapter.allocate(of_tokens(TOKENS + 1), DTYPE) is None
    assert engine.adapter.allocate(of_tokens(0), DTYPE) is None
    assert engine.free_pages() == before


def test_chunks_may_be_written_outside_of_the_inference_mode_that_they_were_allocated_in(engine: Engine) -> None:
    with torch.inference_mode():
        obj = engine.allocate()
    obj.raw_tensor.fill_(1)
    obj.tensor.fill_(1)
    assert bool((obj.get_tensor(0) == 1).all())


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_what_is_allocated_and_lost_goes_back(engine: Engine) -> None:
    before = engine.free_pages()
    objs = engine.adapter.batched_allocate(SHAPE, DTYPE, 10)
    assert objs is not None and engine.free_pages() == before - 10
    del objs
    assert engine.free_pages() == before


def test_a_tensor_of_a_lost_object_keeps_the_page(engine: Engine) -> None:
    before = engine.free_pages()
    row = engine.allocate(fill=7).tensor[0, 1, 3]
    assert engine.free_pages() == before - 1
    others = engine.adapter.batched_allocate(SHAPE, DTYPE, before - 1)
    for obj in others:
        obj.raw_data.fill_(1)
    assert bool((row.view(torch.uint8) == 7).all())
    del row
    assert engine.free_pages() == 1


def test_giving_up_the_last_reference_gives_the_page_back(engine: Engine) -> None:
    before = engine.free_pages()
    obj = engine.allocate()
    obj.ref_count_up()
    obj.ref_count_down()
    assert engine.free_pages() == before - 1
    obj.ref_count_down()
    assert engine.free_pages() == before
    assert obj.tensor is None and not obj.is_valid()


def test_freeing_gives_the_page_back_whoever_has_a_tensor_of_it(engine: Engine) -> None:
    before = engine.free_pages()
    obj = engine.allocate()
    row = obj.tensor[0]
    engine.adapter.free(obj)
    assert engine.free_pages() == before
    del row


def test_a_page_is_freed_once(engine: Engine) -> None:
    all_pages = engine.adapter.batched_allocate(SHAPE, DTYPE, engine.free_pages())
    first = all_pages.pop()
    engine.adapter.free(first)
    second = engine.allocate(fill=2)
    assert second.meta.address == first.meta.address, "the only free page is the one that was freed"
    engine.adapter.free(first)
    first.ref_count_down()
    del first
    assert engine.free_pages() == 0
    assert bool((second.raw_data == 2).all())


def test_a_batch_is_allocated_as_a_whole_or_not_at_all(connect: Connect) -> None:
    engine = Engine(connect(auto_expand=False))
    pages = engine.free_pages()
    held = engine.allocate()
    assert engine.adapter.batched_allocate(SHAPE, DTYPE, pages) is None
    assert engine.free_pages() == pages - 1
    assert len(engine.adapter.batched_allocate(SHAPE, DTYPE, pages - 1)) == pages - 1
    del held


def test_without_a_page_there_is_no_object(connect: Connect) -> None:
    engine = Engine(connect(auto_expand=False))
    held = engine.adapter.batched_allocate(SHAPE, DTYPE, engine.free_pages())
    assert engine.adapter.allocate(SHAPE, DTYPE) is None
    del held
    assert engine.adapter.allocate(SHAPE, DTYPE) is not None


def test_more_pages_come_with_more_regions(connect: Connect) -> None:
    engine = Engine(connect())
    pages = engine.free_pages()
    objs = engine.adapter.batched_allocate(SHAPE, DTYPE, pages + 1)
    assert len({obj.meta.address for obj in objs}) == pages + 1
    regions = engine.handler.get_owned_region_ids()
    assert len(regions) == 2 and set(engine.adapter._pool) == set(regions)


def test_what_is_stored_is_not_freed(engine: Engine, other: Engine) -> None:
    obj = engine.put(KEY, fill=3)
    obj.ref_count_down()
    engine.adapter.free(obj)
    del obj
    for _ in range(engine.free_pages()):
        engine.allocate(fill=9)
    assert bool((other.get(KEY).raw_data == 3).all())


def test_a_chunk_is_stored_once(engine: Engine) -> None:
    obj = engine.put(KEY, fill=3)
    with pytest.raises(ValueError, match="only what was allocated is, once"):
        engine.adapter.create_store_handle(obj)
    with pytest.raises(ValueError, match="only what was allocated is, once"):
        engine.adapter.create_store_handle(engine.get(KEY))
    freed = engine.allocate()
    engine.adapter.free(freed)
    with pytest.raises(ValueError, match="only what was allocated is, once"):
        engine.adapter.create_store_handle(freed)


def test_a_page_that_is_on_its_way_to_be_stored_outlives_its_object(engine: Engine) -> None:
    obj = engine.allocate(fill=6)
    handle = engine.adapter.create_store_handle(obj)
    engine.adapter.free(obj)
    del obj
    in_between = engine.allocate(fill=9)
    assert engine.handler.store(KEY, handle)
    assert bool((engine.get(KEY).raw_data == 6).all())
    del in_between


def test_the_page_of_a_duplicate_goes_back_once(engine: Engine) -> None:
    engine.put(KEY, fill=1)
    before = engine.free_pages()
    duplicate = engine.allocate(fill=2)
    assert engine.store(KEY, duplicate)
    assert engine.free_pages() == before
    reused = engine.adapter.batched_allocate(SHAPE, DTYPE, before)
    duplicate.ref_count_down()
    del duplicate
    assert engine.free_pages() == 0
    assert bool((engine.get(KEY).raw_data == 1).all())
    del reused


def test_objects_of_other_allocators_are_refused(engine: Engine, other: Engine) -> None:
    metadata = MemoryObjMetadata(torch.Size([8]), torch.uint8, address=0, phy_size=8, ref_count=1)
    foreign = TensorMemoryObj(torch.zeros(8, dtype=torch.uint8), metadata, None)
    for obj in (foreign, other.allocate()):
        with pytest.raises(ValueError, match="of another allocator"):
            engine.adapter.create_store_handle(obj)
        with pytest.raises(ValueError, match="of another allocator"):
            engine.adapter.free(obj)


# ---- retrieved chunks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_a_chunk_of_another_instance_is_read_in_place(engine: Engine, other: Engine, tokens: int) -> None:
    obj = engine.put(KEY, fill=5, tokens=tokens)
    found = other.get(KEY)
    assert found.get_shape() == of_tokens(tokens) and found.meta.address == obj.meta.address
    assert torch.equal(found.tensor, obj.tensor)


def test_a_chunk_stays_while_its_object_lives(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=4)
    found = other.get(KEY)
    assert_stays(engine, other, KEY)
    del found
    assert_deletes(engine, KEY)


def test_a_chunk_stays_while_a_tensor_of_it_lives(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=4)
    row = other.get(KEY).tensor[1, 0]
    assert_stays(engine, other, KEY)
    assert bool((row.view(torch.uint8) == 4).all())
    del row
    assert_deletes(engine, KEY)


def test_freeing_a_retrieved_chunk_ends_its_protection(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=4)
    found = other.get(KEY)
    found.ref_count_up()
    found.ref_count_down()
    assert_stays(engine, other, KEY)
    found.ref_count_down()
    assert found.tensor is None
    assert_deletes(engine, KEY)


def test_each_reader_of_a_chunk_protects_it_for_itself(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=4)
    first, second = other.get(KEY), other.get(KEY)
    assert first is not second
    del second
    assert_stays(engine, other, KEY)
    assert bool((first.raw_data == 4).all())
    del first
    assert_deletes(engine, KEY)


def test_a_reader_is_protected_though_another_one_was_faster(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=4)
    info = other.handler.retrieve(KEY)
    other.get(KEY)  # comes later, and is done earlier
    found = other.adapter.get_by_location(info.region_id, info.page_index, len(info.view), TOKEN_BYTES)
    del info
    assert_stays(engine, other, KEY)
    assert bool((found.raw_data == 4).all())
    del found
    assert_deletes(engine, KEY)


def test_an_object_of_an_earlier_use_of_a_page_is_not_handed_out_again(engine: Engine) -> None:
    rest = engine.adapter.batched_allocate(SHAPE, DTYPE, engine.free_pages() - 1)
    stale = engine.put("old", fill=1)
    assert_deletes(engine, "old")
    new = engine.put(KEY, fill=2)
    del rest
    assert new.meta.address == stale.meta.address and new is not stale
    found = engine.get(KEY)
    assert found is not stale and found is not new
    assert_stays(engine, engine, KEY)
    del found
    assert_deletes(engine, KEY)


def test_the_pool_shows_the_latest_use_of_a_page(engine: Engine) -> None:
    region_id, page = engine.adapter.decode_address(engine.put(KEY, fill=1).meta.address)
    pool = engine.adapter._pool[region_id]
    found = engine.get(KEY)
    assert pool[page] is pool[page - len(pool)] is found and pool[page : page + 1] == [found]
    lost = weakref.ref(found)
    del found
    assert lost() is None and pool[page] is not None
    assert [engine.adapter.decode_address(obj.meta.address) for obj in pool] == [
        (region_id, index) for index in range(len(pool))
    ]
    with pytest.raises(IndexError):
        pool[len(pool)]


def test_the_pool_forgets_a_chunk_whose_page_has_a_shorter_one_now(engine: Engine) -> None:
    rest = engine.adapter.batched_allocate(SHAPE, DTYPE, engine.free_pages() - 1)
    stale = engine.put("old", fill=1)
    assert_deletes(engine, "old")
    new = engine.put(KEY, fill=2, tokens=3)
    assert new.meta.address == stale.meta.address
    region_id, page = engine.adapter.decode_address(new.meta.address)
    assert engine.adapter._pool[region_id][page] is not stale
    del rest


def test_there_is_no_object_of_what_is_not_there(engine: Engine) -> None:
    (region_id,) = engine.handler.get_owned_region_ids()
    pages = engine.handler.get_region_page_count(region_id)
    get = engine.adapter.get_by_location
    assert get(region_id, pages - 1, CHUNK_BYTES, TOKEN_BYTES) is not None
    assert get(region_id, pages, CHUNK_BYTES, TOKEN_BYTES) is None
    assert get(region_id, 0, CHUNK_BYTES + TOKEN_BYTES, TOKEN_BYTES) is None
    assert get(region_id, 0, TOKEN_BYTES - 1, TOKEN_BYTES) is None
    assert get(999_999, 0, CHUNK_BYTES, TOKEN_BYTES) is None
    assert engine.adapter.ensure_region_pool(region_id)
    assert not engine.adapter.ensure_region_pool(999_999)


def test_regions_of_others_are_shown_when_a_chunk_in_them_is(engine: Engine, other: Engine) -> None:
    region_id, _ = engine.adapter.decode_address(engine.put(KEY, fill=1).meta.address)
    assert region_id not in other.adapter._pool
    assert other.get(KEY) is not None
    assert region_id in other.adapter._pool


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_objects_stay_valid_when_allocator_and_handler_are_closed(engine: Engine, other: Engine) -> None:
    engine.put(KEY, fill=8)
    found = other.get(KEY)
    other.adapter.close()
    other.adapter.close()
    other.handler.close()
    assert len(other.adapter._pool) == 0
    assert bool((found.raw_data == 8).all())
    assert other.adapter.allocate(SHAPE, DTYPE) is None


def test_a_closed_allocator_shows_nothing_any_more(engine: Engine) -> None:
    engine.put(KEY, fill=8)
    engine.adapter.close()
    assert engine.get(KEY) is None
    assert len(engine.adapter._pool) == 0


def test_a_closed_allocator_hears_of_no_region_and_says_so_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks: list[object] = []
    monkeypatch.setattr(engine.handler, "set_on_region_added", callbacks.append)
    engine.adapter.close()
    engine.adapter.close()
    assert callbacks == [None]


def test_threads_lose_neither_pages_nor_bytes(engine: Engine, other: Engine) -> None:
    before = engine.free_pages()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                name, fill = f"{number}-{turn % 5}", number * 5 + turn % 5
                obj = engine.allocate(tokens=1 + turn % TOKENS, fill=fill)
                if turn % 3 == 0:
                    obj.ref_count_down()
                    continue
                assert engine.store(name, obj)
                for reader in (other, engine):
                    found = reader.get(name)
                    assert found is None or bool((found.raw_data == fill).all())
                if turn % 2:
                    other.delete(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until("all pins are back", lambda: pins(engine.handler) == 0)
    for number in range(8):
        for index in range(5):
            other.delete(f"{number}-{index}")
    # Pages of deleted chunks come back when they are asked for.
    objs = engine.adapter.batched_allocate(SHAPE, DTYPE, before)
    assert len(engine.handler.get_owned_region_ids()) == 1
    del objs
    assert engine.free_pages() == before


# ---- the package -----------------------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_importing_the_package_needs_neither_torch_nor_lmcache() -> None:
    program = """
import sys
sys.modules["torch"] = sys.modules["lmcache"] = None
import maru_lmcache
print(sorted(maru_lmcache.__all__))
"""
    assert run_python(program) == "['CxlMemoryAdapter', 'CxlMemoryAllocator']\n"


def test_the_old_name_is_the_same_class() -> None:
    import maru_lmcache

    assert maru_lmcache.CxlMemoryAllocator is maru_lmcache.CxlMemoryAdapter is CxlMemoryAdapter
    assert {"CxlMemoryAdapter", "CxlMemoryAllocator"} <= set(dir(maru_lmcache))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        maru_lmcache.Nothing  # noqa: B018


def test_reading_warns_of_nothing() -> None:
    program = """
import torch
from maru_lmcache.memory import bytes_of
torch.set_warn_always(True)
print(bytes_of(memoryview(b"chunk")).sum().item())
"""
    assert run_python(program) == f"{sum(b'chunk')}\n"
