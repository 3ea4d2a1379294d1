"""The allocator of LMCache's MaruBackend: pages of maru as memory objects, which LMCache fills and reads in place."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import torch
from lmcache.logging import init_logger
from lmcache.v1.memory_management import (
    MemoryAllocatorInterface,
    MemoryFormat,
    MemoryObj,
    MemoryObjMetadata,
)

from maru_lmcache.cuda import HostRegistrations
from maru_lmcache.layout import ChunkLayout
from maru_lmcache.memory import PageObj, RegionPool

if TYPE_CHECKING:
    from maru_handler import MaruHandler
    from maru_handler.memory import AllocHandle

logger = init_logger(__name__)


class CxlMemoryAdapter(MemoryAllocatorInterface):
    """Allocates pages for chunks of KV cache, and shows chunks that were retrieved.

    Every object that it hands out is made for that use of its page and knows this allocator. Giving up the last
    reference gives the page back if it was allocated and not stored, and otherwise ends the protection of what was
    retrieved; so does losing the object and every tensor of it. What is stored stays stored.

    Safe to use from several threads.

    Args:
        handler: A connected handler. It outlives this adapter.
        shapes: Of a full chunk, one for each group of layers.
        dtypes: One for each group of layers.
        fmt: How chunks are laid out; memory objects have it, whatever `allocate` is told.
        chunk_size: The handler's, in bytes: the size of a page.

    Raises:
        ValueError: A full chunk does not fit into a page, or its groups can't lie one after the other.
    """

    def __init__(
        self,
        handler: MaruHandler,
        shapes: list[torch.Size],
        dtypes: list[torch.dtype],
        fmt: MemoryFormat,
        chunk_size: int,
    ) -> None:
        self._handler = handler
        self._layout = ChunkLayout(shapes, dtypes, fmt, chunk_size)
        self._page_size = chunk_size
        self._registrations = HostRegistrations()
        self._lock = threading.Lock()
        self._closed = False
        self._pool: dict[int, RegionPool] = {}
        # Tells of the regions that are there, at once, and later of each that is added.
        handler.set_on_region_added(self._on_region_added)

    @staticmethod
    def encode_address(region_id: int, page_index: int) -> int:
        """A page as the one number that LMCache has for an address."""
        return (region_id << 32) | page_index

    @staticmethod
    def decode_address(address: int) -> tuple[int, int]:
        """The region and the index of the page that `encode_address` made a number of."""
        return address >> 32, address & 0xFFFF_FFFF

    def allocate(
        self,
        shapes: torch.Size | list[torch.Size],
        dtypes: torch.dtype | list[torch.dtype],
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> MemoryObj | None:
        """A page to write a chunk into; its object has exactly the shapes asked for.

        Returns:
            `None` if nothing was asked for, more than a page was, or there is no page to be had.

        Raises:
            ValueError: The shapes are not those of a chunk with fewer tokens.
        """
        group_shapes, group_dtypes = self._adapt_shapes_and_dtypes(shapes, dtypes)
        if not any(shape.numel() for shape in group_shapes):
            return None
        tokens = self._layout.tokens_of(group_shapes, group_dtypes)
        try:
            handle = self._handler.alloc(size=tokens * self._layout.bytes_per_token)
        except (ValueError, RuntimeError) as error:
            logger.debug("no page for %d tokens: %s", tokens, error)
            return None
        return self._hand_out(handle.region_id, handle.page_index, handle.buf, tokens, handle)

    def batched_allocate(
        self,
        shapes: torch.Size | list[torch.Size],
        dtypes: torch.dtype | list[torch.dtype],
        batch_size: int,
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> list[MemoryObj] | None:
        """So many pages of the same shapes, or `None` and not a single one. See `allocate`."""
        objs: list[MemoryObj] = []
        for _ in range(batch_size):
            obj = self.allocate(shapes, dtypes, fmt, allocator_type)
            if obj is None:
                self.batched_free(objs)
                return None
            objs.append(obj)
        return objs

    def free(self, memory_obj: MemoryObj, allocator_type: str | None = None) -> None:
        """Gives an allocated page back that was not stored, or ends the protection of one that was retrieved.

        Afterwards the object shows nothing. Freeing it again does nothing, and neither does freeing what is stored.

        Raises:
            ValueError: The object is none of this allocator's.
        """
        # LMCache calls this holding the object's lock, so that nothing here may take it.
        obj = self._own(memory_obj)
        handle = obj.take_handle()
        obj.release()
        if handle is not None:
            try:
                self._handler.free(handle)
            except Exception as error:
                logger.debug("page %d of region %d: %s", handle.page_index, handle.region_id, error)

    def batched_free(
        self,
        memory_objs: list[MemoryObj],
        allocator_type: str | None = None,
        update_stats: bool = True,
    ) -> None:
        """Frees each of them. See `free`."""
        for obj in memory_objs:
            self.free(obj, allocator_type)

    def create_store_handle(self, memory_obj: MemoryObj) -> AllocHandle:
        """What `MaruHandler.store` takes for an object that was allocated here.

        The page is the handler's from here on: freeing the object does not free it.

        Raises:
            ValueError: The object is none of this allocator's, or its page was freed, stored or retrieved.
        """
        obj = self._own(memory_obj)
        handle = obj.take_handle()
        if handle is None:
            region_id, page_index = self.decode_address(obj.meta.address)
            raise ValueError(
                f"page {page_index} of region {region_id} is not there to be stored: only what was allocated is, once"
            )
        return handle

    def get_by_location(
        self,
        region_id: int,
        page_index: int,
        actual_size: int,
        single_token_size: int,
    ) -> MemoryObj | None:
        """A stored chunk to read, where it is.

        Its object protects the chunk from being deleted or overwritten if the caller still has what
        `MaruHandler.retrieve` returned for it.

        Args:
            region_id: From `retrieve`.
            page_index: From `retrieve`.
            actual_size: Bytes of the chunk.
            single_token_size: Bytes of a token, as the caller has it; this allocator knows it from its shapes.

        Returns:
            `None` if there is no such region or page, or the chunk has a size that none of this model's has.
        """
        if self._region(region_id) is None:
            return None
        tokens = self._layout.tokens_in(actual_size)
        if tokens is None:
            logger.error(
                "%d bytes in page %d of region %d are no chunk of up to %d tokens of %d bytes",
                actual_size,
                page_index,
                region_id,
                self._layout.tokens,
                self._layout.bytes_per_token,
            )
            return None
        view = self._view(region_id, page_index, actual_size)
        return None if view is None else self._hand_out(region_id, page_index, view, tokens)

    def ensure_region_pool(self, region_id: int) -> bool:
        """Whether the region is mapped here, so that its pages can be shown."""
        return self._region(region_id) is not None

    def close(self) -> None:
        """Lets go of the handler and of all regions. Objects that somebody has stay valid."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pool.clear()
            self._registrations.close()
        self._handler.set_on_region_added(None)

    def _own(self, memory_obj: MemoryObj) -> PageObj:
        if isinstance(memory_obj, PageObj) and memory_obj.adapter is self:
            return memory_obj
        raise ValueError("the memory object is of another allocator, and not in a page of maru")

    def _on_region_added(self, region_id: int, page_count: int) -> None:
        self._add_region(region_id, page_count)

    def _region(self, region_id: int) -> RegionPool | None:
        pool = self._pool.get(region_id)
        if pool is not None:
            return pool
        page_count = self._handler.get_region_page_count(region_id)
        return None if page_count is None else self._add_region(region_id, page_count)

    def _add_region(self, region_id: int, page_count: int) -> RegionPool | None:
        with self._lock:
            if self._closed:
                return None
            if region_id not in self._pool:
                if self._view(region_id, 0, self._page_size) is None:
                    logger.error("region %d with %d pages is not mapped", region_id, page_count)
                    return None
                if self._registrations.started:
                    self._register(region_id, page_count)
                self._pool[region_id] = RegionPool(page_count, partial(self._full_page, region_id))
            return self._pool[region_id]

    def _register(self, region_id: int, page_count: int) -> None:
        region = self._handler.get_buffer_view(region_id, 0, page_count * self._page_size)
        if region is None:
            logger.error("region %d has gaps between its chunks and is not registered with CUDA", region_id)
            return
        if region_id not in self._handler.get_owned_region_ids():
            # A private mapping can be written, but CUDA would copy all of it to do so.
            region = region.toreadonly()
        self._registrations.add(region_id, region)

    def _hand_out(
        self,
        region_id: int,
        page_index: int,
        view: memoryview,
        tokens: int,
        handle: AllocHandle | None = None,
    ) -> PageObj:
        """An object for a new use of a page."""
        obj = self._page_obj(region_id, page_index, view, tokens, handle)
        pool = self._region(region_id)
        if pool is not None:
            if tokens == self._layout.tokens:
                pool.remember(page_index, obj)
            else:
                pool.forget(page_index)
            if self._registrations.lacks(region_id):
                self._register(region_id, len(pool))
        return obj

    def _full_page(self, region_id: int, page_index: int) -> PageObj:
        tokens = self._layout.tokens
        view = self._view(region_id, page_index, tokens * self._layout.bytes_per_token)
        if view is None:
            raise LookupError(f"region {region_id} is not mapped any more")
        return self._page_obj(region_id, page_index, view, tokens)

    def _view(self, region_id: int, page_index: int, size: int) -> memoryview | None:
        return self._handler.get_buffer_view(region_id, page_index * self._page_size, size)

    def _page_obj(
        self,
        region_id: int,
        page_index: int,
        view: memoryview,
        tokens: int,
        handle: AllocHandle | None = None,
    ) -> PageObj:
        shapes = self._layout.cut(tokens)
        metadata = MemoryObjMetadata(
            shape=shapes[0],
            dtype=self._layout.dtypes[0],
            address=self.encode_address(region_id, page_index),
            phy_size=tokens * self._layout.bytes_per_token,
            ref_count=1,
            fmt=self._layout.fmt,
            shapes=shapes,
            dtypes=list(self._layout.dtypes),
        )
        return PageObj(view, metadata, self, handle)
