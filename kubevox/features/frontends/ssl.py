"""Hidden states of a pretrained speech encoder, pooled over time.

wav2vec 2.0 (Baevski et al. 2020), HuBERT (Hsu et al. 2021), WavLM (Chen et al. 2022), XLS-R (Babu et al. 2022) and MMS
(Pratap et al. 2024), which are wav2vec 2.0 in architecture, and the encoder of Whisper (Radford et al. 2023), through
``transformers``. Only safetensors weights are read, and no code comes with a model.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kubevox.config import SslConfig
from kubevox.errors import ConfigError
from kubevox.features.frontends.base import Frontend, Samples
from kubevox.features.frontends.encoder import MISSING_TRANSFORMERS, read_configs, verified
from kubevox.torchaudio_loader import import_torchaudio

__all__ = ["Ssl"]

# What a GPU is given at once, padding included: two minutes at 16 kHz. The first convolution of wav2vec 2.0 turns them
# into 0.8 GB of float32.
_BATCH_SAMPLES = 2_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_loaded: dict[tuple[str, str, str, int], nn.Module] = {}
_loading = threading.Lock()


class Ssl(Frontend):
    """Mean, or mean and deviation, over time of an encoder's hidden states: float32 [hidden] or [2 * hidden].

    Layer 0 is what enters the first transformer layer; the last is the encoder's output, after its closing layer norm
    where it has one; ``mean`` weighs all of them alike. Recordings keep their own length: nothing is padded, but for
    Whisper, whose encoder takes 30 s; then the states beyond the recording are left out of the mean. A recording that
    augmentation made shorter than the encoder's receptive field is followed by silence up to that.

    On a CPU recordings go through the encoder one by one. On a GPU those of similar length share a padded batch, with
    an attention mask, so that padding touches neither the states nor the mean.

    Raises:
        ConfigError: no transformers, no such encoder, other files than ``sha256`` pins, a layer or a sample rate that
            the encoder does not have, more than 30 s for Whisper, or float16 on a CPU.
    """

    kind: ClassVar[str] = "ssl"
    config: SslConfig

    def __init__(self, config: SslConfig, device: str = "cpu") -> None:
        super().__init__(config, device)
        if config.precision == "float16" and self.device.type == "cpu":
            raise ConfigError(
                "frontend ssl: precision float16 needs a GPU; on a CPU choose float32 or bfloat16, or device: cuda"
            )
        folder, sha256 = verified(config)
        model, extractor = read_configs(folder)
        rate = int(extractor.get("sampling_rate", 16_000))
        if config.sample_rate != rate:
            raise ConfigError(f"frontend ssl: sample_rate must be {rate}, that of the encoder {config.model!r}")
        self._whisper = model["model_type"] == "whisper"
        depth = int(model["encoder_layers" if self._whisper else "num_hidden_layers"])
        if config.layer != "mean" and not -depth - 1 <= config.layer <= depth:
            raise ConfigError(
                f"frontend ssl: layer {config.layer} is not in the encoder {config.model!r}: it has 0 to {depth}, "
                "or -1 for the last"
            )
        self._layer = None if config.layer == "mean" else config.layer % (depth + 1)
        # One layer more than is wanted, where there is one: whether the last one's states are given before or after the
        # closing layer norm differs between versions of transformers; those of a layer in between never were normed.
        kept = depth if self._layer is None else min(self._layer + 1, depth)
        self._last = self._layer == depth
        self._dtype = _DTYPES[config.precision]
        self._normalised = bool(extractor.get("do_normalize", not self._whisper))
        # transformers, Wav2Vec2FeatureExtractor: models with feat_extract_norm "group" (wav2vec2-base and its kin) were
        # trained without an attention mask. Their first layer is normalised over the whole time axis: padding changes
        # every state of the recording, and no mask undoes it. So only recordings of one length share a batch.
        self._maskable = self._whisper or model.get("feat_extract_norm", "group") == "layer"
        if self._whisper:
            self._spectrum = _LogMel30s(folder, self.device)
            if config.duration_s * rate > self._spectrum.samples:
                raise ConfigError(
                    f"frontend ssl: duration_s = {config.duration_s:g}, but Whisper takes "
                    f"{self._spectrum.samples / rate:g} s"
                )
            self._receptive = 1
        else:
            self._convolutions = list(zip(model["conv_kernel"], model["conv_stride"], strict=True))
            self._receptive = functools.reduce(
                lambda width, layer: (width - 1) * layer[1] + layer[0], reversed(self._convolutions), 1
            )
        self._model = _encoder(folder, sha256, self.device, config.precision, kept)

    @property
    def feature_names(self) -> list[str]:
        """``mean_0`` and so on, then ``std_0`` and so on with pooling ``mean_std``."""
        statistics = ("mean", "std") if self.config.pooling == "mean_std" else ("mean",)
        width = self.shape[0] // len(statistics)
        return [f"{statistic}_{index}" for statistic in statistics for index in range(width)]

    def extract(self, waveforms: Sequence[Samples], batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Features of any number of prepared recordings, in their order.

        Args:
            waveforms: float32 [samples] each, as :meth:`prepare` gives them.
            batch_size: the most that a GPU is given at once; None: as many as fit in two minutes.

        Returns:
            float32 [recordings, *shape].
        """
        return (
            self.encode([torch.from_numpy(samples).to(self.device) for samples in waveforms], batch_size).cpu().numpy()
        )

    def encode(self, recordings: Sequence[Tensor], batch_size: int | None = None) -> Tensor:
        """Features of recordings of any lengths, in their order: what :meth:`extract` is, for tensors.

        Args:
            recordings: float32 [samples] each, on :attr:`device`.
            batch_size: as for :meth:`extract`.

        Returns:
            float32 [recordings, *shape], on the same device; rounded to float16 where that is how they are stored.
        """
        features = torch.empty((len(recordings), *self.shape), device=self.device)
        if self.device.type == "cpu":
            for index, samples in enumerate(recordings):
                features[index] = self(samples[None])[0]
            return features
        for chosen in self._batches([len(samples) for samples in recordings], batch_size):
            features[chosen] = self._padded([recordings[index] for index in chosen])
        return features.half().float() if self.config.stored == "float16" else features

    def _padded(self, recordings: Sequence[Tensor]) -> Tensor:
        """Features [recordings, *shape] of recordings [samples] in one batch; of one length, if there is no mask."""
        lengths = [len(samples) for samples in recordings]
        if not self._maskable and len(set(lengths)) > 1:
            raise ValueError("this encoder takes no attention mask: only recordings of one length share a batch")
        return self._pooled(nn.utils.rnn.pad_sequence(list(recordings), batch_first=True), lengths)

    def _features(self, samples: Tensor) -> Tensor:
        # A copy, so that the samples always lie at an aligned address: vectorised sums start there.
        return self._pooled(samples.clone(), [samples.shape[1]] * len(samples))

    def _batches(self, lengths: Sequence[int], most: int | None) -> Iterator[list[int]]:
        """Indices of recordings that share a batch: of similar length, or of one, if there is no mask."""
        batch: list[int] = []
        # The longest first: what does not fit into the memory fails at once, not in the end.
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            if batch and (
                len(batch) == most
                or (most is None and (len(batch) + 1) * self._cost(lengths[batch[0]]) > _BATCH_SAMPLES)
                or (not self._maskable and lengths[index] != lengths[batch[0]])
            ):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _cost(self, length: int) -> int:
        return self._spectrum.samples if self._whisper else length

    def _pooled(self, samples: Tensor, lengths: list[int]) -> Tensor:
        """Features [batch, *shape] of samples [batch, n], zero beyond their lengths."""
        with torch.inference_mode():
            if samples.shape[1] < self._receptive:
                samples = functional.pad(samples, (0, self._receptive - samples.shape[1]))
            lengths = [max(length, self._receptive) for length in lengths]
            mask = None
            if min(lengths) < samples.shape[1]:
                ends = torch.tensor(lengths, device=samples.device)
                mask = torch.arange(samples.shape[1], device=samples.device) < ends[:, None]
            if self._normalised:
                samples = _zero_mean_unit_variance(samples, lengths, mask)
            inputs, counts, mask = self._inputs(samples, lengths, mask)
            states = self._states(inputs.to(self._dtype), mask)
            pooled = _pool(states, counts, deviation=self.config.pooling == "mean_std")
        # A tensor made in inference mode cannot be used everywhere; its copy can.
        return pooled.clone()

    def _inputs(
        self, samples: Tensor, lengths: list[int], mask: Tensor | None
    ) -> tuple[Tensor, list[int], Tensor | None]:
        """What the encoder takes, how many states of each recording are its own, and the attention mask."""
        if self._whisper:
            # The encoder has no mask: its states know of the silence, as they did in training.
            step = self._spectrum.samples_per_state
            most = self._spectrum.samples // step
            return self._spectrum(samples), [min(-(-length // step), most) for length in lengths], None
        counts = lengths
        for kernel, stride in self._convolutions:
            counts = [(count - kernel) // stride + 1 for count in counts]
        return samples, counts, mask

    def _states(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """The wanted hidden states, float32 [batch, frames, hidden]."""
        options: dict[str, Any] = {} if mask is None else {"attention_mask": mask.long()}
        output = self._model(inputs, output_hidden_states=not self._last, **options)
        if self._last:
            return output.last_hidden_state.float()
        if self._layer is not None:
            return output.hidden_states[self._layer].float()
        *inner, _ = output.hidden_states
        total = functools.reduce(torch.add, (states.float() for states in (*inner, output.last_hidden_state)))
        return total / (len(inner) + 1)


class _LogMel30s:
    """Whisper's log-mel spectrogram of 30 s, on the samples' device.

    As ``WhisperFeatureExtractor`` of transformers, whose own code would take every batch through the CPU.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        extractor = _transformers().WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self.samples = int(extractor.n_samples)
        self.samples_per_state = 2 * int(extractor.hop_length)  # the encoder's second convolution has stride 2
        self._frame, self._hop = int(extractor.n_fft), int(extractor.hop_length)
        self._window = torch.hann_window(self._frame, device=device)
        self._filters = torch.from_numpy(np.ascontiguousarray(extractor.mel_filters.T, np.float32)).to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        """[batch, n] -> [batch, mels, frames]; longer recordings are cut."""
        padded = functional.pad(samples[:, : self.samples], (0, max(0, self.samples - samples.shape[1])))
        spectrum = torch.stft(padded, self._frame, self._hop, window=self._window, return_complex=True)
        power = (spectrum[..., :-1].abs() ** 2).contiguous()
        log_mel = (self._filters @ power).clamp_(min=1e-10).log10_()
        return (torch.maximum(log_mel, log_mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def _zero_mean_unit_variance(samples: Tensor, lengths: list[int], mask: Tensor | None) -> Tensor:
    """Each recording normalised over its own samples, zero beyond: ``Wav2Vec2FeatureExtractor`` with do_normalize."""
    if mask is None:
        variance, mean = torch.var_mean(samples, 1, correction=0, keepdim=True)
        return (samples - mean) / torch.sqrt(variance + 1e-7)
    count = torch.tensor(lengths, device=samples.device, dtype=samples.dtype)[:, None]
    centred = (samples - (samples * mask).sum(1, keepdim=True) / count) * mask
    return centred / torch.sqrt(centred.square().sum(1, keepdim=True) / count + 1e-7)


def _pool(states: Tensor, counts: list[int], deviation: bool) -> Tensor:
    """Mean, and population standard deviation, over each recording's own states: [batch, hidden * (1 or 2)]."""
    if min(counts) == max(counts):
        valid = states[:, : counts[0]]
        mean = valid.mean(1)
        variance = (valid - mean[:, None]).square().mean(1) if deviation else None
    else:
        ends = torch.tensor(counts, device=states.device)
        mask = (torch.arange(states.shape[1], device=states.device) < ends[:, None])[..., None]
        mean = (states * mask).sum(1) / ends[:, None]
        variance = ((states - mean[:, None]).square() * mask).sum(1) / ends[:, None] if deviation else None
    return mean if variance is None else torch.cat([mean, variance.sqrt()], 1)


def _encoder(folder: Path, sha256: str, device: torch.device, precision: str, layers: int) -> nn.Module:
    """The encoder's first layers, ready to run; loaded once a process."""
    key = (sha256, str(device), precision, layers)
    with _loading:
        if key not in _loaded:
            _loaded[key] = _load(folder, _DTYPES[precision], layers).to(device)
        return _loaded[key]


def _transformers() -> Any:
    """The module transformers; it imports torchaudio wherever that is installed, so that has to be usable first."""
    with contextlib.suppress(ImportError):
        import_torchaudio()
    try:
        import transformers
    except ImportError:
        raise ConfigError(MISSING_TRANSFORMERS) from None
    return transformers


def _load(folder: Path, dtype: torch.dtype, layers: int) -> nn.Module:
    transformers = _transformers()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        whisper = config.model_type == "whisper"
        if whisper:
            config.encoder_layers, config.decoder_layers = layers, 0
        else:
            # Layers above the wanted one are not even read; nor is what some models put on top of the encoder.
            config.num_hidden_layers, config.add_adapter = layers, False
        with _quiet():
            model, report = transformers.AutoModel.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
            )
    except Exception as error:  # safetensors', transformers' and torch's errors have no common base
        line = next(itertools.chain(str(error).splitlines(), [""]))
        raise ConfigError(f"encoder {folder}: cannot be loaded ({type(error).__name__}: {line})") from None
    # transformers fills in what a file lacks with random numbers. The mask's embedding is used in training only.
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("masked_spec_embed"))
    if whisper:
        missing = [name for name in missing if name.startswith("encoder.")]
        model = model.get_encoder()
    if missing:
        raise ConfigError(
            f"encoder {folder}: its weights lack {len(missing)} tensors (first: {missing[0]}); copy the folder again"
        )
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of tensors that are left out on purpose, and the bar of a load that takes a moment."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
