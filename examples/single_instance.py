"""One instance: a page is allocated, written in place, stored, and read where it lies.

pip install maru-kv
python examples/single_instance.py
"""

from __future__ import annotations

from maru import MaruConfig, MaruHandler
from server import running_server

CHUNK = 1 << 20


def main() -> None:
    with running_server() as url, MaruHandler(MaruConfig(server_url=url, chunk_size_bytes=CHUNK)) as maru:
        handle = maru.alloc(CHUNK)
        handle.buf[:] = b"A" * CHUNK  # into shared memory; no other buffer is involved
        print(f"wrote {handle.size} bytes into page {handle.page_index} of region {handle.region_id}")
        print(f"stored: {maru.store('prompt-chunk-0', handle)}")

        info = maru.retrieve("prompt-chunk-0")
        assert info is not None
        print(f"read {len(info.view)} bytes in place, all as written: {info.view == b'A' * CHUNK}")
        print(f"deleted while it is being read: {maru.delete('prompt-chunk-0')}")
        del info
        print(f"deleted afterwards: {maru.delete('prompt-chunk-0')}")


if __name__ == "__main__":
    main()
