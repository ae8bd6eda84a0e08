"""The compatible engine for Google Cloud Storage: gcsfs's session and credentials, and requests of our own.

Promises: conditions reach the server, a put is one upload, sent once and compared with what the service reports; a
delete's refusals are seen, no cache answers. gcsfs's own `pipe_file` is never used: it knows no generation, repeats
what it sends, and its small uploads have a boundary that a payload may hold.
"""

import os
import threading
from collections.abc import Callable, Sequence

from ckpt_remote.buffers import Buffer
from ckpt_remote.store import bucket, faults, gcs, google, interface, pace, urls

__all__ = ["GcsfsStore"]


class GcsfsStore(bucket.BucketStore):
    """A directory of a bucket.

    Args:
        location: The directory.
        connect: Finds the account; called at the first request, and again in a forked process.
        engine: As `Store.engine`.
    """

    def __init__(
        self, location: urls.BucketUrl, connect: Callable[[faults.Request], google.Account], engine: str
    ) -> None:
        self.url = str(location)
        self.engine = engine
        self._location = location
        self._connect = connect
        self._lock = threading.Lock()
        self._connected: tuple[int, google.Account] | None = None

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        return self._bucket.read(interface.check_key(key))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_key(key)
        interface.check_range(start, length)
        if length:
            return self._bucket.read_range(key, start, length)
        size = self.size(key)
        if start > size:
            raise faults.corrupt(self._bucket.request("read", key), start, 0, size)
        return b""

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`. The buffers are copied together first. It waits a second since the last write of the key."""
        url = self.url_of(key)
        with pace.GOOGLE.turn(url):
            return self._bucket.put(key, buffers, mode)

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            connected, self._connected = self._connected, None
        if connected is not None and connected[0] == os.getpid():
            connected[1].close()

    @property
    def _bucket(self) -> gcs.Bucket:
        account = self._account()
        return gcs.Bucket(
            self._location.bucket,
            self._location.root,
            self.url,
            account.send,
            account.source,
            urls.shown(account.endpoint),
        )

    def _account(self) -> google.Account:
        """This process's: connections and event loops do not survive a fork."""
        process = os.getpid()
        with self._lock:
            if self._connected is None or self._connected[0] != process:
                self._connected = process, self._connect(faults.Request("open", self.url))
            return self._connected[1]
