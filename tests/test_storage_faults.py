"""A bucket whose server stumbles: what is tried again, what is noticed, and what is said when nothing helps.

The server here speaks as much of S3 as the store uses, asks for no credentials, and fails on demand. A real one is
asked in the acceptance tests.
"""

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubevox import storage
from kubevox.errors import StorageError
from kubevox.storage import buckets

pytest.importorskip("minio")


def tag_of(data):
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
        self.answer(status, b"" if self.command == "HEAD" else text.encode(), Content_Type="application/xml")

    def hang_up(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def serve(self):
        server, url = self.server, urlsplit(self.path)
        key = unquote(url.path).split("/", 2)[2] if url.path.count("/") > 1 else ""
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with server.lock:
            server.requests.append((self.command, key, sorted(query), self.headers.get("Range")))
            fault = server.faults.pop(0) if server.faults else None
            if fault == "reset":
                return self.hang_up()
            if fault == "slow down":
                return self.refuse(503, "SlowDown")
            if fault == "html":
                return self.answer(502, b"<html>\nBad gateway\n</html>", Content_Type="text/html")
            if fault == "lost":  # done, but nobody hears of it
                self.wfile = open(os.devnull, "wb")  # noqa: SIM115
                self.do(key, query, data, None)
                return self.hang_up()
            return self.do(key, query, data, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    def do(self, key, query, data, fault):
        server = self.server
        if "uploads" in query and self.command == "POST":
            upload = f"u{len(server.uploads)}"
            server.uploads[upload] = ({}, self.headers.get("x-amz-meta-writer"))
            return self.answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode())
        if "uploadId" in query:
            return self.part(key, query, data)
        if "delete" in query:
            for name in data.decode().split("<Key>")[1:]:
                server.objects.pop(name.split("<")[0], None)
            return self.answer(200, b"<DeleteResult></DeleteResult>")
        if not key:
            return self.listing(query)
        if self.command == "PUT":
            if self.headers.get("If-None-Match") and key in server.objects:
                return self.refuse(412, "PreconditionFailed")
            server.objects[key] = (data, self.headers.get("x-amz-meta-writer"))
            return self.answer(200, ETag=tag_of(data))
        if key not in server.objects:
            return self.refuse(404, "NoSuchKey")
        return self.give(*server.objects[key], fault)

    def give(self, data, writer, fault):
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        tag = tag_of(data)
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        piece = data[start:]
        self.send_response(206 if start else 200)
        date = "Sat, 01 Jan 2022 00:00:00 GMT"
        for name, value in {"ETag": tag, "x-amz-meta-writer": writer or "-", "Last-Modified": date}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(piece[: len(piece) // 2] if fault == "cut" else piece)
            if fault == "cut":
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)
                self.close_connection = True

    def part(self, key, query, data):
        server = self.server
        parts, writer = server.uploads.get(query["uploadId"], (None, None))
        if parts is None:
            return self.refuse(404, "NoSuchUpload")
        if self.command == "PUT":
            parts[int(query["partNumber"])] = data
            return self.answer(200, ETag=tag_of(data))
        del server.uploads[query["uploadId"]]
        if self.command == "DELETE":
            return self.answer(204)
        if self.headers.get("If-None-Match") and key in server.objects:
            return self.refuse(412, "PreconditionFailed")
        server.objects[key] = (b"".join(parts[number] for number in sorted(parts)), writer)
        return self.answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")

    def listing(self, query):
        prefix, after = query.get("prefix", ""), query.get("start-after", "")
        names = sorted(name for name in self.server.objects if name.startswith(prefix) and name > after)
        if query.get("delimiter"):
            names = [name for name in names if "/" not in name[len(prefix) :]]
        rows = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2022-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>x</ETag><Size>{len(self.server.objects[name][0])}</Size></Contents>"
            for name in names
        )
        text = f"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        self.answer(200, text.encode(), Content_Type="application/xml")


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.objects, server.uploads, server.requests, server.faults = threading.Lock(), {}, {}, [], []
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "PAUSE_S", 0.001)
    yield server
    server.shutdown()
    server.server_close()


