"""A store in a bucket, through S3's own interface. The functions are those of :mod:`kubevox.storage`.

A fault that passes (a connection that breaks, a time-out, 500, 503 SlowDown) is met by trying again, with growing
pauses, for :data:`PATIENCE_S`; an endpoint that never answered this process gets :data:`FIRST_PATIENCE_S`, since a
wrong address is the likelier reason. What is sent is signed with its hash or carries its MD5, so that the server
refuses what arrives damaged; what is read is compared with the MD5 that its ETag is, or with the hash that the caller
names.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import mmap
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

from kubevox.errors import StorageError
from kubevox.provenance import content_hash
from kubevox.storage import folders
from kubevox.storage.folders import Stored

# How long to try again, in seconds, counted from the first attempt.
PATIENCE_S = 30.0
FIRST_PATIENCE_S = 3.0
# The first pause, in seconds; each is twice the one before, up to five seconds, and up to half of it is left to chance.
PAUSE_S = 0.1
# Up to here a file goes up in one request, which alone is sure to fail where there is something already.
WHOLE = 256 << 20
PART = 32 << 20
_MOST_PARTS = 10_000
_STAGING = "kubevox-staging-"
_WRITER = "x-amz-meta-writer"

_REASONS = {
    "AccessDenied": "the store refuses these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the store does not know the key in AWS_ACCESS_KEY_ID",
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's; set it right",
    "SignatureDoesNotMatch": "the store refuses these credentials; check AWS_SECRET_ACCESS_KEY",
}
_ABSENT = frozenset({"NoSuchKey", "NoSuchObject", "NotFound"})
# Answers below 500 that another attempt may change: haste, and bytes that were damaged on their way.
_PASSING = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "OperationAborted",
        "RequestTimeout",
        "SlowDown",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)

_T = TypeVar("_T")


def exists(uri: str) -> bool:
    bucket, key = _split(uri)
    with _errors(uri):
        return _stat(bucket, key) is not None


def read_bytes(uri: str) -> bytes:
    bucket, key = _split(uri)
    with _errors(uri):
        buffer = io.BytesIO()
        _download(bucket, key, buffer, None)
    return buffer.getvalue()


def read_start(uri: str, size: int, patience_s: float | None) -> bytes:
    bucket, key = _split(uri)
    with _errors(uri):
        return _patiently(lambda: _start(bucket, key, size), patience_s)


def write_bytes(uri: str, data: bytes) -> None:
    bucket, key = _split(uri)
    with _errors(uri):
        _put(bucket, key, data, only_first=False)


def create(uri: str, data: bytes) -> bool:
    bucket, key = _split(uri)
    with _errors(uri):
        return _put(bucket, key, data, only_first=True)


def create_file(uri: str, path: Path, replace: bool) -> bool:
    bucket, key = _split(uri)
    with _errors(uri), folders.errors(str(path)):
        return _put_file(bucket, key, path, only_first=not replace)


def list_names(uri: str) -> list[str]:
    bucket, key = _split(uri.rstrip("/") + "/")
    with _errors(uri):
        found = _patiently(lambda: [item.object_name for item in _client().list_objects(bucket, prefix=key)])
    names = (name[len(key) :].strip("/") for name in found)
    return sorted(name for name in names if name)


def walk(uri: str, unfinished: bool) -> Iterator[Stored]:
    bucket, key = _split(uri + "/")
    with _errors(uri):
        for item in _listed(bucket, key):
            yield Stored(f"s3://{bucket}/{item.object_name}", item.size or 0, item.last_modified.timestamp())


def fetch(uri: str, sha256: str | None) -> Path:
    bucket, key = _split(uri.rstrip("/"))
    target = _copy_of(bucket, key)
    if target.exists() and (not sha256 or (target.is_file() and folders.is_sound(target, sha256))):
        return target
    with _errors(uri), folders.errors(f"cache {_cache()} (KUBEVOX_CACHE)"):
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / ".key").write_text(key)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            if uri.endswith("/"):
                _download_folder(uri, bucket, key, temporary / "it")
            else:
                try:
                    _download_file(bucket, key, temporary / "it", sha256)
                except Exception as error:
                    if sha256 or getattr(error, "code", None) not in _ABSENT:
                        raise
                    (temporary / "it").unlink(missing_ok=True)
                    _download_folder(uri, bucket, key, temporary / "it")
            try:
                os.replace(temporary / "it", target)
            except OSError:
                if not target.is_dir():  # else another process was first: its copy is as good
                    raise
            if sha256:
                folders.is_sound(target, sha256)  # noted, so that it is not asked again
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def delete(uri: str, purge: bool) -> int:
    bucket, key = _split(uri)
    folder = key.rstrip("/") + "/"
    with _errors(uri):
        names = [item.object_name for item in _listed(bucket, folder)]
        if not uri.endswith("/") and _stat(bucket, key):
            names.append(key)
        # A folder's head is a JSON file in it: without it no reader looks for the rest.
        heads = [name for name in names if name.endswith(".json") and "/" not in name[len(folder) :]]
        _remove(uri, bucket, [(name, None) for name in heads])
        _remove(uri, bucket, [(name, None) for name in sorted(set(names).difference(heads))])
        if purge:
            versions = _patiently(
                lambda: list(_client().list_objects(bucket, key, recursive=True, include_version=True))
            )
            _remove(
                uri,
                bucket,
                [
                    (item.object_name, item.version_id)
                    for item in versions
                    if item.object_name.startswith(folder) or (item.object_name == key and not uri.endswith("/"))
                ],
            )
    for name in names:
        forget_cached(f"s3://{bucket}/{name}")
    return len(names)


def forget_cached(uri: str) -> int:
    bucket, key = _split(uri.rstrip("/"))
    removed = 0
    with folders.errors(f"cache {_cache()} (KUBEVOX_CACHE)"):
        places = {_copy_of(bucket, key).parent}
        for note in (_cache() / bucket).glob("*/.key"):
            copied = note.read_text()
            if copied.startswith(key + "/") or key.startswith(copied + "/"):
                places.add(note.parent)
        for place in places:
            if place.is_dir():
                shutil.rmtree(place)
                removed += 1
    return removed


def sweep(store: str, older_than_s: float) -> list[str]:
    bucket, key = _split(store + "/")
    since = time.time() - older_than_s
    removed = []
    with _errors(store):
        uploads = _patiently(lambda: list(_unfinished(bucket, key)))
        for upload in uploads:
            if upload.initiated_time and upload.initiated_time.timestamp() < since:
                _abort(bucket, upload.object_name, upload.upload_id)
                removed.append(f"s3://{bucket}/{upload.object_name} (unfinished upload)")
    with folders.errors(f"cache {_cache()} (KUBEVOX_CACHE)"):
        removed += folders.left_behind(_cache() / bucket, since)
    with folders.errors(tempfile.gettempdir()):
        for folder in Path(tempfile.gettempdir()).glob(f"{_STAGING}*"):
            if folder.stat().st_uid == os.geteuid() and folders.last_written(folder) < since:
                shutil.rmtree(folder)
                removed.append(str(folder))
    return removed


def staging_folder(store: str) -> Path:
    list_names(
        f"{store.rstrip('/')}/{_STAGING}"
    )  # a store that cannot be used is noticed before the work, not after it
    with folders.errors(tempfile.gettempdir()):
        return Path(tempfile.mkdtemp(prefix=_STAGING))


def publish(folder: Path, uri: str, head: str) -> bool:
    bucket, key = _split(uri)
    with _errors(uri), folders.errors(str(folder)):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / head):
            _put_file(bucket, f"{key}/{path.relative_to(folder).as_posix()}", path, only_first=False)
        return _put_file(bucket, f"{key}/{head}", folder / head, only_first=True)


def _put(bucket: str, key: str, data: Any, only_first: bool) -> bool:
    """One object in one request; whether this call put it there.

    The writer's mark tells, when an answer is lost and the next attempt finds an object, whose that object is.
    """
    from minio.error import S3Error

    writer = uuid.uuid4().hex
    condition = {"If-None-Match": "*"} if only_first else {}

    def put() -> None:
        if isinstance(data, mmap.mmap):
            data.seek(0)
        # The public put_object has no way to pass a precondition; S3 itself has had If-None-Match since 2024.
        _client()._put_object(bucket, key, data, headers={_WRITER: writer, **condition})

    try:
        _patiently(put)
    except S3Error as error:
        if error.code != "PreconditionFailed":
            raise
        return _is_ours(bucket, key, writer)
    return True


def _put_file(bucket: str, key: str, path: Path, only_first: bool) -> bool:
    size = path.stat().st_size
    if not size:
        return _put(bucket, key, b"", only_first)
    # Mapped, not read: however large, what is sent is never in memory as a whole.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if size <= WHOLE:
            return _put(bucket, key, content, only_first)
        return _put_parts(bucket, key, content, only_first)


def _put_parts(bucket: str, key: str, content: mmap.mmap, only_first: bool) -> bool:
    """A large object, a part after the other, so that a fault costs one part."""
    from minio.error import S3Error

    if only_first and _stat(bucket, key):
        return False
    writer = uuid.uuid4().hex
    client = _client()
    upload = _patiently(lambda: client._create_multipart_upload(bucket, key, {_WRITER: writer}))
    try:
        part = max(PART, -(-len(content) // _MOST_PARTS))
        tags = []
        for number, start in enumerate(range(0, len(content), part), 1):
            send = functools.partial(
                client._upload_part, bucket, key, content[start : start + part], None, upload, number
            )
            tags.append(_patiently(send))
        if only_first and _stat(bucket, key):  # a server may ignore the condition on the last request
            _abort(bucket, key, upload)
            return False
        _patiently(lambda: _complete(bucket, key, upload, tags, only_first))
    except S3Error as error:
        if error.code == "NoSuchUpload" and _is_ours(bucket, key, writer):
            return True  # completed, and the answer was lost
        _abort(bucket, key, upload)
        if error.code == "PreconditionFailed":
            return False
        raise
    except BaseException:
        with contextlib.suppress(Exception):
            _abort(bucket, key, upload)
        raise
    return True


def _complete(bucket: str, key: str, upload: str, tags: list[str], only_first: bool) -> None:
    from minio.error import ServerError
    from minio.helpers import md5sum_hash

    listed = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{tag}"</ETag></Part>' for number, tag in enumerate(tags, 1)
    )
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    headers = {"Content-Type": "application/xml", "Content-MD5": md5sum_hash(body)}
    if only_first:
        headers["If-None-Match"] = "*"
    answer = _client()._execute("POST", bucket, key, body=body, headers=headers, query_params={"uploadId": upload})
    if b"<Error>" in answer.data:  # the status is sent before the parts are joined
        raise ServerError("the parts could not be joined", 500)


def _abort(bucket: str, key: str, upload: str) -> None:
    from minio.error import S3Error

    try:
        _patiently(lambda: _client()._abort_multipart_upload(bucket, key, upload))
    except S3Error as error:
        if error.code != "NoSuchUpload":
            raise


def _is_ours(bucket: str, key: str, writer: str) -> bool:
    found = _stat(bucket, key)
    return found is not None and found.metadata.get(_WRITER) == writer


def _stat(bucket: str, key: str) -> Any:
    from minio.error import S3Error

    try:
        return _patiently(lambda: _client().stat_object(bucket, key))
    except S3Error as error:
        if error.code in _ABSENT:
            return None
        raise


def _listed(bucket: str, prefix: str) -> Iterator[Any]:
    """All objects whose names begin so; a page that fails is asked for again from where the last one ended."""
    last = None
    while True:
        page = _patiently(functools.partial(_page, bucket, prefix, last))
        yield from page
        if len(page) < 1000:
            return
        last = page[-1].object_name


def _page(bucket: str, prefix: str, after: str | None) -> list[Any]:
    items = _client().list_objects(bucket, prefix=prefix, recursive=True, start_after=after)
    return [item for _, item in zip(range(1000), items, strict=False)]


def _unfinished(bucket: str, prefix: str) -> Iterator[Any]:
    marks: dict[str, Any] = {}
    while True:
        answer = _client()._list_multipart_uploads(bucket, prefix=prefix, **marks)
        yield from answer.uploads
        if not answer.is_truncated:
            return
        marks = {"key_marker": answer.next_key_marker, "upload_id_marker": answer.next_upload_id_marker}


def _remove(uri: str, bucket: str, names: list[tuple[str, str | None]]) -> None:
    from minio.deleteobjects import DeleteObject

    if not names:
        return
    wanted = [DeleteObject(name, version) for name, version in names]
    refused = _patiently(lambda: list(_client().remove_objects(bucket, wanted)))
    if refused:
        first = refused[0]
        raise StorageError(
            f"{uri}: {len(refused)} of {len(names)} objects could not be deleted, {first.name} for one: "
            f"{first.message or first.code}"
        )


def _download_folder(uri: str, bucket: str, key: str, folder: Path) -> None:
    count = 0
    for item in _listed(bucket, key + "/"):
        path = folder / item.object_name[len(key) + 1 :]
        if item.object_name.endswith("/"):  # how some tools mark a folder
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"{uri}: the name {item.object_name!r} leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_file(bucket, item.object_name, path, None)
        count += 1
    if not count:
        raise StorageError(f"{uri}: there is no such object (NoSuchKey from {_endpoint()})")


def _download_file(bucket: str, key: str, path: Path, sha256: str | None) -> None:
    with path.open("wb") as file:
        _download(bucket, key, file, sha256)


def _download(bucket: str, key: str, file: BinaryIO, sha256: str | None) -> None:
    """One object into an empty file; what does not have the right hash is fetched once more."""
    for _ in range(2):
        file.seek(0)
        file.truncate()
        if _take(bucket, key, file, sha256):
            return
    uri = f"s3://{bucket}/{key}"
    if sha256:
        raise folders.damaged(uri, sha256)
    raise StorageError(f"{uri}: its bytes arrive damaged, twice: they do not have the MD5 that the store names")


def _take(bucket: str, key: str, file: BinaryIO, sha256: str | None) -> bool:
    """One object, taken up where a fault broke it off; whether its bytes have the caller's hash, or the store's."""
    digest = hashlib.sha256() if sha256 else hashlib.md5(usedforsecurity=False)
    expected, tag = sha256, None

    def take() -> None:
        nonlocal digest, expected, tag
        have = file.tell()
        condition = {"If-Match": f'"{tag}"'} if tag and have else None
        response = _client().get_object(bucket, key, offset=have, request_headers=condition)
        try:
            if have and response.status != 206:  # from the start again
                file.seek(0)
                file.truncate()
                digest = hashlib.new(digest.name, usedforsecurity=False)
            tag = response.headers.get("etag", "").strip('"')
            if not sha256:
                expected = tag if _is_md5(tag, response.headers) else None
            for block in response.stream(1 << 20):
                digest.update(block)
                file.write(block)
        finally:
            response.close()
            response.release_conn()

    _patiently(take)
    return expected is None or digest.hexdigest() == expected


def _start(bucket: str, key: str, size: int) -> bytes:
    """An object's first bytes."""
    from minio.error import S3Error

    try:
        response = _client().get_object(bucket, key, length=size)
    except S3Error as error:
        if error.code != "InvalidRange":
            raise
        return b""  # an object without bytes has no first one
    try:
        # As they are stored: an object may say that it is compressed, and what it unfolds to has no bound.
        content = bytearray()
        while len(content) < size and (part := response.read(size - len(content), decode_content=False)):
            content += part
        return bytes(content)
    finally:
        response.close()
        response.release_conn()


