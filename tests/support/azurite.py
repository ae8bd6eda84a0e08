"""Azurite, Microsoft's own emulator of Azure's blob storage, and a view of it that knows nothing of the library.

Promises: as `support.servers`: it answers when it is handed out, ends with the `with` block, and binds 127.0.0.1 only.
It needs node and what `make servers` installs where there is npm; without them it says so.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import shutil
import subprocess
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

from support.servers import free_port

__all__ = ["Azurite", "azurite", "missing"]

_PROGRAM = Path(__file__).resolve().parents[2] / ".venv-servers" / "node_modules" / ".bin" / "azurite-blob"
_ACCOUNT = "devstoreaccount1"
# Azurite's own, the same in every installation, and public.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Azurite:
    """The server."""

    port: int

    @property
    def endpoint(self) -> str:
        """Where the account's containers are."""
        return f"http://127.0.0.1:{self.port}/{_ACCOUNT}"

    @property
    def storage_options(self) -> dict[str, str]:
        """adlfs's options for this server."""
        return {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
            f"BlobEndpoint={self.endpoint};"
        }

    def new_bucket(self) -> str:
        """A fresh, empty container."""
        name = f"test-{uuid.uuid4().hex}"
        assert self._ask("PUT", f"/{name}", {"restype": "container"})[0] == 201
        return name

    def put(self, container: str, name: str, data: bytes) -> None:
        """Write a blob."""
        path = f"/{container}/{quote(name, safe='')}"
        assert self._ask("PUT", path, body=data, headers={"x-ms-blob-type": "BlockBlob"})[0] == 201

    def read(self, container: str, name: str) -> bytes:
        """A blob's bytes."""
        status, body = self._ask("GET", f"/{container}/{quote(name, safe='')}")
        assert status == 200
        return body

    def remove(self, container: str, name: str) -> None:
        """Remove a blob."""
        assert self._ask("DELETE", f"/{container}/{quote(name, safe='')}")[0] == 202

    def names(self, container: str, prefix: str) -> set[str]:
        """The names of blobs."""
        names: set[str] = set()
        marker: str | None = ""
        while marker is not None:
            query = {"comp": "list", "prefix": prefix, "restype": "container"}
            status, body = self._ask("GET", f"/{container}", query | ({"marker": marker} if marker else {}))
            assert status == 200
            listing = ET.fromstring(body)  # noqa: S314 - our own server's
            names |= {str(blob.findtext("Name")) for blob in listing.iter("Blob")}
            marker = listing.findtext("NextMarker") or None
        return names

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One request, signed with the account's key."""
        parameters = query or {}
        own = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", **(headers or {})}
        length = str(len(body)) if body else ""
        canonical = "".join(f"{name}:{own[name]}\n" for name in sorted(own))
        named = "".join(f"\n{name}:{parameters[name]}" for name in sorted(parameters))
        text = f"{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{canonical}/{_ACCOUNT}/{_ACCOUNT}{path}{named}"
        digest = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
        own["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
        target = f"/{_ACCOUNT}{path}"
        if parameters:
            target += "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_READY_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, target, body or None, own | ({} if body else {"Content-Length": "0"}))
            response = connection.getresponse()
            return response.status, response.read()


def missing() -> str:
    """Why azurite cannot run here; empty if it can."""
    if shutil.which("node") is None:
        return "azurite needs node"
    return "" if _PROGRAM.exists() else "azurite is not installed: run `make servers` where there is npm"


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    """Serve until the block ends."""
    with tempfile.TemporaryDirectory(prefix="ckpt_remote-azurite-") as folder:
        port = free_port()
        log = Path(folder, "log.txt")
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [_PROGRAM, *options, "--skipApiVersionCheck", "--silent"],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        try:
            _await(process, port, log)
            yield Azurite(port)
        finally:
            process.terminate()
            process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_READY_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        time.sleep(0.05)  # the pace of the poll; the condition is the answer
    raise RuntimeError(f"azurite did not start. Its log:\n{log.read_text(errors='replace')}")
