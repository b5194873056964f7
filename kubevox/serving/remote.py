"""Recordings that a request names by URI, fetched from listed buckets and hosts and from nowhere else.

Whoever may say what a server fetches can turn it against the network that it stands in. So a host is listed or it is
refused; its name is resolved here, once, every address must be one of the public internet, and the connection goes to
those very addresses, whatever the name resolves to a moment later. Redirects are followed by hand, and each is checked
like the first URI. Nothing of the environment is used (no proxies, no .netrc), nothing is forwarded (no cookies, no
credentials), and what arrives is counted while it arrives. Buckets are read with the server's own credentials, through
:mod:`kubevox.storage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from kubevox import __version__, storage
from kubevox.config import RemoteAudioConfig
from kubevox.errors import AudioError, BusyError, ConfigError, StorageError

__all__ = ["RemoteAudio", "Resolve", "is_public", "resolve_host"]

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, for a port; blocks. Raises OSError where there is none."""

_URI_LENGTH = 2048
_PORT = 443
_HELD = 256 << 20  # bytes of fetched recordings that all requests together may hold
_REQUEST = 64 << 20  # and of one request, where a single recording may not be larger
_THREADS = 64  # that wait for a name or a bucket; given up on, one may wait on for as long as its sockets do
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")

# IANA's special-purpose address registries, and the platform address of one cloud that lies in ordinary space.
_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        # Within 2000::/3, of which all IPv6 that is routed worldwide is part; Teredo and 6to4 hold IPv4 addresses.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RemoteAudio:
    """Fetches recordings.

    Args:
        config: which buckets and hosts, and how long.
        max_bytes: of one recording.
        resolve: in place of the system's resolver.
        public: in place of :func:`is_public`; tests stand on loopback.
        ssl_context: in place of one that trusts the system's certificate authorities.

    Raises:
        ConfigError: what is listed is no host.
    """

    def __init__(
        self,
        config: RemoteAudioConfig,
        max_bytes: int,
        *,
        resolve: Resolve | None = None,
        public: Callable[[str], bool] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._config, self._max_bytes = config, max_bytes
        self._hosts = [_Listed.read(entry) for entry in config.hosts]
        self._buckets = [entry.rstrip("/") for entry in config.buckets]
        self._resolve, self._public = resolve or resolve_host, public or is_public
        self._ssl_context = ssl_context
        self._http: aiohttp.ClientSession | None = None
        self._room = max(_HELD, max_bytes)
        self._slots = asyncio.Semaphore(self._room // max_bytes)
        self._held = 0
        self._threads = 0

    async def fetch(self, uri: str) -> bytes:
        """One recording's bytes.

        Args:
            uri: ``https://host/path`` or ``s3://bucket/key``.

        Raises:
            AudioError: ``remote_refused``: the host, the bucket or a redirect is not allowed; ``remote_failed``: it
                does not answer, or not as it should; ``too_large``.
            BusyError: too much is being fetched or held.
        """
        async with self.fetched([uri]) as (content,):
            return content

    @contextlib.asynccontextmanager
    async def fetched(self, uris: Sequence[str]) -> AsyncIterator[list[bytes]]:
        """A request's recordings, in order; they count as held in memory until the block is left.

        Args:
            uris: as :meth:`fetch` takes them.

        Raises:
            AudioError: one cannot be had, as :meth:`fetch` says; or together they are ``too_large``.
            BusyError: too much is being fetched or held.
        """
        hold = _Hold()
        fetching = [asyncio.ensure_future(self._fetch(uri, hold)) for uri in uris]
        try:
            yield list(await asyncio.gather(*fetching))
        finally:
            for one in fetching:
                one.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
            self._held -= hold.bytes

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def _fetch(self, uri: str, hold: _Hold) -> bytes:
        shown = _shown(uri)
        try:
            place = self._place(uri)
            async with asyncio.timeout(self._config.timeout_s), self._slots:
                if self._held + self._max_bytes > self._room:
                    raise BusyError("as many fetched recordings as can be held wait for an answer; try again", 1.0)
                self._held += self._max_bytes
                size = 0
                try:
                    content = await (self._from_host(place) if isinstance(place, URL) else self._from_bucket(place))
                    size = len(content)
                finally:
                    self._held -= self._max_bytes - size
                    hold.bytes += size
        except TimeoutError:
            raise _failed(shown, f"not fetched within {self._config.timeout_s:g} s") from None
        except _NotFetchedError as error:
            raise AudioError(error.reason, f"{shown}: {error}") from None
        except aiohttp.ClientSSLError:
            raise _failed(shown, "its certificate is not trusted, or it speaks no TLS") from None
        except aiohttp.ClientConnectorError:
            raise _failed(shown, "its host cannot be reached") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError):
            raise _failed(shown, "its host breaks off, or does not answer in HTTP") from None
        if hold.bytes > (most := max(_REQUEST, self._max_bytes)):
            raise AudioError("too_large", f"{shown}: with it the recordings of the request are over {most} bytes")
        return content

    def _place(self, uri: str) -> URL | _Object:
        """Where a URI leads, if it may be fetched.

        Raises:
            _NotFetchedError: it may not.
        """
        if not (0 < len(uri) <= _URI_LENGTH and uri.isprintable()) or re.search(r"[\s\\]", uri):
            raise _NotFetchedError(f"expected a URI of at most {_URI_LENGTH} printable characters without spaces")
        scheme, _, rest = uri.partition("://")
        if scheme.lower() == "https":
            return self._url(uri)
        if scheme == "s3":
            return self._object(rest)
        raise _NotFetchedError("only https:// and s3:// can be fetched")

    def _object(self, rest: str) -> _Object:
        if not self._buckets:
            raise _NotFetchedError("no s3:// URI is fetched here: no bucket is listed in serving.remote.buckets")
        bucket, _, key = rest.partition("/")
        if not {"", ".", ".."}.isdisjoint((bucket, *key.split("/"))):
            raise _NotFetchedError("expected s3://bucket/key, without empty parts, '.' and '..'")
        if not any(f"{rest}/".startswith(f"{listed}/") for listed in self._buckets):
            raise _NotFetchedError("neither the bucket nor a prefix of the key is listed in serving.remote.buckets")
        return _Object(bucket, key)

    def _url(self, text: str) -> URL:
        if not self._hosts:
            raise _NotFetchedError("no https:// URI is fetched here: no host is listed in serving.remote.hosts")
        try:
            url = URL(text)
            host, port = url.raw_host or "", url.port
        except ValueError:
            raise _NotFetchedError("expected https://host/path") from None
        if url.scheme != "https":
            raise _NotFetchedError("only https:// is fetched from a host")
        if "@" in re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]:
            raise _NotFetchedError("a URI with a user's name or password is not fetched")
        if not any(listed.allows(host, port) for listed in self._hosts):
            raise _NotFetchedError("its host, with this port, is not listed in serving.remote.hosts")
        # What looks like an address never reaches the resolver, and some systems read 2130706433 as 127.0.0.1.
        if (":" in host or host.replace(".", "").isdigit()) and not self._public(host):
            raise _NotFetchedError("its host is no address of the public internet")
        return url

    async def _from_host(self, url: URL) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            async with self._session().get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._body(response)
                location = response.headers.get("Location", "")
            try:
                url = self._redirected(url, location)
            except _NotFetchedError as error:
                raise _NotFetchedError(f"redirects to {_shown(location)!r}: {error}") from None
        raise _NotFetchedError(f"redirects more than {self._config.max_redirects} times")

    def _redirected(self, url: URL, location: str) -> URL:
        if not location or len(location) > _URI_LENGTH or not location.isprintable() or re.search(r"[\s\\]", location):
            raise _NotFetchedError("a Location that is no URI")
        try:
            target = str(url.join(URL(location)))
        except ValueError:
            raise _NotFetchedError("a Location that is no URI") from None
        return self._url(target)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise _NotFetchedError(f"its host answers with status {response.status}", "remote_failed")
        encodings = response.headers.getall("Content-Encoding", [])
        if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings):
            # What unfolds while it is read can be a thousand times what arrived.
            raise _NotFetchedError("its host sends it compressed (Content-Encoding)", "remote_failed")
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large()
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > self._max_bytes:
                raise self._too_large()
        return bytes(content)

    async def _from_bucket(self, place: _Object) -> bytes:
        uri, patience_s = f"s3://{place.bucket}/{place.key}", self._config.timeout_s
        try:
            # One byte more than is allowed tells whether there is more.
            content = await self._in_thread(lambda: storage.read_start(uri, self._max_bytes + 1, patience_s))
        except StorageError as error:
            # What the store says names its address and settings: that is for whoever runs this server.
            _log.warning("a recording of bucket %s: %s", place.bucket, str(error).removeprefix(f"{uri}: "))
            raise _NotFetchedError("cannot be read from its bucket; is it there?", "remote_failed") from None
        if len(content) > self._max_bytes:
            raise self._too_large()
        return content

    def _too_large(self) -> _NotFetchedError:
        return _NotFetchedError(f"over the limit of {self._max_bytes} bytes", "too_large")

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_CheckedResolver(self._addresses),
                    use_dns_cache=False,
                    ssl=self._ssl_context or ssl.create_default_context(),
                    limit=0,  # the slots are the limit
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": f"kubevox/{__version__}"},
                timeout=aiohttp.ClientTimeout(total=None),  # there is one around it all
                auto_decompress=False,
                trust_env=False,
            )
        return self._http

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        addresses = await self._in_thread(lambda: self._resolve(host, port))
        if not addresses:
            raise OSError(f"{host} has no address")
        if not all(map(self._public, addresses)):
            # Not which: the answers of the resolver in here are not for those outside.
            raise _NotFetchedError("its host has an address that is not of the public internet")
        return addresses

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        """``call()`` in a thread of its own, which neither the loop's other threads nor the process' end wait for."""
        if self._threads >= _THREADS:
            raise BusyError("as many recordings as can be waited for are being fetched; try again", 1.0)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def tell(said: Callable[[], None]) -> None:
            self._threads -= 1
            if not done.done():
                said()

        def work() -> None:
            try:
                result = call()
            except Exception as error:
                said = functools.partial(done.set_exception, error)
            else:
                said = functools.partial(done.set_result, result)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, said)

        self._threads += 1
        threading.Thread(target=work, name="kubevox-fetch", daemon=True).start()
        return await done


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives.

    Raises:
        OSError: there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether an address is of the public internet: unicast, routed worldwide, and no other one in disguise.

    IPv4 in IPv6 counts only as NAT64 (64:ff9b::/96, what a resolver gives where there is no IPv4), by what it holds.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return False
        if parsed in _NAT64:
            parsed = ipaddress.IPv4Address(parsed.packed[-4:])
        elif parsed not in _UNICAST:
            return False
    return not any(parsed in network for network in _SPECIAL)