def _is_md5(tag: str, headers: Any) -> bool:
    """Whether an ETag is the MD5 of the bytes: not where they came in parts, or lie encrypted under one's own key."""
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    own_key = "x-amz-server-side-encryption-customer-algorithm" in headers
    return bool(re.fullmatch(r"[0-9a-f]{32}", tag)) and not encrypted and not own_key


def _cache() -> Path:
    return Path(os.environ.get("KUBEVOX_CACHE") or Path.home() / ".cache" / "kubevox")


def _copy_of(bucket: str, key: str) -> Path:
    # Each URI has a place of its own: one object of a folder, fetched before, must not pass for the folder.
    return _cache() / bucket / content_hash(key)[:32] / key.rpartition("/")[2]


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key.strip("/"):
        raise StorageError(f"store {uri!r}: expected s3://bucket/prefix")
    return bucket, key


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"


def _client() -> Any:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    keys = tuple(os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"))
    return _connect(_endpoint(), region, keys, os.getpid())


@functools.cache
def _connect(endpoint: str, region: str | None, keys: tuple[str | None, ...], process: int) -> Any:
    """A client; ``keys`` are arguments so that corrected ones count, ``process`` so that forks share no connection."""
    import urllib3
    from minio import Minio
    from minio.credentials import ChainedProvider, EnvAWSProvider, IamAwsProvider

    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise StorageError(f"AWS_ENDPOINT_URL {endpoint!r}: expected http://host:port or https://host")
    return Minio(
        parts.netloc,
        secure=parts.scheme == "https",
        region=region,
        # Outside a cloud nobody answers for the machine's own credentials: do not wait for them.
        credentials=ChainedProvider(
            [EnvAWSProvider(), IamAwsProvider(http_client=urllib3.PoolManager(timeout=2, retries=1))]
        ),
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=30),
            # Trying again is our own affair: urllib3 does not repeat a POST, nor an answer that breaks off.
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=3),
            maxsize=16,
            blocksize=1 << 20,
        ),
    )


