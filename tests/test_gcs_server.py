"""Our Google Cloud Storage does what Google documents, as its two clients and as plain HTTP see it."""

import base64
import contextlib
import hashlib
import http.client
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

import crc32c
import gcsfs.core
import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import GCSStore
from support.gcs import gcs

STRANGE = "a/b c%25+ü&?#/d"
KIB256 = 256 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def reason(self):
        return self.json["error"]["errors"][0]["reason"]


class Bucket:
    """A bucket, asked over plain HTTP."""

    def __init__(self, server):
        self.server = server
        self.name = server.new_bucket()
        self._local = threading.local()

    def ask(self, method, path, body=b"", headers=None, **query):
        if not hasattr(self._local, "connection"):
            parts = urlsplit(self.server.endpoint)
            self._local.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        connection = self._local.connection
        target = f"{path}?{urlencode(query)}" if query else path
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def close(self):
        """The connection of this thread."""
        if hasattr(self._local, "connection"):
            self._local.connection.close()

    def upload(self, name="key", data=b"data", headers=None, **query):
        path = f"/upload/storage/v1/b/{self.name}/o"
        return self.ask("POST", path, data, headers, uploadType="media", name=name, **query)

    def object(self, method="GET", name="key", body=b"", headers=None, suffix="", **query):
        path = f"/storage/v1/b/{self.name}/o/{quote(name, safe='')}{suffix}"
        return self.ask(method, path, body, headers, **query)

    def list(self, **query):
        return self.ask("GET", f"/storage/v1/b/{self.name}/o", **query).json

    def begin(self, name="key", metadata=None, **query):
        path = f"/upload/storage/v1/b/{self.name}/o"
        reply = self.ask("POST", path, json.dumps(metadata or {}), uploadType="resumable", name=name, **query)
        return urlsplit(reply.headers["Location"])

    def send(self, location, data=b"", span=None, method="PUT"):
        headers = {} if span is None else {"Content-Range": f"bytes {span}"}
        return self.ask(method, f"{location.path}?{location.query}", data, headers)

    def xml(self, method, name="key", body=b"", **headers):
        sent = {key.replace("_", "-"): str(value) for key, value in headers.items()}
        return self.ask(method, f"/{self.name}/{quote(name, safe='')}", body, sent)


@pytest.fixture(scope="module")
def unlimited():
    with gcs(writes_per_second=None) as server:
        yield server


@pytest.fixture
def bucket(unlimited):
    with contextlib.closing(Bucket(unlimited)) as bucket:
        yield bucket


class TestGenerations:
    def test_every_write_has_a_new_one_also_after_a_deletion(self, bucket):
        seen = []
        for _ in range(3):
            seen.append(int(bucket.upload().json["generation"]))
            bucket.object("DELETE")
            seen.append(bucket.server.put(bucket.name, "key", b"data"))
        assert seen == sorted(set(seen))

    def test_only_the_live_one_is_found(self, bucket):
        old = bucket.upload().json["generation"]
        new = bucket.upload().json["generation"]
        assert bucket.object(generation=new).json["generation"] == new
        assert bucket.object(generation=old).status == 404
        assert bucket.object("DELETE", generation=old).status == 404
        assert bucket.object("DELETE", generation=new).status == 204

    def test_new_metadata_is_a_new_metageneration(self, bucket):
        first = bucket.upload().json
        second = bucket.object("PATCH", body=json.dumps({"metadata": {"a": "1"}})).json
        assert (first["metageneration"], second["metageneration"]) == ("1", "2")
        assert first["generation"] == second["generation"]
        assert second["metadata"] == {"a": "1"}
        assert bucket.object("PATCH", ifMetagenerationMatch=1, body=b"{}").status == 412


