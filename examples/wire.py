"""A client in nothing but the standard library, written from docs/protocol.md: stores a chunk and reads it in place.

Usage: wire.py SOCKET
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import zlib

MASK = (1 << 64) - 1

REQUEST_ALLOC, REGISTER_KV, LOOKUP_KV, UNPIN_KV, DELETE_KV, GET_STATS, HELLO = 0x01, 0x10, 0x11, 0x15, 0x13, 0xF0, 0xFE
GET_REGION = 0x05
RESPONSE, PIN, NO_REPLY = 1 << 0, 1 << 1, 1 << 3
DATA, CONTROL = 0, 1
PINS = 7  # a figure of GET_STATS


def digest(key: bytes, message: bytes) -> bytes:
    """SipHash-1-3 with 128-bit output."""
    k0, k1 = struct.unpack("<2Q", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & MASK

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0], v[2] = (v[0] + v[1]) & MASK, (v[2] + v[3]) & MASK
            v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
            v[0] = rotate(v[0], 32)
            v[2], v[0] = (v[2] + v[1]) & MASK, (v[0] + v[3]) & MASK
            v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
            v[2] = rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(1)
        v[0] ^= word
    halves = []
    for place, value in ((2, 0xEE), (1, 0xDD)):
        v[place] ^= value
        rounds(3)
        halves.append(v[0] ^ v[1] ^ v[2] ^ v[3])
    return struct.pack("<2Q", *halves)


def checksum(chunk: bytes) -> int:
    """CRC-32, where 0 stands for no checksum."""
    return max(zlib.crc32(chunk), 1)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, path: str, kind: int, session: bytes = bytes(16)) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._next_id = 1
        # versions 1 to 1, features, kind, resume, name, session, no auth token
        body = struct.pack("<2B6xQ2B6x128s16s72x", 1, 1, 0, kind, 0, b"wire.py", session)
        welcome, _ = self.ask(HELLO, body)
        _, self.session, self.digest_key, _, self.instance = struct.unpack_from("<Q16s16sQI", welcome)

    def tell(self, opcode: int, body: bytes, flags: int = 0) -> int:
        """Sends a request; its id."""
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._socket.sendall(struct.pack("<2s2B2H2I", b"MR", 1, opcode, flags, 0, request_id, len(body)) + body)
        return request_id

    def ask(self, opcode: int, body: bytes, flags: int = 0) -> tuple[bytes, list[int]]:
        """Sends a request; the body of its response, and the descriptors that came along."""
        asked = self.tell(opcode, body, flags)
        received, descriptors = self._receive(16, b"")
        magic, version, echoed, response, status, request_id, length = struct.unpack("<2s2B2H2I", received)
        if (magic, version, response) != (b"MR", 1, RESPONSE):
            raise RuntimeError("this is no response")
        answer, more = self._receive(length, b"")
        if status != 0:
            raise RuntimeError(f"refused with status {status}")
        if (echoed, request_id) != (opcode, asked):
            raise RuntimeError("this is not the answer to what was asked")
        return answer, descriptors + more

    def _receive(self, length: int, received: bytes) -> tuple[bytes, list[int]]:
        descriptors: list[int] = []
        while len(received) < length:
            part, with_it, _, _ = socket.recv_fds(self._socket, length - len(received), 1)
            if not part:
                raise RuntimeError("the server closed the connection")
            received, descriptors = received + part, descriptors + list(with_it)
        return received, descriptors


def pins(data: Connection) -> int:
    figures, _ = data.ask(GET_STATS, b"")
    return sum(value for kind, _, value in struct.iter_unpack("<2H4xQ", figures) if kind == PINS)


def main(path: str) -> None:
    # The owner: a region of two pages, and a chunk in the second of them.
    data = Connection(path, DATA)
    control = Connection(path, CONTROL, data.session)
    page_size = 1 << 20
    answer, (descriptor,) = control.ask(REQUEST_ALLOC, struct.pack("<2Q2I", 2 * page_size, page_size, 0xFFFFFFFF, 0))
    region, size = struct.unpack_from("<I12xQ", answer)
    own = mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(descriptor)
    own[page_size : page_size + 5] = b"chunk"
    key = digest(data.digest_key, b"llama@layer0@chunk17")
    status, _ = data.ask(REGISTER_KV, key + struct.pack("<4I", region, 5, 1, checksum(b"chunk")))
    print("stored:", status[0] == 0)

    # Another instance: acquire, map for reading, read in place, release.
    reader = Connection(path, DATA)
    assert digest(reader.digest_key, b"llama@layer0@chunk17") == key
    location, _ = reader.ask(LOOKUP_KV, key, PIN)
    found, region, offset, length, _, expected = struct.unpack("<B3xI2Q2I", location)
    _, (descriptor,) = Connection(path, CONTROL, reader.session).ask(GET_REGION, struct.pack("<2I", region, 0))
    memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    os.close(descriptor)
    chunk = memory[offset : offset + length]
    assert expected in (0, checksum(chunk))  # 0: it has none
    print("read:", found == 0, chunk)

    status, _ = data.ask(DELETE_KV, key)
    print("deleted while it is being read:", status[0] == 0, "with", pins(data), "pin")
    reader.tell(UNPIN_KV, key, PIN | NO_REPLY)
    assert pins(reader) == 0  # the same connection, so in order
    status, _ = data.ask(DELETE_KV, key)
    print("deleted afterwards:", status[0] == 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
