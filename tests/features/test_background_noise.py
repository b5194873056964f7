"""Noise at a signal-to-noise ratio: as asked for, where it comes from, and the same bits whatever the circumstances."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kubevox.config import BackgroundRecipe
from kubevox.errors import ConfigError
from kubevox.features.augmentation import background as module
from kubevox.features.augmentation.background import background, mean_square
from kubevox.features.augmentation.chance import Chance
from kubevox.features.pins import identity, pinned

RATE = 16_000
CLIPS = torch.from_numpy(np.stack([speech_like(1.5, seed=seed) for seed in range(6)]).astype(np.float32))
IDS = [f"utterance-{number}" for number in range(len(CLIPS))]


def with_noise(samples: Tensor, ids: list[str], recipe: BackgroundRecipe, sample_rate: int = RATE) -> Tensor:
    return background(samples, recipe, Chance(ids, [identity(recipe)]), sample_rate)


def snr_db(clean: Tensor, noisy: Tensor) -> np.ndarray:
    signal, noise = clean.double().square().mean(-1), (noisy.double() - clean.double()).square().mean(-1)
    return (10 * torch.log10(signal / noise)).numpy()


def tone(seconds: float, hertz: float, rate: int) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of 1, 2 and 3 kHz: one longer than the clips, one shorter, one at another rate and in stereo."""
    folder = tmp_path_factory.mktemp("noises")
    (folder / "inner").mkdir()
    soundfile.write(folder / "a.wav", tone(5.0, 1000, RATE), RATE)
    soundfile.write(folder / "inner" / "b.flac", tone(0.4, 2000, RATE), RATE)
    soundfile.write(folder / "c.wav", np.stack([tone(3.0, 3000, 44_100)] * 2, axis=1), 44_100)
    return folder


@pytest.fixture(scope="module")
def corpora(noises: Path) -> dict[str, BackgroundRecipe]:
    return {"white": BackgroundRecipe(), "folder": pinned(BackgroundRecipe(corpus=str(noises)))}


@pytest.mark.parametrize("corpus", ["white", "folder"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_clip_gets_the_same_bits_in_any_batch_and_order(
    corpus: str, corpora: dict[str, BackgroundRecipe], data: st.DataObject
) -> None:
    recipe = corpora[corpus]
    length = data.draw(st.integers(2, CLIPS.shape[1]), label="samples")
    chosen = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), label="rows")
    clips = CLIPS[:, 3 : 3 + length]
    together = with_noise(clips[chosen], [IDS[row] for row in chosen], recipe)
    for place, row in enumerate(chosen):
        assert torch.equal(with_noise(clips[row : row + 1], [IDS[row]], recipe)[0], together[place])


@pytest.mark.parametrize("corpus", ["white", "folder"])
@settings(max_examples=25, deadline=None)
@given(wanted=st.floats(-20, 60), level=st.floats(1e-3, 1.0))
def test_the_ratio_is_the_one_asked_for(
    corpus: str, corpora: dict[str, BackgroundRecipe], wanted: float, level: float
) -> None:
    recipe = corpora[corpus].model_copy(update={"snr_db": (wanted, wanted)})
    clips = CLIPS * level
    # What is measured is rounded to float32 when it is added: 0.1 dB holds up to 60 dB.
    assert snr_db(clips, with_noise(clips, IDS, recipe)) == pytest.approx(wanted, abs=0.1)


def test_ratios_are_drawn_uniformly_and_the_level_of_the_noise_does_not_matter(noises: Path, tmp_path: Path) -> None:
    ids = [str(number) for number in range(200)]
    clips = CLIPS[:1, :4000].expand(200, -1)
    found = snr_db(clips, with_noise(clips, ids, BackgroundRecipe(snr_db=(5.0, 20.0))))
    assert found.min() > 4.9
    assert found.max() < 20.1
    assert found.mean() == pytest.approx(12.5, abs=1.0)
    assert found.std() == pytest.approx(15 / 12**0.5, rel=0.15)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    soundfile.write(quiet / "a.wav", 1e-3 * tone(5.0, 1000, RATE), RATE, subtype="PCM_24")
    assert snr_db(CLIPS, with_noise(CLIPS, IDS, BackgroundRecipe(corpus=str(quiet), snr_db=(7.0, 7.0)))) == (
        pytest.approx(7.0, abs=0.1)
    )


def test_noise_comes_from_all_recordings_of_the_folder_at_the_clips_rate(noises: Path) -> None:
    ids = [str(number) for number in range(60)]
    clips = CLIPS[:1].expand(60, -1)
    added = with_noise(clips, ids, BackgroundRecipe(corpus=str(noises))) - clips
    spectra = torch.fft.rfft(added * torch.hann_window(added.shape[1])).abs().numpy()
    strongest = spectra.argmax(-1) * RATE / added.shape[1]
    assert sorted(set(strongest.round(-1))) == [1000.0, 2000.0, 3000.0]
    counts = [np.isclose(strongest, hertz, atol=5).sum() for hertz in (1000, 2000, 3000)]
    assert min(counts) >= 8
    assert sum(counts) == 60


