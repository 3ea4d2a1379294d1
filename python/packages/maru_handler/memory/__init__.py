"""The types of memory that a handler deals in."""

from .types import AllocHandle, MappedRegion, MemoryInfo

__all__ = ["AllocHandle", "MappedRegion", "MemoryInfo"]
