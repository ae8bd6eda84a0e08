"""The JSON API of our Google Cloud Storage: objects, listings, buckets, uploads, composition, copies.

Promises: resources, status and error bodies have Google's shape. It checks no token, ignores what only
shapes an answer (`fields`, `projection`), and has no batch requests, access lists or notifications.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from support.google.messages import Refusal, Request, Response, ranged, refuse
from support.google.objects import Blob, Objects
from support.google.uploads import Incomplete, Uploads, conditions, number, settable

__all__ = ["JsonApi"]


class JsonApi:
    """Answers requests below `/storage/v1`, `/upload/storage/v1` and `/download/storage/v1`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._uploads = Uploads(objects)

    @staticmethod
    def serves(request: Request) -> bool:
        """Whether a request is for this API."""
        path = request.segments
        return path[:2] == ["storage", "v1"] or path[:3] in (["upload", "storage", "v1"], ["download", "storage", "v1"])

    def answer(self, request: Request, endpoint: str) -> Response:
        """What the API says; `endpoint` is the server's own address."""
        try:
            return self._answer(request, endpoint)
        except Refusal as refusal:
            return _refused(refusal, plain=request.query.get("alt") == "media")

    def _answer(self, request: Request, endpoint: str) -> Response:  # noqa: PLR0911 - one for each resource
        match request.segments:
            case ["upload", _, _, "b", bucket, "o"]:
                return self._upload(request, bucket, endpoint)
            case ["download", _, _, "b", bucket, "o", name] if request.method == "GET":
                return self._download(request, bucket, name)
            case ["storage", _, "b", bucket, "o", name]:
                return self._object(request, bucket, name, endpoint)
            case ["storage", _, "b", bucket, "o"] if request.method == "GET":
                return self._list(request, bucket, endpoint)
            case ["storage", _, "b", bucket, "o", name, "compose"] if request.method == "POST":
                return self._compose(request, bucket, name, endpoint)
            case ["storage", _, "b", source, "o", origin, "rewriteTo", "b", bucket, "o", name]:
                return self._rewrite(request, (source, origin), (bucket, name), endpoint)
            case ["storage", _, "b", bucket] if request.method == "GET":
                self._objects.bucket(bucket)
                return _json(_bucket_resource(bucket))
            case ["storage", _, "b"]:
                return self._buckets(request)
        raise refuse.unknown(f"{request.method} {request.path}")

    def _upload(self, request: Request, bucket: str, endpoint: str) -> Response:
        kind = request.query.get("uploadType")
        if kind == "resumable":
            return self._resumable(request, bucket, endpoint)
        if request.method != "POST" or kind not in ("media", "multipart"):
            raise refuse.invalid(f"Uploads are POST requests of a known type, not {request.method} {kind}.")
        upload = self._uploads.media if kind == "media" else self._uploads.multipart
        return _json(_resource(upload(request, bucket), endpoint))

    def _resumable(self, request: Request, bucket: str, endpoint: str) -> Response:
        if "upload_id" not in request.query:
            key = self._uploads.begin(request, bucket)
            where = f"{endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return Response(headers=[("Location", where), ("X-GUploader-UploadID", key)])
        if request.method == "DELETE":
            self._uploads.cancel(request)
            return Response(499)
        outcome = self._uploads.go_on(request)
        if isinstance(outcome, Incomplete):
            received = [("Range", f"bytes=0-{outcome.received - 1}")] if outcome.received else []
            return Response(308, headers=received)
        return _json(_resource(outcome, endpoint))

    def _object(self, request: Request, bucket: str, name: str, endpoint: str) -> Response:
        if request.method == "GET":
            if request.query.get("alt") == "media":
                return self._download(request, bucket, name)
            blob = self._objects.get(bucket, name, conditions(request), number(request, "generation"))
            return _json(_resource(blob, endpoint))
        if request.method == "DELETE":
            self._objects.delete(bucket, name, conditions(request), number(request, "generation"))
            return Response(204)
        if request.method == "PATCH":
            blob = self._objects.patch(bucket, name, settable(_body(request)), conditions(request))
            return _json(_resource(blob, endpoint))
        raise refuse.unknown(f"{request.method} of an object")

    def _download(self, request: Request, bucket: str, name: str) -> Response:
        blob = self._objects.get(bucket, name, conditions(request), number(request, "generation"))
        status, body, extra = ranged(request, blob.data)
        known = {"crc32c": blob.digests.crc32c, "md5": blob.digests.md5}
        headers = {
            "Content-Type": blob.properties.get("contentType", "application/octet-stream"),
            "Cache-Control": blob.properties.get("cacheControl", "no-cache, no-store, max-age=0, must-revalidate"),
            "ETag": _etag(blob),
            "X-Goog-Generation": str(blob.generation),
            "X-Goog-Metageneration": str(blob.metageneration),
            "X-Goog-Hash": ",".join(f"{name}={value}" for name, value in known.items() if value),
            "X-Goog-Stored-Content-Length": str(len(blob.data)),
            "X-Goog-Stored-Content-Encoding": blob.properties.get("contentEncoding", "identity"),
            "X-Goog-Storage-Class": blob.properties.get("storageClass", "STANDARD"),
        }
        return Response(status, body, [*headers.items(), *extra])

    def _list(self, request: Request, bucket: str, endpoint: str) -> Response:
        query = request.query
        page = self._objects.list(
            bucket,
            query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            after=_unpacked(query.get("pageToken")),
            most=number(request, "maxResults"),
            start=query.get("startOffset", ""),
            end=query.get("endOffset"),
        )
        listing: dict[str, Any] = {"kind": "storage#objects"}
        if page.blobs:
            listing["items"] = [_resource(blob, endpoint) for blob in page.blobs]
        if page.prefixes:
            listing["prefixes"] = list(page.prefixes)
        if page.last is not None:
            listing["nextPageToken"] = base64.urlsafe_b64encode(page.last.encode()).decode()
        return _json(listing)

    def _compose(self, request: Request, bucket: str, name: str, endpoint: str) -> Response:
        body = _body(request)
        sources = []
        for source in body.get("sourceObjects", ()):
            wanted = source.get("objectPreconditions", {}).get("ifGenerationMatch") or source.get("generation")
            sources.append((source["name"], None if wanted is None else int(wanted)))
        if not 1 <= len(sources) <= 32:
            raise refuse.invalid("The number of source components provided must be between 1 and 32.")
        properties = settable(body.get("destination", {}))
        return _json(_resource(self._objects.compose(bucket, name, sources, properties, conditions(request)), endpoint))

    def _rewrite(self, request: Request, source: tuple[str, str], target: tuple[str, str], endpoint: str) -> Response:
        origin = self._objects.get(*source, conditions(request, "ifSource"), number(request, "sourceGeneration"))
        properties = settable(_body(request)) if request.body else None
        blob = self._objects.copy(origin, *target, properties, conditions(request))
        size = str(len(blob.data))
        return _json(
            {
                "kind": "storage#rewriteResponse",
                "totalBytesRewritten": size,
                "objectSize": size,
                "done": True,
                "resource": _resource(blob, endpoint),
            }
        )

    def _buckets(self, request: Request) -> Response:
        if request.method == "POST":
            name = str(_body(request).get("name", ""))
            self._objects.create_bucket(name)
            return _json(_bucket_resource(name))
        if request.method == "GET":
            return _json({"kind": "storage#buckets", "items": [_bucket_resource(b) for b in self._objects.buckets()]})
        raise refuse.unknown(f"{request.method} of buckets")