URI = "s3://bucket/store/things/a.json"
CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize("fault", ["reset", "slow down", "html"])
def test_every_operation_gets_over_a_fault(server, fault, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    for step in (
        lambda: storage.write_bytes(URI, CONTENT),
        lambda: storage.create("s3://bucket/store/things/b", b"b"),
        lambda: storage.create_file("s3://bucket/store/things/c", file),
        lambda: storage.exists(URI),
        lambda: storage.read_bytes(URI) == CONTENT,
        lambda: storage.fetch(URI).read_bytes() == CONTENT,
        lambda: storage.list_names("s3://bucket/store/things") == ["a.json", "b", "c"],
        lambda: (
            [(s.uri[-1], s.size) for s in storage.walk("s3://bucket/store")] == [("n", 10240), ("b", 1), ("c", 10240)]
        ),
        lambda: storage.delete("s3://bucket/store/") == 3,
    ):
        before = len(server.requests)
        server.faults[:] = [fault, fault]
        assert step() in (True, None)
        assert len(server.requests) >= before + 3
    assert server.objects == {}


def test_a_creator_whose_answer_was_lost_knows_its_own_object_again(server):
    server.faults[:] = ["lost"]
    assert storage.create(URI, b"mine")
    server.faults[:] = ["lost"]
    assert not storage.create(URI, b"mine")  # the same bytes from another are another's
    assert storage.read_bytes(URI) == b"mine"


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(server):
    large = CONTENT * 500
    storage.write_bytes(URI, large)
    server.requests.clear()
    server.faults[:] = ["cut", "cut"]
    assert storage.fetch(URI).read_bytes() == large
    assert [request[3] for request in server.requests] == [None, f"bytes={2 << 20}-", f"bytes={3 << 20}-"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300),
    faults=st.lists(st.sampled_from(["reset", "slow down", "html", "cut", "lost", None]), max_size=5),
)
def test_whatever_happens_what_is_read_is_what_was_written(server, content, faults):
    server.objects.clear()
    storage.exists(URI)
    server.faults[:] = faults
    assert storage.create(URI, content)
    assert storage.read_bytes(URI) == content
    server.faults.clear()


def test_the_start_of_an_object_is_read_and_no_more_of_it(server):
    large = CONTENT * 500
    storage.write_bytes(URI, large)
    server.requests.clear()
    assert storage.read_start(URI, 1000) == large[:1000]
    assert [request[3] for request in server.requests] == ["bytes=0-999"]
    assert storage.read_start(URI, len(large) + 5) == large
    server.faults[:] = ["reset", "slow down", "cut", "html"]
    assert storage.read_start(URI, len(large)) == large
    server.faults[:] = ["slow down"] * 100_000
    begun = time.monotonic()
    with pytest.raises(StorageError, match="SlowDown"):
        storage.read_start(URI, 10, patience_s=0.2)
    assert time.monotonic() - begun < 2


def test_one_request_fetches_an_object(server):
    storage.write_bytes(URI, CONTENT)
    server.requests.clear()
    storage.fetch(URI)
    storage.fetch(URI, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert [request[:2] for request in server.requests] == [("GET", "store/things/a.json")]


@pytest.mark.parametrize("named", [True, False], ids=["by a hash", "by the store"])
def test_bytes_that_arrive_damaged_are_fetched_once_more_and_then_refused(server, named):
    sha256 = hashlib.sha256(CONTENT).hexdigest() if named else None
    storage.write_bytes(URI, CONTENT)
    server.faults[:] = ["flip"]
    assert storage.fetch(URI, sha256).read_bytes() == CONTENT
    storage.forget_cached(URI)
    server.faults[:] = ["flip", "flip"]
    with pytest.raises(
        StorageError, match=r"things/a\.json: (damaged: its bytes do not have the SHA-256|its bytes arr)"
    ):
        storage.fetch(URI, sha256)
    assert not list(Path(os.environ["KUBEVOX_CACHE"]).rglob("a.json"))


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_named(server):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    storage.write_bytes(URI, CONTENT)
    copy = storage.fetch(URI, sha256)
    copy.write_bytes(CONTENT[:-1])
    assert storage.fetch(URI, sha256).read_bytes() == CONTENT
    copy.write_bytes(CONTENT[:-1])
    storage.write_bytes(URI, CONTENT[:-1])
    with pytest.raises(StorageError, match=rf"^s3://bucket/store/things/a\.json: damaged: .* {sha256[:12]}"):
        storage.fetch(URI, sha256)


@pytest.mark.parametrize("faults", [[], ["lost"], ["reset"], [None, None, "lost"], [None] * 5 + ["reset", "slow down"]])
def test_a_large_file_goes_up_in_parts_through_faults(server, tmp_path, monkeypatch, faults):
    monkeypatch.setattr(buckets, "WHOLE", 1000)
    monkeypatch.setattr(buckets, "PART", 4000)
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    server.faults[:] = faults
    assert storage.create_file(URI, file)
    server.faults.clear()
    assert storage.read_bytes(URI) == CONTENT
    assert not storage.create_file(URI, file)
    assert storage.create_file(URI, file, replace=True)


def test_the_last_answer_to_an_upload_in_parts_may_be_lost(server, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "WHOLE", 1000)
    monkeypatch.setattr(buckets, "PART", 4000)
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    server.faults[:] = [None] * 6 + ["lost"]  # asked, begun, three parts, asked again, completed
    assert storage.create_file(URI, file)
    assert server.requests[6][:3] == ("POST", "store/things/a.json", ["uploadId"])
    assert storage.read_bytes(URI) == CONTENT


def test_an_upload_that_fails_leaves_no_parts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "WHOLE", 1000)
    monkeypatch.setattr(buckets, "PART", 4000)
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.0)
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    server.faults[:] = [None, None, None, "slow down"]
    with pytest.raises(StorageError, match="SlowDown"):
        storage.create_file(URI, file)
    assert (server.objects, server.uploads) == ({}, {})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", "does not answer"),
        ("slow down", r"no \(SlowDown from http://127"),
        ("html", r"does not answer \(HTTP status 502\)"),
    ],
)
def test_patience_ends_with_one_line(server, monkeypatch, fault, words):
    monkeypatch.setattr(buckets, "PATIENCE_S", 0.6)
    server.faults[:] = [fault] * 1000
    started = time.monotonic()
    with pytest.raises(StorageError, match=words) as caught:
        storage.read_bytes(URI)
    assert 0.5 < time.monotonic() - started < 3
    assert str(caught.value).startswith(URI)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_store_refuses_is_not_asked_again(server):
    with pytest.raises(StorageError, match="no such object"):
        storage.fetch(URI, sha256="0" * 64)
    assert len(server.requests) == 1


