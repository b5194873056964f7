"""A small dataset of generated recordings."""

from pathlib import Path

import pytest
import soundfile
from generated_speech import speech_like

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.dataset import DatasetVersion, ingest


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """24 recordings of 1.0 to 4.0 s at three rates, in several shards, in a store of their own."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    for index in range(24):
        file = folder / ("loud", "soft")[index % 2] / f"s{index % 6}_{index:02d}.wav"
        file.parent.mkdir(exist_ok=True)
        rate = (16_000, 22_050, 44_100)[index % 3]
        samples = speech_like(1.0 + 0.13 * index if index % 4 else 3.0, rate, seed=index)
        soundfile.write(file, samples, rate, subtype="PCM_16")
    config = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], shard_mb=1)
    version, _ = ingest(config, str(tmp_path_factory.mktemp("store")))
    return version
