"""How fast a GPU reads and writes pages of maru, registered with CUDA and not, beside plain pinned memory.

    python/benchmarks/gpu.py [--chunk-size MIB] [--chunks N] [--rounds N]

It needs torch with CUDA, and `maru-server` on the PATH. Chunks go to the GPU and back one after the other, as an engine
loads and saves a prompt; each figure is the median over the rounds, with the least and the greatest. What arrives is
compared byte by byte.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from maru import MaruConfig, MaruHandler

# The server of the examples serves here as well.
sys.path.append(str(Path(__file__).parents[2] / "examples"))
from server import running_server

READ_ONLY = 0x08


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--chunk-size", type=int, default=4, metavar="MIB")
    arguments.add_argument("--chunks", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use")
    chunk_size = options.chunk_size << 20
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{options.chunks} chunks of {options.chunk_size} MiB")
    with running_server(str((options.chunks + 8) * chunk_size)) as url:
        measure(url, chunk_size, options.chunks, options.rounds)


def measure(url: str, chunk_size: int, chunks: int, rounds: int) -> None:
    def handler(pool_size: int) -> MaruHandler:
        config = MaruConfig(server_url=url, chunk_size_bytes=chunk_size, pool_size=pool_size, timeout_ms=60_000)
        maru = MaruHandler(config)
        assert maru.connect()
        return maru

    writer, reader = handler(chunks * chunk_size), handler(chunk_size)
    keys = [f"chunk-{n}" for n in range(chunks)]
    on_gpu = torch.randint(0, 256, (chunks, chunk_size), dtype=torch.uint8, device="cuda")
    back = torch.empty_like(on_gpu)

    def tensors(views: list[memoryview]) -> list[torch.Tensor]:
        return [torch.frombuffer(view, dtype=torch.uint8) for view in views]

    handles = [writer.alloc(chunk_size) for _ in keys]
    own = tensors([handle.buf for handle in handles])
    region = torch.frombuffer(writer.get_buffer_view(handles[0].region_id, 0, chunks * chunk_size), dtype=torch.uint8)
    plain = [torch.empty(chunk_size, dtype=torch.uint8) for _ in keys]
    pinned = [torch.empty(chunk_size, dtype=torch.uint8, pin_memory=True) for _ in keys]
    for memory in (*plain, *pinned):
        memory.zero_()

    def row(name: str, memory: list[torch.Tensor], writes: bool = True) -> None:
        to_host = rate(lambda: copy(memory, list(on_gpu)), chunks * chunk_size, rounds) if writes else None
        to_gpu = rate(lambda: copy(list(back), memory), chunks * chunk_size, rounds)
        assert torch.equal(back, on_gpu), f"{name}: the bytes differ"
        back.zero_()
        cells = [f"{middle:8.1f} ({least:.1f} to {most:.1f})" for middle, least, most in (to_gpu, to_host or to_gpu)]
        print(f"{name:46}{cells[0]:>26}{cells[1] if to_host else '-':>26}", flush=True)

    print(f"{'GB/s':46}{'to the GPU':>26}{'from the GPU':>26}")
    row("plain memory", plain)
    row("pinned memory of torch", pinned)
    row("own pages, not registered", own)
    register(region, 0)
    row("own pages, registered", own)
    assert all(writer.batch_store(keys, handles))
    infos = reader.batch_retrieve(keys)
    theirs = tensors([info.view for info in infos if info is not None])
    row("another instance's chunks, not registered", theirs, writes=False)
    shared = torch.frombuffer(reader.get_buffer_view(infos[0].region_id, 0, chunks * chunk_size), dtype=torch.uint8)
    register(shared, READ_ONLY)
    row("another instance's chunks, registered read-only", theirs, writes=False)
    for memory in (shared, region):
        assert int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())) == 0


def register(memory: torch.Tensor, flags: int) -> None:
    began = time.perf_counter()
    status = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, flags))
    took = time.perf_counter() - began
    print(f"  cudaHostRegister, flags {flags}: status {status}, {memory.nbytes / took / 1e9:.1f} GB/s")
    if status != 0:
        sys.exit("CUDA refuses to register the region")


def copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source, non_blocking=True)


def rate(call: Callable[[], None], total: int, rounds: int) -> tuple[float, float, float]:
    rates = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        rates.append(total / (time.perf_counter() - began) / 1e9)
    # The first warms up.
    return statistics.median(rates[1:]), min(rates[1:]), max(rates[1:])


if __name__ == "__main__":
    main()
