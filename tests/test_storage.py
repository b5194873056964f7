"""The store, as a folder; and as a bucket of a real S3 server in the acceptance tests."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
def s3_server(tmp_path_factory):
    """A real S3 server on loopback; its endpoint."""
    minio = pytest.importorskip("minio")
    tools = Path(__file__).resolve().parents[2] / "shared" / "tools"
    if not (tools / "s3-up").exists():
        pytest.skip(f"no S3 server: {tools / 's3-up'} is not there")
    if os.geteuid() != 0:
        pytest.skip("the S3 server needs root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("s3") / "server"
    environment = os.environ | {"S3_ACCESS_KEY": KEY, "S3_SECRET_KEY": SECRET}
    up = subprocess.run(
        [tools / "s3-up", folder, str(port)], env=environment, capture_output=True, text=True, timeout=300
    )
    try:
        if up.returncode:
            pytest.skip(f"the S3 server did not start: {up.stderr[-300:]}")
        client = minio.Minio(f"127.0.0.1:{port}", KEY, SECRET, secure=False, region="us-east-1")
        client.make_bucket("tests")
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
        for call in (storage.read_bytes, storage.fetch):
            with pytest.raises(StorageError, match=r"nothing: there is no such object \(NoSuchKey"):
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
