"""Cascades: each recording has the answer of one of two bundles, and it is known which."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kubevox.config import AudioLimits
from kubevox.data.audio import Waveform, canonical
from kubevox.errors import AudioError, BundleError, StorageError
from kubevox.features.frontends import minimum_duration_s
from kubevox.models import bundle as bundles_module
from kubevox.models.bundle import Bundle, load_bundle, save_bundle
from kubevox.models.cascade import (
    Cascade,
    CascadeFigures,
    CascadeSpec,
    assemble,
    export,
    load_model,
    read_cascade,
    save_cascade,
    unsure,
)
from tests.tiny import CNN1D, RESCNN, TASK, Tiny, untrained_bundle

RATE = 16_000


def description(mini: Bundle, premium: Bundle, threshold: float = 0.75, **changes: Any) -> CascadeSpec:
    said: dict[str, Any] = {
        "task": TASK.name,
        "labels": TASK.labels,
        "mini": mini.hash,
        "premium": premium.hash,
        "threshold": threshold,
        "split_hash": premium.spec.split_hash,
        "margin": 0.01,
        "confidence": 0.95,
        "figures": CascadeFigures(**dict.fromkeys(CascadeFigures.model_fields, 0)),
        "remarks": [],
        "synthetic": False,
    }
    return CascadeSpec(**{**said, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cascades") / "store"


@pytest.fixture(scope="module")
def mini(tiny: Tiny, store: Path) -> Bundle:
    return load_bundle(untrained_bundle(tiny, store, RESCNN, seed=0, temperature=0.03))


@pytest.fixture(scope="module")
def premium(tiny: Tiny, store: Path) -> Bundle:
    return load_bundle(untrained_bundle(tiny, store, CNN1D, seed=1, temperature=0.1))


@pytest.fixture(scope="module")
def uri(mini: Bundle, premium: Bundle, store: Path) -> str:
    return save_cascade(description(mini, premium), str(store), {"report.html": "<p>What was found.</p>"})


@pytest.fixture(scope="module")
def waveforms() -> list[Waveform]:
    """Sounds of which the mini model is unlike sure."""
    chance = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    sounds = []
    for number in range(12):
        tone = np.sin(2 * np.pi * (120 + 90 * number) * time) * (time < 0.2 + 0.06 * number)
        sounds.append(canonical(0.04 * (1 + number) * tone + 0.01 * chance.standard_normal(RATE), RATE))
    return sounds


class Counting(nn.Module):
    """A network that tells how large the batches were."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.batches = network, []

    def forward(self, features: Tensor) -> Tensor:
        self.batches.append(len(features))
        return self.network(features)


def counting(bundle: Bundle) -> tuple[Bundle, list[int]]:
    """The same bundle, and the sizes of the batches that it will be asked."""
    loaded = load_bundle(bundle.uri)
    network = Counting(loaded.classifier.network)
    loaded.classifier.network = network
    return loaded, network.batches


@given(st.floats(0.0, 1.0), st.lists(st.integers(0, 11), max_size=8))
@settings(max_examples=25)
def test_each_row_is_exactly_that_of_the_bundle_which_answered(
    mini: Bundle, premium: Bundle, waveforms: list[Waveform], threshold: float, chosen: list[int]
) -> None:
    asked = [waveforms[i] for i in chosen]
    answer = assemble(mini, premium, threshold).answer(asked)
    first = mini.predict(asked)
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.shape == (len(asked), len(TASK.labels))
    assert answer.by_premium.tolist() == [float(row.max()) < threshold for row in first]
    np.testing.assert_array_equal(answer.probabilities[~answer.by_premium], first[~answer.by_premium])
    sent = [waveform for waveform, premium_s in zip(asked, answer.by_premium, strict=True) if premium_s]
    np.testing.assert_array_equal(answer.probabilities[answer.by_premium], premium.predict(sent))


