"""LMCache's storage manager over a real server, as the tests of LMCache want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.event_manager import EventManager
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.pin_monitor import PinMonitor
from lmcache.v1.storage_backend.storage_manager import StorageManager

from maru import MaruHandler
from support import wait_until

CHUNK_TOKENS = 16
LAYERS, HEADS, HEAD_SIZE = 2, 4, 16
BACKEND = "MaruBackend"


def key(number: int) -> CacheEngineKey:
    return CacheEngineKey("model", 1, 0, number, torch.float16)


def shape(tokens: int = CHUNK_TOKENS) -> torch.Size:
    return torch.Size([2, LAYERS, tokens, HEADS * HEAD_SIZE])


class Scheduler:
    """Hears what a prefetch found, in place of a scheduler's process."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {}

    def send_response_to_scheduler(self, lookup_id: str, tokens: int) -> None:
        self.answers[lookup_id] = tokens


class Instance:
    """A storage manager whose only backend is maru."""

    def __init__(self, url: str, **metadata: object) -> None:
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK_TOKENS,
            local_cpu=False,
            max_local_cpu_size=0,
            maru_path=url,
            maru_pool_size=1 / 256,
            enable_async_loading=True,
        )
        PinMonitor.GetOrCreate(config)
        self.scheduler = Scheduler()
        self.manager = StorageManager(
            config,
            LMCacheMetadata(
                model_name="model",
                local_world_size=1,
                local_worker_id=0,
                kv_dtype=torch.float16,
                kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE),
                chunk_size=CHUNK_TOKENS,
                **{"world_size": 1, "worker_id": 0, "role": "worker", **metadata},
            ),
            EventManager(),
            async_lookup_server=self.scheduler,
        )
        self.backend = self.manager.storage_backends[BACKEND]
        self.handler: MaruHandler = self.backend._handler

    def allocate(self, fill: int, tokens: int = CHUNK_TOKENS) -> MemoryObj:
        obj = self.manager.allocate([shape(tokens)], [torch.float16])
        assert obj is not None
        obj.tensor.fill_(fill)
        return obj

    def put(self, numbers: Sequence[int], tokens: int = CHUNK_TOKENS) -> None:
        """Chunks whose elements are all their number."""
        self.manager.batched_put([key(number) for number in numbers], [self.allocate(n, tokens) for n in numbers])
        for number in numbers:
            wait_until("it is stored", lambda number=number: self.manager.contains(key(number)) == BACKEND)

    def get(self, number: int) -> torch.Tensor | None:
        obj = self.manager.get(key(number))
        if obj is None:
            return None
        copy = obj.tensor.clone()
        obj.ref_count_down()
        return copy

    def run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.manager.loop).result(timeout=10)


StartInstance = Callable[..., Instance]
