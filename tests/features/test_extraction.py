"""The extraction engine: any batch, order and number of workers gives the bits that each recording gives alone."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from generated_speech import recording
from hypothesis import given, settings
from hypothesis import strategies as st

from kubevox.config import (
    BackgroundRecipe,
    ChainRecipe,
    DriftConfig,
    FrontendConfig,
    LogMelConfig,
    NoiseRecipe,
    OriginalRecipe,
    PitchRecipe,
    RecipeConfig,
    ReverbRecipe,
    ShiftRecipe,
    SpeedRecipe,
    StatisticsConfig,
    StretchRecipe,
    TelephoneRecipe,
)
from kubevox.data.audio import Waveform
from kubevox.errors import AudioError, KubevoxError
from kubevox.features import augment, build_frontend, features_of
from kubevox.features.extraction import Extracted, Extractor, Source, Target
from kubevox.features.resampling import resample

STATISTICS = StatisticsConfig(offset_s=0.1, duration_s=0.7)
LOGMEL, DRIFT = LogMelConfig(duration_s=0.6), DriftConfig(duration_s=0.8)
FRONTENDS = {config: build_frontend(config) for config in (STATISTICS, LOGMEL, DRIFT)}
RECIPES: list[RecipeConfig] = [
    OriginalRecipe(),
    NoiseRecipe(),
    ShiftRecipe(),
    PitchRecipe(),
    StretchRecipe(),
    SpeedRecipe(),
    TelephoneRecipe(),
    ChainRecipe(steps=(PitchRecipe(), NoiseRecipe())),
]
RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)
# Equal lengths share a batch; the shortest are a few frames.
LENGTHS = (0.25, 0.6, 0.8, 1.1)


@functools.cache
def waveform(seconds: float, rate: int, seed: int) -> Waveform:
    return recording(seconds, rate, seed)


@functools.cache
def alone(heard: tuple[float, int, int], id: str, target: Target) -> np.ndarray:
    """The features of one recording under one recipe, without the engine."""
    config, recipe = target
    frontend = FRONTENDS[config]
    if recipe.kind == "original":
        return features_of(waveform(*heard), frontend)
    prepared = torch.from_numpy(frontend.prepare(waveform(*heard)))[None]
    changed = augment(prepared, [id], recipe, config.sample_rate)
    return frontend(frontend.fit(changed), augmented=True)[0].numpy()


def broken() -> Waveform:
    raise AudioError("damaged", "its stored audio is damaged")


def kill_itself() -> Waveform:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def source(id: str, heard: tuple[float, int, int] = (0.6, 16_000, 0), targets: Sequence[Target] = ()) -> Source:
    return Source(id, f"name {id}", functools.partial(waveform, *heard), targets or ((LOGMEL, OriginalRecipe()),))


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


def gathered(results: Iterator[Extracted]) -> tuple[int, dict[Target, dict[str, np.ndarray]], list[str]]:
    """How many recordings came, their values by target and id, and the ids of the first target in order."""
    count, values, order = 0, {}, []
    for done in results:
        count += done.recordings
        for target, (ids, rows) in done.values.items():
            assert rows.dtype == np.float32
            values.setdefault(target, {}).update(zip(ids, rows, strict=True))
            order.extend(ids)
    return count, values, order


heard_ones = st.tuples(st.sampled_from(LENGTHS), st.sampled_from(RATES), st.integers(0, 2))


@settings(max_examples=60)
@given(
    heard=st.lists(heard_ones, min_size=1, max_size=9),
    configs=st.sets(st.sampled_from([STATISTICS, LOGMEL, DRIFT]), min_size=1),
    recipes=st.lists(st.sampled_from(RECIPES), min_size=1, max_size=4, unique=True),
    batch_size=st.sampled_from([1, 3, 48]),
    data=st.data(),
)
def test_any_batch_gives_the_bits_that_each_recording_gives_alone(
    heard: list[tuple[float, int, int]],
    configs: set[FrontendConfig],
    recipes: list[RecipeConfig],
    batch_size: int,
    data: st.DataObject,
) -> None:
    every = [(config, recipe) for config in (STATISTICS, LOGMEL, DRIFT) if config in configs for recipe in recipes]
    sources = []
    for number, one in enumerate(heard):
        # As in a shard, where only some utterances train.
        targets = every if data.draw(st.booleans()) else every[:1]
        sources.append(source(f"u{number}", one, targets))
    with Extractor(configs, "cpu", batch_size, workers=1) as extractor:
        count, values, _ = gathered(extractor(iter(sources)))
    assert count == len(sources)
    wanted: dict[Target, list[str]] = {}
    for one, asked in zip(heard, sources, strict=True):
        for target in asked.targets:
            wanted.setdefault(target, []).append(str(asked.id))
            assert np.array_equal(values[target][str(asked.id)], alone(one, str(asked.id), target)), target
    assert {target: list(rows) for target, rows in values.items()} == wanted  # in their order


# A vectorised product ends in other last bits where it leaves numbers over: at most lengths some kernel does.
@pytest.mark.parametrize("length", [2_379, 4_365, 5_689, 22_050])
def test_every_recipe_gives_the_same_bits_in_any_batch_at_any_length(length: int) -> None:
    clips = torch.from_numpy(np.stack([waveform(1.1, 22_050, seed).stretch(0, length) for seed in range(5)]))
    others = [PitchRecipe(semitones=-4.0), StretchRecipe(rate=1.3), ReverbRecipe(), BackgroundRecipe()]
    for recipe in [*RECIPES, *others, ChainRecipe(steps=(StretchRecipe(), ReverbRecipe(), TelephoneRecipe()))]:
        together = augment(clips, list("abcde"), recipe, 22_050)
        for row, id in enumerate("abcde"):
            assert torch.equal(together[row], augment(clips[row : row + 1], [id], recipe, 22_050)[0]), recipe


# What recipes and frontends share in one plan must show in none of them, whichever is asked for first.
@pytest.mark.parametrize(
    "recipes",
    [
        [OriginalRecipe(), PitchRecipe()],
        [StretchRecipe(), OriginalRecipe(), PitchRecipe()],
        [NoiseRecipe(), OriginalRecipe(), ChainRecipe(steps=(StretchRecipe(), NoiseRecipe()))],
    ],
    ids=["pitch", "stretch and pitch", "chain"],
)
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_vocoders_transform_serves_the_statistics_too(recipes: list[RecipeConfig], count: int) -> None:
    heard = [(1.1, 22_050, seed) for seed in range(count)]
    targets = [(STATISTICS, recipe) for recipe in recipes]
    with Extractor([STATISTICS], "cpu", workers=1) as extractor:
        _, values, _ = gathered(extractor(source(f"u{one[2]}", one, targets) for one in heard))
    for one in heard:
        for target in targets:
            assert np.array_equal(values[target][f"u{one[2]}"], alone(one, f"u{one[2]}", target))


def test_processes_give_the_same_bits_in_the_same_order() -> None:
    targets = [(STATISTICS, OriginalRecipe()), (STATISTICS, PitchRecipe()), (LOGMEL, NoiseRecipe())]
    heard = [(LENGTHS[number % 4], RATES[number % 6], number % 3) for number in range(25)]
    before = children()
    with Extractor([STATISTICS, LOGMEL], "cpu", batch_size=2, workers=2) as extractor:
        for _ in range(2):  # the second time the workers are there already
            sources = [source(f"u{number}", one, targets) for number, one in enumerate(heard)]
            count, values, order = gathered(extractor(iter(sources)))
            assert count == len(heard)
            assert [id for id in order if id in values[targets[0]]][:2] == ["u0", "u1"]
            for target in targets:
                assert list(values[target]) == [f"u{number}" for number in range(len(heard))]
                for number, one in enumerate(heard):
                    assert np.array_equal(values[target][f"u{number}"], alone(one, f"u{number}", target))
    assert children() == before


def test_a_recording_without_an_id_has_its_waveforms() -> None:
    heard = (0.6, 16_000, 0)
    unnamed = Source(None, "file", functools.partial(waveform, *heard), ((LOGMEL, NoiseRecipe()),))
    with Extractor([LOGMEL], "cpu", workers=1) as extractor:
        _, values, order = gathered(extractor([unnamed]))
    id = waveform(*heard).id
    assert order == [id]
    assert np.array_equal(values[LOGMEL, NoiseRecipe()][id], alone(heard, id, (LOGMEL, NoiseRecipe())))


def test_nothing_to_do_gives_nothing() -> None:
    with Extractor([LOGMEL], "cpu", workers=2) as extractor:
        assert list(extractor([])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_each_bad_recording_is_collected_and_the_others_are_computed(workers: int) -> None:
    targets = [(STATISTICS, OriginalRecipe()), (LOGMEL, OriginalRecipe())]
    sources = [source(f"u{number}", (0.6, 16_000, number), targets) for number in range(8)]
    sources[2] = Source("u2", "name u2", broken, targets)
    # Long enough for one of the two frontends only: reported, not half used.
    sources[5] = source("u5", (0.15, 16_000, 0), targets)
    with Extractor([STATISTICS, LOGMEL], "cpu", 3, workers, collect_failures=True) as extractor:
        results = list(extractor(sources))
    failed = [(bad.name, error.reason, str(error)) for done in results for bad, error in done.failed]
    assert [(name, reason) for name, reason, _ in failed] == [("name u2", "damaged"), ("name u5", "too_short")]
    assert all(text.startswith(f"{name}: ") for name, _, text in failed)
    assert [done.recordings for done in results] == [3, 3, 2]
    _, values, _ = gathered(iter(results))
    for target in targets:
        assert list(values[target]) == ["u0", "u1", "u3", "u4", "u6", "u7"]
        assert np.array_equal(values[target]["u7"], alone((0.6, 16_000, 7), "u7", target))
    assert sum(done.seconds for done in results) == pytest.approx(6 * 0.6)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("bad", "name", "reason"),
    [
        (broken, "folder/b.wav", "damaged"),
        (functools.partial(waveform, 0.01, 16_000, 0), "folder/s.wav", "too_short"),
        (functools.partial(waveform, 0.01, 16_000, 0), "too", "too_short"),  # the message begins with these letters
    ],
)
def test_a_bad_recording_is_named_with_its_reason(workers: int, bad: object, name: str, reason: str) -> None:
    sources = [*(source(f"u{number}") for number in range(5)), Source("b", name, bad, source("b").targets)]
    before = children()
    with (
        Extractor([LOGMEL], "cpu", batch_size=2, workers=workers) as extractor,
        pytest.raises(AudioError, match=f"^{name}: .*") as caught,
    ):
        list(extractor(sources))
    assert caught.value.reason == reason
    assert children() == before


def test_a_killed_worker_is_told_with_a_remedy_and_the_next_call_starts_new_ones() -> None:
    doomed = [*(source(f"u{number}") for number in range(4)), Source("k", "k", kill_itself, source("k").targets)]
    before = children()
    with Extractor([LOGMEL], "cpu", batch_size=1, workers=2) as extractor:
        with pytest.raises(KubevoxError, match=r"ended from outside \(out of memory\?\); set features\.workers lower"):
            list(extractor(doomed))
        assert [done.recordings for done in extractor([source("again")])] == [1]
    assert children() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_is_drawn_than_a_few_chunks_ahead_and_whoever_stops_leaves_nothing(workers: int) -> None:
    drawn = 0

    def endless() -> Iterator[Source]:
        nonlocal drawn
        while True:
            drawn += 1
            yield source(f"u{drawn}")

    before = children()
    with Extractor([LOGMEL], "cpu", batch_size=2, workers=workers) as extractor:
        results = extractor(endless())
        for taken in range(1, 8):
            assert next(results).recordings == 2
            assert drawn <= 2 * (taken + workers + 2)
        results.close()
        assert drawn <= 2 * (7 + workers + 2)
    assert children() == before


def test_an_error_of_whoever_gives_the_recordings_comes_through() -> None:
    def half() -> Iterator[Source]:
        yield from (source(f"u{number}") for number in range(3))
        raise OSError("the shard is gone")

    before = children()
    with Extractor([LOGMEL], "cpu", 1, workers=2) as extractor, pytest.raises(OSError, match="the shard is gone"):
        list(extractor(half()))
    assert children() == before


def test_a_chunk_is_decoded_once_and_grouped_by_what_can_share_operations() -> None:
    decoded: list[str] = []

    def counted(id: str, heard: tuple[float, int, int]) -> Waveform:
        decoded.append(id)
        return waveform(*heard)

    heard = {"a": (1.1, 22_050, 0), "b": (0.6, 44_100, 1), "c": (1.1, 22_050, 2), "d": (0.6, 16_000, 0)}
    targets = [(STATISTICS, OriginalRecipe()), (STATISTICS, ShiftRecipe()), (LOGMEL, OriginalRecipe())]
    chunk = [Source(id, id, functools.partial(counted, id, one), targets) for id, one in heard.items()]
    extractor = Extractor([STATISTICS, LOGMEL], "cpu", workers=1)
    prepared = extractor._prepare(chunk)
    assert decoded == list(heard)
    assert prepared.seconds == pytest.approx(3.4)
    groups = prepared.groups[STATISTICS]
    assert {key: places for key, (places, _) in groups.items()} == {
        (22_050, int(0.7 * 22_050)): [0, 2],
        (44_100, 22_050): [1],
        (16_000, 8_000): [3],
    }
    for places, samples in groups.values():
        for place, row in zip(places, samples, strict=True):
            assert np.array_equal(row.numpy(), FRONTENDS[STATISTICS].prepare(waveform(*heard["abcd"[place]])))
    done = extractor._launch(prepared).fetch()
    for target, (ids, rows) in done.values.items():
        assert ids == list(heard)
        for id, row in zip(ids, rows, strict=True):
            assert np.array_equal(row, alone(heard[id], id, target))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("config", [STATISTICS, LOGMEL, DRIFT], ids=lambda config: config.kind)
def test_what_a_gpu_resamples_has_the_length_and_nearly_the_features_of_soxrs(
    config: FrontendConfig, rate: int
) -> None:
    frontend = FRONTENDS[config]
    for seconds in (0.8137, 1.1):
        heard = recording(seconds, rate, 5)
        cut = torch.from_numpy(frontend.cut(heard))[None]
        fast = frontend.fit(resample(cut, rate, config.sample_rate))
        exact = torch.from_numpy(frontend.prepare(heard))[None]
        assert fast.shape == exact.shape
        assert torch.allclose(fast[:, 4:-4], exact[:, 4:-4], atol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_features_of_the_cpu_within_float32() -> None:
    targets = [(config, recipe) for config in (STATISTICS, LOGMEL) for recipe in (OriginalRecipe(), ShiftRecipe())]
    heard = [(LENGTHS[number % 4], RATES[number % 6], number) for number in range(20)]
    found = []
    for device in ("cpu", "cuda"):
        with Extractor([STATISTICS, LOGMEL], device, 8) as extractor:
            found.append(gathered(extractor(source(f"u{one[2]}", one, targets) for one in heard))[1])
    for target in targets:
        assert list(found[0][target]) == list(found[1][target])
        for id, row in found[0][target].items():
            assert np.allclose(row, found[1][target][id], rtol=1e-2, atol=1e-2)
