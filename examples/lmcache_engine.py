"""What the LMCache examples share: engines that keep their KV cache in plain CPU memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lmcache.v1.cache_engine import LMCacheEngine, LMCacheEngineBuilder
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector import GPUConnectorInterface
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.metadata import LMCacheMetadata

LAYERS, HEADS, HEAD_SIZE = 4, 8, 32
HIDDEN = HEADS * HEAD_SIZE


def start_engine(role: str, url: str, *arguments: str) -> subprocess.Popen[str]:
    """The running example again, as a process that plays a role."""
    # LMCache names chunks by Python's hashes, which are the same in processes with the same seed.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "LMCACHE_TRACK_USAGE": "false"}
    return subprocess.Popen(
        [sys.executable, sys.argv[0], role, url, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def expect(process: subprocess.Popen[str], line: str) -> None:
    """Waits for what a process says next."""
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if said != line:
        sys.exit(f"expected {line!r}, heard {said!r}")
    print(line)


class CpuConnector(GPUConnectorInterface):
    """Copies between chunks and a KV cache in CPU memory, of shape [K and V, layers, tokens, hidden], as connectors to
    GPUs do for the paged memory of an engine. Calls bring the cache along as `kvcaches`."""

    def from_gpu(self, memory_obj: MemoryObj, start: int, end: int, *, kvcaches: torch.Tensor, **_: object) -> None:
        memory_obj.tensor.copy_(kvcaches[:, :, start:end])

    def to_gpu(self, memory_obj: MemoryObj, start: int, end: int, *, kvcaches: torch.Tensor, **_: object) -> None:
        kvcaches[:, :, start:end].copy_(memory_obj.tensor)

    def batched_from_gpu(
        self, memory_objs: list[MemoryObj], starts: list[int], ends: list[int], **more: object
    ) -> None:
        for each in zip(memory_objs, starts, ends, strict=True):
            self.from_gpu(*each, **more)

    def batched_to_gpu(self, memory_objs: list[MemoryObj], starts: list[int], ends: list[int], **more: object) -> None:
        for each in zip(memory_objs, starts, ends, strict=True):
            self.to_gpu(*each, **more)

    def get_shape(self, num_tokens: int) -> torch.Size:
        return torch.Size([2, LAYERS, num_tokens, HIDDEN])


@contextmanager
def engine(name: str, url: str) -> Iterator[LMCacheEngine]:
    """A whole LMCacheEngine with the configuration `lmcache.yaml`, but for the server and a smaller pool."""
    config = LMCacheEngineConfig.from_file(str(Path(__file__).with_name("lmcache.yaml")))
    config.maru_path = url
    config.maru_pool_size = 1 / 16
    config.extra_config["maru_instance_id"] = name
    metadata = LMCacheMetadata(
        model_name="example",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.bfloat16,
        kv_shape=(LAYERS, 2, config.chunk_size, HEADS, HEAD_SIZE),
        role="worker",
        chunk_size=config.chunk_size,
    )
    engine = LMCacheEngineBuilder.get_or_create(
        name, config, metadata, CpuConnector(), lambda tensor, _: None, lambda value, _: value
    )
    engine.post_init()
    try:
        yield engine
    finally:
        LMCacheEngineBuilder.destroy(name)


def wait_until_stored(lmcache: LMCacheEngine, tokens: list[int]) -> None:
    """LMCache stores behind the scenes."""
    deadline = time.monotonic() + 10
    while lmcache.lookup(tokens) < len(tokens):
        if time.monotonic() > deadline:
            sys.exit("the chunks were not stored")
        time.sleep(0.01)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Tokens that every process makes alike."""
    return torch.randint(32_000, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def kv_cache_of(tokens: list[int]) -> torch.Tensor:
    """What a model would compute from the tokens: bytes that depend on each of them and on where it stands."""
    seed = hash(tuple(tokens)) % 2**31
    values = torch.rand(2, LAYERS, len(tokens), HIDDEN, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16)


def empty_kv_cache(tokens: list[int]) -> torch.Tensor:
    """Room for it."""
    return torch.zeros(2, LAYERS, len(tokens), HIDDEN, dtype=torch.bfloat16)
