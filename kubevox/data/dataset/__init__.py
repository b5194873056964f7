"""Dataset versions: immutable, named by their content, audio inside Parquet shards.

``<store>/datasets/<hash>/dataset.json`` lists the shards of a version, ``<store>/shards/<sha256>.parquet`` (one row an
utterance, the audio as FLAC of the canonical waveform); ``rejects.parquet`` beside it has what could not be decoded.
Hugging Face ``datasets`` reads the shards as an audio dataset; DuckDB and pandas read them as tables.
"""

from __future__ import annotations

from kubevox.data.dataset.ingestion import ingest
from kubevox.data.dataset.utterances import Shard, Utterance, read_audio, read_encoded, read_utterances
from kubevox.data.dataset.versions import DatasetVersion, load_dataset, read_rejects, resolve, versions

__all__ = [
    "DatasetVersion",
    "Shard",
    "Utterance",
    "ingest",
    "load_dataset",
    "read_audio",
    "read_encoded",
    "read_rejects",
    "read_utterances",
    "resolve",
    "versions",
]
