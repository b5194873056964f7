"""The synthetic corpus: who says what, and that it is the same every time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import wave
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import AudioLimits, CorpusSource, DataConfig
from kubevox.data.audio import decode
from kubevox.data.corpora import open_corpus
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.data.corpora.synthetic import VOICES, engine
from kubevox.data.corpora.synthetic.prosody import EMOTIONS, deliver, make_speaker
from kubevox.data.corpora.synthetic.texts import LANGUAGES, SENTENCES, SENTENCES_PER_LANGUAGE
from kubevox.data.dataset import ingest
from kubevox.errors import ConfigError, CorpusError

SMALL: dict[str, Any] = {"speakers": 3, "sentences": 1, "emotions": ["fear", "neutral", "surprise"]}


def synthetic(**options: Any) -> Corpus:
    return open_corpus(CorpusSource(name="synthetic", options=options))


def samples(recording: Recording) -> np.ndarray:
    with wave.open(io.BytesIO(recording.read())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22_050)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def ids(corpus: Corpus) -> dict[str, str]:
    limits = AudioLimits()
    return {r.source_id: decode(r.read(), limits)[0].id for r in corpus.recordings()}


@pytest.fixture(scope="module")
def one_sentence() -> list[tuple[Recording, np.ndarray]]:
    """One sentence of four speakers in all emotions and of two in every language."""
    emotions = synthetic(speakers=4, sentences=1)
    languages = synthetic(speakers=2, sentences=1, languages=list(LANGUAGES), emotions=["neutral"])
    return [(r, samples(r)) for corpus in (emotions, languages) for r in corpus.recordings()]


def test_defaults_are_a_balanced_emotion_corpus():
    corpus = synthetic()
    recordings = list(corpus.recordings())
    assert len(recordings) == len(corpus) >= 24 * 7 * 6
    assert {r.raw_label for r in recordings} == set(EMOTIONS)
    assert len(set(Counter(r.raw_label for r in recordings).values())) == 1
    sexes = Counter({r.speaker: r.sex for r in recordings}.values())
    assert sexes["female"] >= 10
    assert sexes["male"] >= 10
    assert {r.language for r in recordings} == {"en"}
    assert all(r.speaker.startswith("synthetic:") and r.text for r in recordings)


def test_a_speaker_says_the_same_sentences_in_every_emotion():
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for recording in synthetic().recordings():
        said[recording.speaker][recording.raw_label].append(recording.text)
    for by_emotion in said.values():
        assert len({tuple(texts) for texts in by_emotion.values()}) == 1
    assert len({tuple(by_emotion["neutral"]) for by_emotion in said.values()}) > 1  # but not every speaker the same


def test_the_same_speakers_say_translations_of_the_same_sentences_in_every_language():
    corpus = synthetic(languages=["da", "is", "nb", "sv"], emotions=["neutral"], sentences=12)
    said: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for recording in corpus.recordings():
        texts = SENTENCES[recording.language]
        said[recording.language].add((recording.speaker, texts.index(recording.text)))
    assert set(said) == {"da", "is", "nb", "sv"}
    assert len({frozenset(pairs) for pairs in said.values()}) == 1
    assert len(corpus) == 24 * 4 * 12


def test_sentences_are_a_dozen_in_each_language_and_none_is_shared():
    assert all(len(set(texts)) == SENTENCES_PER_LANGUAGE for texts in SENTENCES.values())
    everything = [text for texts in SENTENCES.values() for text in texts]
    assert len(set(everything)) == len(everything)


def test_english_sentences_are_matched_in_structure():
    words = [text.rstrip(".").split() for text in SENTENCES["en"]]
    assert {(w[0], w[2], w[-2]) for w in words} == {("The", "are", "the")}
    assert {len(w) for w in words} == {7}
    assert all(w[3].endswith("ing") for w in words)


def test_recordings_are_neither_clipped_nor_silent(one_sentence):
    for recording, audio in one_sentence:
        peak = np.abs(audio.astype(int)).max()
        assert 1_000 < peak < 32_000, recording.origin
        assert 0.7 <= len(audio) / 22_050 <= 6.0, recording.origin


def test_recordings_lie_in_a_faint_noise_never_in_digital_silence(one_sentence):
    for recording, audio in one_sentence:
        margin = audio[:1_000].astype(float)
        assert 0 < np.abs(margin).max() < 0.2 * np.abs(audio.astype(int)).max(), recording.origin


def test_emotions_sound_as_the_table_says(one_sentence):
    loudness, duration = defaultdict(list), defaultdict(list)
    for recording, audio in one_sentence:
        if recording.language == "en":
            loudness[recording.raw_label].append(float(np.sqrt(np.mean(audio.astype(float) ** 2))))
            duration[recording.raw_label].append(len(audio))
    mean = {emotion: np.mean(values) for emotion, values in loudness.items()}
    assert mean["anger"] > mean["happiness"] > mean["neutral"] > mean["sadness"]
    length = {emotion: np.mean(values) for emotion, values in duration.items()}
    assert length["fear"] < length["neutral"] < length["sadness"] < length["disgust"]


def test_a_frightened_voice_is_higher_than_a_sad_one_of_the_same_speaker(one_sentence):
    def pitch_hz(audio: np.ndarray) -> float:
        """The median of the autocorrelation's peak over the louder half of the frames."""
        frames = np.lib.stride_tricks.sliding_window_view(audio.astype(float), 1024)[::512]
        frames = frames[np.var(frames, axis=1) > np.median(np.var(frames, axis=1))] * np.hanning(1024)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, 55:315]  # 400 to 70 Hz
        return 22_050 / float(np.median(55 + correlation.argmax(axis=1)))

    heard = {(r.speaker, r.raw_label): pitch_hz(audio) for r, audio in one_sentence if r.language == "en"}
    for speaker, _ in heard:
        assert heard[speaker, "fear"] > 1.1 * heard[speaker, "sadness"]


