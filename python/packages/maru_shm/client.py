"""Asks a server for its pools."""

from __future__ import annotations

import uuid

from maru_handler import _native
from maru_handler._native import MaruError

from .types import DaxType, MaruPoolInfo

#: The smallest page; no memory is asked for.
_PAGE = 4096


class MaruShmClient:
    """Sees the pools of a server. Memory is handed out to handlers alone, so there is nothing to allocate or map here.

    Args:
        address: A server URL as in :class:`maru.MaruConfig`.
    """

    def __init__(self, address: str = "tcp://localhost:5555") -> None:
        self._address = address
        self._client: _native.Client | None = None

    def is_running(self) -> bool:
        """Whether the server answers."""
        try:
            self.stats()
        except MaruError:
            return False
        return True

    def stats(self) -> list[MaruPoolInfo]:
        """The pools.

        Raises:
            MaruError: The server could not be asked.
        """
        if self._client is None:
            self._client = _native.Client(
                self._address,
                f"pools-{uuid.uuid4()}",
                _PAGE,
                _PAGE,
                timeout_ms=2000,
                expand_size=None,
                auto_expand=False,
                eager=False,
                prefault=False,
                map_all=False,
                copy_on_write=False,
                checksum=False,
                auth_token=None,
                report_stats=False,
                tls_ca=None,
                tls_identity=None,
                device_map={},
            )
        return [
            MaruPoolInfo(path, DaxType.DEV_DAX if is_device else DaxType.FS_DAX, size, free, granularity)
            for path, is_device, size, free, granularity in self._client.pools()
        ]

    def close(self) -> None:
        """Closes the connection; the next question opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
