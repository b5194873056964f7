"""Utterances without audio, of any corpora, speakers and partitions: what a split is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from kubevox import storage
from kubevox.config import TaskConfig
from kubevox.data.dataset import DatasetVersion, Utterance
from kubevox.data.dataset.utterances import ShardWriter
from kubevox.data.dataset.versions import publish_version

LABELS = ("angry", "happy", "sad")
TASK = TaskConfig(name="mood", labels=list(LABELS))


def utterance(
    number: int,
    speaker: str | None,
    corpus: str = "c",
    sex: str | None = None,
    partition: str | None = None,
    label: str | None = None,
    text: str | None = None,
) -> Utterance:
    return Utterance(
        id=f"{number:064x}",
        corpus=corpus,
        speaker=speaker and f"{corpus}:{speaker}",
        sex=sex,
        raw_label=label,
        intensity=None,
        language=None,
        text=text,
        partition=partition,
        duration_s=1.0,
        sample_rate=16_000,
        source_id=f"{corpus}:{number}",
        source_bytes=1,
        source_sample_rate=16_000,
    )


def stored(utterances: Sequence[Utterance], store: str) -> DatasetVersion:
    """A dataset version of these utterances, each with a byte for its audio."""
    with storage.staging(store) as folder:
        writer = ShardWriter(folder, 1 << 20, "all")
        for one in utterances:
            writer.add(one, b"-")
        finished = writer.finish()
        assert finished is not None
        shard, path = finished
        target = Path(storage.join(store, shard.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    corpora = [{"name": name} for name in sorted({one.corpus for one in utterances})]
    return publish_version(store, utterances, [shard], [], corpora, [], False, None, {})[0]


@st.composite
def layouts(draw, least: int = 3, most: int = 24, corpora: str = "ab"):
    """Utterances with labels: a few corpora, speakers of different sizes, who need not have every label."""
    speakers = draw(
        st.lists(
            st.tuples(
                st.sampled_from(corpora),
                st.sampled_from([None, "female", "male"]),
                st.lists(st.sampled_from(LABELS), min_size=1, max_size=6),
            ),
            min_size=least,
            max_size=most,
        )
    )
    layout = []
    for number, (corpus, sex, labels) in enumerate(speakers):
        for label in labels:
            layout.append((utterance(len(layout), f"s{number:02d}", corpus, sex, label=label), label))
    return layout
