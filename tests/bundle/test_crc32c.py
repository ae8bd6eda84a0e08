import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_remote.bundle import crc32c, mask, unmask


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_checksums_are_the_standards(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_every_kind_of_buffer_has_the_same_checksum() -> None:
    data = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8)
    frozen = data.copy()
    frozen.flags.writeable = False
    kinds = [data, frozen, bytes(data), bytearray(data), memoryview(data), memoryview(frozen)]
    assert len({crc32c(kind) for kind in kinds}) == 1
    assert crc32c(np.empty(0, np.uint8)) == crc32c(b"")


@given(st.binary(), st.binary())
def test_a_checksum_can_be_continued(head: bytes, tail: bytes) -> None:
    assert crc32c(tail, crc32c(head)) == crc32c(head + tail)


@given(st.integers(0, 2**32 - 1))
def test_masking_is_undone_by_unmasking(crc: int) -> None:
    assert unmask(mask(crc)) == crc
    assert mask(crc) != crc


def test_other_threads_run_during_a_large_checksum() -> None:
    chunk = np.zeros(2**22, np.uint8)
    go = threading.Lock()
    ran: list[bool] = []
    go.acquire()

    def other() -> None:
        with go:
            ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    # From here on, the interpreter lock changes hands only if someone lets go of it.
    sys.setswitchinterval(1000)
    try:
        go.release()
        deadline = time.monotonic() + 10
        while not ran and time.monotonic() < deadline:
            crc32c(chunk)
        assert ran
    finally:
        sys.setswitchinterval(interval)
        thread.join()
