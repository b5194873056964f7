"""SQUIM: what STOI, PESQ and SI-SDR would say, estimated without a clean reference (Kumar et al. 2023, ICASSP).

The network is torchaudio's (``torchaudio.models.squim_objective_base``), its published weights are a download of 28 MB
(https://download.pytorch.org/torchaudio/models/squim_objective_dns2020.pth, CC BY 4.0), which no wheel carries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soxr

from kubevox.data.audio import Waveform
from kubevox.errors import ConfigError
from kubevox.torchaudio_loader import import_torchaudio

__all__ = ["HOW_TO_GET", "Squim", "weights_file"]

HOW_TO_GET = (
    "STOI, PESQ and SI-SDR were not estimated: SQUIM has no weights here. validation.squim names their file "
    "(squim_objective_dns2020.pth, or the same as safetensors), or says download."
)

_URL = "https://download.pytorch.org/torchaudio/models/squim_objective_dns2020.pth"
_SIZE_LIMIT = 200_000_000
_RATE = 16_000
# The network's cost grows with the square of the length: a recording is judged in equal pieces no longer than this.
_PIECE_S = 5.0
_REMEDY = "validation.squim needs torchaudio: pip install 'kubevox[squim]'"


def weights_file(given: str) -> Path:
    """The file of weights that the configuration means; with ``download`` it is fetched once, into the cache.

    Raises:
        ConfigError: there is no such file.
        CorpusError: it cannot be downloaded.
    """
    if given == "download":
        from kubevox.data.corpora.archives import cache_folder
        from kubevox.data.corpora.base import Download
        from kubevox.data.corpora.downloads import fetch

        # Its source states no checksum: what came first is pinned beside it.
        return fetch(Download(_URL, _URL.rpartition("/")[2]), cache_folder().parent / "models", "squim")
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(f"validation.squim = {given}: no such file; {_URL} has the published weights")
    return path


class Squim:
    """The network with its weights, on one thread of the CPU.

    Args:
        weights: a state dict, as safetensors or as torch saves it; pickled code in it is refused.

    Raises:
        ConfigError: torchaudio is not installed, or these are no weights of this network.
    """

    def __init__(self, weights: Path) -> None:
        models = _torchaudio_models()
        import torch

        state = _read(weights)
        self._network = models.squim_objective_base()
        try:
            self._network.load_state_dict(state)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"validation.squim = {weights}: no weights of torchaudio's squim_objective_base "
                f"({' '.join(str(error).split())[:160]})"
            ) from None
        self._network.eval().requires_grad_(False)
        self._torch = torch

    def estimate(self, waveform: Waveform) -> tuple[float, float, float]:
        """STOI (0 to 1), PESQ (1 to 4.64) and SI-SDR (dB): of the recording at 16 kHz, the mean over its pieces."""
        samples = waveform.samples
        if waveform.sample_rate != _RATE:
            samples = soxr.resample(samples, waveform.sample_rate, _RATE, quality="HQ")
        count = max(1, -(-len(samples) // int(_PIECE_S * _RATE)))
        length = -(-len(samples) // count)
        pieces = np.pad(samples, (0, count * length - len(samples))).reshape(count, length)
        threads = self._torch.get_num_threads()
        self._torch.set_num_threads(1)  # the same bits whatever the machine, and a process a core is at work already
        try:
            with self._torch.inference_mode():
                scores = [self._network(self._torch.from_numpy(piece[None])) for piece in pieces]
        finally:
            self._torch.set_num_threads(threads)
        stoi, pesq, si_sdr = (float(np.mean([score[i].item() for score in scores])) for i in range(3))
        return stoi, pesq, si_sdr


def _read(weights: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    if weights.stat().st_size > _SIZE_LIMIT:
        raise ConfigError(f"validation.squim = {weights}: over {_SIZE_LIMIT:,} bytes; SQUIM's weights have 28 MB")
    try:
        if weights.suffix == ".safetensors":
            return load_file(weights)
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever the bytes lead it to
        why = " ".join(str(error).split())[:120] or type(error).__name__
    raise ConfigError(f"validation.squim = {weights}: neither safetensors nor plain weights of torch ({why})")


def _torchaudio_models() -> Any:
    """``torchaudio.models``.

    Raises:
        ConfigError: torchaudio is not installed.
    """
    try:
        return import_torchaudio().models
    except ImportError as error:
        raise ConfigError(f"{_REMEDY} ({error})") from None
