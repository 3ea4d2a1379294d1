"""LMCache on maru: the allocator that LMCache's MaruBackend asks for.

Importing this package needs neither torch nor LMCache; touching one of its names does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maru_lmcache.adapter import CxlMemoryAdapter

    CxlMemoryAllocator = CxlMemoryAdapter

__all__ = ["CxlMemoryAdapter", "CxlMemoryAllocator"]


def __getattr__(name: str) -> type:
    # `CxlMemoryAllocator` is what older configurations call the same class.
    if name in __all__:
        from maru_lmcache.adapter import CxlMemoryAdapter

        return CxlMemoryAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