def test_the_threshold_divides_these_recordings(mini: Bundle, premium: Bundle, waveforms: list[Waveform]) -> None:
    """Or the property above would say little."""
    shares = [assemble(mini, premium, t).answer(waveforms).by_premium.mean() for t in np.linspace(0, 1, 21)]
    assert shares[0] == 0.0
    assert sum(0.0 < share < 1.0 for share in shares) >= 3
    assert shares == sorted(shares)


def test_the_premium_model_is_asked_once_for_all_that_it_answers(
    mini: Bundle, premium: Bundle, waveforms: list[Waveform]
) -> None:
    confidences = np.sort(mini.predict(waveforms).max(axis=1).astype(float))
    first, seen_by_mini = counting(mini)
    second, seen_by_premium = counting(premium)
    assemble(first, second, (confidences[4] + confidences[5]) / 2).answer(waveforms)
    assert (seen_by_mini, seen_by_premium) == ([12], [5])


def test_a_mini_model_that_is_sure_never_troubles_the_premium_model(
    mini: Bundle, premium: Bundle, waveforms: list[Waveform]
) -> None:
    second, seen = counting(premium)
    assert not assemble(mini, second, 0.0).answer(waveforms).by_premium.any()
    assert seen == []


def test_without_a_threshold_that_it_could_reach_the_premium_model_answers_all(
    mini: Bundle, premium: Bundle, waveforms: list[Waveform]
) -> None:
    answer = assemble(mini, premium, math.inf).answer(waveforms)
    assert answer.by_premium.all()
    np.testing.assert_array_equal(answer.probabilities, premium.predict(waveforms))


def test_no_recordings_have_no_answers(mini: Bundle, premium: Bundle) -> None:
    answer = assemble(mini, premium, 1.0).answer([])
    assert answer.probabilities.shape == (0, len(TASK.labels))
    assert answer.by_premium.shape == (0,)