# Endpoints that have answered this process.
_reached: set[str] = set()


def _patiently(call: Callable[[], _T], patience_s: float | None = None) -> _T:
    """``call()``, and again while the store stumbles, for so long as patience lasts: the caller's, where it is less."""
    endpoint, started, pause = _endpoint(), time.monotonic(), PAUSE_S
    while True:
        try:
            answer = call()
        except Exception as error:
            if not _passes(error):
                _reached.add(endpoint)
                raise
            patience = PATIENCE_S if endpoint in _reached else min(FIRST_PATIENCE_S, PATIENCE_S)
            if patience_s is not None:
                patience = min(patience, patience_s)
            left = patience - (time.monotonic() - started)
            if left <= 0:
                raise
            time.sleep(min(pause * random.uniform(0.5, 1.0), left))
            pause = min(2 * pause, 5.0)
        else:
            _reached.add(endpoint)
            return answer


def _passes(error: Exception) -> bool:
    """Whether an error is a fault of the moment."""
    import urllib3.exceptions as http
    from minio.error import InvalidResponseError, S3Error, ServerError

    if isinstance(error, S3Error):
        return error.code in _PASSING or error.response.status in (500, 502, 503, 504)
    if isinstance(error, ServerError):
        return error.status_code in (429, 500, 502, 503, 504)
    if isinstance(error, InvalidResponseError):
        return error._code in (429, 500, 502, 503, 504)
    if isinstance(error, http.MaxRetryError):
        return not isinstance(error.reason, (http.SSLError, http.ResponseError))
    return isinstance(error, (http.ProtocolError, http.TimeoutError, ConnectionError))


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        import urllib3.exceptions
        from minio.error import InvalidResponseError, MinioException, S3Error
    except ImportError:
        raise StorageError("an s3:// store needs the extra 's3': pip install 'kubevox[s3]'") from None
    try:
        yield
    except S3Error as error:
        reason = _REASONS.get(str(error.code)) or error.message or "the store refused"
        raise StorageError(f"{uri}: {reason} ({error.code} from {_endpoint()})") from None
    except (urllib3.exceptions.HTTPError, MinioException, ConnectionError, ParseError) as error:
        # What is no object store may answer with a page of HTML.
        reason = f"HTTP status {error._code}" if isinstance(error, InvalidResponseError) else error
        reason = " ".join(str(getattr(error, "reason", None) or reason).split())
        raise StorageError(
            f"{uri}: the object store at {_endpoint()} does not answer ({reason}); is AWS_ENDPOINT_URL right, and is "
            "the store up?"
        ) from None
    except ValueError as error:
        remedy = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if "credentials" in str(error) else ""
        raise StorageError(f"{uri}: {error}{remedy}") from None
