"""Which regions CUDA is told of, and until when. The part of CUDA is played, since its rules are those of two calls."""

from __future__ import annotations

import gc
import logging
import mmap
import weakref
from types import SimpleNamespace

import pytest

from maru_lmcache.cuda import HostRegistrations
from maru_lmcache.memory import bytes_of

READ_ONLY = 8


class Cuda:
    """`torch.cuda` with a GPU, which remembers what is registered."""

    def __init__(self, status: int = 0) -> None:
        self.registered: dict[int, tuple[int, int]] = {}
        self.status = status

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def cudart(self) -> SimpleNamespace:
        return SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister)

    def _register(self, address: int, size: int, flags: int) -> int:
        assert address not in self.registered
        if self.status == 0:
            self.registered[address] = (size, flags)
        return self.status

    def _unregister(self, address: int) -> int:
        del self.registered[address]
        return 0


class Owner(bytearray):
    """Memory that can be watched."""


def test_a_region_is_registered_once_and_as_writable_as_its_mapping() -> None:
    cuda = Cuda()
    registrations = HostRegistrations(cuda)
    own, others = memoryview(mmap.mmap(-1, 8192)), memoryview(mmap.mmap(-1, 4096)).toreadonly()
    assert registrations.lacks(1) and registrations.lacks(2)
    for _ in range(2):
        registrations.add(1, own)
        registrations.add(2, others)
    assert not registrations.lacks(1) and not registrations.lacks(2)
    assert cuda.registered == {
        bytes_of(own).data_ptr(): (8192, 0),
        bytes_of(others).data_ptr(): (4096, READ_ONLY),
    }


def test_a_registered_region_stays_mapped_until_it_is_taken_back() -> None:
    cuda = Cuda()
    registrations = HostRegistrations(cuda)
    memory = Owner(4096)
    alive = weakref.ref(memory)
    registrations.add(1, memoryview(memory))
    del memory
    gc.collect()
    assert alive() is not None
    registrations.close()
    assert cuda.registered == {} and alive() is None


def test_nothing_is_registered_after_the_end() -> None:
    cuda = Cuda()
    registrations = HostRegistrations(cuda)
    registrations.close()
    assert not registrations.lacks(1) and not registrations.started
    registrations.add(1, memoryview(bytearray(4096)))
    assert cuda.registered == {}


def test_a_refusal_is_logged_and_neither_repeated_nor_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    cuda = Cuda(status=801)
    registrations = HostRegistrations(cuda)
    logging.getLogger("maru_lmcache.cuda").addHandler(caplog.handler)
    registrations.add(7, memoryview(bytearray(4096)))
    assert "cudaHostRegister of region 7: CUDA error 801" in caplog.text
    assert not registrations.lacks(7)
    registrations.close()  # taking it back would be an error of `Cuda`, and logged
    assert len(caplog.records) == 1


def test_without_a_gpu_there_is_nothing_to_do() -> None:
    registrations = HostRegistrations(SimpleNamespace(is_available=lambda: False))
    assert not registrations.lacks(1) and not registrations.started
    registrations.add(1, memoryview(bytearray(4096)))
    registrations.close()