def test_features_that_both_hear_are_computed_once(
    tiny: Tiny, mini: Bundle, waveforms: list[Waveform], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_bundle(untrained_bundle(tiny, store, RESCNN, seed=3, temperature=0.1))
    cascade = assemble(mini, other, 0.9)
    expected = other.predict(waveforms)
    computed = []
    original = type(mini.frontend)._features
    monkeypatch.setattr(
        type(mini.frontend), "_features", lambda self, samples: computed.append(len(samples)) or original(self, samples)
    )
    answer = cascade.answer(waveforms)
    assert sum(computed) == len(waveforms)
    assert answer.by_premium.any()
    np.testing.assert_allclose(answer.probabilities[answer.by_premium], expected[answer.by_premium], atol=1e-6)


def test_a_confidence_that_equals_the_threshold_is_sure_enough_in_any_precision() -> None:
    # 0.1 in float32 is a little more than 0.1 in float64.
    rows = np.array([[0.1, 0.05], [0.0999, 0.0]], np.float32)
    assert unsure(rows, 0.1).tolist() == [False, True]
    assert unsure(rows, float(np.float32(0.1))).tolist() == [False, True]
    assert unsure(rows, np.nextafter(float(np.float32(0.1)), 1.0)).tolist() == [True, True]


def test_a_stored_cascade_is_loaded_with_the_bundles_of_its_store(
    uri: str, mini: Bundle, premium: Bundle, waveforms: list[Waveform]
) -> None:
    cascade = load_model(uri)
    assert isinstance(cascade, Cascade)
    assert Path(uri).name == cascade.hash == read_cascade(uri)[1]
    assert (cascade.mini.hash, cascade.premium.hash) == (mini.hash, premium.hash)
    assert (cascade.task, cascade.labels, cascade.threshold) == (TASK.name, TASK.labels, 0.75)
    assert (Path(uri) / "report.html").read_text() == "<p>What was found.</p>"
    expected = assemble(mini, premium, 0.75).answer(waveforms)
    answer = cascade.answer(waveforms)
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    np.testing.assert_array_equal(answer.by_premium, expected.by_premium)


def test_a_bundle_is_loaded_as_a_bundle(mini: Bundle) -> None:
    loaded = load_model(f"{mini.uri}/")
    assert isinstance(loaded, Bundle)
    assert loaded.hash == mini.hash


def test_the_same_description_has_the_same_name_and_another_another(
    mini: Bundle, premium: Bundle, uri: str, store: Path
) -> None:
    assert save_cascade(description(mini, premium), str(store), {}) == uri
    others = {
        save_cascade(description(mini, premium, **changes), str(store), {})
        for changes in ({"threshold": 0.5}, {"margin": 0.02}, {"remarks": ["So."]})
    }
    assert len(others | {uri}) == 4


def test_speakers_are_those_of_both_bundles(mini: Bundle, premium: Bundle) -> None:
    one = replace(mini, spec=mini.spec.model_copy(update={"speakers": ["c:2", "c:1"]}))
    other = replace(premium, spec=premium.spec.model_copy(update={"speakers": ["c:3", "c:2"]}))
    assert assemble(one, other, 0.5).speakers == ["c:1", "c:2", "c:3"]


LIMITS = st.builds(
    lambda size, durations, rates, channels: {
        "max_bytes": size,
        "min_duration_s": min(durations),
        "max_duration_s": max(durations),
        "min_sample_rate": min(rates),
        "max_sample_rate": max(rates),
        "max_channels": channels,
    },
    st.integers(1, 100),
    st.tuples(st.floats(0.2, 20), st.floats(0.2, 20)),
    st.tuples(st.integers(1, 50_000), st.integers(1, 50_000)),
    st.integers(1, 8),
)


@given(LIMITS, LIMITS, st.integers(1, 100), st.floats(0.1, 20), st.integers(1, 50_000), st.integers(1, 8))
def test_a_recording_is_within_the_limits_where_it_is_within_those_of_both(
    mini: Bundle,
    premium: Bundle,
    one: dict[str, Any],
    other: dict[str, Any],
    size: int,
    seconds: float,
    rate: int,
    channels: int,
) -> None:
    both = [AudioLimits(**one), AudioLimits(**other)]
    first, second = (
        replace(bundle, spec=bundle.spec.model_copy(update={"limits": limits}))
        for bundle, limits in zip((mini, premium), both, strict=True)
    )

    def within(limits: AudioLimits) -> bool:
        return (
            size <= limits.max_bytes
            and limits.min_duration_s <= seconds <= limits.max_duration_s
            and limits.min_sample_rate <= rate <= limits.max_sample_rate
            and channels <= limits.max_channels
        )

    possible = all(
        max(getattr(limits, f"min_{what}") for limits in both) <= min(getattr(limits, f"max_{what}") for limits in both)
        for what in ("duration_s", "sample_rate")
    )
    if not possible:
        with pytest.raises(BundleError, match=r"within the limits of both.*data\.limits"):
            assemble(first, second, 0.5)
        return
    assert within(assemble(first, second, 0.5).limits) == all(map(within, both))


def test_who_answers_does_not_decide_whether_a_recording_is_too_short(tiny: Tiny, mini: Bundle, store: Path) -> None:
    longer = mini.frontend.config.model_copy(update={"offset_s": 0.5, "duration_s": 1.0})
    demanding = load_bundle(
        untrained_bundle(tiny, store, RESCNN, seed=5, frontend=longer, limits=AudioLimits(min_duration_s=0.1))
    )
    easy = replace(mini, spec=mini.spec.model_copy(update={"limits": AudioLimits(min_duration_s=0.1)}))
    cascade = assemble(easy, demanding, 0.5)
    assert cascade.limits.min_duration_s == minimum_duration_s(longer) > 0.5
    with pytest.raises(AudioError, match="too short"):
        assemble(easy, demanding, math.inf).answer([Waveform(np.zeros(int(0.3 * RATE), np.int32), RATE)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["angry", "sad", "happy"]}, "same labels in the same order.*angry, happy, sad.*angry, sad, happy"),
        ({"labels": ["angry", "happy", "bored"]}, "bored"),
        ({"task": "weather"}, "one task.*mood.*weather"),
    ],
)
def test_bundles_that_answer_other_questions_are_refused(
    change: dict[str, Any], words: str, tiny: Tiny, mini: Bundle, store: Path
) -> None:
    other = load_bundle(untrained_bundle(tiny, store, CNN1D, **change))
    for first, second in itertools.permutations((mini, other)):
        with pytest.raises(BundleError, match="one task with the same labels") as caught:
            assemble(first, second, 0.5)
        assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match=words):
        load_model(save_cascade(description(mini, other), str(store), {}))


