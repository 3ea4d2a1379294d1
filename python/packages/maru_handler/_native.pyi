"""The native client. Its users are the packages here; what it hands out is shaped for them, not for people."""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

__version__: str

_Key = str | bytes
_Path = str | os.PathLike[str]
#: A view of a page, its region, its index.
_PageView = tuple[memoryview, int, int]
#: A region, an index, a length, and the memory of the page where it is known.
_Handle = tuple[int, int, int, object]

class MaruError(RuntimeError):
    """The server could not be asked, or said no: the connection is lost, the time is over, the session has ended."""

class MemoryInfo:
    """A chunk where it lies.

    ``view`` keeps the chunk pinned: as long as it, or anything made of it without copying, is alive, nobody can delete,
    evict or overwrite the chunk, unless this process is out of the server's reach for longer than its grace period.
    """

    view: memoryview
    """Its bytes; one dimension, format ``B``, read-only unless the handler was told otherwise."""
    region_id: int
    """The region that it lies in."""
    page_index: int
    """The index of its page in the region."""

    def __init__(self, view: memoryview, region_id: int = 0, page_index: int = 0) -> None: ...
    def check(self) -> None:
        """Raises ``MaruError`` unless everything that was read of the chunk so far is what was stored.

        Call it after the bytes were used, where the server may be out of reach for longer than its grace period. It
        costs a look at the clock.

        Raises:
            MaruError: The server has released the pin of the chunk, or may have: what was read of it means nothing.
            TypeError: ``view`` shows nothing that a handler has handed out.
        """

    @property
    def revoked(self) -> bool:
        """Whether ``check`` fails at the moment."""

class Memory:
    """A range of mapped memory, as a buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

class Client:
    """A connected instance."""

    def __init__(
        self,
        address: str,
        instance_id: str,
        chunk_size: int,
        region_size: int,
        *,
        timeout_ms: int,
        expand_size: int | None,
        auto_expand: bool,
        eager: bool,
        prefault: bool,
        map_all: bool,
        copy_on_write: bool,
        checksum: bool,
        auth_token: bytes | None,
        report_stats: bool,
        tls_ca: _Path | None,
        tls_identity: tuple[_Path, _Path] | None,
        device_map: Mapping[str, _Path],
    ) -> None: ...
    def close(self) -> None: ...
    def alloc(self, size: int) -> _PageView: ...
    def alloc_copy(self, data: Any) -> _PageView: ...
    def free(self, region_id: int, page_index: int, shown: object) -> None: ...
    def holds_page(self, region_id: int, page_index: int, shown: object) -> bool: ...
    def store(self, keys: Iterable[_Key], pages: list[_Handle]) -> list[bool]: ...
    def store_async(self, keys: Iterable[_Key], pages: list[_Handle]) -> Awaitable[list[bool]]: ...
    def retrieve(self, key: _Key) -> MemoryInfo | None: ...
    def batch_retrieve(self, keys: Iterable[_Key]) -> list[MemoryInfo | None]: ...
    def batch_retrieve_async(self, keys: Iterable[_Key]) -> Awaitable[list[MemoryInfo | None]]: ...
    def exists(self, key: _Key) -> bool: ...
    def batch_exists(self, keys: Iterable[_Key]) -> list[bool]: ...
    def batch_exists_async(self, keys: Iterable[_Key]) -> Awaitable[list[bool]]: ...
    def batch_pin(self, keys: Iterable[_Key]) -> list[bool]: ...
    def batch_pin_async(self, keys: Iterable[_Key]) -> Awaitable[list[bool]]: ...
    def batch_unpin(self, keys: Iterable[_Key]) -> list[bool]: ...
    def batch_unpin_async(self, keys: Iterable[_Key]) -> Awaitable[list[bool]]: ...
    def batch_delete(self, keys: Iterable[_Key]) -> list[bool]: ...
    def batch_delete_async(self, keys: Iterable[_Key]) -> Awaitable[list[bool]]: ...
    def get_buffer_view(self, region_id: int, offset: int, size: int) -> memoryview | None: ...
    def region_page_count(self, region_id: int) -> int | None: ...
    def owned_regions(self) -> list[int]: ...
    def on_region_added(self, callback: Callable[[int, int], None]) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def usage(self) -> list[dict[str, Any]]: ...
    def pools(self) -> list[tuple[str, bool, int, int, int]]: ...

def address(buffer: Any) -> int:
    """Where the bytes of a buffer lie in this process, also of one that can't be written."""

def forked() -> None:
    """This process is the child of a fork: whatever was made before belongs to the parent."""

def start_log(level: int) -> None:
    """Queues what the client says from this level of ``logging`` on."""

def next_log_event() -> tuple[int, str] | None:
    """Waits for the next line; ``None`` when there will be none."""

def stop_log() -> None:
    """Ends the lines."""