class TestConditions:
    @pytest.mark.parametrize("there", [False, True])
    def test_zero_means_absent(self, bucket, there):
        if there:
            bucket.upload(data=b"old")
        reply = bucket.upload(data=b"new", ifGenerationMatch=0)
        assert reply.status == (412 if there else 200)
        assert bucket.server.read(bucket.name, "key") == (b"old" if there else b"new")
        if there:
            assert reply.reason == "conditionNotMet"

    def test_a_write_replaces_exactly_one_generation(self, bucket):
        old = bucket.upload().json["generation"]
        new = bucket.upload(data=b"new", ifGenerationMatch=old).json["generation"]
        assert bucket.upload(ifGenerationMatch=old).status == 412
        assert bucket.upload("missing", ifGenerationMatch=old).status == 412
        assert bucket.object().json["generation"] == new

    def test_not_match_guards_writes_and_saves_reads(self, bucket):
        generation = bucket.upload().json["generation"]
        assert bucket.upload(ifGenerationNotMatch=generation).status == 412
        assert bucket.upload("missing", ifGenerationNotMatch=0).status == 412
        unchanged = bucket.object(ifGenerationNotMatch=generation)
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert bucket.object(ifGenerationNotMatch=int(generation) - 1).status == 200
        assert bucket.object(ifMetagenerationNotMatch=1).status == 304

    def test_reads_and_deletions_obey_them(self, bucket):
        generation = int(bucket.upload().json["generation"])
        for method, query in (("GET", {}), ("GET", {"alt": "media"}), ("DELETE", {})):
            assert bucket.object(method, ifGenerationMatch=generation - 1, **query).status == 412
            assert bucket.object(method, ifMetagenerationMatch=2, **query).status == 412
        assert bucket.object("DELETE", ifGenerationMatch=generation, ifMetagenerationMatch=1).status == 204
        assert bucket.object("DELETE", ifGenerationMatch=generation).status == 404

    def test_one_that_is_no_number_is_refused(self, bucket):
        assert bucket.upload(ifGenerationMatch="any").status == 400
        assert bucket.xml("PUT", x_goog_if_generation_match="any").status == 400
        assert bucket.server.objects(bucket.name) == {}

    @pytest.fixture
    def hasty(self):
        """Threads take turns so often that a gap between look and write shows."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield
        sys.setswitchinterval(interval)

    def test_of_eight_creators_one_wins(self, bucket, hasty):
        for turn in range(20):
            barrier = threading.Barrier(8)

            def create(number, name=f"key-{turn}", barrier=barrier):
                barrier.wait()
                return self._create(bucket, number, name)

            with ThreadPoolExecutor(8) as pool:
                statuses = list(pool.map(create, range(8)))
            assert sorted(statuses) == [200] + 7 * [412]
            assert bucket.server.read(bucket.name, f"key-{turn}") == str(statuses.index(200)).encode()

    @staticmethod
    def _create(bucket, number, name):
        """Half through each API."""
        try:
            if number % 2:
                return bucket.upload(name, str(number).encode(), ifGenerationMatch=0).status
            return bucket.xml("PUT", name, str(number).encode(), x_goog_if_generation_match=0).status
        finally:
            bucket.close()

    def test_no_increment_of_eight_threads_is_lost(self, bucket, hasty):
        bucket.upload(data=b"0")

        def count():
            done = 0
            while done < 10:
                reply = bucket.object(alt="media")
                more = str(int(reply.body) + 1).encode()
                done += bucket.upload(data=more, ifGenerationMatch=reply.headers["x-goog-generation"]).status == 200
            bucket.close()

        with ThreadPoolExecutor(8) as pool:
            for counted in [pool.submit(count) for _ in range(8)]:
                counted.result()
        assert bucket.server.read(bucket.name, "key") == b"80"


class TestUploads:
    def test_a_resource_tells_size_checksums_and_metadata(self, bucket):
        data = bytes(range(256)) * 10
        resource = bucket.upload(STRANGE, data, {"Content-Type": "text/strange"}).json
        assert resource == bucket.object(name=STRANGE).json
        assert (resource["name"], resource["bucket"], resource["size"]) == (STRANGE, bucket.name, "2560")
        assert resource["contentType"] == "text/strange"
        assert base64.b64decode(resource["crc32c"]) == crc32c.crc32c(data).to_bytes(4, "big")
        assert base64.b64decode(resource["md5Hash"]) == hashlib.md5(data, usedforsecurity=False).digest()
        assert bucket.server.objects(bucket.name) == {STRANGE: data}

    def test_a_multipart_body_is_metadata_and_object(self, bucket):
        data = b"\n--==0==\n\r\n--other\r\n"
        reply = self._multipart(bucket, data)
        assert reply.status == 200
        assert (reply.json["cacheControl"], reply.json["contentType"]) == ("no-store", "text/x")
        assert bucket.server.read(bucket.name, "key") == data

    def test_a_multipart_body_with_bare_line_feeds_is_refused(self, bucket):
        """As gcsfs writes them."""
        assert self._multipart(bucket, b"data", line=b"\n").status == 400
        assert bucket.server.objects(bucket.name) == {}

    @staticmethod
    def _multipart(bucket, data, line=b"\r\n"):
        body = line.join(
            (
                b"--==0==",
                b"Content-Type: application/json; charset=UTF-8",
                b"",
                json.dumps({"name": "key", "cacheControl": "no-store"}).encode(),
                b"--==0==",
                b"Content-Type: text/x",
                b"",
                data,
                b"--==0==--",
                b"",
            )
        )
        headers = {"Content-Type": 'multipart/related; boundary="==0=="'}
        path = f"/upload/storage/v1/b/{bucket.name}/o"
        return bucket.ask("POST", path, body, headers, uploadType="multipart", ifGenerationMatch=0)

    @pytest.mark.parametrize("part", ["crc32c", "md5"])
    def test_a_wrong_checksum_is_refused_however_it_is_announced(self, bucket, part):
        right = {
            "crc32c": crc32c.crc32c(b"data").to_bytes(4, "big"),
            "md5": hashlib.md5(b"data", usedforsecurity=False).digest(),
        }[part]
        for digest, status in ((right, 200), (bytes(len(right)), 400)):
            announced = base64.b64encode(digest).decode()
            field = {"crc32c": "crc32c", "md5": "md5Hash"}[part]
            location = bucket.begin(metadata={field: announced})
            assert bucket.send(location, b"data").status == status
            assert bucket.upload(headers={"x-goog-hash": f"{part}={announced}"}).status == status
            assert bucket.xml("PUT", body=b"data", x_goog_hash=f"{part}={announced}").status == status
        assert b"BadDigest" in bucket.xml("PUT", body=b"data", x_goog_hash=f"{part}={announced}").body

    def test_a_missing_bucket_is_not_found(self, bucket):
        path = "/upload/storage/v1/b/no-such-bucket/o"
        for kind in ("media", "resumable"):
            assert bucket.ask("POST", path, uploadType=kind, name="key").status == 404
        assert b"NoSuchBucket" in bucket.ask("PUT", "/no-such-bucket/key").body


class TestResumable:
    def test_parts_become_one_object_at_the_last_byte(self, bucket):
        data = b"x" * KIB256 + b"y" * KIB256 + b"end"
        location = bucket.begin(metadata={"contentType": "text/x"})
        assert "Range" not in bucket.send(location, span="*/*").headers
        first = bucket.send(location, data[:KIB256], f"0-{KIB256 - 1}/*")
        assert (first.status, first.headers["Range"]) == (308, f"bytes=0-{KIB256 - 1}")
        assert bucket.send(location, span=f"*/{len(data)}").headers["Range"] == f"bytes=0-{KIB256 - 1}"
        assert bucket.object().status == 404
        last = bucket.send(location, data[KIB256:], f"{KIB256}-{len(data) - 1}/{len(data)}", method="POST")
        assert (last.status, last.json["size"], last.json["contentType"]) == (200, str(len(data)), "text/x")
        assert bucket.server.read(bucket.name, "key") == data
        assert bucket.send(location, span=f"*/{len(data)}").json == last.json

    def test_bytes_sent_again_are_skipped_and_a_gap_is_refused(self, bucket):
        data = b"x" * KIB256 + b"y" * KIB256
        location = bucket.begin()
        bucket.send(location, data[:KIB256], f"0-{KIB256 - 1}/*")
        gap = bucket.send(location, b"z", f"{len(data) - 1}-{len(data) - 1}/{len(data)}")
        assert gap.status == 400
        assert bucket.send(location, data, f"0-{len(data) - 1}/{len(data)}").status == 200
        assert bucket.server.read(bucket.name, "key") == data

    def test_its_condition_is_decided_at_the_end(self, bucket):
        location = bucket.begin(ifGenerationMatch=0)
        bucket.upload(data=b"rival")
        assert bucket.send(location, b"late").status == 412
        assert bucket.server.read(bucket.name, "key") == b"rival"
        absent = bucket.begin("other", ifGenerationMatch=0)
        assert bucket.send(absent, b"first").status == 200

    def test_a_cancelled_one_is_over(self, bucket):
        location = bucket.begin()
        assert bucket.send(location, method="DELETE").status == 499
        assert bucket.send(location, b"data").status == 499
        assert bucket.server.objects(bucket.name) == {}

    def test_an_unknown_one_is_not_found_and_an_odd_part_refused(self, bucket):
        location = bucket.begin()
        assert bucket.send(location, b"x" * 10, "0-9/*").status == 400
        assert bucket.send(location, b"x" * 10, "0-5/10").status == 400
        assert bucket.send(location._replace(query="uploadType=resumable&upload_id=x"), b"").status == 404


class TestReads:
    @pytest.mark.parametrize(
        ("span", "status", "body", "content_range"),
        [
            ("bytes=1-2", 206, b"12", "bytes 1-2/10"),
            ("bytes=8-", 206, b"89", "bytes 8-9/10"),
            ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
            ("bytes=-3", 206, b"789", "bytes 7-9/10"),
            ("bytes=-100", 206, b"0123456789", "bytes 0-9/10"),
            ("bytes=10-11", 416, None, "bytes */10"),
            ("bytes=3-2", 200, b"0123456789", None),
            ("pages=1-2", 200, b"0123456789", None),
        ],
    )
    def test_a_range_means_the_same_in_both_apis(self, bucket, span, status, body, content_range):
        generation = bucket.upload(STRANGE, b"0123456789").json["generation"]
        download = f"/download/storage/v1/b/{bucket.name}/o/{quote(STRANGE, safe='')}"
        for reply in (
            bucket.object(name=STRANGE, alt="media", headers={"Range": span}),
            bucket.ask("GET", download, headers={"Range": span}, alt="media"),
            bucket.xml("GET", STRANGE, Range=span),
        ):
            assert (reply.status, reply.headers["Content-Range"]) == (status, content_range)
            if status != 416:
                assert reply.body == body
                assert reply.headers["x-goog-generation"] == generation
                assert reply.headers["x-goog-stored-content-length"] == "10"

    def test_a_download_tells_the_checksums(self, bucket):
        resource = bucket.upload().json
        expected = f"crc32c={resource['crc32c']},md5={resource['md5Hash']}"
        assert bucket.object(alt="media").headers["x-goog-hash"] == expected
        assert ",".join(bucket.xml("HEAD").headers.get_all("x-goog-hash")) == expected

    def test_a_missing_object_is_told_in_each_apis_words(self, bucket):
        assert bucket.object().reason == "notFound"
        assert bucket.object(alt="media").body == f"No such object: {bucket.name}/key".encode()
        assert b"<Code>NoSuchKey</Code>" in bucket.xml("GET").body
        assert bucket.xml("HEAD").status == 404


class TestListings:
    NAMES = ("a", "a/b", "a/c/d", "a/c/e", "b", "é", "\U0001f600")

    @pytest.fixture
    def full(self, bucket):
        for name in self.NAMES:
            bucket.server.put(bucket.name, name, name.encode())
        return bucket

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    @pytest.mark.parametrize(
        ("query", "names", "prefixes"),
        [
            ({}, NAMES, ()),
            ({"prefix": "a"}, NAMES[:4], ()),
            ({"prefix": "a/"}, NAMES[1:4], ()),
            ({"prefix": "a/", "delimiter": "/"}, ["a/b"], ["a/c/"]),
            ({"delimiter": "/"}, ["a", "b", "é", "\U0001f600"], ["a/"]),
            ({"prefix": "none"}, (), ()),
        ],
    )
    def test_pages_make_up_the_whole_in_the_order_of_bytes(self, full, size, query, names, prefixes):
        found, folders, token = [], [], {}
        while True:
            page = full.list(maxResults=size, **query, **token)
            assert len(page.get("items", ())) + len(page.get("prefixes", ())) <= size
            found += [item["name"] for item in page.get("items", ())]
            folders += page.get("prefixes", ())
            if "nextPageToken" not in page:
                break
            token = {"pageToken": page["nextPageToken"]}
        assert (found, folders) == (list(names), list(prefixes))

    def test_offsets_bound_the_names(self, full):
        page = full.list(startOffset="a/b", endOffset="b")
        assert [item["name"] for item in page["items"]] == ["a/b", "a/c/d", "a/c/e"]

    def test_buckets_are_found_and_made(self, bucket):
        assert bucket.ask("GET", f"/storage/v1/b/{bucket.name}").json["name"] == bucket.name
        assert bucket.ask("GET", "/storage/v1/b/no-such-bucket").status == 404
        name = f"{bucket.name}-more"
        assert bucket.ask("POST", "/storage/v1/b", json.dumps({"name": name}), project="p").status == 200
        assert bucket.ask("POST", "/storage/v1/b", json.dumps({"name": name}), project="p").status == 409
        assert name in {b["name"] for b in bucket.ask("GET", "/storage/v1/b", project="p").json["items"]}


class TestCompositionAndCopies:
    def test_a_composition_joins_and_obeys_conditions(self, bucket):
        one = bucket.upload("one", b"1").json["generation"]
        bucket.upload("two", b"2")
        body = json.dumps({"sourceObjects": [{"name": "one", "generation": one}, {"name": "two"}]})
        reply = bucket.object("POST", "all", body, suffix="/compose", ifGenerationMatch=0)
        assert (reply.json["componentCount"], "md5Hash" in reply.json) == (2, False)
        assert bucket.server.read(bucket.name, "all") == b"12"
        assert bucket.object("POST", "all", body, suffix="/compose", ifGenerationMatch=0).status == 412
        bucket.upload("one", b"3")
        assert bucket.object("POST", "new", body, suffix="/compose").status == 412

    def test_a_copy_keeps_metadata_and_obeys_conditions(self, bucket):
        bucket.upload(data=b"data", headers={"Content-Type": "text/x"})
        suffix = f"/rewriteTo/b/{bucket.name}/o/copy"
        copied = bucket.object("POST", suffix=suffix, ifGenerationMatch=0).json
        assert (copied["done"], copied["resource"]["contentType"]) == (True, "text/x")
        assert bucket.object("POST", suffix=suffix, ifGenerationMatch=0).status == 412
        assert bucket.object("POST", suffix=suffix, ifSourceGenerationMatch=1).status == 412
        assert bucket.server.read(bucket.name, "copy") == b"data"


class TestLimit:
    def test_writes_of_one_name_faster_than_the_limit_are_told_when_to_come_back(self):
        now = [100.0]
        with gcs(writes_per_second=0.5, clock=lambda: now[0]) as server, contextlib.closing(Bucket(server)) as bucket:
            generation = bucket.upload(ifGenerationMatch=0).json["generation"]
            for reply in (
                bucket.upload(ifGenerationMatch=generation),
                bucket.upload(ifGenerationMatch=0),
                bucket.xml("PUT"),
                bucket.send(bucket.begin(), b"late"),
            ):
                assert (reply.status, reply.headers["Retry-After"]) == (429, "2")
            assert bucket.upload().reason == "rateLimitExceeded"
            assert bucket.upload("other").status == 200
            now[0] += 1.5
            assert bucket.upload().headers["Retry-After"] == "1"
            now[0] += 0.5
            assert bucket.upload(ifGenerationMatch=generation).status == 200
            assert bucket.upload().status == 429

    def test_writes_that_failed_reads_and_deletions_do_not_count(self):
        with gcs(clock=lambda: 0.0) as server, contextlib.closing(Bucket(server)) as bucket:
            assert [bucket.upload(ifGenerationMatch=1).status for _ in range(3)] == [412] * 3
            server.put(bucket.name, "key", b"from outside")
            assert [bucket.object(alt="media").status for _ in range(3)] == [200] * 3
            assert bucket.object("DELETE").status == 204
            assert bucket.upload(ifGenerationMatch=0).status == 200


class TestServer:
    def test_the_log_tells_every_request_in_order(self, unlimited):
        bucket = Bucket(unlimited)
        start = len(unlimited.log)
        bucket.upload(STRANGE, headers={"X-Test": "1"}, ifGenerationMatch=0)
        bucket.object(name="missing")
        bucket.close()
        first, second = unlimited.log[start:]
        assert (first.method, first.status, first.headers["x-test"]) == ("POST", 200, "1")
        assert first.query == {"uploadType": "media", "name": STRANGE, "ifGenerationMatch": "0"}
        assert (second.path, second.status) == (f"/storage/v1/b/{bucket.name}/o/missing", 404)

    def test_what_it_does_not_know_it_does_not_accept(self, bucket):
        for method, path in (("POST", "/storage/v1/b/x/acl"), ("POST", f"/{bucket.name}/key"), ("PUT", "/new-bucket")):
            assert bucket.ask(method, path).status == 501

    def test_a_body_in_chunks_is_whole(self, bucket):
        assert bucket.upload(data=iter([b"ab", b"cde"])).status == 200
        assert bucket.server.log[-1].headers["transfer-encoding"] == "chunked"
        assert bucket.server.read(bucket.name, "key") == b"abcde"
        assert bucket.object().status == 200

    def test_a_kept_connection_ends_with_the_server(self):
        with gcs() as server:
            bucket = Bucket(server)
            assert bucket.upload().status == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            bucket.object()
        bucket.close()


class TestClients:
    """The calibration: what the clients that people use make of it."""

    def test_obstore_writes_reads_lists_and_deletes(self, unlimited):
        bucket = unlimited.new_bucket()
        store = GCSStore(bucket, config={"service_account_key": unlimited.service_account})
        first = obstore.put(store, STRANGE, b"one", mode="create", use_multipart=False)
        assert unlimited.objects(bucket) == {STRANGE: b"one"}
        with pytest.raises(AlreadyExistsError):
            obstore.put(store, STRANGE, b"two", mode="create", use_multipart=False)
        second = obstore.put(store, STRANGE, b"two", mode={"version": first["version"]}, use_multipart=False)
        with pytest.raises(PreconditionError):
            obstore.put(store, STRANGE, b"three", mode={"version": first["version"]}, use_multipart=False)
        got = obstore.get(store, STRANGE)
        assert (bytes(got.bytes()), got.meta["version"]) == (b"two", second["version"])
        assert bytes(obstore.get_range(store, STRANGE, start=1, length=2)) == b"wo"
        assert [entry["path"] for page in obstore.list(store, "a") for entry in page] == [STRANGE]
        obstore.copy(store, STRANGE, "copy")
        with pytest.raises(AlreadyExistsError):
            obstore.copy(store, STRANGE, "copy", overwrite=False)
        obstore.delete(store, [STRANGE, "copy"])
        with pytest.raises(FileNotFoundError):
            obstore.head(store, STRANGE)

    def test_gcsfs_writes_reads_lists_and_deletes(self, unlimited):
        bucket = unlimited.new_bucket()
        # The core class: the other one asks over gRPC for the kind of bucket first.
        filesystem = gcsfs.core.GCSFileSystem(
            **unlimited.storage_options, skip_instance_cache=True, use_listings_cache=False
        )
        path, data = f"{bucket}/sub/key", bytes(range(256)) * 4096
        filesystem.pipe_file(path, data, mode="create", chunksize=KIB256)
        with pytest.raises(FileExistsError):
            filesystem.pipe_file(path, b"-" * len(data), mode="create", chunksize=KIB256)
        assert filesystem.cat_file(path) == data
        assert filesystem.cat_file(path, 5, 9) == data[5:9]
        filesystem.cp_file(path, f"{bucket}/copy")
        assert filesystem.ls(bucket, detail=False) == [f"{bucket}/copy", f"{bucket}/sub"]
        assert filesystem.find(bucket) == [f"{bucket}/copy", path]
        filesystem.rm_file(path)
        assert not filesystem.exists(path)
        assert unlimited.objects(bucket) == {"copy": data}