class _NotFetchedError(Exception):
    """Why a recording is not fetched, before anyone has said which it is."""

    def __init__(self, why: str, reason: str = "remote_refused") -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(slots=True)
class _Hold:
    """Bytes that a request holds."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of a bucket."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class _Listed:
    """An entry of the list of hosts."""

    host: str
    port: int
    below: bool

    @classmethod
    def read(cls, entry: str) -> _Listed:
        """An entry of the configuration, with an international name as the resolver wants it."""
        try:
            url = URL(f"https://{entry.removeprefix('.')}")
            return cls(url.raw_host or "", url.port or _PORT, entry.startswith("."))
        except ValueError:
            raise ConfigError(
                f"serving.remote.hosts: {entry!r} is no name of a host; write it as example.org"
            ) from None

    def allows(self, host: str, port: int | None) -> bool:
        """Whether it stands for a host and its port."""
        if port != self.port:
            return False
        if self.below:
            return host.endswith(f".{self.host}") and _HOST.fullmatch(host) is not None
        return host == self.host


class _CheckedResolver(AbstractResolver):
    """Hands the connection addresses that were checked, and so they are the ones that are connected to."""

    def __init__(self, addresses: Callable[[str, int], Awaitable[Sequence[str]]]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host, all of which were checked."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _failed(shown: str, why: str) -> AudioError:
    return AudioError("remote_failed", f"{shown}: {why}")


def _shown(uri: str) -> str:
    """A URI as it may be shown: without user, password, query string, and what would garble a line."""
    plain = "".join(
        character if character.isprintable() else "?" for character in re.split(r"[?#]", uri, maxsplit=1)[0]
    )
    scheme, mark, rest = plain.partition("://")
    if not mark:
        return plain.rpartition("@")[2][:200]
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"[:200]
