"""One store behind one kind of URI: a folder (``/data/store``) or a bucket (``s3://bucket/prefix``).

What is stored is named by its content and never rewritten. A folder is published whole or not at all: locally by a
rename, in a bucket by uploading its *head* file (``dataset.json``, ``bundle.json``, ...) last; readers look for the
head. Credentials come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``), the
endpoint from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``; nothing here knows which server answers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubevox.errors import StorageError
from kubevox.provenance import canonical_json, content_hash

__all__ = [
    "absolute",
    "create",
    "create_file",
    "exists",
    "fetch",
    "join",
    "list_names",
    "publish",
    "read_bytes",
    "read_json",
    "recall",
    "remember",
    "staging",
    "write_bytes",
]


def join(uri: str, *parts: str) -> str:
    """``uri`` followed by the parts, with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The URI with a relative folder made absolute, so that it means the same in every working directory."""
    if uri.startswith("s3://"):
        return uri.rstrip("/")
    if "://" in uri:
        raise StorageError(f"store {uri!r}: only a folder or s3://bucket/prefix can hold a store")
    return str(Path(uri).expanduser().absolute())


def exists(uri: str) -> bool:
    """Whether an object (not a folder of a bucket) is there."""
    if not _is_s3(uri):
        return Path(uri).exists()
    bucket, key = _split(uri)
    with _s3_errors(uri):
        from minio.error import S3Error

        try:
            _client().stat_object(bucket, key)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject", "NotFound"):
                return False
            raise
    return True


def read_bytes(uri: str) -> bytes:
    """The object's bytes.

    Raises:
        StorageError: it is not there or the store does not answer.
    """
    if not _is_s3(uri):
        with _folder_errors(uri):
            return Path(uri).read_bytes()
    bucket, key = _split(uri)
    with _s3_errors(uri):
        response = _client().get_object(bucket, key)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()


def read_json(uri: str) -> Any:
    """The object, parsed as JSON.

    Raises:
        StorageError: it is not there or holds no JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: not valid JSON ({error}); the object is damaged") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: under a temporary name, then renamed. The last writer wins."""
    if _is_s3(uri):
        bucket, key = _split(uri)
        with _s3_errors(uri):
            _client().put_object(bucket, key, io.BytesIO(data), len(data))
        return
    with _folder_errors(uri):
        os.replace(_write_beside(Path(uri), data), uri)


def create(uri: str, data: bytes) -> bool:
    """Write an object only where there is none; the first writer wins, also against other processes.

    Returns:
        Whether this call wrote it.
    """
    if _is_s3(uri):
        return _create_s3(uri, data)
    with _folder_errors(uri):
        temporary = _write_beside(Path(uri), data)
        try:
            os.link(temporary, uri)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


def create_file(uri: str, path: Path, replace: bool = False) -> bool:
    """Put a finished local file under ``uri`` without reading it into memory.

    Args:
        uri: where to.
        path: the file, in a :func:`staging` folder of the same store.
        replace: whether something damaged is there that gives way.

    Returns:
        Whether this call put it there: False where another process was first.
    """
    if _is_s3(uri):
        if path.stat().st_size <= _WHOLE and not replace:
            return _create_s3(uri, path.read_bytes())
        if not replace and exists(uri):
            return False
        bucket, key = _split(uri)
        with _s3_errors(uri):
            _client().fput_object(bucket, key, str(path))
        return True
    with _folder_errors(uri):
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        if replace:
            os.replace(path, target)
            return True
        try:
            os.link(path, target)
        except FileExistsError:
            return False
    return True


def list_names(uri: str) -> list[str]:
    """The names directly under a folder, sorted; none where the folder is not there."""
    if not _is_s3(uri):
        folder = Path(uri)
        # What starts with a dot is being written by someone.
        return sorted(e.name for e in folder.iterdir() if not e.name.startswith(".")) if folder.is_dir() else []
    bucket, key = _split(uri.rstrip("/") + "/")
    with _s3_errors(uri):
        found = [item.object_name[len(key) :].strip("/") for item in _client().list_objects(bucket, prefix=key)]
    return sorted(name for name in found if name)