def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.body or b"{}")
    except ValueError as error:
        raise Refusal(400, "parseError", "InvalidArgument", "Parse Error") from error
    if not isinstance(body, dict):
        raise Refusal(400, "parseError", "InvalidArgument", "Parse Error")
    return body


def _unpacked(token: str | None) -> str | None:
    if not token:
        return None
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError as error:
        raise refuse.invalid("Invalid argument: pageToken.") from error


def _etag(blob: Blob) -> str:
    return base64.b64encode(f"{blob.generation}/{blob.metageneration}".encode()).decode()


def _resource(blob: Blob, endpoint: str) -> dict[str, Any]:
    link = f"/storage/v1/b/{blob.bucket}/o/{quote(blob.name, safe='')}"
    created, updated = (
        time.isoformat(timespec="milliseconds").replace("+00:00", "Z") for time in (blob.created, blob.updated)
    )
    resource = {
        "kind": "storage#object",
        "id": f"{blob.bucket}/{blob.name}/{blob.generation}",
        "selfLink": f"{endpoint}{link}",
        "mediaLink": f"{endpoint}/download{link}?generation={blob.generation}&alt=media",
        "name": blob.name,
        "bucket": blob.bucket,
        "generation": str(blob.generation),
        "metageneration": str(blob.metageneration),
        "size": str(len(blob.data)),
        "crc32c": blob.digests.crc32c,
        "md5Hash": blob.digests.md5,
        "componentCount": blob.components,
        "etag": _etag(blob),
        "timeCreated": created,
        "updated": updated,
        "storageClass": "STANDARD",
        **blob.properties,
    }
    return {name: value for name, value in resource.items() if value is not None}


def _bucket_resource(name: str) -> dict[str, str]:
    return {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "metageneration": "1",
        "location": "US",
        "locationType": "multi-region",
        "storageClass": "STANDARD",
    }


def _json(value: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(value).encode(), [("Content-Type", "application/json; charset=UTF-8")])


def _refused(refusal: Refusal, *, plain: bool) -> Response:
    """Google's answer; a refused download is a sentence."""
    if plain:
        return Response(
            refusal.status, refusal.message.encode(), [("Content-Type", "text/html; charset=UTF-8"), *refusal.headers]
        )
    error = {
        "code": refusal.status,
        "message": refusal.message,
        "errors": [{"message": refusal.message, "domain": "global", "reason": refusal.reason}],
    }
    body = json.dumps({"error": error}).encode()
    return Response(refusal.status, body, [("Content-Type", "application/json; charset=UTF-8"), *refusal.headers])
