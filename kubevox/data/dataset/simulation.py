"""Batches that arrive, made out of a corpus: what a monitoring loop is tried on before there are any.

Recordings are drawn without replacement, so none is in two batches. From a chosen batch on they change as the world
does: noise, a narrower band, other shares of the labels. Each batch is a folder with its audio and ``recordings.csv``,
which the corpus ``folder`` reads; people keep their names, so that a dataset knows whom it has heard before.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from kubevox.config import AudioLimits, DataConfig, TaskConfig
from kubevox.data.audio import Waveform, canonical, decode, encode_flac
from kubevox.data.corpora import Recording, open_corpus
from kubevox.data.corpora.caps import cap
from kubevox.errors import AudioError, ConfigError, CorpusError
from kubevox.processes import CRASHED, Workers
from kubevox.progress import ProgressBar, note

__all__ = ["Shift", "Simulated", "add_noise", "limit_band", "simulate"]

LIST = "recordings.csv"
_COLUMNS = ("path", "corpus", "speaker", "sex", "raw_label", "intensity", "language", "text", "partition", "source")
_FRAME_S = 0.02
_PAUSE_DB = 30.0  # below the loudest frame, and it is a pause
_HEADROOM = 0.99
_MOST_DB = 200.0  # more than 24 bits can hold
_LOWEST_HZ = 20.0


@dataclass(frozen=True)
class Shift:
    """How batches differ from their corpus.

    Attributes:
        noise_snr_db: noise is added, so far below the level of speech; None: none.
        noise: "white", or "pink": 3 dB less an octave, as rooms and traffic are rather.
        band_limit_hz: what is higher is taken away, as a telephone does at 3400; None: nothing.
        labels: what share of a batch these labels have; the others keep their proportions. Empty: as the corpus has
            them.
    """

    noise_snr_db: float | None = None
    noise: Literal["white", "pink"] = "white"
    band_limit_hz: float | None = None
    labels: Mapping[str, float] = field(default_factory=dict)

    @property
    def touches_audio(self) -> bool:
        """Whether the recordings themselves are changed."""
        return self.noise_snr_db is not None or self.band_limit_hz is not None


@dataclass(frozen=True)
class Simulated:
    """A batch that was written.

    Attributes:
        name: its folder's.
        path: its folder.
        recordings: how many it has.
        labels: the task's labels in it.
        shifted: whether the shift had begun.
    """

    name: str
    path: str
    recordings: int
    labels: dict[str, int]
    shifted: bool


def simulate(
    config: DataConfig,
    task: TaskConfig,
    to: Path,
    batches: int,
    size: int,
    shift: Shift | None = None,
    start_at: int = 1,
    base: int = 0,
    seed: int = 0,
    audio: Literal["flac", "wav"] = "flac",
) -> list[Simulated]:
    """Write batches of recordings that are drawn from corpora.

    Recordings that the task leaves out are not drawn; one that cannot be decoded is replaced by another of its label.
    The same corpora and arguments give the same files.

    Args:
        config: the corpora, their caps, and the limits on their audio.
        task: what a label is.
        to: the folder in which ``batch-01``, ``batch-02``, ... are made.
        batches: how many.
        size: recordings in each.
        shift: how batches from ``start_at`` on differ from the corpus; None: in nothing.
        start_at: the first batch that differs, from 1.
        base: recordings of a folder ``base`` beside the batches, with which a dataset can begin; 0: no such folder.
        seed: another seed, other recordings.
        audio: the files' format. Both keep every sample.

    Returns:
        What was written, in order.

    Raises:
        ConfigError: an unknown corpus, label or share, or a number that makes no sense.
        CorpusError: a corpus that is missing or too small, or a batch's folder that is there already.
    """
    shift = shift or Shift()
    _check(task, shift, batches, size, start_at, base)
    names = [*(["base"] if base else []), *(f"batch-{number:02d}" for number in range(1, batches + 1))]
    _refuse_existing(to, names)
    pool = _Pool(_listed(config, task), task, seed)
    pool.refuse_too_small(
        base + batches * size, f"{batches} batches of {size}" + (f" and a base of {base}" * bool(base))
    )
    # All are drawn before any is written: what the corpora have too little of is said at once.
    drawn = []
    for name in names:
        shifted = name != "base" and names.index(name) + (0 if base else 1) >= start_at
        shares = shift.labels if shifted else {}
        drawn.append((name, shifted, pool.draw(base if name == "base" else size, shares, name)))
    written = []
    with ProgressBar("simulate", base + batches * size, "recordings") as bar:
        for name, shifted, wanted in drawn:
            changed = shift if shifted and shift.touches_audio else None
            made = _made(wanted, pool, config.limits, changed, seed, audio, name, bar)
            _write(to / name, made, audio)
            labels = Counter(pool.label_of(recording) for recording, _ in made)
            told = Simulated(name, str(to / name), len(made), dict(sorted(labels.items())), shifted)
            written.append(told)
    _describe(to, written, shift, start_at, seed)
    return written


def add_noise(
    samples: npt.NDArray[np.float64], rate: int, snr_db: float, kind: str, chance: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Add noise so far below speech.

    The level of speech is that of the frames of 20 ms less than 30 dB below the loudest: pauses do not count, so that a
    recording with long ones is not noisier than another.

    Args:
        samples: float64 [samples], full scale 1.0.
        rate: samples a second.
        snr_db: power of speech over power of noise, in dB.
        kind: "white" or "pink".
        chance: where the noise comes from.

    Returns:
        float64 [samples]; made quieter as a whole where it would not fit below full scale.
    """
    noise = chance.standard_normal(len(samples))
    if kind == "pink" and len(samples) > 1:
        spectrum = np.fft.rfft(noise)
        # Power falls with 1/f above 20 Hz: below, it would all be rumble.
        hertz = np.maximum(np.fft.rfftfreq(len(samples), 1 / rate), 20.0)
        noise = np.fft.irfft(spectrum / np.sqrt(hertz), len(samples))
    power = float(np.mean(np.square(noise))) if len(noise) else 0.0
    speech = _speech_power(samples, rate)
    if not power or not speech:
        return samples
    mixed = samples + noise * math.sqrt(speech / power / 10 ** (snr_db / 10))
    peak = float(np.abs(mixed).max())
    return mixed * (_HEADROOM / peak) if peak > _HEADROOM else mixed