def fetch(uri: str) -> Path:
    """A local path that holds the object or the folder: the thing itself, or a copy kept in the cache.

    Copies are never refreshed: what is stored under a content's name does not change.

    Raises:
        StorageError: it is not there.
    """
    if not _is_s3(uri):
        path = Path(uri)
        if not path.exists():
            raise StorageError(f"{uri}: no such file or folder in the store")
        return path
    bucket, key = _split(uri.rstrip("/"))
    cache = Path(os.environ.get("KUBEVOX_CACHE") or Path.home() / ".cache" / "kubevox")
    # Each URI has a place of its own: one object of a folder, fetched before, must not pass for the folder.
    target = cache / bucket / content_hash(key)[:32] / key.rpartition("/")[2]
    if target.exists():
        return target
    with _s3_errors(uri), _folder_errors(f"cache {cache}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        client = _client()
        names = [item.object_name for item in client.list_objects(bucket, prefix=key + "/", recursive=True)]
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for name in names:
                client.fget_object(bucket, name, str(temporary / "it" / name[len(key) + 1 :]))
            if not names:
                client.fget_object(bucket, key, str(temporary / "it"))
            try:
                os.replace(temporary / "it", target)
            except OSError:
                if not target.exists():  # else another process was first: its copy is as good
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextlib.contextmanager
def staging(store: str) -> Iterator[Path]:
    """A temporary folder on the store's own file system, gone afterwards whatever happens."""
    if _is_s3(store):
        list_names(join(store, "tmp"))  # a store that cannot be used is noticed before the work, not after it
        folder = Path(tempfile.mkdtemp(prefix="staging-"))
    else:
        parent = Path(store) / "tmp"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=parent, prefix="staging-"))
        except OSError as error:
            raise StorageError(f"store {store}: cannot be written ({error.strerror}); choose another `store`") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, uri: str, head: str) -> bool:
    """Make a finished local folder visible under ``uri``, all at once; ``head`` is the file that readers look for.

    Returns:
        Whether this call published it: False where the same content was there already.
    """
    if exists(join(uri, head)):
        return False
    if not _is_s3(uri):
        target = Path(uri)
        with _folder_errors(uri):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)  # a temporary folder is its maker's alone
            try:
                os.rename(folder, target)
            except OSError:
                if (target / head).exists():  # another process was first
                    return False
                if target.exists():
                    raise StorageError(f"{uri}: damaged: it has no {head}; delete the folder and run again") from None
                raise
        return True
    bucket, key = _split(uri)
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == head)
    with _s3_errors(uri):
        for path in files:
            _client().fput_object(bucket, f"{key}/{path.relative_to(folder).as_posix()}", str(path))
    return True


def recall(store: str, stage: str, key: str) -> dict[str, Any] | None:
    """What ``stage`` answered the last time its inputs had this key, or None."""
    uri = join(store, "memo", stage, f"{key}.json")
    return read_json(uri) if exists(uri) else None


def remember(store: str, stage: str, key: str, answer: dict[str, Any]) -> None:
    """Keep a stage's answer under the key of its inputs."""
    write_bytes(join(store, "memo", stage, f"{key}.json"), canonical_json(answer).encode())


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise StorageError(f"store {uri!r}: expected s3://bucket/prefix")
    return bucket, key


def _write_beside(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _create_s3(uri: str, data: bytes) -> bool:
    bucket, key = _split(uri)
    with _s3_errors(uri):
        from minio.error import S3Error

        try:
            # The public put_object has no way to pass a precondition; S3 itself has had If-None-Match since 2024.
            _client()._put_object(bucket, key, data, headers={"If-None-Match": "*"})
        except S3Error as error:
            if error.code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
    return True


# Up to here a file is sent to S3 in one request, which alone can be made to fail where there is something already.
_WHOLE = 64 << 20

_S3_REASONS = {
    "AccessDenied": "the store refuses these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the store does not know the key in AWS_ACCESS_KEY_ID",
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such object",
    "SignatureDoesNotMatch": "the store refuses these credentials; check AWS_SECRET_ACCESS_KEY",
}


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"


def _client() -> Any:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    keys = tuple(os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"))
    return _connect(_endpoint(), region, keys)


@functools.cache
def _connect(endpoint: str, region: str | None, keys: tuple[str | None, ...]) -> Any:
    """A client; ``keys`` are in the arguments so that corrected ones are taken up."""
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
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        ),
    )


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    try:
        import urllib3.exceptions
        from minio.error import MinioException, S3Error
    except ImportError:
        raise StorageError("an s3:// store needs the extra 's3': pip install 'kubevox[s3]'") from None
    try:
        yield
    except S3Error as error:
        reason = _S3_REASONS.get(str(error.code)) or error.message or "the store refused"
        raise StorageError(f"{uri}: {reason} ({error.code} from {_endpoint()})") from None
    except (urllib3.exceptions.HTTPError, MinioException) as error:
        reason = getattr(error, "reason", None) or error
        raise StorageError(
            f"{uri}: the object store at {_endpoint()} does not answer ({reason}); is AWS_ENDPOINT_URL right, and is "
            "the store up?"
        ) from None
    except ValueError as error:
        remedy = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if "credentials" in str(error) else ""
        raise StorageError(f"{uri}: {error}{remedy}") from None


@contextlib.contextmanager
def _folder_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from None
