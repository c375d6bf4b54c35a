# SPDX-License-Identifier: Apache-2.0
"""Xet storage, as https://huggingface.co/docs/xet describes it: chunks come in xorbs, files in shards naming them."""

import struct

import pyarrow


NONE, LZ4, GROUPED_LZ4 = 0, 1, 2
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
END = b"\xff" * 32


class XetStore:
    """Keeps xorbs; a shard makes files of their chunks, found by their sha256."""

    def __init__(self):
        self.xorbs: dict[bytes, list[bytes]] = {}
        self.files: dict[str, list[tuple[bytes, int, int]]] = {}

    def put_xorb(self, name: str, content: bytes) -> bool:
        key = _hash_of(name)
        new = key not in self.xorbs
        self.xorbs[key] = _chunks(content)
        return new

    def put_shard(self, content: bytes) -> int:
        new = 0
        for sha, segments in _files_of(content):
            missing = [segment for segment in segments if segment[0] not in self.xorbs]
            if missing:
                raise ValueError("a shard names a xorb that was never uploaded")
            new |= sha not in self.files
            self.files[sha] = segments
        return int(new)

    def file(self, sha: str) -> bytes | None:
        segments = self.files.get(sha)
        if segments is None:
            return None
        return b"".join(chunk for xorb, start, end in segments for chunk in self.xorbs[xorb][start:end])


def _hash_of(name: str) -> bytes:
    """A hash is written as four little-endian numbers."""
    return b"".join(int(name[i : i + 16], 16).to_bytes(8, "little") for i in range(0, 64, 16))


def _sha_of(stored: bytes) -> str:
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", stored))


def _chunks(content: bytes) -> list[bytes]:
    """Each chunk has a header of 8 bytes: version, compressed size (3), scheme, size (3); a footer may follow."""
    chunks, at = [], 0
    while at + 8 <= len(content) and content[at] == 0:
        packed, scheme = int.from_bytes(content[at + 1 : at + 4], "little"), content[at + 4]
        size = int.from_bytes(content[at + 5 : at + 8], "little")
        at += 8
        chunks.append(_unpacked(content[at : at + packed], scheme, size))
        at += packed
    return chunks


def _unpacked(data: bytes, scheme: int, size: int) -> bytes:
    if scheme == NONE:
        return data
    data = pyarrow.Codec("lz4").decompress(data, decompressed_size=size, asbytes=True)
    if scheme == LZ4:
        return data
    # Bytes 0, 4, 8, ... first, then 1, 5, 9, ... and so on.
    whole, at = bytearray(size), 0
    for first in range(4):
        count = len(range(first, size, 4))
        whole[first::4] = data[at : at + count]
        at += count
    return bytes(whole)


def _files_of(shard: bytes):
    """sha256 and segments `(xorb, first chunk, end)` of each file of a shard."""
    at = 48
    while shard[at : at + 32] != END:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        at += 48
        segments = []
        for _ in range(count):
            start, end = struct.unpack_from("<II", shard, at + 40)
            segments.append((shard[at : at + 32], start, end))
            at += 48
        if flags & WITH_VERIFICATION:
            at += 48 * count
        if flags & WITH_METADATA:
            yield _sha_of(shard[at : at + 32]), segments
            at += 48