def test_bundles_that_are_not_in_the_store_are_not_put_into_a_cascade(
    mini: Bundle, premium: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=f"its mini is not in the store.*{mini.hash}"):
        save_cascade(description(mini, premium), str(tmp_path / "other"), {})
    assert not (tmp_path / "other" / "cascades").exists()


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_a_flipped_bit_in_the_description_is_noticed(place: float, uri: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(uri, tmp_path / "cascades" / Path(uri).name))
    data = bytearray((folder / "cascade.json").read_bytes())
    data[int(place * len(data))] ^= 1
    (folder / "cascade.json").write_bytes(data)
    for read in (read_cascade, load_model):
        with pytest.raises(BundleError, match="damaged"):
            read(str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"task": "emotion"}', b'{"threshold": 2}'])
def test_a_description_that_is_none_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cascade.json").write_bytes(content)
    with pytest.raises(BundleError, match="damaged") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (read_cascade, load_model):
        with pytest.raises(BundleError, match="nowhere"):
            read(str(tmp_path / "nowhere"))


def test_a_bundle_that_is_gone_from_the_store_is_named(uri: str, premium: Bundle, store: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store, tmp_path / "store"))
    shutil.rmtree(other / "bundles" / premium.hash)
    with pytest.raises(BundleError, match=premium.hash):
        load_model(str(other / "cascades" / Path(uri).name))


def test_a_description_alone_outside_of_a_store_says_what_is_missing(uri: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(Path(uri) / "cascade.json", tmp_path / "models")
    with pytest.raises(BundleError, match=r"mini is missing.*kubevox cascade export"):
        load_model(str(tmp_path / "models"))


@pytest.fixture
def in_a_pod(uri: str, store: Path, tmp_path: Path) -> Path:
    """What a pod is brought: one folder, under a name that says nothing, and nothing else of the store."""
    other = Path(shutil.copytree(store, tmp_path / "store"))
    exported = export(str(other / "cascades" / Path(uri).name), str(tmp_path / "mnt" / "models"))
    shutil.rmtree(other)
    return Path(exported)


def test_an_exported_cascade_needs_nothing_else(in_a_pod: Path, uri: str, waveforms: list[Waveform]) -> None:
    assert sorted(path.relative_to(in_a_pod).as_posix() for path in in_a_pod.rglob("*") if path.is_file()) == [
        "cascade.json",
        "mini/bundle.json",
        "mini/model.safetensors",
        "premium/bundle.json",
        "premium/model.safetensors",
        "report.html",
    ]
    assert [path.name for path in in_a_pod.parent.iterdir()] == ["models"], "nothing half-written is left"
    cascade, stored = load_model(str(in_a_pod)), load_model(uri)
    assert cascade.hash == stored.hash
    np.testing.assert_array_equal(cascade.answer(waveforms).probabilities, stored.answer(waveforms).probabilities)


def test_an_exported_cascade_can_be_exported_again(in_a_pod: Path, tmp_path: Path) -> None:
    again = export(str(in_a_pod), str(tmp_path / "again"))
    assert load_model(again).hash == load_model(str(in_a_pod)).hash


def test_a_bundle_in_the_place_of_another_is_noticed(in_a_pod: Path) -> None:
    (in_a_pod / "mini").rename(in_a_pod / "other")
    (in_a_pod / "premium").rename(in_a_pod / "mini")
    (in_a_pod / "other").rename(in_a_pod / "premium")
    with pytest.raises(BundleError, match=r"its mini in .* has the hash .* as cascade\.json says"):
        load_model(str(in_a_pod))


def test_a_bundle_that_was_damaged_on_its_way_is_noticed(in_a_pod: Path) -> None:
    file = in_a_pod / "premium" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"its premium in .* has the hash"):
        load_model(str(in_a_pod))


