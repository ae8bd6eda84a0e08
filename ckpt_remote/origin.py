"""Who wrote an object: a seal that proves it to the owners that come later.

Names in a directory are reused, and a listing tells nothing but names. So every data object ends with a seal, behind
the last byte that the index mentions, and every index carries one in its header, as its write id. A seal names the
term (one unbroken history of a directory), the state that the attempt built upon, the attempt (which save), and the
key, so that a copy under another name does not pass for an original.

Promises: a seal that is read back for a key was made for that key. It proves origin to friends, not against forgers: a
checksum, no signature. It does no I/O.
"""

import hashlib
import secrets
import struct
from dataclasses import dataclass

__all__ = ["SEAL_SIZE", "Attempt", "new_attempt", "new_term", "read_seal", "read_write_id"]

_MAGIC = b"ckptrmt1"
_LAYOUT = struct.Struct(">8s8sQ12s12s")  # magic, term, serial number, attempt, digest of all that and the key
SEAL_SIZE = _LAYOUT.size
"""Bytes of a seal."""
_TERM_BYTES = 8
_ATTEMPT_BYTES = 12


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to save a checkpoint.

    Attributes:
        term: The history that the directory had then: 16 hexadecimal digits.
        serial: The serial number of the state that it builds upon.
        number: Tells it from every other attempt: 24 hexadecimal digits.
    """

    term: str
    serial: int
    number: str

    def seal(self, key: str) -> bytes:
        """The seal of the object at `key`."""
        term, number = bytes.fromhex(self.term), bytes.fromhex(self.number)
        return _LAYOUT.pack(_MAGIC, term, self.serial, number, _digest(self, key))

    def write_id(self, key: str) -> str:
        """The seal as text, for the header of an index."""
        return self.seal(key).hex()


def new_term() -> str:
    """A term for a directory whose history is unknown."""
    return secrets.token_hex(_TERM_BYTES)


def new_attempt(term: str, serial: int) -> Attempt:
    """The next attempt of an owner."""
    return Attempt(term, serial, secrets.token_hex(_ATTEMPT_BYTES))


def read_seal(end: bytes, key: str) -> Attempt | None:
    """The attempt that wrote the object at `key` which ends with `end`, `SEAL_SIZE` bytes; None if nobody can tell."""
    if len(end) != SEAL_SIZE:
        return None
    magic, term, serial, number, digest = _LAYOUT.unpack(end)
    attempt = Attempt(term.hex(), serial, number.hex())
    return attempt if magic == _MAGIC and digest == _digest(attempt, key) else None


def read_write_id(write_id: str, key: str) -> Attempt | None:
    """The attempt that wrote the index at `key`; None if that cannot be told."""
    try:
        return read_seal(bytes.fromhex(write_id), key)
    except ValueError:
        return None


def _digest(attempt: Attempt, key: str) -> bytes:
    text = f"{attempt.term} {attempt.serial} {attempt.number} {key}"
    return hashlib.blake2b(text.encode(), digest_size=_ATTEMPT_BYTES).digest()
