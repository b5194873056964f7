"""Recordings named by URI: what is fetched, from a live HTTPS server on loopback, and all that is not.

What counts as an address of the public internet, and what names resolve to, is told by the test; the rest is as in
production. A second address, 127.0.0.2, stands for the network that the server must not be turned against.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kubevox import storage
from kubevox.config import RemoteAudioConfig
from kubevox.errors import AudioError, BusyError, ConfigError
from kubevox.serving.remote import RemoteAudio, is_public, resolve_host
from tests import test_storage, test_storage_faults

CONTENT = bytes(range(256)) * 100
LIMIT = 50_000
OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
Run = Callable[[Awaitable[Any]], Any]


@dataclass
class Site:
    """An HTTPS server: ``answers`` by path, and what it has seen."""

    port: int
    context: ssl.SSLContext
    answers: dict[str, Any] = field(default_factory=dict)
    seen: list[tuple[str, str | None, str]] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    sent: int = 0

    def uri(self, path: str = "/a.wav", host: str = "clips.test") -> str:
        return f"https://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self.connections.append(address)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.seen.append((address, writer.get_extra_info("ssl_object").named, head))
                answer = self.answers.get(head.split()[1].partition("?")[0], response(404))
                if callable(answer):
                    await answer(writer)
                    return
                await self.send(writer, answer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)  # drain() alone does not let the loop notice that the client has gone
        self.sent += len(data)


def response(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(location: str, status: int = 302) -> bytes:
    return response(status, b"", f"Location: {location}")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own making."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    names = ["clips.test", "*.media.test", "media.test", "xn--bcher-kva.test", "elsewhere.test", "inside.test"]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in (OUTSIDE, "::1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "identity.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="module")
def running(identity: Path) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)

    def remember(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.named = name

    context.sni_callback = remember
    loop = asyncio.new_event_loop()
    trusted = ssl.create_default_context(cafile=str(identity))

    async def begin() -> tuple[Site, list[asyncio.Server]]:
        site = Site(0, trusted)
        first = await asyncio.start_server(site.serve, OUTSIDE, 0, ssl=context)
        site.port = first.sockets[0].getsockname()[1]
        servers = [first, await asyncio.start_server(site.serve, INSIDE, site.port, ssl=context)]
        with contextlib.suppress(OSError):  # a machine may have no IPv6
            servers.append(await asyncio.start_server(site.serve, "::1", site.port, ssl=context))
        return site, servers

    async def end() -> None:
        for server in servers:
            server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    site, servers = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield site
    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def site(running: Site) -> Site:
    running.answers.clear()
    running.answers["/a.wav"] = response(200, CONTENT)
    running.seen.clear()
    running.connections.clear()
    running.sent = 0
    return running


@pytest.fixture
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield lambda work: runner.run(asyncio.wait_for(work, 20))


Make = Callable[..., RemoteAudio]


@pytest.fixture
def remote(site: Site, run: Run) -> Iterator[Make]:
    """``remote(…)``: a client that takes 127.0.0.1 for the public internet, where every name leads."""
    made = []

    def make(limit: int = LIMIT, resolve: Any = lambda host, port: [OUTSIDE], **options: Any) -> RemoteAudio:
        hosts = [f"{host}:{site.port}" for host in ("clips.test", ".media.test", "bücher.test", "inside.test")]
        config = RemoteAudioConfig(**{"hosts": hosts, "timeout_s": 5.0, **options})
        one = RemoteAudio(
            config, limit, resolve=resolve, public=lambda address: address == OUTSIDE, ssl_context=site.context
        )
        made.append(one)
        return one

    yield make
    for one in made:
        run(one.close())


def refusal(run: Run, remote: RemoteAudio, uri: str) -> tuple[str, str]:
    with pytest.raises(AudioError) as caught:
        run(remote.fetch(uri))
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.reason, str(caught.value)


# What is fetched


def test_a_recording_is_fetched_from_the_host_that_was_named(site, run, remote):
    client = remote()
    assert run(client.fetch(site.uri("/a.wav?signature=x"))) == CONTENT
    assert run(client.fetch(site.uri("/a.wav"))) == CONTENT
    (address, named, head), _ = site.seen
    assert (address, named) == (OUTSIDE, "clips.test")
    assert head.startswith("GET /a.wav?signature=x HTTP/1.1\r\n")
    assert f"\r\nHost: clips.test:{site.port}\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head
    assert len(site.connections) == 1  # kept for the second


def test_hosts_below_a_listed_one_are_fetched_from_and_international_names(site, run, remote):
    for host in ("a.media.test", "A.MEDIA.test", "bücher.test", "BÜCHER.test", "xn--bcher-kva.test"):
        assert run(remote().fetch(site.uri(host=host))) == CONTENT
    assert [named for _, named, _ in site.seen] == ["a.media.test"] * 2 + ["xn--bcher-kva.test"] * 3


def test_it_works_in_the_loop_that_the_server_runs_in(site):
    import uvloop

    async def work() -> bytes:
        config = RemoteAudioConfig(hosts=[f"clips.test:{site.port}"])
        client = RemoteAudio(
            config, LIMIT, resolve=lambda *_: [OUTSIDE], public=lambda _: True, ssl_context=site.context
        )
        try:
            return await client.fetch(site.uri())
        finally:
            await client.close()

    assert uvloop.run(work()) == CONTENT


def test_a_host_may_have_ipv6_only(site, run):
    with socket.socket(socket.AF_INET6) as probe:
        if probe.connect_ex(("::1", site.port)):
            pytest.skip("no IPv6 here")
    site.connections.clear()
    config = RemoteAudioConfig(hosts=[f"clips.test:{site.port}"])
    client = RemoteAudio(config, LIMIT, resolve=lambda *_: ["::1"], public=lambda _: True, ssl_context=site.context)
    assert run(client.fetch(site.uri())) == CONTENT
    run(client.close())
    assert "::1" in site.connections


def test_neither_proxies_nor_credentials_nor_cookies_are_sent(site, run, remote, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        (tmp_path / "netrc").write_text("machine clips.test login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        site.answers["/first"] = response(302, b"", "Location: /a.wav", "Set-Cookie: a=b; Path=/")
        client = remote()
        assert run(client.fetch(site.uri("/first"))) == CONTENT
        assert run(client.fetch(site.uri("/first"))) == CONTENT
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    for _, _, head in site.seen:
        assert not {"cookie", "authorization", "referer"} & {
            line.partition(":")[0].lower() for line in head.split("\n")
        }


# What is not


def test_nothing_is_fetched_unless_it_is_listed(site, run):
    client = RemoteAudio(RemoteAudioConfig(), LIMIT)
    for uri, key in ((site.uri(), "hosts"), ("s3://bucket/a.wav", "buckets")):
        reason, message = refusal(run, client, uri)
        assert reason == "remote_refused"
        assert message.startswith(f"{uri}: ")
        assert f"serving.remote.{key}" in message
    assert site.connections == []


PORT = "{port}"


@pytest.mark.parametrize(
    "uri",
    [
        "http://clips.test:{port}/a.wav",
        "ftp://clips.test/a.wav",
        "file:///etc/passwd",
        "data:audio/wav;base64,AAAA",
        "gs://bucket/a.wav",
        "https:/clips.test:{port}/a.wav",
        "https:clips.test",
        "//clips.test:{port}/a.wav",
        "clips.test:{port}/a.wav",
        "",
        " https://clips.test:{port}/a.wav",
        "https://clips.test:{port}/a b.wav",
        "https://clips.test:{port}/a.wav\n",
        "https://clips.test:{port}\r\nX-Evil: 1/a.wav",
        "https://clips.test:{port}/\x00",
        "https://clips.test:{port}/\ud800",
        "https://clips.test:{port}/" + "a" * 3000,
        "https://clips.test:{port}\\@evil.test/a.wav",
        "https:\\\\clips.test:{port}\\a.wav",
        # another host, or another port
        "https:///a.wav",
        "https://clips.test/a.wav",
        "https://clips.test:22/a.wav",
        "https://clips.test:99999/a.wav",
        "https://clips.test:port/a.wav",
        "https://evil.test:{port}/a.wav",
        "https://clips.test.evil.test:{port}/a.wav",
        "https://evilclips.test:{port}/a.wav",
        "https://a.clips.test:{port}/a.wav",
        "https://media.test:{port}/a.wav",
        "https://evilmedia.test:{port}/a.wav",
        "https://.media.test:{port}/a.wav",
        "https://a%2fb.media.test:{port}/a.wav",
        "https://evil.test%23.media.test:{port}/a.wav",
        "https://clips.test.:{port}/a.wav",
        "https://evil.test:{port}#@clips.test:{port}/a.wav",
        "https://evil.test:{port}?@clips.test:{port}/a.wav",
        # a user
        "https://user:hunter2@clips.test:{port}/a.wav",
        "https://user@clips.test:{port}/a.wav",
        "https://@clips.test:{port}/a.wav",
        "https://clips.test:{port}@evil.test:{port}/a.wav",
        # this machine, in all its names
        "https://localhost:{port}/a.wav",
        "https://127.0.0.1:{port}/a.wav",
        "https://127.1:{port}/a.wav",
        "https://2130706433:{port}/a.wav",
        "https://0177.0.0.1:{port}/a.wav",
        "https://0x7f000001:{port}/a.wav",
        "https://0x7f.0.0.1:{port}/a.wav",
        "https://１２７.0.0.1:{port}/a.wav",
        "https://0:{port}/a.wav",
        "https://[::1]:{port}/a.wav",
        "https://[::]:{port}/a.wav",
        "https://[::ffff:127.0.0.1]:{port}/a.wav",
        "https://[::ffff:7f00:1]:{port}/a.wav",
        "https://[64:ff9b::7f00:1]:{port}/a.wav",
        "https://[2002:7f00:1::]:{port}/a.wav",
        "https://[fe80::1%25eth0]:{port}/a.wav",
        "https://[fe80::1%eth0]:{port}/a.wav",
        "https://[::1:{port}/a.wav",
        "https://169.254.169.254/latest/meta-data/",
    ],
)
def test_what_is_not_listed_is_refused_before_anything_is_asked(site, run, remote, uri):
    asked = []
    client = remote(resolve=lambda *question: asked.append(question) or [OUTSIDE])
    reason, message = refusal(run, client, uri.replace(PORT, str(site.port)))
    assert reason == "remote_refused"
    assert "hunter2" not in message
    assert asked == []
    assert site.connections == []


LISTED = """
localhost 127.0.0.1 127.1 2130706433 0177.0.0.1 0x7f000001 0 [::1] [::] [::ffff:127.0.0.1] [64:ff9b::127.0.0.1]
[2002:7f00:1::] 169.254.169.254 10.0.0.1 [fd00::1]
"""


@pytest.mark.parametrize("host", LISTED.split())
def test_even_a_listed_host_must_have_addresses_of_the_public_internet(site, run, host):
    asked = []

    def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        return resolve_host(name, port)

    client = RemoteAudio(RemoteAudioConfig(hosts=[f"{host}:{site.port}"]), LIMIT, resolve=resolve)
    assert refusal(run, client, site.uri(host=host))[0] == "remote_refused"
    run(client.close())
    assert site.connections == []
    assert asked == ([host] if host in ("localhost", "0x7f000001") else [])


def test_a_message_holds_neither_query_nor_user_nor_what_a_name_resolves_to(site, run, remote):
    uri = f"https://user:hunter2@clips.test:{site.port}/a.wav?token=secret#more"
    assert refusal(run, remote(), uri)[1].startswith(f"https://clips.test:{site.port}/a.wav: a URI with a user's name")
    _, message = refusal(run, remote(resolve=lambda *_: ["10.1.2.3"]), site.uri("/a.wav?token=secret"))
    assert message.startswith(f"https://clips.test:{site.port}/a.wav: its host has an address")
    assert not {"secret", "10.1.2.3"} & set(message.replace(":", " ").split())


# Names and addresses


PRIVATE = """
0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255
192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255 168.63.129.16 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::10.0.0.1
64:ff9b::169.254.169.254 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:a00:1:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254
fe80::1 fe80::1%eth0 2606:4700::1%1 fec0::1 ff02::1 localhost 8.8.8.8/32 2130706433 0x08080808 8.8.8
"""
PUBLIC = """
8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 193.0.0.1 223.255.255.1 2606:4700::1111
2a00:1450::1 2001:4860::8888 64:ff9b::8.8.8.8
"""


@pytest.mark.parametrize("address", [*PRIVATE.split(), ""])
def test_an_address_that_is_not_of_the_public_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_an_address_of_the_public_internet(address):
    assert is_public(address)


@settings(max_examples=500)
@given(st.ip_addresses())
def test_no_address_is_public_that_python_knows_to_be_another_thing(address):
    if is_public(str(address)):
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(address.packed[-4:])
        assert inner.is_global
        assert not any([inner.is_multicast, inner.is_reserved, inner.is_link_local, inner.is_unspecified])


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_checked(site, run, remote):
    answers = [[OUTSIDE], [INSIDE], [INSIDE]]
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers.pop(0)

    client = remote(resolve=rebinding)
    assert run(client.fetch(site.uri())) == CONTENT
    assert asked == [("clips.test", site.port)]
    assert site.connections == [OUTSIDE]
    # A new connection asks again, and what it is told then is checked again.
    reason, message = refusal(run, client, site.uri(host="a.media.test"))
    assert reason == "remote_refused"
    assert "not of the public internet" in message
    assert site.connections == [OUTSIDE]


def test_one_private_address_among_public_ones_is_enough(site, run, remote):
    for addresses in ([OUTSIDE, INSIDE], [INSIDE, OUTSIDE], [OUTSIDE, "::1"]):
        assert refusal(run, remote(resolve=lambda *_, found=addresses: found), site.uri())[0] == "remote_refused"
    assert site.connections == []


def test_a_name_that_does_not_resolve_is_a_failure(site, run, remote):
    def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    def chokes(host: str, port: int) -> list[str]:
        return resolve_host("x" * 70 + ".é", port)  # a UnicodeError

    for resolve in (fails, chokes, lambda *_: []):
        assert refusal(run, remote(resolve=resolve), site.uri())[0] == "remote_failed"


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_what_is_listed_is_followed(site, run, remote, status):
    site.answers |= {
        "/r": redirect("/r2", status),
        "/r2": redirect(f"//a.media.test:{site.port}/r3", status),
        "/r3": redirect(site.uri("/a.wav?x=1"), status),
    }
    assert run(remote().fetch(site.uri("/r"))) == CONTENT
    assert [named for _, named, _ in site.seen] == ["clips.test", "clips.test", "a.media.test", "clips.test"]


@pytest.mark.parametrize(
    "location",
    [
        "http://clips.test:{port}/a.wav",
        "https://127.0.0.1:{port}/a.wav",
        "https://127.0.0.2:{port}/a.wav",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]:{port}/a.wav",
        "https://elsewhere.test:{port}/a.wav",
        "https://clips.test/a.wav",
        "//169.254.169.254/",
        "https://user:hunter2@clips.test:{port}/a.wav",
        "//user@clips.test:{port}/a.wav",
        "s3://bucket/a.wav",
        "file:///etc/passwd",
        "https://[::1:{port}/",
        "https://inside.test:{port}/a.wav",
        "https://" + "a" * 3000,
        "/a\\b",
        "",
    ],
)
def test_a_redirect_is_checked_like_the_first_uri(site, run, remote, location):
    site.answers["/r"] = redirect(location.replace(PORT, str(site.port)))
    where = {"inside.test": [INSIDE]}
    client = remote(resolve=lambda host, _: where.get(host, [OUTSIDE]))
    reason, message = refusal(run, client, site.uri("/r?token=secret"))
    assert reason == "remote_refused"
    assert "secret" not in message
    assert "hunter2" not in message
    assert site.connections == [OUTSIDE]


def test_redirects_are_counted(site, run, remote):
    for number in range(5):
        site.answers[f"/{number}"] = redirect(f"/{number + 1}")
    site.answers["/5"] = response(200, b"there")
    assert run(remote(max_redirects=5).fetch(site.uri("/0"))) == b"there"
    assert "more than 4 times" in refusal(run, remote(max_redirects=4), site.uri("/0"))[1]
    assert refusal(run, remote(max_redirects=0), site.uri("/4"))[0] == "remote_refused"
    site.answers["/loop"] = redirect("/loop")
    site.seen.clear()
    assert refusal(run, remote(), site.uri("/loop"))[0] == "remote_refused"
    assert len(site.seen) == 4


# What the host does


def test_what_is_over_the_limit_is_refused_while_it_arrives(site, run, remote):
    async def endless(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await site.send(writer, b"1000\r\n" + bytes(4096) + b"\r\n")

    async def until_it_closes(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await site.send(writer, bytes(4096))

    site.answers |= {"/endless": endless, "/unsaid": until_it_closes}
    for path in ("/endless", "/unsaid"):
        site.sent = 0
        assert refusal(run, remote(), site.uri(path))[0] == "too_large"
        assert site.sent < 20_000_000  # what sockets hold, and no more

    async def announced(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        await asyncio.sleep(20)

    site.answers["/announced"] = announced
    begun = time.monotonic()
    assert refusal(run, remote(), site.uri("/announced"))[0] == "too_large"
    assert time.monotonic() - begun < 3
    site.answers["/exact"] = response(200, bytes(LIMIT))
    site.answers["/over"] = response(200, bytes(LIMIT + 1))
    assert run(remote().fetch(site.uri("/exact"))) == bytes(LIMIT)
    assert refusal(run, remote(), site.uri("/over"))[0] == "too_large"


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 100 Go on\r\n\r\n",
    ],
    ids=["nothing", "a header", "a body", "a promise"],
)
def test_a_host_that_drips_is_given_up_in_time(site, run, remote, first):
    async def drip(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, first)
        while True:
            await site.send(writer, b"x" if b"200" in first else b"")
            await asyncio.sleep(0.05)

    site.answers["/drip"] = drip
    begun = time.monotonic()
    reason, message = refusal(run, remote(timeout_s=0.4), site.uri("/drip"))
    assert (reason, "not fetched within 0.4 s" in message) == ("remote_failed", True)
    assert 0.3 < time.monotonic() - begun < 3


def test_a_host_that_says_nothing_or_is_not_there_is_a_failure(site, run, remote):
    with socket.create_server((OUTSIDE, 0)) as silent:
        port = silent.getsockname()[1]
        client = remote(hosts=[f"clips.test:{port}"], timeout_s=0.4)
        assert refusal(run, client, f"https://clips.test:{port}/a.wav")[0] == "remote_failed"
    reason, message = refusal(run, client, f"https://clips.test:{port}/a.wav")
    assert (reason, "cannot be reached" in message) == ("remote_failed", True)


def test_a_resolver_that_hangs_is_given_up_in_time_and_does_not_hold_up_others(site, run, remote):
    free = threading.Event()
    client = remote(timeout_s=0.4, resolve=lambda host, _: [OUTSIDE] if host == "clips.test" or free.wait(20) else [])
    assert refusal(run, client, site.uri(host="a.media.test"))[0] == "remote_failed"
    assert run(client.fetch(site.uri())) == CONTENT
    free.set()


@pytest.mark.parametrize(
    "answer",
    [
        *(
            response(status, CONTENT)
            for status in (201, 203, 206, 304, 305, 400, 401, 403, 404, 407, 418, 429, 500, 503)
        ),
        response(204),
        *(
            response(200, CONTENT, f"Content-Encoding: {name}")
            for name in ("gzip", "deflate", "br", "zstd", "GZIP", "x")
        ),
        response(200, CONTENT, "Content-Encoding: identity", "Content-Encoding: gzip"),
        response(200, CONTENT, "Content-Length: 5"),
        response(200, CONTENT, "Transfer-Encoding: chunked"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        bytes(range(256)) + b"\r\n\r\n",
    ],
)
def test_only_a_plain_200_is_a_recording(site, run, remote, answer):
    async def once(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, answer)

    site.answers["/x"] = once
    reason, message = refusal(run, remote(), site.uri("/x"))
    assert reason == "remote_failed"
    assert message.startswith(f"https://clips.test:{site.port}/x: ")


def test_a_gzip_bomb_does_not_unfold(site, run, remote):
    import gzip

    bomb = gzip.compress(bytes(40_000_000))
    assert len(bomb) < LIMIT
    site.answers["/bomb"] = response(200, bomb, "Content-Encoding: gzip")
    reason, message = refusal(run, remote(), site.uri("/bomb"))
    assert (reason, "compressed" in message) == ("remote_failed", True)
    site.answers["/bomb"] = response(200, bomb, "Content-Encoding: identity")  # then it is a file like any other
    assert run(remote().fetch(site.uri("/bomb"))) == bomb


def test_what_breaks_off_is_no_recording(site, run, remote):
    async def breaks(writer: asyncio.StreamWriter) -> None:
        await site.send(writer, response(200, CONTENT)[:-1])

    async def resets(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    site.answers |= {"/breaks": breaks, "/resets": resets}
    for path in ("/breaks", "/resets"):
        assert refusal(run, remote(), site.uri(path))[0] == "remote_failed"


def test_a_certificate_must_be_trusted_and_bear_the_name(site, run, remote):
    stranger = RemoteAudio(
        RemoteAudioConfig(hosts=[f"clips.test:{site.port}"]), LIMIT, resolve=lambda *_: [OUTSIDE], public=lambda _: True
    )
    reason, message = refusal(run, stranger, site.uri())
    assert (reason, "certificate" in message) == ("remote_failed", True)
    run(stranger.close())
    reason, message = refusal(run, remote(), site.uri(host="a.b.media.test"))  # a wildcard stands for one label
    assert (reason, "certificate" in message) == ("remote_failed", True)
    assert site.seen == []


# Whatever a client writes


PIECES = """
https:// s3:// http:// HTTPS:// clips.test .media.test clips.test:PORT PORT :PORT /a.wav bucket 443 65536 user:pw@ xn--
[::1] 127.0.0.1 a é ß 。 ０ : @ / // \\ ? # [ ] % %2f .. . - _
"""
URIS = st.lists(st.sampled_from([*PIECES.split(), " ", "\n", "\x00", "\u200d", "\ud800"]), max_size=10).map("".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uri=st.one_of(st.text(max_size=60), URIS, URIS.map("https://clips.test:PORT".__add__)))
@example("https://xn--a.media.test:PORT/")
@example("https://clips.test:PORT/%")
@example("https://clips.test:PORT/a.wav")
def test_whatever_is_asked_is_fetched_or_refused_with_a_reason(site, run, remote, uri):
    # No other name than those that the site bears is ever asked for.
    def resolve(host: str, port: int) -> list[str]:
        assert host == "clips.test" or host.endswith(".media.test")
        assert port == site.port
        return [OUTSIDE]

    client = remote(resolve=resolve, buckets=[])
    found = run(asyncio.gather(client.fetch(uri.replace("PORT", str(site.port))), return_exceptions=True))[0]
    run(client.close())
    if found != CONTENT:
        assert isinstance(found, AudioError)
        assert found.reason in ("remote_refused", "remote_failed")
        assert len(str(found).splitlines()) == 1
        str(found).encode()
    assert INSIDE not in site.connections


# Many at once


def test_the_recordings_of_a_request_come_in_order_and_count_until_they_are_let_go(site, run, remote, monkeypatch):
    for number in range(6):
        site.answers[f"/{number}"] = response(200, bytes([number]) * 40_000)
    uris = [site.uri(f"/{number}") for number in (3, 1, 5, 0)]
    client = remote()

    async def work() -> list[bytes]:
        async with client.fetched(uris) as recordings:
            assert client._held == 160_000
            monkeypatch.setattr(client, "_room", 200_000)
            with pytest.raises(BusyError):
                await client.fetch(uris[0])
        await client.fetch(uris[0])
        return recordings

    assert [recording[0] for recording in run(work())] == [3, 1, 5, 0]
    assert client._held == 0


def test_a_requests_recordings_have_a_limit_together(site, run, remote, monkeypatch):
    monkeypatch.setattr("kubevox.serving.remote._REQUEST", 3 * len(CONTENT))
    client = remote(limit=30_000)

    async def work(count: int) -> int:
        async with client.fetched([site.uri()] * count) as recordings:
            return len(recordings)

    assert run(work(3)) == 3
    with pytest.raises(AudioError, match="the recordings of the request") as caught:
        run(work(4))
    assert caught.value.reason == "too_large"
    assert client._held == 0


def test_one_that_fails_ends_the_others_and_a_client_that_goes_leaves_nothing_behind(site, run, remote):
    gone = threading.Event()

    async def waits(writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            await asyncio.sleep(0.01)
        gone.set()

    site.answers["/waits"] = waits
    client = remote(timeout_s=15.0)

    async def fails() -> None:
        async with client.fetched([site.uri("/waits"), site.uri("/missing")]):
            raise AssertionError("it was not there")

    with pytest.raises(AudioError, match="status 404"):
        run(fails())
    assert gone.wait(5)
    gone.clear()

    async def goes() -> None:
        fetching = asyncio.create_task(client.fetch(site.uri("/waits")))
        while len([head for *_, head in site.seen if "/waits" in head]) < 2:
            await asyncio.sleep(0.01)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)

    run(goes())
    assert gone.wait(5)
    assert client._held == 0


def test_threads_that_hang_have_a_limit(site, run, remote, monkeypatch):
    monkeypatch.setattr("kubevox.serving.remote._THREADS", 3)
    free = threading.Event()
    client = remote(timeout_s=0.2, resolve=lambda *_: [OUTSIDE] if free.wait(20) else [])

    async def ask() -> list[Any]:
        return await asyncio.gather(*(client.fetch(site.uri()) for _ in range(5)), return_exceptions=True)

    assert sorted(type(error).__name__ for error in run(ask())) == ["AudioError"] * 3 + ["BusyError"] * 2
    free.set()

    async def until_they_are_back() -> None:
        while client._threads:
            await asyncio.sleep(0.01)

    run(until_they_are_back())
    assert run(client.fetch(site.uri())) == CONTENT


# Buckets

# A stand-in that fails on demand, and a real server.
server = test_storage_faults.server
s3_folder, s3_server, bucket = test_storage.s3_folder, test_storage.s3_server, test_storage.bucket


def of_buckets(*buckets: str, limit: int = LIMIT, timeout_s: float = 5.0) -> RemoteAudio:
    return RemoteAudio(RemoteAudioConfig(buckets=list(buckets), timeout_s=timeout_s), limit)


def test_an_object_of_a_listed_bucket_is_fetched(server, run):
    for key in ("clips/a.wav", "clips/a b+é%2e.wav"):
        storage.write_bytes(f"s3://bucket/{key}", CONTENT)
    for listed in ("bucket", "bucket/", "bucket/clips", "bucket/clips/", "bucket/clips/a.wav"):
        assert run(of_buckets("other", listed).fetch("s3://bucket/clips/a.wav")) == CONTENT
    with pytest.raises(AudioError, match="without spaces"):
        run(of_buckets("bucket").fetch("s3://bucket/clips/a b+é%2e.wav"))
    storage.write_bytes("s3://bucket/clips/a+é%2e?#.wav", b"1")
    assert run(of_buckets("bucket").fetch("s3://bucket/clips/a+é%2e?#.wav")) == b"1"  # a key is taken as it is


@pytest.mark.parametrize(
    "uri",
    [
        "s3://other/clips/a.wav",
        "s3://bucket/clipsy/a.wav",
        "s3://bucket/clip",
        "s3://bucket/clips/",
        "s3://bucket/",
        "s3://bucket",
        "s3://",
        "s3://bucket/clips/../private/a.wav",
        "s3://bucket/clips/..",
        "s3://bucket/clips/./a.wav",
        "s3://bucket/clips//a.wav",
        "s3://bucket//clips/a.wav",
        "s3:///bucket/clips/a.wav",
        "s3://../bucket/clips/a.wav",
        "s3://bucket/clips\\..\\a.wav",
        "s3://key:secret@bucket/clips/a.wav",
        "s3://bucket:443/clips/a.wav",
        "s3://bucket.evil/clips/a.wav",
        "S3://bucket/clips/a.wav",
    ],
)
def test_what_is_outside_of_a_listed_prefix_is_refused_before_the_store_is_asked(server, run, uri):
    reason, message = refusal(run, of_buckets("bucket/clips"), uri)
    assert reason == "remote_refused"
    assert "secret" not in message
    assert server.requests == []


def test_of_an_object_over_the_limit_no_more_than_the_limit_is_read(server, run):
    storage.write_bytes("s3://bucket/large", bytes(5_000_000))
    storage.write_bytes("s3://bucket/exact", bytes(LIMIT))
    server.requests.clear()
    assert refusal(run, of_buckets("bucket"), "s3://bucket/large")[0] == "too_large"
    assert run(of_buckets("bucket").fetch("s3://bucket/exact")) == bytes(LIMIT)
    assert [request[3] for request in server.requests] == [f"bytes=0-{LIMIT}"] * 2


def test_what_a_bucket_does_wrong_is_told_the_operator_and_not_the_client(server, run, caplog):
    reason, message = refusal(run, of_buckets("bucket"), "s3://bucket/anna/missing.wav")
    assert reason == "remote_failed"
    assert message == "s3://bucket/anna/missing.wav: cannot be read from its bucket; is it there?"
    (record,) = caplog.records
    assert "there is no such object" in record.getMessage()
    assert "anna" not in record.getMessage()


def test_a_bucket_that_stumbles_is_asked_again_within_the_time_there_is(server, run):
    storage.write_bytes("s3://bucket/a.wav", CONTENT)
    server.faults[:] = ["slow down", "cut", "reset"]
    assert run(of_buckets("bucket").fetch("s3://bucket/a.wav")) == CONTENT
    server.faults[:] = ["slow down"] * 100_000
    begun = time.monotonic()
    assert refusal(run, of_buckets("bucket", timeout_s=0.3), "s3://bucket/a.wav")[0] == "remote_failed"
    assert time.monotonic() - begun < 3
    server.faults.clear()


@pytest.mark.acceptance
def test_a_real_bucket_gives_a_recording_and_not_a_large_one(bucket, run):
    client = of_buckets(bucket.removeprefix("s3://"))
    storage.write_bytes(f"{bucket}/a.wav", CONTENT)
    storage.write_bytes(f"{bucket}/large.wav", bytes(5_000_000))
    storage.write_bytes(f"{bucket}/empty.wav", b"")
    assert run(client.fetch(f"{bucket}/a.wav")) == CONTENT
    assert run(client.fetch(f"{bucket}/empty.wav")) == b""
    assert refusal(run, client, f"{bucket}/large.wav")[0] == "too_large"
    assert refusal(run, client, f"{bucket}/missing.wav")[0] == "remote_failed"
    assert refusal(run, client, f"{bucket}-too/a.wav")[0] == "remote_refused"


# The lists


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        *(("hosts", entry) for entry in ("https://a.test", "*.a.test", "*", ".", "a.test/b", "a..test", "a.test:0")),
        *(
            ("hosts", entry)
            for entry in ("a.test:99999", "", "u@a.test", "::1", "[::g]", "[1.2.3.4]", "a b", "a.test\n")
        ),
        *(("buckets", entry) for entry in ("s3://bucket", "", "b", "Bucket", "bucket//a", "bucket/../a", "/bucket")),
        ("buckets", "bucket/a b"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(key, entry):
    with pytest.raises(ValidationError, match="expected"):
        RemoteAudioConfig(**{key: [entry]})


def test_a_name_that_no_resolver_would_take_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"serving\.remote\.hosts: 'xn--é\.test'"):
        RemoteAudio(RemoteAudioConfig(hosts=["xn--é.test"]), LIMIT)
