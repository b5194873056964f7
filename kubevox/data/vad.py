"""Voice activity detection: where in a recording somebody speaks.

The model is silero-vad's (https://github.com/snakers4/silero-vad, MIT), out of the package ``silero-vad`` and run by
onnxruntime on one thread. The package carries it in several forms. This is the one that takes all windows of a
recording in one call, with the recurrent state as an input: nothing is kept between recordings, and threads may share
it. The package itself is not imported (that changes torch's number of threads), and neither its TorchScript archive,
which holds pickles, nor its safetensors file, which holds other weights than the rest of 6.2.3, is used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from kubevox.config import VadConfig
from kubevox.data.audio import Waveform
from kubevox.errors import ConfigError

__all__ = ["VAD_VERSION", "VoiceActivity"]

# Belongs in the key of whatever rests on the detection: raise it whenever another model or rule decides.
VAD_VERSION = 1

_RATE = 16_000
_WINDOW = 512  # samples that one probability is for, 32 ms
_CONTEXT = 64  # samples before the window that the model looks at as well
_BLOCK = 512  # windows a call, 16.4 s: bounds the memory
_STATE = 128
# Below the threshold by this much speech ends (silero-vad's `neg_threshold`).
_HYSTERESIS = 0.15

_FILE = "data/silero_vad_16k_sequence.onnx"
_SHA256 = "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
_REMEDY = "voice activity detection needs silero-vad: pip install 'kubevox[vad]'"

_loading = threading.Lock()


class VoiceActivity:
    """Finds speech; deterministic, and safe to share between threads.

    Args:
        config: thresholds and durations.

    Raises:
        ConfigError: silero-vad or onnxruntime is not installed, or it is a silero-vad with another model.
    """

    def __init__(self, config: VadConfig) -> None:
        self.config = config
        with _loading:
            self._session = _session()

    def speech_probabilities(self, waveform: Waveform) -> npt.NDArray[np.float32]:
        """How likely somebody speaks in each window of 32 ms: float32 [windows] in [0, 1].

        The recording is resampled to 16 kHz (soxr, HQ), cut into windows of 512 samples, the last one followed by
        silence, and every window is judged with those before it in mind, as silero-vad does in a stream.
        """
        samples = _resampled(waveform)
        windows = -(-len(samples) // _WINDOW)
        padded = np.pad(samples, (_CONTEXT, windows * _WINDOW - len(samples)))
        frames = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + _WINDOW)[::_WINDOW]
        probabilities = np.empty(windows, np.float32)
        hidden = cell = np.zeros((1, 1, _STATE), np.float32)
        for start in range(0, windows, _BLOCK):
            block = np.ascontiguousarray(frames[start : start + _BLOCK])
            values, hidden, cell = self._session.run(
                ["speech_probs", "hn", "cn"], {"input": block, "h": hidden, "c": cell}
            )
            probabilities[start : start + _BLOCK] = values.reshape(-1)
        return probabilities

    def segments(self, waveform: Waveform) -> list[tuple[float, float]]:
        """The stretches of speech, in seconds, from first to last; each with ``padding_s`` on either side.

        The rule is that of ``silero_vad.get_speech_timestamps`` (6.2.3) without a longest duration: speech starts in
        a window of at least ``threshold`` and ends where windows are 0.15 below it for ``min_silence_s``; what lasts no
        longer than ``min_speech_s`` is dropped; where padding would overlap, neighbours meet halfway.
        """
        return self._segments(waveform, self.speech_probabilities(waveform))

    def speech_ratio(self, waveform: Waveform) -> float:
        """Which share of the recording is speech, without the padding, in [0, 1]."""
        return self._ratio(waveform, self.speech_probabilities(waveform))

    def trim(self, waveform: Waveform) -> Waveform:
        """The recording from its first to its last speech, each with its padding; one without any speech is whole."""
        return self._trimmed(waveform, self.speech_probabilities(waveform))

    def apply(self, waveform: Waveform) -> tuple[Waveform, float]:
        """What ``config.mode`` makes of the recording, and its share of speech *before* that, by one run of the model.

        Returns:
            The recording, trimmed where the mode is ``trim``; and :meth:`speech_ratio`, 0 where nobody speaks.
        """
        probabilities = self.speech_probabilities(waveform)
        kept = self._trimmed(waveform, probabilities) if self.config.mode == "trim" else waveform
        return kept, self._ratio(waveform, probabilities)

    def _segments(self, waveform: Waveform, probabilities: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        length = _length(waveform)
        padded = _padded(_speech(probabilities, length, self.config), length, self.config.padding_s * _RATE)
        return [(start / _RATE, stop / _RATE) for start, stop in padded]

    def _ratio(self, waveform: Waveform, probabilities: npt.NDArray[np.float32]) -> float:
        length = _length(waveform)
        return sum(stop - start for start, stop in _speech(probabilities, length, self.config)) / max(length, 1)

    def _trimmed(self, waveform: Waveform, probabilities: npt.NDArray[np.float32]) -> Waveform:
        found = self._segments(waveform, probabilities)
        if not found:
            return waveform
        start = int(found[0][0] * waveform.sample_rate)
        # Rounded up: the last segment may end with the recording, of which nothing is to be lost then.
        stop = int(np.ceil(found[-1][1] * waveform.sample_rate))
        if start == 0 and stop >= len(waveform.pcm):
            return waveform
        return Waveform(waveform.pcm[start:stop], waveform.sample_rate)


def _speech(probabilities: npt.NDArray[np.float32], length: int, config: VadConfig) -> list[tuple[int, int]]:
    """The stretches of speech before padding, in samples at 16 kHz."""
    threshold = config.threshold
    lower = max(threshold - _HYSTERESIS, 0.01)
    least_speech, least_silence = config.min_speech_s * _RATE, config.min_silence_s * _RATE
    found: list[tuple[int, int]] = []
    start: int | None = None
    silent_since: int | None = None
    for number, probability in enumerate(probabilities.tolist()):
        here = number * _WINDOW
        if probability >= threshold:
            silent_since = None
            if start is None:
                start = here
                continue
        if start is not None and probability < lower:
            silent_since = here if silent_since is None else silent_since
            if here - silent_since >= least_silence:
                if silent_since - start > least_speech:
                    found.append((start, silent_since))
                start = silent_since = None
    if start is not None and length - start > least_speech:
        found.append((start, length))
    return found


def _padded(segments: list[tuple[int, int]], length: int, padding: float) -> list[tuple[int, int]]:
    """The segments with padding on either side; where it would overlap, they meet halfway."""
    starts, stops = [start for start, _ in segments], [stop for _, stop in segments]
    for number in range(len(segments)):
        if number == 0:
            starts[0] = int(max(0, starts[0] - padding))
        if number == len(segments) - 1:
            stops[number] = int(min(length, stops[number] + padding))
            continue
        silence = starts[number + 1] - stops[number]
        if silence < 2 * padding:
            stops[number] += silence // 2
            starts[number + 1] -= silence // 2
        else:
            stops[number] = int(min(length, stops[number] + padding))
            starts[number + 1] = int(max(0, starts[number + 1] - padding))
    return list(zip(starts, stops, strict=True))


def _resampled(waveform: Waveform) -> npt.NDArray[np.float32]:
    samples = waveform.samples
    if waveform.sample_rate != _RATE:
        samples = soxr.resample(samples, waveform.sample_rate, _RATE, quality="HQ")
    # soxr may give a sample more or less than the duration asks for.
    length = _length(waveform)
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _length(waveform: Waveform) -> int:
    """The recording's samples at 16 kHz."""
    return -(-len(waveform.pcm) * _RATE // waveform.sample_rate)


@functools.cache
def _session() -> Any:
    """The model, loaded once a process.

    Raises:
        ConfigError: see :class:`VoiceActivity`.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{_REMEDY} ({error})") from None
    model = _model_file().read_bytes()
    if hashlib.sha256(model).hexdigest() != _SHA256:
        raise ConfigError(
            "voice activity detection rests on the model of silero-vad 6.2.3, and the one installed is another: "
            "pip install 'silero-vad==6.2.3'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: it warns of devices that it is not asked to use
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model_file() -> Path:
    """The model in the installed package, which is found without being imported."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(_REMEDY)
    file = Path(package.submodule_search_locations[0]) / _FILE
    if not file.is_file():
        raise ConfigError(
            f"voice activity detection needs a silero-vad that carries {Path(_FILE).name}: "
            "pip install 'silero-vad==6.2.3'"
        )
    return file