def test_no_two_recordings_are_the_same(one_sentence):
    assert len({audio.tobytes() for _, audio in one_sentence}) == len({r.source_id for r, _ in one_sentence})


def test_equal_options_give_equal_recordings_in_the_same_order():
    first, second = ids(synthetic(**SMALL)), ids(synthetic(**SMALL))
    assert first == second
    assert list(first) == list(second) == sorted(first)


def test_a_recording_does_not_depend_on_what_was_said_before():
    corpus = synthetic(**SMALL, languages=["da", "en"])
    forwards = [(r.source_id, r.read()) for r in corpus.recordings()]
    backwards = [(r.source_id, r.read()) for r in reversed(list(corpus.recordings()))]
    assert forwards == backwards[::-1]


def test_a_fresh_process_makes_the_same_recordings():
    program = (
        "import hashlib, json, sys\n"
        "from kubevox.config import CorpusSource\n"
        "from kubevox.data.corpora import open_corpus\n"
        "corpus = open_corpus(CorpusSource(name='synthetic', options=json.loads(sys.argv[1])))\n"
        "print(json.dumps({r.source_id: hashlib.sha256(r.read()).hexdigest() for r in corpus.recordings()}))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(SMALL)], capture_output=True, text=True, check=True, env=environment
    )
    here = {r.source_id: hashlib.sha256(r.read()).hexdigest() for r in synthetic(**SMALL).recordings()}
    assert json.loads(run.stdout) == here


def test_threads_do_not_disturb_one_another():
    recordings = list(synthetic(**SMALL).recordings())
    alone = [r.read() for r in recordings]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda r: r.read(), recordings)) == alone


def test_fewer_speakers_or_emotions_are_a_part_of_more():
    few, more = ids(synthetic(**SMALL)), ids(synthetic(**{**SMALL, "speakers": 4, "emotions": ["fear", "neutral"]}))
    shared = set(few) & set(more)
    assert len(shared) == 6
    assert all(few[source] == more[source] for source in shared)


def test_another_seed_gives_another_corpus():
    options = {**SMALL, "sentences": 12, "speakers": 2, "emotions": ["neutral"]}
    first, other = (next(iter(synthetic(**options, seed=seed).recordings())) for seed in (0, 1))
    assert first.source_id == other.source_id
    assert first.read() != other.read()


