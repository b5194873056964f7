"""Speed, telephone and room: against references, in numbers, and the same bits whatever the circumstances."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from generated_speech import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kubevox.config import RecipeConfig, ReverbRecipe, SpeedRecipe, TelephoneRecipe
from kubevox.errors import ConfigError
from kubevox.features.augmentation.chance import Chance
from kubevox.features.augmentation.channel import change_speed, companded, reverberate, telephone
from kubevox.features.pins import identity, pinned

RATE = 16_000
FUNCTIONS = {"speed": change_speed, "telephone": telephone, "reverb": reverberate}
CLIPS = torch.from_numpy(np.stack([speech_like(1.5, seed=seed) for seed in range(6)]).astype(np.float32))
IDS = [f"utterance-{number}" for number in range(len(CLIPS))]


def changed(samples: Tensor, recipe: RecipeConfig, ids: list[str] = IDS, rate: int = RATE) -> Tensor:
    return FUNCTIONS[recipe.kind](samples, recipe, Chance(ids[: len(samples)], [identity(recipe)]), rate)


def tone(hertz: float, seconds: float = 1.5, rate: int = RATE, amplitude: float = 0.3) -> Tensor:
    time = np.arange(round(seconds * rate)) / rate
    return torch.from_numpy((amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32))[None]


def impulse(n: int, at: int = 0) -> Tensor:
    samples = torch.zeros(1, n)
    samples[0, at] = 1.0
    return samples


def decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two impulse responses, the direct sound after 12 ms, decaying; of different lengths and rates."""
    folder = tmp_path_factory.mktemp("rooms")
    chance = np.random.default_rng(0)
    for number, (rate, seconds) in enumerate([(RATE, 0.3), (48_000, 0.5)]):
        time = np.arange(round(seconds * rate)) / rate
        response = 0.1 * chance.standard_normal(len(time)) * 10 ** (-3 * time / 0.25)
        direct = round(0.012 * rate)
        response[:direct] *= 0.01
        response[direct] = 0.8
        soundfile.write(folder / f"room{number}.wav", response, rate, subtype="PCM_24")
    return folder


@pytest.fixture(scope="module")
def recipes(rooms: Path) -> dict[str, RecipeConfig]:
    return {
        "faster": SpeedRecipe(factor=1.1),
        "slower": SpeedRecipe(factor=0.9),
        "mu-law": TelephoneRecipe(),
        "a-law": TelephoneRecipe(codec="a-law", low_hz=0.0, high_hz=4000.0),
        "room": ReverbRecipe(),
        "recorded": pinned(ReverbRecipe(responses=str(rooms))),
    }


NAMES = ["faster", "slower", "mu-law", "a-law", "room", "recorded"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_clip_gets_the_same_bits_in_any_batch_and_order(
    name: str, recipes: dict[str, RecipeConfig], data: st.DataObject
) -> None:
    recipe = recipes[name]
    rate = data.draw(st.sampled_from([8_000, 16_000, 22_050, 44_100]), label="rate")
    length = data.draw(st.integers(1, CLIPS.shape[1] - 3), label="samples")
    rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), label="rows")
    # Rows at any offset in memory: alignment must not matter either.
    clips = CLIPS[:, 3 : 3 + length]
    together = changed(clips[rows], recipe, [IDS[row] for row in rows], rate)
    for place, row in enumerate(rows):
        assert torch.equal(changed(clips[row : row + 1], recipe, [IDS[row]], rate)[0], together[place])


