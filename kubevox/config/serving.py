"""What one model server does with what it is sent: its processes, queue, limits, log."""

from __future__ import annotations

import ipaddress
import re

from pydantic import Field, model_validator

from kubevox.config.base import Positive, PositiveInt, Section, Share, refusal, refuse_empty_range

__all__ = ["InferenceLogConfig", "RemoteAudioConfig", "ServingConfig"]

# A name, one that begins with a dot, or an address in brackets; then perhaps a port.
_HOST = re.compile(r"(\.?[\w-]+(\.[\w-]+)*|\[(?P<address>[0-9A-Fa-f:.]+)\])(:(?P<port>[1-9][0-9]{0,4}))?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\s]+)*/?")


def _is_host(entry: str) -> bool:
    found = _HOST.fullmatch(entry)
    if not found or int(found["port"] or 1) > 65_535:
        return False
    try:
        return found["address"] is None or bool(ipaddress.IPv6Address(found["address"]))
    except ValueError:
        return False


class RemoteAudioConfig(Section):
    """Recordings that a request names by URI; nothing is fetched unless a bucket or host is listed here.

    Attributes:
        buckets: S3 buckets, or ``bucket/prefix``, that ``s3://`` URIs may name. They are read with the server's
            credentials.
        hosts: hosts that ``https://`` URIs may name; ``.example.org`` stands for every host below it, and
            ``example.org:8443`` for a host on another port than 443. Only addresses of the public internet are
            connected to.
        timeout_s: for one recording, waiting and connecting included.
        max_redirects: each is checked as the first URI was.
    """

    buckets: list[str] = []
    hosts: list[str] = []
    timeout_s: Positive = 5.0
    max_redirects: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _entries_can_be_read(self) -> RemoteAudioConfig:
        for host in self.hosts:
            if not _is_host(host):
                raise refusal("hosts", host, f"{host!r}: expected example.org, .example.org or example.org:8443")
        for bucket in self.buckets:
            if not _BUCKET.fullmatch(bucket) or not {".", ".."}.isdisjoint(bucket.split("/")):
                raise refusal("buckets", bucket, f"{bucket!r}: expected bucket or bucket/prefix, without s3://")
        return self


class InferenceLogConfig(Section):
    """What is kept of each answer, in Parquet, off the request's path.

    Attributes:
        enabled: whether anything is.
        drift: whether the `drift` features are computed, while a worker has nothing else to do.
        audio: whether the recording itself is kept: somebody's voice.
        rows_per_file: a file is written when so many rows are there,
        seconds_per_file: or when the first of them is so old.
        max_rows: held in memory at the most; more are counted and left out.
        max_audio_bytes: of recordings, with `audio`, held in memory at the most; the rows beyond go without.
    """

    enabled: bool = True
    drift: bool = True
    audio: bool = False
    rows_per_file: PositiveInt = 5_000
    seconds_per_file: Positive = 60.0
    max_rows: PositiveInt = 20_000
    max_audio_bytes: PositiveInt = 256_000_000


class ServingConfig(Section):
    """One model server.

    Attributes:
        workers: processes that compute; None: one a core, one with a GPU.
        threads: torch's, in each.
        max_batch: recordings computed at once.
        max_queue: recordings that wait; a request that finds no room is answered 503 with Retry-After.
        max_instances: recordings a request may hold.
        max_connections: requests being read or answered at once.
        request_timeout_s: for a request's body to arrive, and as long again for its answer.
        work_timeout_s: for one batch; a worker that takes longer is ended, and its recordings are tried one by one,
            for half as long each.
        drain_s: told to end, it answers on so long, so that whoever sends requests hears of it.
        grace_s: after that, for requests in flight.
        min_confidence: below it an answer says that it abstains.
        timeline_hop: of a window's length, between two windows of a timeline.
        timeline_max_s: of a recording of which a timeline is asked.
        remote: recordings named by URI.
        log: what is kept of each answer.
    """

    workers: PositiveInt | None = None
    threads: PositiveInt = 1
    max_batch: PositiveInt = 4
    max_queue: PositiveInt = 64
    max_instances: PositiveInt = 64
    max_connections: PositiveInt = 256
    request_timeout_s: Positive = 10.0
    work_timeout_s: Positive = 5.0
    drain_s: float = Field(default=1.0, ge=0.0)
    grace_s: Positive = 20.0
    min_confidence: Share = 0.0
    timeline_hop: float = Field(default=0.5, gt=0.0, le=1.0)
    timeline_max_s: Positive = 600.0
    remote: RemoteAudioConfig = RemoteAudioConfig()
    log: InferenceLogConfig = InferenceLogConfig()

    @model_validator(mode="after")
    def _work_ends_before_the_request(self) -> ServingConfig:
        refuse_empty_range(self, "work_timeout_s", "request_timeout_s")
        return self
