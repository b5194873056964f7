"""Names in the store: what they do not tell, and what they are bound to."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kubevox.config import CorpusSource, DataConfig
from kubevox.data.dataset import ingest, read_utterances
from kubevox.data.pseudonyms import Pseudonyms
from kubevox.errors import ConfigError, CorpusError, StorageError

VARIABLE = "KUBEVOX_PSEUDONYM_KEY"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without a key."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "kubevox" / "pseudonym.key"


def bytes_of(store: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file())


def test_no_name_of_a_person_or_a_file_is_in_the_store(folder_corpus, tmp_path):
    folder = folder_corpus(speakers=2)
    for file in list(folder.rglob("s00_*.wav")):
        file.rename(file.with_name(file.name.replace("s00", "hjalmarsdottir")))
    (folder / "sad" / "hjalmarsdottir_9.wav").write_text("no recording")
    data = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], max_rejected_share=0.5)
    version, _ = ingest(data, str(tmp_path / "store"))
    assert version.rejects == 1
    assert len({u.speaker for u in read_utterances(version.shard_uris)}) == 2
    content = bytes_of(tmp_path / "store")
    for name in ("hjalmarsdottir", "s01", str(folder), "_0.wav", VARIABLE, os.environ[VARIABLE]):
        assert name.encode() not in content
    named, _ = ingest(data.model_copy(update={"publish_names": True}), str(tmp_path / "named"))
    sources = {u.source_id for u in read_utterances(named.shard_uris)}
    assert "folder:sad/hjalmarsdottir_0.wav" in sources  # asked for
    assert not any(u.speaker == "folder:hjalmarsdottir" for u in read_utterances(named.shard_uris))


def test_pseudonyms_follow_from_the_key_alone():
    one, again, other = Pseudonyms("a" * 16), Pseudonyms("a" * 16), Pseudonyms("b" * 16)
    assert one.speaker("ravdess:07") == again.speaker("ravdess:07")
    assert one.speaker("ravdess:07") not in (other.speaker("ravdess:07"), one.speaker("emodb:07"))
    assert one.speaker("ravdess:07").startswith("ravdess:")
    assert one.speaker("folder:x").partition(":")[2] not in one.source("folder:x")
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_key_that_could_be_guessed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match=r"KUBEVOX_PSEUDONYM_KEY: 5 characters are too few.*openssl rand"):
        Pseudonyms.of_user(str(tmp_path))


def test_a_user_without_a_key_gets_one_that_only_he_can_read(home, tmp_path):
    first = Pseudonyms.of_user(str(tmp_path / "store"))
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert len(home.read_text()) == 64
    assert Pseudonyms.of_user(str(tmp_path / "store")).fingerprint == first.fingerprint
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_processes_that_start_together_agree_on_one_key(home):
    code = "from kubevox.data.pseudonyms import Pseudonyms; print(Pseudonyms.of_user().fingerprint)"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in running}) == 1


def test_the_key_does_not_lie_in_the_store_that_it_protects(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "store" / "config"))
    with pytest.raises(ConfigError, match="the key would lie in the store"):
        Pseudonyms.of_user(str(tmp_path / "store"))


def test_a_place_where_no_key_can_be_kept_is_named(home, monkeypatch, tmp_path):
    home.parent.parent.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"pseudonym\.key: .* cannot be kept there .*set KUBEVOX_PSEUDONYM_KEY"):
        Pseudonyms.of_user(str(tmp_path / "store"))


def test_a_store_keeps_to_one_key(folder_corpus, monkeypatch, tmp_path):
    store = str(tmp_path / "store")
    data = DataConfig(corpora=[CorpusSource(name="folder", path=str(folder_corpus()))])
    version, _ = ingest(data, store)
    held = json.loads((tmp_path / "store" / "pseudonym-key.json").read_text())
    assert held == {"fingerprint": version.key_fingerprint}
    monkeypatch.setenv(VARIABLE, "quite another key of this store")
    with pytest.raises(StorageError, match=r"under the key .* set KUBEVOX_PSEUDONYM_KEY to the key"):
        ingest(data, store)


def test_no_name_gets_into_the_store_beside_the_recordings(folder_corpus, tmp_path):
    folder = folder_corpus(speakers=2)
    (folder / "hjalmarsdottir").write_text("a file without an ending")
    (folder / "notes.txt").write_text("a text")
    listed = tmp_path / "hjalmarsdottir" / "list.csv"
    listed.parent.mkdir()
    listed.write_text("path,label,speaker\nsad/s00_0.wav,sad,hjalmarsdottir\n")
    source = CorpusSource(name="folder", path=str(folder), options={"csv": str(listed)})
    version, _ = ingest(DataConfig(corpora=[source]), str(tmp_path / "store"))
    assert b"hjalmarsdottir" not in bytes_of(tmp_path / "store")
    assert version.corpora[0]["passed_over"] == {".txt": 1, ".wav": 11, "other": 1}
    assert version.corpora[0]["options"]["csv"] == "list.csv"


def test_a_name_that_is_no_text_is_one_clear_line(folder_corpus, tmp_path):
    folder = folder_corpus(speakers=2)
    (folder / "sad" / "s00_0.wav").rename(os.fsdecode(os.fsencode(folder / "sad") + b"/s00_\xe9.wav"))
    for publish in (False, True):
        with pytest.raises(CorpusError, match=r"s00_.*wav': its name is not UTF-8"):
            ingest(
                DataConfig(corpora=[CorpusSource(name="folder", path=str(folder))], publish_names=publish),
                str(tmp_path / "store"),
            )


def test_any_bytes_are_a_key(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, os.fsdecode(b"\xe9" * 20))
    from_variable = Pseudonyms.of_user().fingerprint
    monkeypatch.delenv(VARIABLE)
    home.parent.mkdir(parents=True)
    home.write_bytes(b"\xe9" * 20)
    assert Pseudonyms.of_user().fingerprint == from_variable
    home.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pseudonym\.key: 0 characters are too few"):
        Pseudonyms.of_user()


def test_a_key_is_not_overwritten_by_a_process_of_the_same_number(home, monkeypatch):
    """Containers that share a home: each has a process 1."""
    home.parent.mkdir(parents=True)
    kept = home.with_name(f".{home.name}.{os.getpid()}")
    kept.write_text("the key that another container just made")
    os.link(kept, home)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # it was not there yet when this process looked
    Pseudonyms.of_user()
    assert home.read_text() == "the key that another container just made"


def test_machines_voices_need_no_key(home, tmp_path):
    pytest.importorskip("espeakng_loader")
    options = {"speakers": 2, "sentences": 1, "emotions": ["neutral"]}
    version, _ = ingest(DataConfig(corpora=[CorpusSource(name="synthetic", options=options)]), str(tmp_path / "store"))
    assert version.key_fingerprint is None
    assert not home.exists()
    assert {u.speaker for u in read_utterances(version.shard_uris)} == {"synthetic:f1", "synthetic:m1"}
