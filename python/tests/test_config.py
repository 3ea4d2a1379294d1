"""What a configuration is, and what makes no sense in one."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

from maru import MaruConfig, MaruHandler


def test_defaults_are_those_of_the_original() -> None:
    config = MaruConfig()
    assert config.server_url == "tcp://localhost:5555"
    assert (config.pool_size, config.chunk_size_bytes) == (104857600, 1048576)
    assert (config.auto_connect, config.use_async_rpc, config.eager_map, config.auto_expand) == (True,) * 4
    assert (config.timeout_ms, config.max_inflight, config.expand_size) == (2000, 64, None)
    assert (config.rm_address, config.enable_stats) == ("127.0.0.1:9850", False)


def test_an_instance_without_a_name_gets_a_uuid() -> None:
    first, second = MaruConfig(), MaruConfig(instance_id=None)
    assert str(uuid.UUID(first.instance_id)) == first.instance_id
    assert first.instance_id != second.instance_id
    assert MaruConfig(instance_id="engine-0").instance_id == "engine-0"


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_size_bytes": 0},
        {"chunk_size_bytes": -1},
        {"pool_size": 4096, "chunk_size_bytes": 8192},
        {"auto_expand": False, "expand_size": 1 << 30},
        {"expand_size": 4096},
        {"shared_access": "writable"},
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        MaruConfig(**settings)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("off", False), ("No", False), ("TRUE", True), ("1", True)])
def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("MARU_EAGER_MAP", text)
    monkeypatch.setenv("MARU_STAT", text)
    config = MaruConfig(eager_map=not value, enable_stats=not value)
    assert (config.eager_map, config.enable_stats) == (value, value)


def test_a_variable_that_is_no_boolean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARU_EAGER_MAP", "maybe")
    with pytest.raises(ValueError, match="MARU_EAGER_MAP.*maybe"):
        MaruConfig()


@pytest.mark.parametrize(
    "package", ["maru", "maru_common", "maru_handler", "maru_handler.memory.types", "maru_shm", "maru_lmcache"]
)
def test_each_package_can_be_imported_first_and_needs_neither_torch_nor_numpy(package: str) -> None:
    code = f"import sys, {package}; assert not {{'torch', 'numpy', 'lmcache'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_making_a_handler_does_not_connect() -> None:
    handler = MaruHandler(MaruConfig(server_url="unix:///nowhere/maru.sock"))
    assert not handler.connected
    assert not handler.connect(), "nobody listens there"
    assert not handler.connected


def test_an_address_that_is_none_is_an_answer_not_an_exception() -> None:
    assert MaruHandler(MaruConfig(server_url="carrier-pigeon")).connect() is False


def test_a_device_map_names_pools_by_their_uuids() -> None:
    config = MaruConfig(server_url="tcp://localhost:1", device_map={"/dev/dax0.0": "67e55044"})
    assert not MaruHandler(config).connect(), "the name and the path are the wrong way round"
