"""The XML API of our Google Cloud Storage, as far as obstore's client goes: objects and listings (version 2).

Promises: conditions and generations travel in `x-goog-` headers, errors are Google's XML. It checks no
signature; multipart uploads, ACLs and the older listing are refused as unknown.
"""

import base64
from collections.abc import Sequence
from email.utils import format_datetime
from urllib.parse import unquote
from xml.sax.saxutils import escape

from support.google.messages import Refusal, Request, Response, headers_with, ranged, refuse
from support.google.objects import Blob, Conditions, Digests, Objects

__all__ = ["XmlApi"]

_PROPERTIES = {
    "Cache-Control": "cacheControl",
    "Content-Disposition": "contentDisposition",
    "Content-Encoding": "contentEncoding",
    "Content-Language": "contentLanguage",
    "Content-Type": "contentType",
    "x-goog-storage-class": "storageClass",
}


class XmlApi:
    """Answers requests for `/BUCKET` and `/BUCKET/OBJECT`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def answer(self, request: Request) -> Response:
        """What the API says."""
        try:
            return self._answer(request)
        except Refusal as refusal:
            return _refused(refusal)

    def _answer(self, request: Request) -> Response:
        bucket, *rest = request.segments
        name = "/".join(rest)
        if not name:
            return self._bucket(request, bucket)
        if request.method in ("GET", "HEAD"):
            return self._get(request, bucket, name)
        if request.method == "PUT" and not request.query:
            return self._copy(request, bucket, name) if _source(request) else self._put(request, bucket, name)
        if request.method == "DELETE" and not request.query:
            self._objects.delete(bucket, name, _conditions(request))
            return Response(204)
        raise refuse.unknown(f"{request.method} {request.target}")

    def _bucket(self, request: Request, bucket: str) -> Response:
        if request.method == "HEAD":
            self._objects.bucket(bucket)
            return Response()
        if request.method == "GET" and request.query.get("list-type") == "2":
            return self._list(request, bucket)
        raise refuse.unknown(f"{request.method} {request.target}")

    def _get(self, request: Request, bucket: str, name: str) -> Response:
        generation = request.query.get("generation")
        blob = self._objects.get(bucket, name, _conditions(request), None if generation is None else int(generation))
        status, body, extra = ranged(request, blob.data)
        kept = [(header, blob.properties[name]) for header, name in _PROPERTIES.items() if name in blob.properties]
        custom = [(f"x-goog-meta-{key}", value) for key, value in blob.properties.get("metadata", {}).items()]
        modified = format_datetime(blob.updated, usegmt=True)
        return Response(status, body, [*_identity(blob), ("Last-Modified", modified), *kept, *custom, *extra])

    def _put(self, request: Request, bucket: str, name: str) -> Response:
        hashes = Digests.parsed(",".join(request.headers.get_all("x-goog-hash", ())))
        announced = Digests(hashes.crc32c, request.header("Content-MD5") or hashes.md5)
        blob = self._objects.put(
            bucket,
            name,
            request.body,
            properties=_properties(request),
            conditions=_conditions(request),
            announced=announced,
        )
        return Response(headers=_identity(blob))

    def _copy(self, request: Request, bucket: str, name: str) -> Response:
        origin, _, source = _source(request).removeprefix("/").partition("/")
        blob = self._objects.copy(self._objects.get(origin, source), bucket, name, None, _conditions(request))
        body = f"<CopyObjectResult><ETag>{escape(_etag(blob))}</ETag></CopyObjectResult>"
        return _xml(200, body, _identity(blob))

    def _list(self, request: Request, bucket: str) -> Response:
        query = request.query
        token = query.get("continuation-token")
        page = self._objects.list(
            bucket,
            query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            after=base64.urlsafe_b64decode(token).decode() if token else query.get("start-after"),
            most=int(query["max-keys"]) if "max-keys" in query else None,
        )
        entries = [
            f"<Contents><Key>{escape(blob.name)}</Key><Generation>{blob.generation}</Generation>"
            f"<LastModified>{blob.updated.strftime('%Y-%m-%dT%H:%M:%S.%fZ')}</LastModified>"
            f"<ETag>{escape(_etag(blob))}</ETag><Size>{len(blob.data)}</Size></Contents>"
            for blob in page.blobs
        ]
        entries += [f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>" for prefix in page.prefixes]
        if page.last is not None:
            following = base64.urlsafe_b64encode(page.last.encode()).decode()
            entries.append(f"<NextContinuationToken>{following}</NextContinuationToken>")
        more = str(page.last is not None).lower()
        head = f"<Name>{escape(bucket)}</Name><IsTruncated>{more}</IsTruncated>"
        return _xml(200, f"<ListBucketResult>{head}{''.join(entries)}</ListBucketResult>")


def _source(request: Request) -> str:
    return unquote(request.header("x-goog-copy-source") or "")


def _conditions(request: Request) -> Conditions:
    values = []
    for name in ("generation-match", "generation-not-match", "metageneration-match", "metageneration-not-match"):
        text = request.header(f"x-goog-if-{name}")
        if text is not None and not text.isdigit():
            raise refuse.invalid(f"Invalid argument: x-goog-if-{name}: {text}.")
        values.append(None if text is None else int(text))
    return Conditions(*values)


def _properties(request: Request) -> dict[str, object]:
    chosen: dict[str, object] = {
        field: value for header, field in _PROPERTIES.items() if (value := request.header(header)) is not None
    }
    custom = dict(headers_with(request, "x-goog-meta-"))
    return {**chosen, "metadata": custom} if custom else chosen


def _etag(blob: Blob) -> str:
    """The MD5 as S3 spells it; a composite has something else."""
    return f'"{base64.b64decode(blob.digests.md5).hex()}"' if blob.digests.md5 else f'"-{blob.generation}"'


def _identity(blob: Blob) -> list[tuple[str, str]]:
    hashes = [("crc32c", blob.digests.crc32c), ("md5", blob.digests.md5)]
    return [
        ("ETag", _etag(blob)),
        ("x-goog-generation", str(blob.generation)),
        ("x-goog-metageneration", str(blob.metageneration)),
        ("x-goog-stored-content-length", str(len(blob.data))),
        ("x-goog-stored-content-encoding", str(blob.properties.get("contentEncoding", "identity"))),
        *(("x-goog-hash", f"{name}={value}") for name, value in hashes if value),
    ]


def _xml(status: int, body: str, headers: Sequence[tuple[str, str]] = ()) -> Response:
    document = f"<?xml version='1.0' encoding='UTF-8'?>{body}".encode()
    return Response(status, document, [("Content-Type", "application/xml; charset=UTF-8"), *headers])


def _refused(refusal: Refusal) -> Response:
    message = escape(refusal.message)
    body = f"<Error><Code>{refusal.code}</Code><Message>{message}</Message></Error>"
    return _xml(refusal.status, body, refusal.headers)