def test_exporting_twice_to_one_place_changes_nothing(uri: str, tmp_path: Path) -> None:
    first = export(uri, str(tmp_path / "models"))
    before = {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")}
    assert export(uri, f"{tmp_path}/models/") == first
    assert {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")} == before


def test_an_empty_folder_is_filled_and_any_other_left_alone(
    uri: str, mini: Bundle, premium: Bundle, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert isinstance(load_model(export(uri, str(tmp_path / "empty"))), Cascade)
    other = save_cascade(description(mini, premium, threshold=0.7), str(store), {})
    with pytest.raises(StorageError, match="holds another cascade"):
        export(other, str(tmp_path / "empty"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(StorageError, match="is not empty"):
        export(uri, str(tmp_path / "full"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file"):
        export(uri, str(tmp_path / "file"))
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "full", "file"}
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "letter.txt").read_text() == "mine"


def test_an_encoder_that_lies_beside_the_bundles_is_exported_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from tests.models.test_bundle_with_encoder import save_encoder, saved, section

    monkeypatch.setattr(bundles_module, "_MOST_ENCODER_BYTES", 0)
    encoder, store = save_encoder(tmp_path / "encoder"), tmp_path / "store"
    mini, premium = (load_bundle(saved(section(encoder), store, seed)) for seed in (1, 2))
    uri = save_cascade(description(mini, premium), str(store), {})
    exported = export(uri, str(tmp_path / "models"))
    expected = load_model(uri).answer([Waveform(np.arange(RATE, dtype=np.int32) * 50, RATE)])
    shutil.rmtree(store)
    shutil.rmtree(encoder)
    cascade = load_model(exported)
    assert cascade.premium.frontend is cascade.mini.frontend, "one encoder in memory for both"
    answer = cascade.answer([Waveform(np.arange(RATE, dtype=np.int32) * 50, RATE)])
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3://`` and an empty bucket's name, on a server that speaks as much of S3 as the store uses."""
    pytest.importorskip("minio")
    from tests.test_storage_faults import Handler

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.objects, server.uploads, server.requests, server.faults = threading.Lock(), {}, {}, [], []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "loopback")
    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    yield "s3://bucket"
    server.shutdown()
    server.server_close()


def test_a_bucket_holds_a_cascade_as_a_folder_does(
    bucket: str, uri: str, mini: Bundle, premium: Bundle, waveforms: list[Waveform], tmp_path: Path
) -> None:
    exported = export(uri, f"{bucket}/models/mood/")
    assert exported == f"{bucket}/models/mood"
    cascade = load_model(exported)
    assert isinstance(cascade, Cascade)
    expected = load_model(uri).answer(waveforms)
    np.testing.assert_array_equal(cascade.answer(waveforms).probabilities, expected.probabilities)
    assert export(uri, exported) == exported, "it is there already"
    with pytest.raises(StorageError, match="not empty"):
        export(uri, f"{bucket}/models")
    # And a whole store in a bucket: the bundles beside the cascade.
    for bundle in (mini, premium):
        save_bundle(bundle.classifier, bundle.spec, f"{bucket}/store")
    stored = save_cascade(description(mini, premium), f"{bucket}/store", {"report.html": "<p>What was found.</p>"})
    assert stored == f"{bucket}/store/cascades/{cascade.hash}"
    assert load_model(stored).hash == cascade.hash
    assert load_model(export(stored, str(tmp_path / "pod"))).hash == cascade.hash
    with pytest.raises(BundleError, match="s3://bucket/nowhere"):
        load_model(f"{bucket}/nowhere")


def test_a_description_survives_json(mini: Bundle, premium: Bundle, uri: str) -> None:
    spec = description(mini, premium)
    assert CascadeSpec.from_json(spec.to_json()) == spec == read_cascade(uri)[0]
    assert json.loads((Path(uri) / "cascade.json").read_text())["format"] == 1
