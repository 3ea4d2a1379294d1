"""What a handler is told before it connects."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _boolean_from(variable: str, default: bool) -> bool:
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{variable} is one of {', '.join(_BOOLEANS)}, not {text!r}") from None


@dataclass
class MaruConfig:
    """How a :class:`maru.MaruHandler` connects, and how it gets its memory.

    Attributes:
        server_url: Where the server listens: ``unix:///path``, ``tcp://host:port``, ``maru://host:port`` or
            ``tls://host:port``. A client on the server's host moves from TCP onto the Unix socket by itself.
        instance_id: The instance's name, for people: 1 to 128 bytes. ``None`` becomes a random UUID.
        pool_size: Bytes of the first region, which the server gives to this instance alone at ``connect()``.
        chunk_size_bytes: Bytes of the largest chunk. Each chunk takes a whole page of that size, rounded up to 4096.
        auto_connect: Whether ``with MaruHandler(config)`` connects.
        timeout_ms: Milliseconds that a request may take.
        eager_map: Whether the regions of other instances are mapped at ``connect()`` rather than when a chunk in them
            is read first. ``MARU_EAGER_MAP`` overrides it.
        auto_expand: Whether there may be further regions when all pages are in use.
        expand_size: Bytes of each further region; ``None`` for ``pool_size``.
        shared_access: How chunks are seen: ``"read-only"``, or ``"private"`` for consumers that refuse memory which
            they can't write. What is written into another instance's chunk then stays in this process.
        auth_token: The secret that servers on TCP may ask for, at most 64 bytes.
        tls_ca: File in PEM with the authorities that a server on ``tls://`` is believed by; ``None`` for those of this
            host.
        tls_identity: Files in PEM with the certificate and the private key of this client, for servers on ``tls://``
            that ask for one.
        device_map: Where pools lie on this host, by their UUIDs, for a server on another host; ``None`` to look for
            them under the server's path and at all ``/dev/dax*``.
        checksum: Whether chunks are stored with a checksum of their bytes. Whoever reads such a chunk, with or without
            this option, takes it for missing where its bytes are not those that were stored, and logs an error.
        use_async_rpc, max_inflight: Taken for compatibility. All calls of a handler share its connections, any number
            of them at a time.
        rm_address: Taken for compatibility. There is no resource manager: the server hands out memory itself.
        enable_stats: Whether the handler measures how long its calls take and tells the server every two seconds, where
            ``maru top`` and the metrics show it. ``MARU_STAT`` overrides it.

    Raises:
        ValueError: Sizes contradict each other, or a variable of the environment is not a boolean.
    """

    server_url: str = "tcp://localhost:5555"
    instance_id: str | None = None
    pool_size: int = 100 * 1024 * 1024
    chunk_size_bytes: int = 1024 * 1024
    auto_connect: bool = True
    timeout_ms: int = 2000
    use_async_rpc: bool = True
    max_inflight: int = 64
    eager_map: bool = True
    auto_expand: bool = True
    expand_size: int | None = None
    rm_address: str = "127.0.0.1:9850"
    enable_stats: bool = False
    shared_access: Literal["read-only", "private"] = "read-only"
    auth_token: str | bytes | None = None
    tls_ca: str | os.PathLike[str] | None = None
    tls_identity: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None
    device_map: Mapping[str, str | os.PathLike[str]] | None = None
    checksum: bool = False

    def __post_init__(self) -> None:
        if self.instance_id is None:
            self.instance_id = str(uuid.uuid4())
        self.eager_map = _boolean_from("MARU_EAGER_MAP", self.eager_map)
        self.enable_stats = _boolean_from("MARU_STAT", self.enable_stats)
        if self.chunk_size_bytes <= 0:
            raise ValueError(f"chunk_size_bytes has to be positive, not {self.chunk_size_bytes}")
        if self.pool_size < self.chunk_size_bytes:
            raise ValueError(f"a pool_size of {self.pool_size} bytes can't hold a chunk of {self.chunk_size_bytes}")
        if self.expand_size is not None:
            if not self.auto_expand:
                raise ValueError("expand_size is of no use without auto_expand")
            if self.expand_size < self.chunk_size_bytes:
                raise ValueError(
                    f"an expand_size of {self.expand_size} bytes can't hold a chunk of {self.chunk_size_bytes}"
                )
        if self.shared_access not in ("read-only", "private"):
            raise ValueError(f"shared_access is 'read-only' or 'private', not {self.shared_access!r}")
