"""The store, as a folder; and as a bucket of a real S3 server in the acceptance tests."""

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kubevox import storage
from kubevox.config import CorpusSource, DataConfig, SplitConfig, TaskConfig
from kubevox.data.dataset import ingest, read_audio, read_utterances
from kubevox.data.splits import load_split, make_split
from kubevox.errors import StorageError


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def everything_in(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def staged(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def publish(store: str, uri: str, **files: bytes) -> bool:
    with storage.staging(store) as folder:
        return storage.publish(staged(folder, **files), uri, "head.json")


def test_an_object_is_read_as_it_was_written_and_the_last_writer_wins(store):
    uri = storage.join(store, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b""
    assert everything_in(store) == ["a/b.bin"]


def test_the_start_of_an_object_is_read(store):
    uri = storage.join(store, "a.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_start(uri, 4) == b"0123"
    assert storage.read_start(uri, 100) == b"0123456789"
    storage.write_bytes(uri, b"")
    assert storage.read_start(uri, 4) == b""


def test_only_the_first_writer_creates_an_object(store):
    uri = storage.join(store, "entry.json")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert everything_in(store) == ["entry.json"]


def test_creators_in_other_processes_never_mix_and_never_overwrite(store):
    code = (
        "import sys; from kubevox import storage; store, writer = sys.argv[1:]; print('ready', flush=True); input()\n"
        "for n in range(60): storage.create(storage.join(store, f'{n}.json'), writer.encode() * 5000)"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, store, str(writer)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for writer in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # all are up: off they go
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert storage.list_names(store) == sorted(f"{number}.json" for number in range(60))
    for number in range(60):
        content = storage.read_bytes(storage.join(store, f"{number}.json"))
        assert len(content) == 5_000
        assert len(set(content)) == 1
    assert len(everything_in(store)) == 60


def test_exactly_one_of_many_threads_creates_an_object(store):
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            uri = storage.join(store, f"{number}")
            won = list(pool.map(lambda writer, uri=uri: (storage.create(uri, b"%d" % writer), writer), range(8)))
            winners = [writer for wrote, writer in won if wrote]
            assert len(winners) == 1
            assert storage.read_bytes(uri) == b"%d" % winners[0]


def test_a_listing_leaves_out_what_is_still_being_written(store):
    storage.write_bytes(storage.join(store, "log", "000000.json"), b"{}")
    (Path(store) / "log" / ".000001.json.abcd").write_bytes(b"{")
    assert storage.list_names(storage.join(store, "log")) == ["000000.json"]
    assert storage.list_names(storage.join(store, "nowhere")) == []


def test_a_published_folder_is_there_whole_and_readable_by_others(store):
    uri = storage.join(store, "things", "abc")
    assert publish(store, uri, head_json=b"{}", parts__one=b"1")
    assert everything_in(store) == ["things/abc/head.json", "things/abc/parts/one"]
    assert stat.S_IMODE(Path(uri).stat().st_mode) == 0o755


def test_a_folder_is_published_once(store):
    uri = storage.join(store, "things", "abc")
    assert publish(store, uri, head_json=b"first")
    assert not publish(store, uri, head_json=b"second", more=b"x")
    assert storage.read_bytes(storage.join(uri, "head.json")) == b"first"
    assert everything_in(store) == ["things/abc/head.json"]


def test_a_folder_without_its_head_is_not_published_over(store):
    uri = storage.join(store, "things", "abc")
    storage.write_bytes(storage.join(uri, "part"), b"left over")
    with pytest.raises(StorageError, match=r"abc: damaged: it has no head\.json; delete the folder"):
        publish(store, uri, head_json=b"{}")
    assert everything_in(store) == ["things/abc/part"]


def test_exactly_one_of_many_publishers_publishes(store):
    uri = storage.join(store, "things", "abc")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: publish(store, uri, head_json=b"{}", part=b"%d" % i), range(8)))
    assert sum(done) == 1
    assert storage.read_bytes(storage.join(uri, "part")) == b"%d" % done.index(True)
    assert everything_in(store) == ["things/abc/head.json", "things/abc/part"]


def test_staging_leaves_nothing_behind_when_the_work_fails(store):
    def work() -> None:
        with storage.staging(store) as folder:
            staged(folder, head_json=b"{}", deep__er__part=b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert everything_in(store) == []
    assert list((Path(store) / "tmp").iterdir()) == []


def test_fetching_from_a_folder_gives_the_thing_itself(store):
    uri = storage.join(store, "a", "b")
    storage.write_bytes(uri, b"x")
    assert storage.fetch(uri) == Path(uri)
    assert storage.fetch(storage.join(store, "a")) == Path(store) / "a"
    with pytest.raises(StorageError, match="a/c: no such file or folder"):
        storage.fetch(storage.join(store, "a", "c"))


def test_a_files_content_is_compared_with_its_hash_once_as_long_as_it_stays(store, monkeypatch):
    uri = storage.join(store, "shards", "x.parquet")
    storage.write_bytes(uri, b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert storage.fetch(uri, sha256) == Path(uri)
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "file_digest")
        storage.fetch(uri, sha256)
    stamp = os.stat(uri)
    Path(uri).write_bytes(b"CONTENT")  # as long as before
    os.utime(uri, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    with pytest.raises(StorageError, match=rf"^{uri}: damaged: .* {sha256[:12]}….*run again$"):
        storage.fetch(uri, sha256)


def test_a_walk_finds_every_object_with_its_size_and_time(store):
    storage.write_bytes(storage.join(store, "a", "b", "one"), b"1")
    storage.write_bytes(storage.join(store, "a", "two"), b"22")
    os.utime(Path(store, "a", "two"), (5.0, 7.0))
    with storage.staging(store) as folder:
        staged(folder, part=b"123")
        (Path(store) / "a" / ".two.abcd1234").write_bytes(b"")
        found = list(storage.walk(store))
        assert [(stored.uri, stored.size) for stored in found] == [(f"{store}/a/b/one", 1), (f"{store}/a/two", 2)]
        assert found[1].modified == 7.0
        everything = {uri for uri, _, _ in storage.walk(store + "/", unfinished=True)}
        assert everything == {f"{store}/{name}" for name in everything_in(store)}
        assert len(everything) == 4
    assert list(storage.walk(storage.join(store, "nowhere"))) == []


def test_deleting_takes_an_object_or_a_folder_and_says_how_much(store):
    for name in ("a/one", "a/b/two", "ab"):
        storage.write_bytes(storage.join(store, name), b"1")
    assert storage.delete(storage.join(store, "ab") + "/") == 0  # nothing is under it
    assert storage.delete(storage.join(store, "ab")) == 1
    assert storage.delete(storage.join(store, "ab")) == 0
    assert storage.delete(storage.join(store, "a/one/below")) == 0
    assert storage.delete(storage.join(store, "a") + "/") == 2
    assert list(Path(store).iterdir()) == []


def test_a_folder_that_is_being_deleted_is_gone_for_its_readers_at_once(store, monkeypatch):
    for name in ("head.json", "part"):
        storage.write_bytes(storage.join(store, "v", name), b"1")
    monkeypatch.setattr(storage.folders.shutil, "rmtree", lambda path: None)  # killed before it is through
    storage.delete(storage.join(store, "v"))
    assert not storage.exists(storage.join(store, "v"))
    assert storage.list_names(store) == []
    assert list(storage.walk(store)) == []
    monkeypatch.undo()
    assert len(storage.sweep(store, -1)) == 1
    assert list(Path(store).iterdir()) == []


def test_a_sweep_takes_what_killed_writers_left_and_nothing_else(store):
    code = (
        "import os, signal, sys; from pathlib import Path; from kubevox import storage\n"
        "with storage.staging(sys.argv[1]) as folder:\n"
        "    (folder / 'part').write_bytes(b'1'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, store], check=False)
    assert killed.returncode == -signal.SIGKILL
    storage.write_bytes(storage.join(store, "memo", "x.json"), b"{}")
    for name in (".x.json.abcd1234", ".gitignore"):
        (Path(store) / "memo" / name).write_bytes(b"")
    with storage.staging(store) as alive:
        staged(alive, part=b"1")
        assert storage.sweep(store) == []
        left = [path for path in [*Path(store).rglob("*")] if path != alive and alive not in path.parents]
        for path in left:
            os.utime(path, (1e9, 1e9))
        removed = storage.sweep(store, older_than_s=3600)
        assert sorted(Path(path).name.split("-")[0] for path in removed) == [".x.json.abcd1234", "staging"]
        assert (alive / "part").exists()
    assert everything_in(store) == ["memo/.gitignore", "memo/x.json"]


def test_a_full_disk_is_one_line_wherever_it_fills(store, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        with storage.staging(store):
            raise full

    with pytest.raises(StorageError, match=rf"^store {store}: no space is left on the disk of {store}/tmp/staging-"):
        fill()
    assert list((Path(store) / "tmp").iterdir()) == []
    if not Path("/dev/full").exists():
        return
    full_file = functools.partial(open, "/dev/full")
    monkeypatch.setattr(storage.folders.os, "fdopen", lambda number, mode: os.close(number) or full_file(mode))
    for write in (storage.write_bytes, storage.create):
        with pytest.raises(StorageError, match=rf"^{store}/x: no space is left on its disk$"):
            write(storage.join(store, "x"), b"1")
    assert everything_in(store) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become someone without permission")
    store = Path("/tmp") / f"kubevox-{os.getpid()}"
    store.mkdir(mode=0o755)
    (store / "old").write_bytes(b"1")
    words = {}
    try:
        os.seteuid(65_534)
        for name, call in {
            "write": lambda: storage.write_bytes(f"{store}/x", b""),
            "create": lambda: storage.create(f"{store}/x", b""),
            "delete": lambda: storage.delete(f"{store}/old"),
            "staging": lambda: storage.staging(str(store)).__enter__(),
            "read": lambda: storage.read_bytes(f"{store}/old"),
        }.items():
            try:
                words[name] = call()
            except StorageError as error:
                words[name] = str(error)
    finally:
        os.seteuid(0)
        shutil.rmtree(store)
    assert words == {
        "write": f"{store}/x: Permission denied",
        "create": f"{store}/x: Permission denied",
        "delete": f"{store}/old: Permission denied",
        "staging": f"store {store}: cannot be written (Permission denied); choose another `store`",
        "read": b"1",
    }


def test_a_stage_recalls_what_it_remembered(store):
    assert storage.recall(store, "ingest", "key") is None
    storage.remember(store, "ingest", "key", {"uri": "å", "n": 1})
    assert storage.recall(store, "ingest", "key") == {"uri": "å", "n": 1}
    assert storage.recall(store, "ingest", "other") is None
    assert storage.recall(store, "train", "key") is None


def test_errors_are_one_line_and_name_the_object(store):
    storage.write_bytes(storage.join(store, "file"), b"\xff{")
    broken = {
        "missing: No such file": lambda: storage.read_bytes(storage.join(store, "missing")),
        "missing.wav: No such file": lambda: storage.read_start(storage.join(store, "missing.wav"), 9),
        "missing.json: No such file": lambda: storage.read_json(storage.join(store, "missing.json")),
        "file: not valid JSON": lambda: storage.read_json(storage.join(store, "file")),
        "store: Is a directory": lambda: storage.read_bytes(store),
        "file/x: ": lambda: storage.write_bytes(storage.join(store, "file", "x"), b""),
        "file/y: ": lambda: storage.create(storage.join(store, "file", "y"), b""),
        "file: cannot be written .*choose another": lambda: storage.staging(storage.join(store, "file")).__enter__(),
    }
    for words, call in broken.items():
        with pytest.raises(StorageError, match=words) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


def test_a_store_is_a_folder_or_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("here/store") == str(tmp_path / "here" / "store")
    assert storage.absolute("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert storage.join("s3://bucket/prefix/", "/a/", "b") == "s3://bucket/prefix/a/b"
    with pytest.raises(StorageError, match="gs://bucket/x"):
        storage.absolute("gs://bucket/x")
    with pytest.raises(StorageError, match="s3://bucket': expected s3://bucket/prefix"):
        storage.exists("s3://bucket")


def test_an_object_store_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("minio")
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(storage.buckets, "FIRST_PATIENCE_S", 0.3)
        with pytest.raises(StorageError, match=rf"s3://bucket/x: .*{endpoint} does not answer.*AWS_ENDPOINT_URL"):
            storage.exists("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(StorageError, match="expected http://host:port"):
        storage.exists("s3://bucket/x")


def test_a_folder_store_needs_no_client_for_buckets(tmp_path):
    code = (
        "import sys; from kubevox import storage; "
        f"storage.write_bytes({str(tmp_path / 'x')!r}, b'1'); assert storage.exists({str(tmp_path / 'x')!r}); "
        "assert not {'minio', 'urllib3', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


KEY, SECRET = "kubevox-tests", "kubevox-secret"


@pytest.fixture(scope="module")
def s3_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("s3") / "server"


@pytest.fixture(scope="module")
def s3_server(s3_folder):
    """A real S3 server on loopback; its endpoint."""
    pytest.importorskip("minio")
    tools = Path(__file__).resolve().parents[2] / "shared" / "tools"
    if not (tools / "s3-up").exists():
        pytest.skip(f"no S3 server: {tools / 's3-up'} is not there")
    if os.geteuid() != 0:
        pytest.skip("the S3 server needs root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = s3_folder
    environment = os.environ | {"S3_ACCESS_KEY": KEY, "S3_SECRET_KEY": SECRET}
    up = subprocess.run(
        [tools / "s3-up", folder, str(port)], env=environment, capture_output=True, text=True, timeout=300
    )
    try:
        if up.returncode:
            pytest.skip(f"the S3 server did not start: {up.stderr[-300:]}")
        minio_client(f"http://127.0.0.1:{port}").make_bucket("tests")
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([tools / "s3-down", folder], timeout=60, check=False)


@pytest.fixture
def bucket(s3_server, tmp_path, monkeypatch, request):
    """A prefix of its own in the bucket, and the environment to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    return f"s3://tests/{request.node.name}"


@pytest.fixture
def gateway(s3_server, s3_folder):
    """``stop()`` and ``start()`` of the server's gateway; what was stored stays."""

    class Gateway:
        @staticmethod
        def start() -> None:
            subprocess.run(["radosgw", "-c", s3_folder / "ceph.conf", "-n", "client.rgw.a"], check=True)

        @staticmethod
        def stop() -> None:
            pid = int((s3_folder / "run" / "client.rgw.a.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                time.sleep(0.05)

    yield Gateway
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(s3_server.rpartition(":")[2]))):
            Gateway.start()


def minio_client(endpoint):
    import minio

    return minio.Minio(endpoint.removeprefix("http://"), KEY, SECRET, secure=False, region="us-east-1")


@pytest.mark.acceptance
class TestBucket:
    def test_objects_are_written_read_and_listed(self, bucket):
        uri = storage.join(bucket, "a", "b.json")
        assert not storage.exists(uri)
        storage.write_bytes(uri, b'{"x": 1}')
        storage.write_bytes(storage.join(bucket, "a", "c"), b"")
        storage.write_bytes(storage.join(bucket, "a", "deeper", "d"), b"0")
        assert storage.exists(uri)
        assert storage.read_json(uri) == {"x": 1}
        assert storage.read_bytes(storage.join(bucket, "a", "c")) == b""
        assert storage.list_names(storage.join(bucket, "a")) == ["b.json", "c", "deeper"]
        assert storage.list_names(storage.join(bucket, "nowhere")) == []
        storage.remember(bucket, "ingest", "key", {"n": 1})
        assert storage.recall(bucket, "ingest", "key") == {"n": 1}
        assert storage.recall(bucket, "ingest", "other") is None

    def test_only_the_first_writer_creates_an_object(self, bucket):
        with ThreadPoolExecutor(8) as pool:
            for number in range(10):
                uri = storage.join(bucket, f"{number}.json")
                won = list(pool.map(lambda writer, uri=uri: storage.create(uri, b"%d" % writer), range(8)))
                assert sum(won) == 1
                assert storage.read_bytes(uri) == b"%d" % won.index(True)

    def test_a_folder_appears_with_its_head_and_only_once(self, bucket):
        uri = storage.join(bucket, "things", "abc")
        assert publish(bucket, uri, head_json=b"first", parts__one=b"1")
        assert not publish(bucket, uri, head_json=b"second", more=b"x")
        assert storage.list_names(uri) == ["head.json", "parts"]
        assert storage.read_bytes(storage.join(uri, "head.json")) == b"first"

    def test_copies_come_from_the_cache_and_an_object_is_no_folder(self, bucket, monkeypatch):
        uri = storage.join(bucket, "things", "abc")
        publish(bucket, uri, head_json=b"{}", parts__one=b"1")
        one = storage.fetch(storage.join(uri, "parts", "one"))
        assert one.read_bytes() == b"1"
        folder = storage.fetch(uri + "/")  # after a part of it was fetched
        assert everything_in(str(folder)) == ["head.json", "parts/one"]
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        assert storage.fetch(uri) == folder
        with pytest.raises(StorageError, match="does not answer"):
            storage.fetch(storage.join(uri, "head.json"))

    def test_what_is_not_there_is_named(self, bucket):
        for call in (storage.read_bytes, storage.fetch, lambda uri: storage.fetch(uri + "/")):
            with pytest.raises(StorageError, match=r"nothing/?: there is no such object \(NoSuchKey"):
                call(storage.join(bucket, "nothing"))
        with pytest.raises(StorageError, match=r"s3://elsewhere/x.*there is no such bucket"):
            storage.staging("s3://elsewhere/x").__enter__()  # before the work, not after it

    def test_refused_credentials_are_named(self, bucket, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        uri = storage.join(bucket, "x")
        for call in (storage.exists, storage.read_bytes, storage.list_names, lambda uri: storage.create(uri, b"")):
            with pytest.raises(StorageError, match=r"s3://tests/.*refuses these credentials") as caught:
                call(uri)
            assert "wrong" not in str(caught.value)

    def test_a_walk_goes_over_pages_and_a_folder_is_deleted_whole(self, bucket):
        client = storage.buckets._client()
        prefix = bucket.removeprefix("s3://tests/")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: client._put_object("tests", f"{prefix}/v/{n:05d}", b"1"), range(2100)))
        storage.write_bytes(storage.join(bucket, "v", "head.json"), b"{}")
        storage.write_bytes(storage.join(bucket, "v2"), b"{}")
        found = list(storage.walk(bucket))
        assert len({stored.uri for stored in found}) == len(found) == 2102
        assert abs(found[0].modified - time.time()) < 60
        assert storage.delete(storage.join(bucket, "v")) == 2101
        assert [stored.uri for stored in storage.walk(bucket)] == [storage.join(bucket, "v2")]

    def test_a_purge_takes_the_versions_that_a_bucket_keeps(self, bucket, s3_server):
        from minio.versioningconfig import ENABLED, VersioningConfig

        client = minio_client(s3_server)
        if not client.bucket_exists("versioned"):
            client.make_bucket("versioned")
        client.set_bucket_versioning("versioned", VersioningConfig(ENABLED))
        uri = "s3://versioned/store"
        for content in (b"1", b"2"):
            for name in ("v/part", "v/head.json", "v2"):
                storage.write_bytes(storage.join(uri, name), content)
        assert storage.delete(storage.join(uri, "v")) == 2

        def kept():
            return sorted(
                item.object_name
                for item in client.list_objects("versioned", recursive=True, include_version=True)
                if not item.is_delete_marker
            )

        assert kept().count("store/v/part") == 2
        storage.delete(storage.join(uri, "v"), purge=True)
        assert kept() == ["store/v2", "store/v2"]

    def test_a_large_file_goes_up_and_comes_down_in_bounded_memory(self, bucket, tmp_path):
        file = tmp_path / "large"
        with file.open("wb") as stream:
            for number in range(300):
                stream.write(bytes([number % 256]) * (1 << 20))
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        uri = storage.join(bucket, "large")
        code = (
            "import sys, threading, time; from pathlib import Path; from kubevox import storage\n"
            "uri, file, sha256 = sys.argv[1:]; most = [0]\n"
            "anonymous = lambda: int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
            "def watch():\n"
            "    while True: most[0] = max(most[0], anonymous()); time.sleep(0.01)\n"
            "threading.Thread(target=watch, daemon=True).start()\n"
            "assert storage.create_file(uri, Path(file)); assert not storage.create_file(uri, Path(file))\n"
            "storage.buckets.WHOLE = 1 << 30; assert storage.create_file(uri + '2', Path(file))\n"
            "storage.fetch(uri, sha256); storage.fetch(uri + '2', sha256); print(most[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, uri, str(file), sha256], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 170_000  # KiB; two parts of 32 MiB and the interpreter
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda _: storage.create_file(uri + "3", file), range(4)))
        assert sum(won) >= 1
        assert storage.fetch(uri + "3", sha256).stat().st_size == 300 << 20

    def test_writers_in_other_processes_publish_a_version_once(self, bucket, tmp_path):
        code = (
            "import sys; from kubevox import storage; from pathlib import Path; store, writer = sys.argv[1:]\n"
            "print('ready', flush=True); input(); won = 0\n"
            "for n in range(10):\n"
            "    with storage.staging(store) as folder:\n"
            "        (folder / 'part').write_bytes(b'1' * 100_000); (folder / 'head.json').write_text(writer)\n"
            "        won += storage.publish(folder, storage.join(store, f'v{n}'), 'head.json')\n"
            "print(won)"
        )
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", code, bucket, str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for writer in range(4)
        ]
        assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 4
        for writer in writers:
            writer.stdin.write("\n")
            writer.stdin.flush()
        won = [int(writer.communicate(timeout=60)[0]) for writer in writers]
        assert sum(won) == 10
        heads = [storage.read_bytes(storage.join(bucket, f"v{number}", "head.json")) for number in range(10)]
        assert [heads.count(b"%d" % writer) for writer in range(4)] == won

    def test_a_sweep_ends_uploads_that_a_killed_writer_left(self, bucket, s3_server):
        client = minio_client(s3_server)
        key = storage.join(bucket, "shard").removeprefix("s3://tests/")
        upload = client._create_multipart_upload("tests", key, {})
        client._upload_part("tests", key, b"1" * (5 << 20), None, upload, 1)
        assert storage.sweep(bucket, 3600) == []
        assert storage.sweep(bucket, -60) == [f"{bucket}/shard (unfinished upload)"]
        assert storage.sweep(bucket, -60) == []

    def test_a_server_that_stops_half_way_is_waited_for(self, bucket, gateway, tmp_path):
        uri = storage.join(bucket, "v")
        storage.write_bytes(storage.join(bucket, "x"), b"1")
        with storage.staging(bucket) as folder, ThreadPoolExecutor(1) as pool:
            staged(folder, head_json=b"{}", **{f"part{number}": b"1" * 1_000_000 for number in range(30)})
            publishing = pool.submit(storage.publish, folder, uri, "head.json")
            while not storage.list_names(uri):
                time.sleep(0.01)
            gateway.stop()
            time.sleep(1)
            gateway.start()
            assert publishing.result(timeout=60)
        assert len(storage.list_names(uri)) == 31

    def test_a_server_that_stays_away_is_one_line_and_a_rerun_ends_what_was_begun(self, bucket, gateway, monkeypatch):
        uri = storage.join(bucket, "v")
        storage.write_bytes(storage.join(bucket, "x"), b"1")
        monkeypatch.setattr(storage.buckets, "PATIENCE_S", 1.0)
        files = {"head_json": b"{}"} | {f"part{number}": b"1" * 1_000_000 for number in range(30)}
        with storage.staging(bucket) as folder, ThreadPoolExecutor(1) as pool:
            staged(folder, **files)
            publishing = pool.submit(storage.publish, folder, uri, "head.json")
            while not storage.list_names(uri):
                time.sleep(0.01)
            gateway.stop()
            with pytest.raises(
                StorageError, match=rf"^{uri}: the object store at .* does not answer \(.*\); is AWS"
            ) as told:
                publishing.result(timeout=60)
            assert len(str(told.value).splitlines()) == 1
        gateway.start()
        while True:
            try:
                assert not storage.exists(storage.join(uri, "head.json"))
                break
            except StorageError:
                time.sleep(0.2)
        assert publish(bucket, uri, **files)
        assert len(storage.list_names(uri)) == 31

    def test_a_corpus_becomes_a_certified_split_in_a_bucket(self, bucket, folder_corpus, tmp_path):
        config = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder_corpus()))])
        task = TaskConfig(name="mood", labels=["angry", "happy", "sad"])
        made = {}
        for store in (bucket, str(tmp_path / "store")):
            dataset, reused = ingest(config, store)
            assert not reused
            assert ingest(config, store)[1]
            utterances = read_utterances(dataset.shard_uris)
            audio = {name: wave.id for shard in dataset.shard_uris for name, wave in read_audio(shard)}
            assert audio == {utterance.id: utterance.id for utterance in utterances}
            split, reused = make_split(dataset, [u.source_id for u in utterances], task, SplitConfig(), store)
            assert not reused
            assert load_split(split.uri).rows == split.rows
            made[store] = split
        assert made[bucket].hash == made[str(tmp_path / "store")].hash
        # Another machine, with nothing in its cache, reads the same.
        shutil.rmtree(tmp_path / "cache")
        assert load_split(made[bucket].uri).rows == made[bucket].rows

    def test_an_ingest_that_loses_its_server_is_one_line_and_ends_as_an_undisturbed_one(
        self, bucket, gateway, tmp_path, monkeypatch
    ):
        folder, chance = tmp_path / "noise", np.random.default_rng(0)
        for clip in range(160):
            path = folder / ("sad", "happy")[clip % 2] / f"s{clip % 7}_{clip:03d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, chance.integers(-32768, 32767, 16_000, np.int16), 16_000)
        config = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], shard_mb=1)
        undisturbed, _ = ingest(config, str(tmp_path / "store"))
        assert len(undisturbed.shards) > 4
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(StorageError, match=r"^s3://tests/\S+: the store refuses these credentials"):
                ingest(config, bucket)
        with pytest.raises(StorageError, match=r"^s3://elsewhere/\S+: there is no such bucket"):
            ingest(config, "s3://elsewhere/store")
        create_file, stored = storage.create_file, []

        def stop_after_two(uri, path, *args, **kwargs):
            if len(stored) == 2:
                gateway.stop()
            stored.append(uri)
            return create_file(uri, path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(storage.buckets, "PATIENCE_S", 1.0)
            patch.setattr(storage, "create_file", stop_after_two)
            with pytest.raises(StorageError, match=r"^s3://tests/\S+: the object store at .* does not answer") as told:
                ingest(config, bucket)
        assert len(str(told.value).splitlines()) == 1
        assert len(stored) == 3
        gateway.start()
        while True:
            with contextlib.suppress(StorageError):
                assert storage.list_names(storage.join(bucket, "datasets")) == []
                break
            time.sleep(0.2)
        version, reused = ingest(config, bucket)
        assert not reused
        assert (version.hash, version.shards) == (undisturbed.hash, undisturbed.shards)
        for ours, theirs in zip(version.shard_uris, undisturbed.shard_uris, strict=True):
            assert storage.read_bytes(ours) == storage.read_bytes(theirs)
        assert len(storage.list_names(storage.join(bucket, "shards"))) == len(version.shards)
