"""One instance: it allocates pages in shared memory, stores them under keys, and reads chunks in place."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from maru_common import MaruConfig
from maru_shm.types import MaruHandle

from . import _native, native_log
from ._native import MaruError
from .memory.types import AllocHandle, MemoryInfo

logger = logging.getLogger(__name__)

RegionAdded = Callable[[int, int], None]
Storable = AllocHandle | MemoryInfo | bytes | bytearray | memoryview
T = TypeVar("T")

#: Handlers of this process, and what those of a parent leave behind: it must not be used, nor freed.
_handlers: weakref.WeakSet[MaruHandler] = weakref.WeakSet()
_inherited: list[object] = []


class MaruHandler:
    """One instance of maru. Any thread may use it, and calls do not wait for each other.

    Nothing but a wrong argument or a handler that is not connected raises: where the server can't be reached, an
    operation is logged and answers ``False`` or ``None``, for each key of a batch.

    Keys are ``str`` or ``bytes`` of 1 to 65,536 bytes; text and the same bytes in UTF-8 are one key. Anything else is a
    ``TypeError``.

    After ``connect()`` the calls of a handler raise:
        RuntimeError: It is not connected, was closed, or belongs to the parent of a forked process.
        TypeError, ValueError: A key or size can't be one.
    """

    def __init__(self, config: MaruConfig | None = None) -> None:
        self._config = config or MaruConfig()
        self._client: _native.Client | None = None
        self._on_region_added: RegionAdded | None = None
        self._connecting = threading.Lock()
        self._unusable = "not connected; call connect() first"
        _handlers.add(self)

    # ---- the session -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Opens the instance and gets its first region. After ``close()`` it is a new instance of the same name.

        Returns:
            Whether it is connected now. The log says why not.
        """
        with self._connecting:
            if self._client is not None:
                return True
            native_log.start()
            config = self._config
            token = config.auth_token
            try:
                client = _native.Client(
                    config.server_url,
                    self.instance_id,
                    config.chunk_size_bytes,
                    config.pool_size,
                    timeout_ms=config.timeout_ms,
                    expand_size=config.expand_size,
                    auto_expand=config.auto_expand,
                    eager=True,
                    prefault=os.environ.get("MARU_PREFAULT") != "0",
                    map_all=config.eager_map,
                    copy_on_write=config.shared_access == "private",
                    checksum=config.checksum,
                    auth_token=token.encode() if isinstance(token, str) else token,
                    report_stats=config.enable_stats,
                    tls_ca=config.tls_ca,
                    tls_identity=config.tls_identity,
                    device_map=config.device_map or {},
                )
                if self._on_region_added is not None:
                    self._announce(client, self._on_region_added)
            except Exception as error:
                logger.error("could not connect to %s: %s", config.server_url, error)
                return False
            self._client = client
            logger.info("connected to %s as %s", config.server_url, config.instance_id)
            return True

    def close(self) -> None:
        """Ends the instance: pages without a chunk go back, chunks stay to be read. Views stay valid, and their chunks
        pinned. Closing twice is fine."""
        with self._connecting:
            client, self._client = self._client, None
            self._unusable = "closed; connect() opens a new instance"
            if client is not None:
                client.close()

    def __enter__(self) -> MaruHandler:
        if self._config.auto_connect and not self.connect():
            raise RuntimeError(f"could not connect to {self._config.server_url}; the log says why")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether ``connect()`` succeeded and ``close()`` was not called since."""
        return self._client is not None

    @property
    def instance_id(self) -> str:
        """The instance's name."""
        return self._config.instance_id or ""

    def healthcheck(self) -> bool:
        """Whether the server answers."""
        client = self._client
        if client is None:
            return False
        return self._or(False, "healthcheck", lambda: bool(client.stats()))

    # ---- pages -------------------------------------------------------------------------------------------------------

    def alloc(self, size: int) -> AllocHandle:
        """A page to write a chunk of ``size`` bytes into. Where none is free, pages are taken back that others freed,
        then there is a further region, then cold chunks of this instance make room.

        Raises:
            ValueError: More bytes than a chunk has, or no page is to be had.
        """
        buf, region_id, page_index = self._open().alloc(size)
        return AllocHandle(buf, region_id, page_index, size)

    def free(self, handle: AllocHandle) -> None:
        """Gives a page back that was not stored.

        Raises:
            ValueError: The page was stored or freed already.
            KeyError: It is no page of this instance.
        """
        self._open().free(handle.region_id, handle.page_index, handle.buf.obj)

    def get_buffer_view(self, region_id: int, offset: int, size: int) -> memoryview | None:
        """Bytes of a mapped region, its pages taken to be ``get_chunk_size()`` long; ``None`` where there are none.

        Inside a page that was allocated and not stored, or of a chunk that is being read here, the view keeps that page
        or pin like the view that came with it.
        """
        client = self._client
        if client is None or min(region_id, offset, size) < 0:
            return None
        return client.get_buffer_view(region_id, offset, size)

    def get_region_page_count(self, region_id: int) -> int | None:
        """Pages of a region, own or not; ``None`` where there is none whose pages are as long as here."""
        client = self._client
        if client is None:
            return None
        try:
            return client.region_page_count(region_id)
        except MaruError as error:
            logger.warning("get_region_page_count of region %d failed: %s", region_id, error)
            return None

    def get_owned_region_ids(self) -> list[int]:
        """The own regions in the order in which they came."""
        client = self._client
        return client.owned_regions() if client is not None else []

    def get_chunk_size(self) -> int:
        """Bytes of the largest chunk."""
        return self._config.chunk_size_bytes

    def set_on_region_added(self, callback: RegionAdded | None) -> None:
        """Has ``callback(region_id, page_count)`` called for each own region once: now for those that exist, later from
        inside ``alloc``, in the thread that calls that. ``None`` ends it."""
        self._on_region_added = callback
        client = self._client
        if client is not None and callback is not None:
            self._announce(client, callback)

    def _announce(self, client: _native.Client, callback: RegionAdded) -> None:
        # The client must not keep the handler, nor what the callback belongs to, alive.
        handler = weakref.ref(self)
        failures: list[BaseException] | None = []

        def announce(region_id: int, page_count: int) -> None:
            this = handler()
            if this is None or this._on_region_added is None:
                return
            try:
                this._on_region_added(region_id, page_count)
            except BaseException as error:
                if failures is None:
                    raise
                failures.append(error)

        del callback
        client.on_region_added(announce)
        raised, failures = failures, None
        if raised:
            raise raised[0]

    # ---- one key -----------------------------------------------------------------------------------------------------

    def store(
        self,
        key: str | bytes,
        handle: AllocHandle | None = None,
        *,
        info: MemoryInfo | None = None,
        data: Any = None,
    ) -> bool:
        """Makes a chunk visible under a key: the page of ``handle`` without a copy, or a copy of ``data`` or
        ``info.view``. The first writer of a key wins.

        Returns:
            Whether the key has a chunk now, this one or an earlier one. The page belongs to the server, or has gone
            back, in any case.

        Raises:
            ValueError: The page was stored or freed already, the data is larger than a chunk, or it is not exactly one
                of ``handle``, ``info`` and ``data``.
        """
        given = [item for item in (handle, info, data) if item is not None]
        if len(given) != 1:
            raise ValueError("store takes exactly one of handle, info and data")
        client = self._open()
        if isinstance(given[0], AllocHandle):
            page = given[0]
            if not client.holds_page(page.region_id, page.page_index, page.buf.obj):
                raise ValueError(f"page {page.page_index} of region {page.region_id} was stored or freed already")
        elif _size_of(given[0]) > self.get_chunk_size():
            raise ValueError(f"{_size_of(given[0])} bytes do not fit into a chunk of {self.get_chunk_size()}")
        return self.batch_store([key], given)[0]

    def retrieve(self, key: str | bytes) -> MemoryInfo | None:
        """A chunk where it lies, pinned as long as its view is alive; ``None`` when there is none."""
        client = self._open()
        return self._or(None, "retrieve", lambda: client.retrieve(key))

    def exists(self, key: str | bytes) -> bool:
        """Whether a key has a chunk at this moment."""
        client = self._open()
        try:
            return client.exists(key)
        except MaruError as error:
            return self._failed(False, "exists", error)

    def pin(self, key: str | bytes) -> bool:
        """Pins a chunk by name, once more, until ``unpin``, ``close`` or the end of the time that the server gives such
        pins. ``retrieve`` pins by itself.

        Returns:
            Whether it is pinned.
        """
        return self.batch_pin([key])[0]

    def unpin(self, key: str | bytes) -> bool:
        """Gives back one pin that was taken by name.

        Returns:
            Whether there was one.
        """
        return self.batch_unpin([key])[0]

    def delete(self, key: str | bytes) -> bool:
        """Deletes a chunk, whoever stored it.

        Returns:
            Whether it is gone by this call: not where there was none, nor where somebody reads it.
        """
        return self.batch_delete([key])[0]

    # ---- many keys ---------------------------------------------------------------------------------------------------

    def batch_store(self, keys: Sequence[str | bytes], handles: Sequence[Storable]) -> list[bool]:
        """:meth:`store` for many chunks, in one request. Of a key that comes twice the first chunk is stored.

        Args:
            keys: The keys.
            handles: For each key a page of ``alloc``, or a ``MemoryInfo`` or buffer that is copied.

        Returns:
            Whether each key has a chunk now. A buffer that is too large, or for which there is no page, fails alone.

        Raises:
            ValueError: There is not one chunk for each key.
        """
        client = self._open()
        batch = self._prepare_batch(client, keys, handles)
        stored = self._or_all_false("batch_store", batch.keys, lambda: client.store(batch.keys, batch.pages))
        return batch.outcomes(stored)

    def batch_retrieve(self, keys: Sequence[str | bytes]) -> list[MemoryInfo | None]:
        """:meth:`retrieve` for many keys, each for itself."""
        client = self._open()
        return self._or([None] * len(keys), "batch_retrieve", lambda: client.batch_retrieve(keys))

    def batch_exists(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`exists` for many keys."""
        client = self._open()
        return self._or_all_false("batch_exists", keys, lambda: client.batch_exists(keys))

    def batch_pin(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`pin` for many keys, up to the first that can't be pinned; those behind it are not."""
        client = self._open()
        return self._or_all_false("batch_pin", keys, lambda: client.batch_pin(keys))

    def batch_unpin(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`unpin` for many keys, each for itself."""
        client = self._open()
        return self._or_all_false("batch_unpin", keys, lambda: client.batch_unpin(keys))

    def batch_delete(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`delete` for many keys, each for itself."""
        client = self._open()
        return self._or_all_false("batch_delete", keys, lambda: client.batch_delete(keys))

    # ---- awaited -----------------------------------------------------------------------------------------------------
    # They share a second connection that pipelines. One that is cancelled loses neither a page nor a pin.

    async def store_async(self, key: str | bytes, handle: AllocHandle | None = None, *, data: Any = None) -> bool:
        """:meth:`store`, awaited."""
        if (handle is None) == (data is None):
            raise ValueError("store_async takes exactly one of handle and data")
        return (await self.batch_store_async([key], [handle if handle is not None else data]))[0]

    async def retrieve_async(self, key: str | bytes) -> MemoryInfo | None:
        """:meth:`retrieve`, awaited."""
        return (await self.batch_retrieve_async([key]))[0]

    async def exists_async(self, key: str | bytes) -> bool:
        """:meth:`exists`, awaited."""
        return (await self.batch_exists_async([key]))[0]

    async def pin_async(self, key: str | bytes) -> bool:
        """:meth:`pin`, awaited."""
        return (await self.batch_pin_async([key]))[0]

    async def unpin_async(self, key: str | bytes) -> bool:
        """:meth:`unpin`, awaited."""
        return (await self.batch_unpin_async([key]))[0]

    async def delete_async(self, key: str | bytes) -> bool:
        """:meth:`delete`, awaited."""
        return (await self.batch_delete_async([key]))[0]

    async def batch_store_async(self, keys: Sequence[str | bytes], handles: Sequence[Storable]) -> list[bool]:
        """:meth:`batch_store`, awaited."""
        client = self._open()
        batch = self._prepare_batch(client, keys, handles)
        request = client.store_async(batch.keys, batch.pages)
        return batch.outcomes(await self._answer([False] * len(batch.keys), "batch_store_async", request))

    async def batch_retrieve_async(self, keys: Sequence[str | bytes]) -> list[MemoryInfo | None]:
        """:meth:`batch_retrieve`, awaited."""
        request = self._open().batch_retrieve_async(keys)
        return await self._answer([None] * len(keys), "batch_retrieve_async", request)

    async def batch_exists_async(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`batch_exists`, awaited."""
        request = self._open().batch_exists_async(keys)
        return await self._answer([False] * len(keys), "batch_exists_async", request)

    async def batch_pin_async(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`batch_pin`, awaited."""
        request = self._open().batch_pin_async(keys)
        return await self._answer([False] * len(keys), "batch_pin_async", request)

    async def batch_unpin_async(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`batch_unpin`, awaited."""
        request = self._open().batch_unpin_async(keys)
        return await self._answer([False] * len(keys), "batch_unpin_async", request)

    async def batch_delete_async(self, keys: Sequence[str | bytes]) -> list[bool]:
        """:meth:`batch_delete`, awaited."""
        request = self._open().batch_delete_async(keys)
        return await self._answer([False] * len(keys), "batch_delete_async", request)

    # ---- figures -----------------------------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, Any]:
        """Figures of the server and of this instance.

        Raises:
            MaruError: The server could not be asked.
        """
        figures = self._open().stats()
        own = figures.pop("own")
        for region in own["regions"]:
            region["allocated_pages"] = region["stored_pages"]
        pages, free = own["total_page_count"], own["total_free_pages"]
        store_regions = {
            **own,
            "total_pool_size": sum(region["pool_size"] for region in own["regions"]),
            "total_allocated_pages": pages - free,
            "utilization": (pages - free) / pages if pages else 0.0,
        }
        return {
            "kv_manager": {"total_entries": figures["entries"], "total_size": figures["entry_bytes"]},
            "allocation_manager": {
                "num_allocations": figures["regions"],
                "total_allocated": figures["region_bytes"],
                "active_clients": figures["instances"],
            },
            "stats_manager": figures,
            "store_regions": store_regions,
            "allocator": next(iter(own["regions"]), {}),
        }

    def get_usage(self) -> list[dict[str, Any]]:
        """What each instance uses: regions, bytes allocated and used, entries, pins.

        Raises:
            MaruError: The server could not be asked.
        """
        return self._open().usage()

    # ---- names that the original's connectors use --------------------------------------------------------------------

    @property
    def pool_handle(self) -> MaruHandle | None:
        """The first own region."""
        regions = self.get_owned_region_ids()
        return MaruHandle(region_id=regions[0], length=self._config.pool_size) if regions else None

    @property
    def owned_region_manager(self) -> _Regions:
        """The own regions, under the name that the SGLang connector of the original knows."""
        return _Regions(self)

    @property
    def mapper(self) -> _Regions:
        """The mapped regions, under a name of the original."""
        return _Regions(self)

    _mapper = mapper

    # ---- how calls end -----------------------------------------------------------------------------------------------

    def _open(self) -> _native.Client:
        client = self._client
        if client is None:
            raise RuntimeError(f"the handler is {self._unusable}")
        return client

    def _failed(self, answer: T, operation: str, error: MaruError) -> T:
        logger.warning("%s failed: %s", operation, error)
        return answer

    def _or(self, answer: T, operation: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except MaruError as error:
            return self._failed(answer, operation, error)

    def _or_all_false(self, operation: str, keys: Sequence[object], ask: Callable[[], list[bool]]) -> list[bool]:
        try:
            return ask()
        except MaruError as error:
            return self._failed([False] * len(keys), operation, error)

    async def _answer(self, answer: T, operation: str, request: Awaitable[T]) -> T:
        try:
            return await request
        except MaruError as error:
            return self._failed(answer, operation, error)

    def _prepare_batch(self, client: _native.Client, keys: Sequence[str | bytes], items: Sequence[Storable]) -> _Batch:
        if len(keys) != len(items):
            raise ValueError(f"a batch needs one chunk for each key, not {len(items)} for {len(keys)} keys")
        batch = _Batch()
        for key, item in zip(keys, items, strict=True):
            batch.add(key, self._page_of(client, item))
        return batch

    def _page_of(self, client: _native.Client, item: Storable) -> _Page | None:
        if isinstance(item, AllocHandle):
            return item.region_id, item.page_index, item.size, item.buf.obj
        data = item.view if isinstance(item, MemoryInfo) else item
        try:
            buf, region_id, page_index = client.alloc_copy(data)
        except ValueError as error:
            logger.warning("a chunk of %d bytes can't be stored: %s", _size_of(data), error)
        except MaruError as error:
            return self._failed(None, "store", error)
        else:
            return region_id, page_index, len(buf), buf.obj
        return None


#: Where a chunk is to be stored, how long it is, and the memory of the page where that is known. This keeps a page that
#: has no other user until it is stored, and a handle from storing what its page's next holder writes.
_Page = tuple[int, int, int, object]


class _Batch:
    """The chunks of a batch that have a page."""

    def __init__(self) -> None:
        self.keys: list[str | bytes] = []
        self.pages: list[_Page] = []
        self._has_page: list[bool] = []

    def add(self, key: str | bytes, page: _Page | None) -> None:
        self._has_page.append(page is not None)
        if page is not None:
            self.keys.append(key)
            self.pages.append(page)

    def outcomes(self, stored: Iterable[bool]) -> list[bool]:
        answers = iter(stored)
        return [has_page and next(answers) for has_page in self._has_page]


class _Regions:
    """Regions under names of the original."""

    def __init__(self, handler: MaruHandler) -> None:
        self._handler = handler

    def get_first_region_id(self) -> int | None:
        """The first own region."""
        return next(iter(self._handler.get_owned_region_ids()), None)

    def get_region_ids(self) -> list[int]:
        """The own regions."""
        return self._handler.get_owned_region_ids()

    def get_buffer_view(self, region_id: int, offset: int, size: int) -> memoryview | None:
        """See :meth:`MaruHandler.get_buffer_view`."""
        return self._handler.get_buffer_view(region_id, offset, size)


def _size_of(data: Any) -> int:
    return memoryview(data.view if isinstance(data, MemoryInfo) else data).nbytes


def _after_fork_in_child() -> None:
    _native.forked()
    for handler in _handlers:
        _inherited.append(handler._client)
        handler._client = None
        handler._connecting = threading.Lock()
        handler._unusable = "the parent process's; connect() opens an instance of this process"


os.register_at_fork(after_in_child=_after_fork_in_child)
