"""Google Cloud Storage in this process: JSON and XML API, generations and conditions as Google documents them.

    with gcs(writes_per_second=1.0) as server:
        bucket = server.new_bucket()
        gcsfs.GCSFileSystem(**server.storage_options).ls(bucket)

Promises: conditions are decided atomically; a generation never comes back; a reader gets a whole object of one
moment; announced checksums are verified; more than `writes_per_second` successful writes of one object's name
are refused with 429 and `Retry-After`; every request is in the log before its answer leaves; it binds 127.0.0.1
only and ends with the `with` block. It asks for no credentials. What it does not know it answers with 501.

gcsfs probes buckets over gRPC unless `GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false` is set before its import, and
its small uploads are refused here: see `support.google.uploads`.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.google.json_api import JsonApi
from support.google.messages import Request, Response
from support.google.objects import Objects
from support.google.xml_api import XmlApi
from support.loopback import Handler, Server, serving

__all__ = ["GCSServer", "Logged", "gcs"]


@dataclass(frozen=True, slots=True)
class Logged:
    """A request that was answered; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int


@dataclass(frozen=True, slots=True)
class GCSServer:
    """The server: its address, what it was asked, and its objects from behind."""

    endpoint: str
    log: list[Logged]
    _objects: Objects = field(repr=False)

    @property
    def storage_options(self) -> dict[str, Any]:
        """gcsfs's options for this server."""
        return {"token": "anon", "endpoint_url": self.endpoint}

    @property
    def service_account(self) -> str:
        """A key file's content that sends obstore's GCSStore here, unsigned."""
        return json.dumps(
            {
                "gcs_base_url": self.endpoint,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        )

    def new_bucket(self) -> str:
        """A fresh, empty bucket."""
        return self._objects.new_bucket()

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Every object's bytes by name."""
        return {name: blob.data for name, blob in self._objects.bucket(bucket).items()}

    def put(self, bucket: str, name: str, data: bytes) -> int:
        """Write an object, whatever the limit says, and return its generation."""
        return self._objects.put(bucket, name, data, limited=False).generation

    def read(self, bucket: str, name: str) -> bytes:
        """An object's bytes."""
        return self._objects.bucket(bucket)[name].data

    def remove(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self._objects.delete(bucket, name)


@contextlib.contextmanager
def gcs(writes_per_second: float | None = 1.0, clock: Callable[[], float] = time.monotonic) -> Iterator[GCSServer]:
    """Serve until the block ends.

    Args:
        writes_per_second: How many writes of one object's name may succeed in a second; None: any number.
        clock: Seconds, monotonic; the limit's only notion of time.
    """
    objects = Objects(writes_per_second, clock)
    log: list[Logged] = []
    with serving(_handler(objects, log)) as server:
        yield GCSServer(server.endpoint, log, objects)


def _handler(objects: Objects, log: list[Logged]) -> type[Handler]:
    json_api, xml_api = JsonApi(objects), XmlApi(objects)

    class GoogleHandler(Handler):
        def _serve(self) -> None:
            request = Request(self.command, self.path, self.headers, self.body())
            if json_api.serves(request):
                assert isinstance(self.server, Server)
                response = json_api.answer(request, self.server.endpoint)
            else:
                response = xml_api.answer(request)
            headers = {name.lower(): str(value) for name, value in self.headers.items()}
            log.append(Logged(request.method, request.path, request.query, headers, response.status))
            self._send(response)

        def _send(self, response: Response) -> None:
            self.send_response(response.status, "Resume Incomplete" if response.status == 308 else None)
            for name, value in response.headers:
                self.send_header(name, value)
            if response.status not in (204, 304):
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD" and response.status not in (204, 304):
                self.wfile.write(response.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    return GoogleHandler