def test_stretches_begin_anywhere_and_short_recordings_are_repeated(tmp_path: Path) -> None:
    ramp = np.arange(1, 101) / 1000
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="PCM_24")
    ids = [str(number) for number in range(300)]
    for length, beginnings in ((60, 41), (250, 100)):
        clips = torch.full((300, length), 0.1)
        added = (with_noise(clips, ids, BackgroundRecipe(corpus=str(tmp_path), snr_db=(0.0, 0.0))) - clips).numpy()
        starts = set()
        for row in added:
            # Which stretch it is, up to a gain and the rounding of the sum.
            shapes = [np.resize(np.roll(ramp, -start), length) for start in range(100)]
            matches = [
                start for start, shape in enumerate(shapes) if np.allclose(row / shape, row[0] / shape[0], rtol=2e-3)
            ]
            assert len(matches) == 1
            starts.add(matches[0])
        assert max(starts) < beginnings
        assert len(starts) > 0.8 * beginnings


def test_silence_in_the_clip_or_in_the_noise_is_no_trouble(tmp_path: Path) -> None:
    silent = torch.zeros(2, 8000)
    assert torch.equal(with_noise(silent, ["a", "b"], BackgroundRecipe()), silent)
    folder = tmp_path / "noises"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(20_000), RATE)
    with pytest.raises(ConfigError, match="all recordings are silent"):
        with_noise(CLIPS, IDS, BackgroundRecipe(corpus=str(folder)))
    # A moment of sound in 20 s: most stretches of it are silent, and none of those is taken.
    soundfile.write(folder / "b.wav", np.where(np.arange(20 * RATE) == 1234, 0.5, 0.0), RATE)
    recipe = BackgroundRecipe(corpus=str(folder), snr_db=(3.0, 3.0))
    noisy = with_noise(CLIPS, IDS, recipe)
    assert snr_db(CLIPS, noisy) == pytest.approx(3.0, abs=0.1)
    assert torch.equal(noisy, with_noise(CLIPS, IDS, recipe))


def test_utterances_and_seeds_differ_and_the_clip_is_not_changed(noises: Path) -> None:
    before = CLIPS.clone()
    for recipe in (BackgroundRecipe(), BackgroundRecipe(corpus=str(noises))):
        alike = CLIPS[:1].expand(4, -1)
        noisy = with_noise(alike, IDS[:4], recipe)
        assert len({row.numpy().tobytes() for row in noisy}) == 4
        reseeded = with_noise(alike, IDS[:4], recipe.model_copy(update={"seed": 5}))
        assert not torch.equal(noisy, reseeded)
        assert noisy.dtype == torch.float32
    assert torch.equal(before, CLIPS)


def test_where_the_folder_lies_does_not_matter(noises: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    for file in sorted(path for path in noises.rglob("*") if path.is_file()):
        copy = moved / file.relative_to(noises)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    here, there = (pinned(BackgroundRecipe(corpus=str(folder))) for folder in (noises, moved))
    assert torch.equal(with_noise(CLIPS, IDS, here), with_noise(CLIPS, IDS, there))


def test_decoded_recordings_are_kept_up_to_a_bound(
    noises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    read: Callable[[Path, int], np.ndarray] = module._read
    monkeypatch.setattr(module, "_read", lambda file, rate: decoded.append(file.name) or read(file, rate))
    bounded = module._Recordings(most_bytes=2000)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.ones(200 + number), RATE)
    for number in (0, 1, 0, 2, 0, 1):  # two of about 800 bytes fit; 1 was used least recently when 2 came
        assert len(bounded.get(tmp_path / f"{number}.wav", RATE)) == 200 + number
    assert decoded == ["0.wav", "1.wav", "2.wav", "1.wav"]
    soundfile.write(tmp_path / "1.wav", 0.1 * np.ones(300), RATE)
    assert len(bounded.get(tmp_path / "1.wav", RATE)) == 300
    # Too large to be kept, but given all the same.
    assert len(bounded.get(noises / "a.wav", RATE)) == 5 * RATE
    assert len(bounded.get(tmp_path / "1.wav", RATE)) == 300
    assert decoded[4:] == ["1.wav", "a.wav"]


def test_a_file_that_is_no_recording_is_named(noises: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(ConfigError, match=r"corpus: .*broken\.wav.*remove it"):
        with_noise(CLIPS, IDS, BackgroundRecipe(corpus=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"corpus .*nowhere.*no such folder"):
        with_noise(CLIPS, IDS, BackgroundRecipe(corpus=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("range_", [(20.0, 5.0), (-1000.0, 0.0), (0.0, 5000.0)])
def test_a_range_that_means_nothing_is_refused(range_: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"lower bound comes first|between -50 and 100"):
        BackgroundRecipe(snr_db=range_)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 70_000), offset=st.integers(0, 17))
def test_the_mean_square_is_exact_and_independent_of_batch_and_threads(n: int, offset: int) -> None:
    wide = torch.from_numpy(np.random.default_rng(n).standard_normal((3, n + 17)).astype(np.float32))
    rows = wide[:, offset : offset + n]
    found = mean_square(rows)
    assert found.numpy() == pytest.approx((rows.numpy().astype(np.float64) ** 2).mean(-1), rel=1e-12)
    assert torch.equal(torch.cat([mean_square(row.clone()[None]) for row in rows]), found)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(mean_square(rows), found)
    finally:
        torch.set_num_threads(threads)