def limit_band(samples: npt.NDArray[np.float64], rate: int, limit_hz: float) -> npt.NDArray[np.float64]:
    """Take away what is higher, with a filter of linear phase whose delay is taken back.

    A windowed sinc (Blackman: 74 dB down from the limit on), whose edge is an eighth of the limit wide and lies below
    it (Smith 1997, The Scientist and Engineer's Guide to DSP, ch. 16).

    Args:
        samples: float64 [samples].
        rate: samples a second; where half of it is no more than the limit, nothing is done.
        limit_hz: the limit.

    Returns:
        float64 [samples].
    """
    if limit_hz >= rate / 2:
        return samples
    edge = limit_hz / 8
    half = math.ceil(5.5 * rate / edge / 2)
    taps = np.arange(-half, half + 1)
    cutoff = (limit_hz - edge / 2) / rate
    kernel = np.sinc(2 * cutoff * taps) * np.blackman(len(taps))
    size = len(samples) + len(taps) - 1
    filtered = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(kernel / kernel.sum(), size), size)
    return filtered[half : half + len(samples)]


class _Pool:
    """Recordings that are in no batch yet."""

    def __init__(self, recordings: Iterable[Recording], task: TaskConfig, seed: int) -> None:
        self._task = task
        self._left: dict[str, list[Recording]] = defaultdict(list)
        everything = list(recordings)
        self._chance = random.Random(f"kubevox simulate {seed}")
        self._chance.shuffle(everything)
        for recording in everything:
            self._left[self.label_of(recording)].append(recording)
        self._natural = {label: len(members) for label, members in sorted(self._left.items())}

    def label_of(self, recording: Recording) -> str:
        """The task's label; recordings that have none are not in the pool."""
        return str(_label(recording, self._task))

    def refuse_too_small(self, wanted: int, what: str) -> None:
        if (there := sum(self._natural.values())) < wanted:
            raise CorpusError(
                f"the corpora have {there} recordings with a label of task {self._task.name!r}, and {what} need "
                f"{wanted}; ask for fewer or smaller batches, or name more corpora"
            )

    def draw(self, size: int, shares: Mapping[str, float], batch: str) -> list[Recording]:
        """So many recordings: any, or with these shares of labels."""
        if not shares:
            bag = [label for label, members in sorted(self._left.items()) for _ in members]
            if size > len(bag):  # others were taken in place of damaged ones
                raise CorpusError(
                    f"{batch} needs {size} recordings, and {len(bag)} are left; ask for fewer, or smaller batches"
                )
            counts = Counter(self._chance.sample(bag, size))
        else:
            counts = Counter(_counts(size, shares, self._natural))
        for label, count in sorted(counts.items()):
            if count > len(self._left[label]):
                raise self._too_few(label, batch, count)
        drawn = [self._left[label].pop() for label, count in sorted(counts.items()) for _ in range(count)]
        self._chance.shuffle(drawn)
        return drawn

    def another(self, label: str, batch: str) -> Recording:
        if not self._left[label]:
            raise self._too_few(label, batch, 1)
        return self._left[label].pop()

    def _too_few(self, label: str, batch: str, wanted: int) -> CorpusError:
        return CorpusError(
            f"{batch} needs {wanted} recordings of {label!r}, and of {self._natural.get(label, 0)} that the corpora "
            f"have {len(self._left[label])} are left; ask for fewer or smaller batches, or name more corpora"
        )


