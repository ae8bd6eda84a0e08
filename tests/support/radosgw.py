"""A stand-in for Ceph's S3 gateway up to version 16, made of another S3 server.

Promises: a PUT is conditional only if `If-Match` holds the ETag without its quotes, and fails with them; a
DELETE pays no heed to `If-Match`. Everything else is the other server's, which must check no signatures.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from support.proxy import Arrival, Pass, Refuse, Verdict, proxy
from support.servers import S3Server

__all__ = ["unquoted_etags"]


@contextlib.contextmanager
def unquoted_etags(server: S3Server) -> Iterator[S3Server]:
    """The gateway in front of `server`, until the block ends."""
    with proxy(server.endpoint, _as_the_gateway) as gateway:
        yield replace(server, name="radosgw", endpoint=gateway.endpoint)


def _as_the_gateway(arrival: Arrival) -> Verdict:
    etag = arrival.headers.get("if-match")
    if etag is None:
        return Pass()
    if arrival.method == "DELETE":
        return Pass(headers={"If-Match": None})
    if arrival.method == "PUT":
        quoted = etag.startswith('"')
        return Refuse(412, "PreconditionFailed") if quoted else Pass(headers={"If-Match": f'"{etag}"'})
    return Pass()