@pytest.mark.parametrize("name", NAMES)
def test_the_clip_is_not_changed_silence_stays_silence_and_lengths_are_kept(
    name: str, recipes: dict[str, RecipeConfig]
) -> None:
    recipe, before = recipes[name], CLIPS.clone()
    result = changed(CLIPS, recipe)
    assert torch.equal(CLIPS, before)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.isfinite(result).all()
    n = CLIPS.shape[1]
    assert result.shape == (6, round(n / recipe.factor) if isinstance(recipe, SpeedRecipe) else n)
    if name == "a-law":  # which has no code for zero
        assert changed(torch.zeros(2, 8000), recipe).abs().max() < 1.5 / 4096
    else:
        assert not changed(torch.zeros(2, 8000), recipe).any()


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 1.1, 1.25, 2.0])
def test_speed_is_soxrs_resampling(factor: float) -> None:
    ours = changed(CLIPS, SpeedRecipe(factor=factor)).numpy()
    theirs = np.stack([soxr.resample(clip, factor * RATE, RATE, quality="HQ") for clip in CLIPS.numpy()])
    assert ours.shape[1] == round(CLIPS.shape[1] / factor)
    assert abs(ours.shape[1] - theirs.shape[1]) <= 1
    m = min(ours.shape[1], theirs.shape[1])
    error = np.square(ours[:, :m] - theirs[:, :m])
    level = np.square(theirs).mean()
    # Measured: -69 dB in all, most of it where a clip begins and ends abruptly, and -84 dB between; at a factor of 2,
    # which moves what speech has at 7 kHz to where the two filters fade out differently, -62 dB everywhere.
    assert decibels(error.mean() / level) < (-65 if factor < 2 else -58)
    assert decibels(error[:, 400:-400].mean() / level) < (-80 if factor < 2 else -58)


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.25, 4.0), hertz=st.floats(100, 1500))
def test_any_speed_gives_the_pitch_and_the_length_asked_for(factor: float, hertz: float) -> None:
    faster = changed(tone(hertz), SpeedRecipe(factor=factor))[0]
    m = round(24_000 / factor)
    assert len(faster) == m
    if factor * hertz > 7000:
        return
    # The phase against the wanted tone stays: within what a pitch 5e-5 off adds up to.
    time = np.arange(m) / RATE
    inner = slice(m // 10, -(m // 10))
    analytic = (faster.numpy() * np.exp(-2j * np.pi * hertz * factor * time) * 2j)[inner]
    thirds = [part.mean() for part in np.array_split(analytic, 3)]
    drift = np.angle(thirds[2] / thirds[0]) / (2 * np.pi) / (len(analytic) * 2 / 3 / RATE)
    assert abs(drift) < 5e-5 * hertz * factor + 0.05
    assert abs(thirds[1]) == pytest.approx(0.3, rel=0.02)


def test_a_speed_of_one_changes_nothing() -> None:
    assert torch.equal(changed(CLIPS, SpeedRecipe(factor=1.0)), CLIPS)


def test_what_would_fold_back_at_a_higher_speed_is_removed() -> None:
    assert changed(tone(6000), SpeedRecipe(factor=2.0))[0, 200:-200].abs().max() < 1e-4


def sndfile_g711(pcm16: np.ndarray, subtype: str) -> np.ndarray:
    """What libsndfile makes of 16-bit samples through G.711: int16 [samples]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm16, 8000, format="AU", subtype=subtype)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="int16")[0]


@pytest.mark.parametrize(("codec", "subtype"), [("mu-law", "ULAW"), ("a-law", "ALAW")])
def test_the_codecs_are_libsndfiles_for_every_16_bit_sample(codec: str, subtype: str) -> None:
    pcm16 = np.arange(-32_768, 32_768).astype(np.int16)
    ours = companded(torch.from_numpy(pcm16 / np.float32(32_768)), codec).numpy() * 32_768
    theirs = sndfile_g711(pcm16, subtype)
    # -0 of A-law: libsndfile takes -1 .. -7, which its first step cuts to 0, for positive.
    magnitude = np.abs(ours) == np.abs(theirs.astype(np.float64))
    assert magnitude.all()
    signed = np.abs(pcm16.astype(int)) >= 16
    assert np.array_equal(ours[signed], theirs[signed])


# The ends of the segments and the width of the steps between them, from the standard's tables 1a/1b and 2a/2b.
G711 = {
    "a-law": (4096, [(0, 2), (64, 4), (128, 8), (256, 16), (512, 32), (1024, 64), (2048, 128), (4096, 0)]),
    "mu-law": (
        8192,
        [(1, 2), (31, 4), (95, 8), (223, 16), (479, 32), (991, 64), (2015, 128), (4063, 256), (8159, 0)],
    ),
}


@pytest.mark.parametrize("codec", G711)
def test_the_codecs_have_the_decision_values_and_quantised_values_of_g711(codec: str) -> None:
    full_scale, segments = G711[codec]
    decisions = [0.0] if codec == "mu-law" else []
    for (start, width), (end, _) in itertools.pairwise(segments):
        decisions += list(np.arange(start, end, width))
    decisions.append(segments[-1][0])
    assert len(decisions) == 129
    values = [(low + high) / 2 for low, high in itertools.pairwise(decisions)]
    if codec == "mu-law":
        values[0] = 0.0
    assert values[-1] == {"a-law": 4032, "mu-law": 8031}[codec]
    for low, high, value in zip(decisions, decisions[1:], values, strict=False):
        inputs = torch.tensor([low, (low + high) / 2, high - 2**-8], dtype=torch.float32) / full_scale
        assert (companded(inputs, codec) * full_scale).tolist() == [value] * 3
        assert (companded(-inputs[1:], codec) * full_scale).tolist() == [-value] * 2
    # Beyond full scale there is only the last code.
    assert (companded(torch.tensor([1.0, 7.0, -7.0]), codec) * full_scale).tolist() == [values[-1]] * 2 + [-values[-1]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=50), st.sampled_from(["mu-law", "a-law"]))
def test_companding_twice_is_companding_once(values: list[float], codec: str) -> None:
    once = companded(torch.tensor(values), codec)
    assert torch.equal(companded(once, codec), once)


@pytest.mark.parametrize("codec", ["mu-law", "a-law", "none"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_a_telephone_passes_its_band_and_nothing_else(codec: str, rate: int) -> None:
    noise = 0.1 * torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2 * rate)).astype(np.float32))
    heard = changed(noise, TelephoneRecipe(codec=codec), rate=rate)
    window = torch.hann_window(2 * rate)
    powers = [torch.fft.rfft(samples[0] * window).abs().square().numpy() for samples in (noise, heard)]
    hertz = np.fft.rfftfreq(2 * rate, 1 / rate)

    def gain_db(low: float, high: float) -> float:
        band = (hertz >= low) & (hertz < high)
        return decibels(powers[1][band].sum() / powers[0][band].sum())

    assert gain_db(350, 3400) == pytest.approx(0.0, abs=0.2)
    assert gain_db(300, 350) == pytest.approx(0.0, abs=0.5)
    assert gain_db(0, 140) < -40
    assert gain_db(3920, 4000) < -40
    if rate > 8000:
        assert gain_db(4000, rate / 2) < -60


@pytest.mark.parametrize("codec", ["mu-law", "a-law"])
def test_companding_adds_noise_of_the_standards_size(codec: str) -> None:
    clean, coded = (
        changed(tone(1015.625, amplitude=0.25), TelephoneRecipe(codec=which))[0, 2000:-2000]
        for which in ("none", codec)
    )
    ratio = decibels(float(clean.square().mean() / (coded - clean).square().mean()))
    # G.712 asks for at least 33 dB at such levels; a uniform quantiser of 8 bits would give 38 here and 18 at -20 dB.
    assert 35 < ratio < 42


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100])
def test_a_telephone_moves_nothing_in_time(rate: int) -> None:
    speech = torch.from_numpy(speech_like(1.5, rate, seed=3).astype(np.float32))[None]
    heard = changed(speech, TelephoneRecipe(), rate=rate)[0].numpy()
    assert len(heard) == speech.shape[1]
    correlation = np.correlate(heard, speech[0].numpy()[100:-100], mode="valid")
    assert correlation.argmax() == 100
    click = changed(impulse(rate, at=rate // 2) * 0.9, TelephoneRecipe(codec="none"), rate=rate)[0].numpy()
    assert np.abs(click).argmax() == rate // 2
    around = click[rate // 2 - 500 : rate // 2 + 501]
    assert np.allclose(around, around[::-1], atol=2e-3 * np.abs(around).max())


def schroeder_rt60(response: np.ndarray, rate: int) -> float:
    """The reverberation time, in s, from the decay between -5 and -25 dB (ISO 3382, T20) of the energy to come."""
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    level = 10 * np.log10(energy / energy[0])
    chosen = np.nonzero((level <= -5) & (level >= -25))[0]
    slope, _ = np.polyfit(chosen / rate, level[chosen], 1)
    return -60.0 / slope


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("drr", [0.0, 10.0])
@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_a_room_has_the_reverberation_asked_for(rt60: float, drr: float, rate: int) -> None:
    recipe = ReverbRecipe(rt60_s=(rt60, rt60), drr_db=(drr, drr))
    n = round(1.5 * rt60 * rate)
    for id in "abc":
        response = changed(impulse(n), recipe, [id], rate)[0].numpy()
        # The direct sound comes first and at once, then nothing for 2.5 ms.
        first = round(2.5e-3 * rate)
        assert np.abs(response[1:first]).max() < 1e-6
        assert decibels(response[0] ** 2 / np.square(response[first:]).sum()) == pytest.approx(drr, abs=0.1)
        assert schroeder_rt60(response[first:], rate) == pytest.approx(rt60, rel=0.15)


def test_rooms_are_drawn_from_the_ranges() -> None:
    ids = [str(number) for number in range(60)]
    recipe = ReverbRecipe(rt60_s=(0.2, 0.6), drr_db=(0.0, 10.0))
    responses = changed(impulse(10_000).expand(60, -1), recipe, ids).numpy()
    times = np.array([schroeder_rt60(response[40:], RATE) for response in responses])
    ratios = 10 * np.log10(responses[:, 0] ** 2 / np.square(responses[:, 40:]).sum(-1))
    assert times.min() > 0.2 * 0.85
    assert times.max() < 0.6 * 1.15
    assert times.mean() == pytest.approx(0.4, abs=0.06)
    assert ratios.min() > -0.1
    assert ratios.max() < 10.1
    assert ratios.mean() == pytest.approx(5.0, abs=1.2)
    assert abs(np.corrcoef(times, ratios)[0, 1]) < 0.35
    assert len({response.tobytes() for response in responses}) == 60
    reseeded = changed(impulse(10_000).expand(60, -1), recipe.model_copy(update={"seed": 1}), ids).numpy()
    assert not np.array_equal(responses, reseeded)


@pytest.mark.parametrize("name", ["room", "recorded"])
def test_a_room_keeps_the_level_and_the_time_of_the_speech(name: str, recipes: dict[str, RecipeConfig]) -> None:
    wet = changed(CLIPS, recipes[name])
    assert (wet.square().mean(-1) / CLIPS.square().mean(-1)).numpy() == pytest.approx(1.0, rel=1e-4)
    for dry, heard in zip(CLIPS.numpy(), wet.numpy(), strict=True):
        assert not np.allclose(dry, heard, atol=1e-3)
    click = changed(impulse(8000, at=777).expand(6, -1), recipes[name])
    assert click.abs().argmax(-1).tolist() == [777] * 6


def test_a_recorded_room_is_convolved_from_its_direct_sound_on(rooms: Path, tmp_path: Path) -> None:
    response, _ = soundfile.read(rooms / "room0.wav")
    (tmp_path / "only.wav").write_bytes((rooms / "room0.wav").read_bytes())
    wet = changed(CLIPS, ReverbRecipe(responses=str(tmp_path)))
    direct, early = round(0.012 * RATE), 40
    for dry, heard in zip(CLIPS.double().numpy(), wet.double().numpy(), strict=True):
        expected = np.convolve(dry, response[direct - early :])[early : early + len(dry)]
        expected *= np.sqrt(np.square(dry).mean() / np.square(expected).mean())
        assert np.allclose(heard, expected, atol=2e-6)


def test_each_recorded_room_is_used_and_one_without_sound_is_refused(rooms: Path, tmp_path: Path) -> None:
    ids = [str(number) for number in range(40)]
    heard = changed(impulse(4000, at=100).expand(40, -1), ReverbRecipe(responses=str(rooms)), ids)
    kinds = {row.numpy().tobytes(): 0 for row in heard}
    assert len(kinds) == 2
    soundfile.write(tmp_path / "mute.wav", np.zeros(2000), RATE)
    with pytest.raises(ConfigError, match=r"responses: .*mute\.wav is silent.*remove it"):
        changed(CLIPS, ReverbRecipe(responses=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"responses .*nowhere.*no such folder"):
        changed(CLIPS, ReverbRecipe(responses=str(tmp_path / "nowhere")))


def test_a_response_that_begins_with_its_direct_sound_is_aligned_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.array([0.9, 0.0, 0.3]), RATE, subtype="PCM_24")
    heard = changed(impulse(50, at=10), ReverbRecipe(responses=str(tmp_path)))[0]
    heard = heard / heard[10]
    assert heard[12].item() == pytest.approx(1 / 3, rel=1e-4)
    assert heard[[0, 9, 11, 13, 40]].abs().max() < 1e-6


@pytest.mark.parametrize("ranges", [{"rt60_s": (0.0, 1.0)}, {"rt60_s": (0.5, 1e6)}, {"drr_db": (0.0, 1e4)}])
def test_a_room_that_cannot_be_is_refused(ranges: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match="must be between"):
        ReverbRecipe(**ranges)