def _listed(config: DataConfig, task: TaskConfig) -> Iterator[Recording]:
    for source in config.corpora:
        chosen, _ = cap(open_corpus(source).recordings(), source.max_recordings, source.max_per_class)
        yield from (recording for recording in chosen if _label(recording, task) is not None)


def _label(recording: Recording, task: TaskConfig) -> str | None:
    raw = recording.raw_label if task.label_column == "raw_label" else recording.language
    return task.label_of(_corpus_of(recording), raw)[1]


def _corpus_of(recording: Recording) -> str:
    return recording.corpus or recording.source_id.partition(":")[0]


def _counts(size: int, shares: Mapping[str, float], natural: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers as near to the shares as can be (largest remainder); labels without a share keep proportions."""
    others = {label: count for label, count in natural.items() if label not in shares}
    rest = 1.0 - sum(shares.values())
    total = sum(others.values())
    if not total and rest > 1e-9:
        raise ConfigError(f"simulate: the labels' shares add up to {1 - rest:g}, and the corpora have no other labels")
    exact = {label: size * share for label, share in shares.items()}
    exact |= {label: size * rest * count / total for label, count in others.items()}
    counts = {label: math.floor(value + 1e-9) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (counts[label] - exact[label], label))
    for label in by_remainder[: size - sum(counts.values())]:
        counts[label] += 1
    return counts


def _made(
    wanted: list[Recording],
    pool: _Pool,
    limits: AudioLimits,
    shift: Shift | None,
    seed: int,
    audio: str,
    batch: str,
    bar: ProgressBar,
) -> list[tuple[Recording, bytes]]:
    """The recordings with their files' bytes, made on all cores; what cannot be decoded is replaced."""

    def make(recording: Recording) -> bytes | AudioError:
        return _encoded(recording, limits, shift, seed, audio)

    made: list[tuple[Recording, bytes]] = []
    while wanted:
        again = []
        for recording, outcome in zip(wanted, Workers(make, chunk=4).map(wanted), strict=True):
            if isinstance(outcome, bytes):
                made.append((recording, outcome))
                bar.update()
                continue
            why = "its decoder crashed" if outcome is CRASHED else outcome
            note(f"simulate: {recording.origin}: left out, another is taken: {why}")
            again.append(pool.another(pool.label_of(recording), batch))
        wanted = again
    return made


def _encoded(
    recording: Recording, limits: AudioLimits, shift: Shift | None, seed: int, audio: str
) -> bytes | AudioError:
    try:
        waveform, _ = decode(recording.read(), limits, recording.source_id)
    except AudioError as error:
        return error
    except OSError as error:
        return AudioError("unreadable", error.strerror or str(error))
    if shift is not None:
        waveform = _shifted(waveform, shift, recording.source_id, seed)
    if audio == "flac":
        return encode_flac(waveform)
    buffer = io.BytesIO()
    # soundfile takes int32 at full scale: 24-bit values sit in the upper three bytes.
    soundfile.write(buffer, waveform.pcm << 8, waveform.sample_rate, format="WAV", subtype="PCM_24")
    return buffer.getvalue()


def _shifted(waveform: Waveform, shift: Shift, source_id: str, seed: int) -> Waveform:
    samples, rate = waveform.samples.astype(np.float64), waveform.sample_rate
    if shift.noise_snr_db is not None:
        # Each recording has noise of its own, whichever process makes it.
        digest = hashlib.sha256(f"{seed}\0{source_id}".encode()).digest()
        chance = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        samples = add_noise(samples, rate, shift.noise_snr_db, shift.noise, chance)
    if shift.band_limit_hz is not None:  # after the noise: a line limits what the room adds too
        samples = limit_band(samples, rate, shift.band_limit_hz)
    return canonical(samples, rate)


def _speech_power(samples: npt.NDArray[np.float64], rate: int) -> float:
    length = max(1, min(round(_FRAME_S * rate), len(samples)))
    count = len(samples) // length
    powers = np.square(samples[: count * length]).reshape(count, length).mean(axis=1)
    return float(powers[powers >= powers.max() * 10 ** (-_PAUSE_DB / 10)].mean()) if count else 0.0


def _write(folder: Path, made: Sequence[tuple[Recording, bytes]], audio: str) -> None:
    """Write a batch beside its place, and move it there when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as name:
        whole = Path(name) / folder.name
        (whole / "audio").mkdir(parents=True)
        with (whole / LIST).open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            rows.writeheader()
            for number, (recording, data) in enumerate(made, 1):
                path = f"audio/{number:04d}.{audio}"
                (whole / path).write_bytes(data)
                rows.writerow(_row(recording, path))
        shutil.move(whole, folder)


def _row(recording: Recording, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "corpus": _corpus_of(recording),
        "speaker": recording.speaker,
        "sex": recording.sex,
        "raw_label": recording.raw_label,
        "intensity": recording.intensity,
        "language": recording.language,
        "text": recording.text,
        "partition": recording.partition,
        "source": recording.source_id,
    }


def _describe(to: Path, written: Sequence[Simulated], shift: Shift, start_at: int, seed: int) -> None:
    """What was done, for whoever compares a monitor's alarms with the truth."""
    told = {
        "seed": seed,
        "start_at": start_at,
        "shift": asdict(shift),
        "batches": [{key: value for key, value in asdict(one).items() if key != "path"} for one in written],
    }
    (to / "simulation.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(task: TaskConfig, shift: Shift, batches: int, size: int, start_at: int, base: int) -> None:
    if batches < 1 or size < 1 or base < 0:
        raise ConfigError(
            f"simulate: {batches} batches of {size} and a base of {base} cannot be made; expected 1 or more"
        )
    if not 1 <= start_at <= batches and (shift.touches_audio or shift.labels):
        raise ConfigError(f"simulate: start_at = {start_at}: the shift would never begin; there are {batches} batches")
    if shift.noise_snr_db is not None and not abs(shift.noise_snr_db) <= _MOST_DB:
        raise ConfigError(
            f"simulate: noise {shift.noise_snr_db:g} dB below speech is out of any range; expected 0 to 40"
        )
    if shift.band_limit_hz is not None and not shift.band_limit_hz >= _LOWEST_HZ:
        raise ConfigError(f"simulate: a band limit of {shift.band_limit_hz:g} Hz leaves nothing")
    for label, share in shift.labels.items():
        if label not in task.labels:
            raise ConfigError(f"simulate: label {label!r} is none of task {task.name!r}: {', '.join(task.labels)}")
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"simulate: label {label!r}: a share of {share:g} is not between 0 and 1")
    total = sum(shift.labels.values())
    whole = set(shift.labels) == set(task.labels)
    if total > 1.0 + 1e-9 or (whole and abs(total - 1.0) > 1e-9):
        raise ConfigError(f"simulate: the labels' shares add up to {total:g}, not to 1")


def _refuse_existing(to: Path, names: Iterable[str]) -> None:
    for name in names:
        if (to / name).exists():
            raise CorpusError(f"{to / name}: is there already; choose another folder, or delete it")
