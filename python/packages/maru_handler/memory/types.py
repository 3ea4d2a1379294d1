"""What a handler hands out: pages to write into, and chunks to read."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

from maru_handler._native import MemoryInfo

__all__ = ["AllocHandle", "MappedRegion", "MemoryInfo"]


@dataclass(eq=False, slots=True, weakref_slot=True)
class AllocHandle:
    """A page of this instance that is being written.

    It goes back when it was not stored and neither the handle nor anything made of ``buf`` is alive any more.

    Attributes:
        buf: The first bytes of the page, as many as were asked for; writable, one dimension, format ``B``.
    """

    buf: memoryview
    _region_id: int
    _page_index: int
    _size: int

    @property
    def region_id(self) -> int:
        """The region that the page lies in."""
        return self._region_id

    @property
    def page_index(self) -> int:
        """The page's index in its region."""
        return self._page_index

    @property
    def size(self) -> int:
        """Bytes of the chunk that the page will hold."""
        return self._size


@dataclass
class MappedRegion:
    """A region over a mapping that the caller made. Handlers map by themselves; this is for tests and tools.

    Attributes:
        region_id: The region.
        handle: Whatever stands for it where it came from.
        size: Its bytes.
    """

    region_id: int
    handle: Any
    size: int
    _mmap_obj: mmap.mmap | None = field(default=None, repr=False)
    _view: memoryview | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self._mmap_obj is not None:
            self._view = memoryview(self._mmap_obj)

    @property
    def is_mapped(self) -> bool:
        """Whether there is a mapping."""
        return self._view is not None

    def get_buffer_view(self, offset: int, size: int) -> memoryview | None:
        """A view of ``size`` bytes at ``offset``; ``None`` where there are no such bytes."""
        if self._view is None or offset < 0 or size < 0 or offset + size > len(self._view):
            return None
        return self._view[offset : offset + size]

    def read_bytes(self, offset: int, size: int) -> bytes:
        """A copy of bytes, as many of them as there are.

        Raises:
            RuntimeError: There is no mapping.
        """
        if self._view is None:
            raise RuntimeError(f"region {self.region_id} is not mapped")
        return bytes(self._view[offset : offset + size])

    def release(self) -> None:
        """Lets go of the mapping, which can be closed once no view is left."""
        if self._view is not None:
            self._view.release()
            self._view = None
