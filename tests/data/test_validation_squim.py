"""SQUIM with weights made up here: what is estimated, what is refused, and what the report says without them."""

import http.server
import importlib.util
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from kubevox.config import CorpusSource, DataConfig, TaskConfig, ValidateConfig
from kubevox.data.audio import canonical
from kubevox.data.dataset import ingest, read_audio, read_utterances
from kubevox.data.validation import read_rows, squim, validate
from kubevox.data.validation.squim import Squim, weights_file
from kubevox.errors import ConfigError

RATE = 16_000
TASK = TaskConfig(name="mood", labels=["angry", "sad"])

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="needs torchaudio: pip install 'kubevox[squim]'"
)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return squim._torchaudio_models().squim_objective_base().state_dict()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """The network's initial weights; its figures mean nothing, but they are figures."""
    path = tmp_path_factory.mktemp("squim") / "weights.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "corpus" / "sad").mkdir(parents=True)
    for i in range(2):
        noise = np.random.default_rng(i).standard_normal(RATE)
        soundfile.write(root / "corpus" / "sad" / f"anna_{i}.wav", 0.1 * noise, RATE)
    soundfile.write(root / "corpus" / "sad" / "anna_zeros.wav", np.zeros(RATE), RATE)
    source = CorpusSource(name="folder", path=str(root / "corpus"))
    return ingest(DataConfig(corpora=[source], publish_names=True), str(root / "store"))[0]


def waveform(seconds, rate=RATE):
    return canonical(0.1 * np.random.default_rng(3).standard_normal(int(seconds * rate)), rate)


@pytest.mark.parametrize(("seconds", "rate"), [(0.05, RATE), (1.0, 22_050), (5.5, 8_000)])
def test_estimates_are_numbers_in_their_ranges(weights, seconds, rate):
    stoi, pesq, si_sdr = Squim(weights).estimate(waveform(seconds, rate))
    assert 0 <= stoi <= 1
    assert 1 <= pesq <= 4.65
    assert math.isfinite(si_sdr)


def test_a_long_recording_is_judged_as_the_mean_of_its_pieces(weights):
    judge = Squim(weights)
    whole = waveform(6.0)
    halves = [judge.estimate(canonical(whole.samples[i : i + 3 * RATE].astype(float), RATE)) for i in (0, 3 * RATE)]
    assert judge.estimate(whole) == pytest.approx(np.mean(halves, axis=0), abs=1e-6)


def test_weights_as_torch_saves_them_say_the_same(weights, state, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    assert Squim(tmp_path / "weights.pth").estimate(waveform(1)) == Squim(weights).estimate(waveform(1))


class Malicious:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path, state: path.write_bytes(b"no weights"), "neither safetensors nor plain weights"),
        (lambda path, state: torch.save({"weights": Malicious()}, path), "neither safetensors nor plain weights"),
        (lambda path, state: torch.save(dict(list(state.items())[1:]), path), "no weights of torchaudio's"),
        (lambda path, state: torch.save([1, 2], path), "no weights of torchaudio's"),
    ],
    ids=["text", "a pickle with code", "one layer missing", "a list"],
)
def test_what_is_no_weights_is_refused_in_one_line(make, why, state, tmp_path, capsys):
    make(tmp_path / "squim.pth", state)
    with pytest.raises(ConfigError, match=why) as caught:
        Squim(tmp_path / "squim.pth")
    assert str(tmp_path / "squim.pth") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_a_file_that_is_not_there_is_refused_before_anything_is_read(version):
    with pytest.raises(ConfigError, match=r"validation\.squim = nowhere\.pth: no such file"):
        validate(version, TASK, ValidateConfig(squim="nowhere.pth"), version.store)


def test_the_published_weights_are_downloaded_once(state, tmp_path, monkeypatch):
    asked = []
    torch.save(state, tmp_path / "squim.pth")
    content = (tmp_path / "squim.pth").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("KUBEVOX_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(squim, "_URL", f"http://127.0.0.1:{server.server_port}/squim_objective_dns2020.pth")
        first = weights_file("download")
        assert weights_file("download") == first
        server.shutdown()
    assert asked == ["/squim_objective_dns2020.pth"]
    assert first.read_bytes() == content
    assert first.is_relative_to(tmp_path / "cache")


def test_with_weights_each_recording_that_sounds_has_estimates_and_limits(version, weights):
    config = ValidateConfig(squim=str(weights), min_stoi=1.0, min_pesq=4.6, min_si_sdr_db=90, max_quarantined_share=1)
    found = validate(version, TASK, config, version.store)
    assert {reason: found.warnings[reason] for reason in ("low_stoi", "low_pesq", "low_si_sdr")} == {
        "low_stoi": 2,
        "low_pesq": 2,
        "low_si_sdr": 2,
    }
    rows = {row.source_id: row for row in read_rows(found.uri)}
    assert rows["folder:sad/anna_zeros.wav"].stoi is None
    assert rows["folder:sad/anna_0.wav"].stoi == pytest.approx(
        Squim(weights).estimate(canonical(soundfile_samples(version), RATE))[0], abs=1e-6
    )
    page = Path(found.report_uri).read_text(encoding="utf-8")
    assert "STOI, estimated" in page
    assert "SQUIM has no weights" not in page
    assert str(weights) not in page


def soundfile_samples(version):
    [uri] = version.shard_uris
    wanted = next(u.id for u in read_utterances(uri) if u.source_id.endswith("anna_0.wav"))
    [(_, found)] = read_audio(uri, [wanted])
    return found.samples.astype(float)


def test_the_answer_follows_the_weights_not_their_place(version, weights, state, tmp_path):
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(weights.read_bytes())
    lax = {"max_quarantined_share": 1.0}
    first = validate(version, TASK, ValidateConfig(squim=str(weights), **lax), version.store)
    assert validate(version, TASK, ValidateConfig(squim=str(elsewhere), **lax), version.store).uri == first.uri
    save_file({name: value + 0.001 for name, value in state.items()}, elsewhere)
    assert validate(version, TASK, ValidateConfig(squim=str(elsewhere), **lax), version.store).uri != first.uri


def test_without_weights_the_report_says_so_and_how_to_give_them(version):
    found = validate(version, TASK, ValidateConfig(max_quarantined_share=1.0), version.store)
    page = Path(found.report_uri).read_text(encoding="utf-8")
    assert "STOI, PESQ and SI-SDR were not estimated: SQUIM has no weights here" in page
    assert "squim_objective_dns2020.pth" in page
