"""The pools that a server hands memory out of, under the names of the original's shared-memory client."""

from .client import MaruShmClient
from .types import DaxType, MaruHandle, MaruPoolInfo

__all__ = ["DaxType", "MaruHandle", "MaruPoolInfo", "MaruShmClient"]
