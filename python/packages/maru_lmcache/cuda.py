"""Registers regions with CUDA, so that a GPU reaches chunks where they are; without a GPU there is nothing to do."""

from __future__ import annotations

import threading
from typing import Any

import torch
from lmcache.logging import init_logger

from maru_lmcache.memory import bytes_of

logger = init_logger(__name__)

_READ_ONLY = (
    0x08  # cudaHostRegisterReadOnly: without it CUDA asks to write, which the mapping of another's region refuses
)


class HostRegistrations:
    """The regions that CUDA knows. Each stays mapped until `close`, since CUDA would go on using its addresses.

    LMCache's kernels take the address of a chunk, so that one in memory which is not registered is an illegal access.

    Args:
        cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda: Any = cuda if cuda.is_available() else None
        self._lock = threading.Lock()
        # What is registered; nothing of a region that CUDA refused.
        self._regions: dict[int, torch.Tensor | None] = {}

    @property
    def started(self) -> bool:
        """Whether this process uses a GPU. One that never does, like a scheduler, need not begin because of us."""
        return self._cuda is not None and self._cuda.is_initialized()

    def lacks(self, region_id: int) -> bool:
        """Whether there is a GPU that has not been told of the region."""
        return self._cuda is not None and region_id not in self._regions

    def add(self, region_id: int, region: memoryview) -> None:
        """Registers a region, once. A failure is logged: chunks in this region can't be copied to or from the GPU."""
        with self._lock:
            if not self.lacks(region_id):
                return
            memory = bytes_of(region)
            flags = _READ_ONLY if region.readonly else 0
            done = self._call("cudaHostRegister", region_id, memory.data_ptr(), memory.nbytes, flags)
            self._regions[region_id] = memory if done else None

    def close(self) -> None:
        """Takes every region back from CUDA, lets go of its memory, and registers no other."""
        with self._lock:
            while self._regions:
                region_id, memory = self._regions.popitem()
                if memory is not None:
                    self._call("cudaHostUnregister", region_id, memory.data_ptr())
            self._cuda = None

    def _call(self, function: str, region_id: int, *arguments: int) -> bool:
        try:
            status = int(getattr(self._cuda.cudart(), function)(*arguments))
        except Exception as error:
            logger.error("%s of region %d: %s", function, region_id, error)
            return False
        if status != 0:
            logger.error("%s of region %d: CUDA error %d", function, region_id, status)
        return status == 0