@given(
    speakers=st.integers(2, 24),
    sentences=st.integers(1, 12),
    languages=st.lists(st.sampled_from(LANGUAGES), min_size=1, unique=True),
    emotions=st.lists(st.sampled_from(EMOTIONS), min_size=1, unique=True),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_options_give_a_full_design_ordered_by_source(speakers, sentences, languages, emotions, seed):
    corpus = synthetic(speakers=speakers, sentences=sentences, languages=languages, emotions=emotions, seed=seed)
    sources = [r.source_id for r in corpus.recordings()]
    assert sources == sorted(set(sources))
    assert len(sources) == len(corpus) == speakers * sentences * len(languages) * len(emotions)
    sexes = Counter(VOICES[source.split("/")[2]] for source in set(sources))
    assert abs(sexes["female"] - sexes["male"]) <= len(sources) // speakers


@given(
    voice=st.sampled_from(list(VOICES)),
    emotion=st.sampled_from(EMOTIONS),
    seed=st.integers(0, 2**31 - 1),
    variability=st.floats(0.0, 2.0),
)
def test_any_delivery_stays_within_what_the_engine_speaks_clearly(voice, emotion, seed, variability):
    delivery = deliver(make_speaker(voice, seed, variability), emotion, "en/0", seed, variability)
    assert 80 <= delivery.setting.rate <= 450
    assert 0 <= delivery.setting.pitch <= 99
    assert 0 <= delivery.setting.range <= 99
    assert delivery.setting.word_gap >= 0
    assert delivery.ending in ".!?"
    assert 0.0 <= delivery.tremor < 1.0


def test_no_variability_renders_the_table_exactly():
    deliveries = {deliver(make_speaker(v, 3, 0.0), "anger", "en/5", 3, 0.0).setting for v in VOICES}
    assert len(deliveries) == 1


def test_the_fingerprint_follows_the_options_and_the_engine(monkeypatch):
    base = synthetic().fingerprint()
    assert json.loads(json.dumps(base)) == base
    assert synthetic(seed=1).fingerprint() != base
    assert synthetic(sentences=7).fingerprint() != base
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert synthetic().fingerprint() != base


def test_faroese_is_refused_by_name_with_what_there_is():
    with pytest.raises(CorpusError, match=r"'fo'.*da, de, en, fi, is, nb, sv"):
        synthetic(languages=["da", "fo"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": 1}, "speakers"),
        ({"speakers": len(VOICES) + 1}, "speakers"),
        ({"sentences": 13}, "sentences"),
        ({"emotions": ["bored"]}, "emotions"),
        ({"emotions": []}, "emotions"),
        ({"languages": ["da", "da"]}, "listed twice"),
        ({"speaker": 3}, "did you mean 'speakers'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        synthetic(**options)


def test_a_missing_engine_is_a_line_that_names_the_extra(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    corpus = synthetic(**SMALL)
    with pytest.raises(CorpusError, match=r"kubevox\[synthetic\]"):
        corpus.fingerprint()
    with pytest.raises(CorpusError, match=r"kubevox\[synthetic\]"):
        next(iter(corpus.recordings()))


def test_the_engine_is_not_loaded_to_describe_the_corpus():
    program = (
        "import sys\n"
        "from kubevox.config import CorpusSource\n"
        "from kubevox.data.corpora import open_corpus\n"
        "corpus = open_corpus(CorpusSource(name='synthetic'))\n"
        "corpus.fingerprint(), len(corpus), list(corpus.recordings())\n"
        "sys.exit('espeakng_loader' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_voice_the_engine_does_not_have_is_named():
    with pytest.raises(CorpusError, match=r"no voice 'xx\+f1'"):
        engine.speak("Hello.", "xx+f1", engine.Setting())


def test_an_engine_that_something_else_holds_is_refused_not_used():
    import ctypes

    import espeakng_loader

    holder = ctypes.CDLL(espeakng_loader.get_library_path())
    data = os.fsencode(espeakng_loader.get_data_path())
    assert holder.espeak_Initialize(2, 0, data, 0x8000) == 22_050
    try:
        with pytest.raises(CorpusError, match="another part of this process"):
            engine.speak("Hello.", "en+f1", engine.Setting())
    finally:
        holder.espeak_Terminate()
        engine._unmap(holder)


def test_the_engine_starts_from_a_path_longer_than_it_can_hold(tmp_path, monkeypatch):
    import espeakng_loader

    expected = engine.speak("Hello.", "en+f1", engine.Setting())
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    engine._data_path.cache_clear()
    try:
        assert (engine.speak("Hello.", "en+f1", engine.Setting()) == expected).all()
    finally:
        engine._data_path.cache_clear()


def test_it_is_ingested_as_synthetic_and_found_again(tmp_path):
    source = CorpusSource(name="synthetic", options={"speakers": 2, "sentences": 1, "emotions": ["anger", "neutral"]})
    config = DataConfig(corpora=[source])
    version, known = ingest(config, str(tmp_path / "store"))
    assert not known
    assert version.synthetic
    assert (version.utterances, version.rejects) == (4, 0)
    again, known = ingest(config, str(tmp_path / "store"))
    assert known
    assert again.hash == version.hash
    elsewhere, _ = ingest(config, str(tmp_path / "elsewhere"))
    assert elsewhere.hash == version.hash
