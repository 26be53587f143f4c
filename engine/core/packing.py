"""Small values that resemble one another, kept small: what an idle run takes in memory.

Pure. The snapshots of runs that wait at the same place of the same workflow differ in ids, times and offsets only. Each is
compressed against the first one of its kind, and against its key, of which it is full: some 70 bytes are left of 300.
"""

from __future__ import annotations

import zlib

MAX_SAMPLES = 255
SAMPLE_BYTES = 2000
_WINDOW_BITS = -12  # raw, 4 KB: a sample, a key and a snapshot of the usual size


class Packer:
    """Packs values; only the same packer unpacks them."""

    def __init__(self) -> None:
        self._samples: list[bytes] = [b""]
        self._sample_of: dict[str, int] = {}

    def pack(self, kind: str, key: str, value: bytes) -> bytes:
        """`value` under `key`; values of one `kind` resemble one another."""
        number = self._sample_of.get(kind)
        if number is None:
            number = 0
            if len(self._samples) <= MAX_SAMPLES:
                number = self._sample_of[kind] = len(self._samples)
                self._samples.append(value[:SAMPLE_BYTES])
        dictionary = self._samples[number] + key.encode()
        squeeze = zlib.compressobj(6, zlib.DEFLATED, _WINDOW_BITS, 4, zlib.Z_DEFAULT_STRATEGY, dictionary)
        return bytes((number,)) + squeeze.compress(value) + squeeze.flush()

    def unpack(self, key: str, packed: bytes) -> bytes:
        """The value that was packed under `key`."""
        return zlib.decompressobj(_WINDOW_BITS, self._samples[packed[0]] + key.encode()).decompress(packed[1:])
