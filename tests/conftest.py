"""What all tests share: real recordings where they are at hand, and small corpora made on the spot."""

import os

# Tests may run side by side: each gets one core. This has to stand before anything imports numpy or torch.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Two workers that write numba's cache (librosa's) at once can leave code in it that crashes whoever loads it next.
os.environ["NUMBA_CACHE_DIR"] = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    ".pytest_cache",
    f"numba-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}",
)
# Never this user's own key, and the same pseudonyms on every machine.
os.environ["KUBEVOX_PSEUDONYM_KEY"] = "only for the tests of Kubevox"

from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from kubevox.training.loop import TrainResult
    from tests.tiny import Tiny

# The same examples every time, so that a failure can be repeated; `--hypothesis-profile=explore` looks further.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, it would be all that one of two workers is waited for."""
    items.sort(key=lambda item: "pipelines" not in item.path.parts)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is tested."""
    return ROOT


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """Real recordings: ``$SPEECH_DATA``, or ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("SPEECH_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "speech").is_dir():
        pytest.skip(f"no real recordings at {folder}; name their folder in SPEECH_DATA")
    return folder


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., Path]:
    """``write_wav(path, seconds, …)``: a tone, the same in every channel but for its level."""

    def write(
        path: Path,
        seconds: float = 1.0,
        rate: int = 16_000,
        frequency: float = 220.0,
        amplitude: float = 0.3,
        channels: int = 1,
        subtype: str = "PCM_16",
    ) -> Path:
        time = np.arange(round(seconds * rate)) / rate
        tone = amplitude * np.sin(2 * np.pi * frequency * time)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.stack([tone / (1 + i) for i in range(channels)], axis=1), rate, subtype=subtype)
        return path

    return write


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """``make_corpus(folder, speakers, …)``: LABEL/SPEAKER_n.wav, a voice a speaker, a contour a label."""

    def make(
        folder: Path,
        speakers: int = 6,
        labels: Sequence[str] = ("angry", "happy", "sad"),
        clips: int = 2,
        seconds: float = 1.0,
        rate: int = 16_000,
    ) -> Path:
        time = np.arange(round(seconds * rate)) / rate
        chance = np.random.default_rng(0)
        for speaker in range(speakers):
            for number, label in enumerate(labels):
                glide = 2.0 ** ((number - len(labels) / 2) * time / seconds)
                phase = 2 * np.pi * np.cumsum((110 + 20 * speaker) * (1 + 0.5 * number) * glide) / rate
                voice = sum(np.sin(k * phase) / k for k in range(1, 6))
                for clip in range(clips):
                    noise = chance.standard_normal(len(time))
                    path = folder / label / f"s{speaker:02d}_{clip}.wav"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    soundfile.write(path, 0.1 * voice + 0.01 * noise, rate)
        return folder

    return make


@pytest.fixture
def folder_corpus(make_corpus: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``folder_corpus(speakers, …)``: such a corpus in the test's own folder."""
    return lambda *args, **options: make_corpus(tmp_path / "corpus", *args, **options)


@pytest.fixture(scope="session")
def tiny_corpus(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers, three labels, two clips each."""
    return make_corpus(tmp_path_factory.mktemp("tiny-corpus"))


@pytest.fixture(scope="session")
def tiny(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """A store with a dataset, a split and features; only for tests that add to it."""
    from tests.tiny import prepare

    return prepare(tmp_path_factory.mktemp("tiny"), tiny_corpus)


@pytest.fixture(scope="session")
def trained(tiny: "Tiny") -> "TrainResult":
    """A small residual network, trained for three epochs."""
    return tiny.train()
