# SPDX-License-Identifier: Apache-2.0
"""SHA-256 whose state can be saved, so that hashing hundreds of gigabytes can go on.

hashlib cannot hand out its state. OpenSSL's own functions keep it in a plain
structure (openssl/sha.h: SHA256state_st, 8 x u32 hash, 2 x u32 bit count,
16 x u32 buffer, 2 x u32 lengths: 112 bytes); they are called through ctypes.
Where libcrypto or the functions are absent, hashing works and cannot go on.
"""

import ctypes
import ctypes.util
import hashlib
import re
from functools import cache
from typing import Any, Self

_STATE_BYTES = 112


class ResumableSha256:
    """SHA-256 of bytes that come in pieces."""

    def __init__(self) -> None:
        """Start with no bytes."""
        self._library = _libcrypto()
        self._state = ctypes.create_string_buffer(_STATE_BYTES)
        self._plain = None if self._library else hashlib.sha256()
        if self._library:
            self._library.SHA256_Init(self._state)

    def update(self, data: bytes) -> None:
        """Add bytes."""
        if self._plain is not None:
            self._plain.update(data)
            return
        assert self._library is not None, "one of the two hashes"
        self._library.SHA256_Update(self._state, data, len(data))

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far; more may follow."""
        if self._plain is not None:
            return self._plain.hexdigest()
        assert self._library is not None, "one of the two hashes"
        state = ctypes.create_string_buffer(self._state.raw, _STATE_BYTES)
        digest = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(digest, state)
        return digest.raw.hex()

    def state(self) -> str | None:
        """Return the state as hex digits; None where it cannot be saved."""
        return None if self._plain is not None else self._state.raw.hex()

    @classmethod
    def resume(cls, state: str) -> Self | None:
        """Go on from a saved state; None where that is not possible."""
        hashed = cls()
        if hashed._plain is not None or not re.fullmatch(rf"[0-9a-f]{{{2 * _STATE_BYTES}}}", state):
            return None
        raw = bytes.fromhex(state)
        hashed._state = ctypes.create_string_buffer(raw, _STATE_BYTES)
        return hashed


@cache
def _libcrypto() -> Any:
    """Load libcrypto, and make sure that it hashes as hashlib does, also after a copy."""
    name = ctypes.util.find_library("crypto")
    try:
        library = ctypes.CDLL(name) if name else None
        functions = [getattr(library, f"SHA256_{f}") for f in ("Init", "Update", "Final")]
    except (OSError, AttributeError):
        return None
    for function, arguments in zip(
        functions,
        (
            [ctypes.c_void_p],
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
            [ctypes.c_void_p, ctypes.c_void_p],
        ),
        strict=True,
    ):
        function.argtypes = arguments
    return library if _agrees(library) else None


def _agrees(library: Any) -> bool:
    state, digest = ctypes.create_string_buffer(_STATE_BYTES), ctypes.create_string_buffer(32)
    library.SHA256_Init(state)
    library.SHA256_Update(state, b"a" * 100, 100)
    moved = ctypes.create_string_buffer(state.raw, _STATE_BYTES)
    library.SHA256_Update(moved, b"b" * 100, 100)
    library.SHA256_Final(digest, moved)
    return digest.raw == hashlib.sha256(b"a" * 100 + b"b" * 100).digest()