def test_a_folder_is_fetched_also_where_nothing_says_that_it_is_one(server):
    storage.write_bytes("s3://bucket/bundles/abc/bundle.json", b"{}")
    storage.write_bytes("s3://bucket/bundles/abc/model.safetensors", b"1")
    fetched = storage.fetch("s3://bucket/bundles/abc")
    assert sorted(path.name for path in fetched.iterdir()) == ["bundle.json", "model.safetensors"]


def test_a_folders_head_goes_first(server):
    for name in ("part-0", "sub/x.json", "head.json", "more"):
        storage.write_bytes(f"s3://bucket/store/version/{name}", b"1")
    storage.write_bytes("s3://bucket/store/version-2/head.json", b"1")
    server.requests.clear()
    server.faults[:] = [None, None, None, *["slow down"] * 1000]  # listed, looked at, heads deleted
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(StorageError):
        patch.setattr(buckets, "PATIENCE_S", 0.0)
        storage.delete("s3://bucket/store/version")
    assert sorted(server.objects) == [
        "store/version-2/head.json",
        *(f"store/version/{name}" for name in ("more", "part-0", "sub/x.json")),
    ]
    server.faults.clear()
    assert storage.delete("s3://bucket/store/version/") == 3
    assert storage.delete("s3://bucket/store/version") == 0
    assert list(server.objects) == ["store/version-2/head.json"]


def test_copies_are_forgotten_with_all_that_holds_them_or_lies_in_them(server):
    for name in ("version/head.json", "version/part", "other/head.json"):
        storage.write_bytes(f"s3://bucket/store/{name}", b"1")
    uris = ["s3://bucket/store/version/", "s3://bucket/store/version/part", "s3://bucket/store/other/head.json"]
    folder, part, other = (storage.fetch(uri) for uri in uris)
    assert storage.forget_cached("s3://bucket/store/version/part") == 2
    assert [path.exists() for path in (folder, part, other)] == [False, False, True]
    folder, part, other = (storage.fetch(uri) for uri in uris)
    assert storage.delete("s3://bucket/store/version") == 2
    assert [path.exists() for path in (folder, part, other)] == [False, False, True]
    assert storage.forget_cached("s3://bucket/store") == 1
    assert not other.exists()


def test_no_name_in_a_bucket_leads_out_of_the_cache(server, tmp_path):
    for name in ("head.json", "../../../escaped"):
        server.objects[f"store/version/{name}"] = (b"1", None)
    with pytest.raises(StorageError, match="leads out of the folder"):
        storage.fetch("s3://bucket/store/version/")
    assert not list(tmp_path.rglob("escaped"))


def test_a_forked_process_has_connections_of_its_own(server):
    storage.write_bytes(URI, CONTENT)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if all(storage.read_bytes(URI) == CONTENT for _ in range(50)) else 1
        finally:
            os._exit(status)
    assert all(storage.read_bytes(URI) == CONTENT for _ in range(50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_sweep_of_a_buckets_leavings_takes_copies_and_staging_of_this_machine(server, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "_unfinished", lambda bucket, prefix: [])
    monkeypatch.setattr(buckets.tempfile, "tempdir", str(tmp_path))
    storage.write_bytes(URI, CONTENT)
    copy = storage.fetch(URI)
    old = [copy.parent / ".a.json.abcd1234", buckets.staging_folder("s3://bucket/store")]
    old[0].mkdir()
    kept = buckets.staging_folder("s3://bucket/store")
    for path in old:
        (path / "x").write_bytes(b"")
        for part in (path / "x", path):
            os.utime(part, (1e9, 1e9))
    assert storage.sweep("s3://bucket/store", 3600) == [str(path) for path in old]
    assert (copy.exists(), kept.exists(), [path.exists() for path in old]) == (True, True, [False, False])
