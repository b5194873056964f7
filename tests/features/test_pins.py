"""Sections that name files are known by the files' content."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.config import (
    BackgroundRecipe,
    ChainRecipe,
    LogMelConfig,
    NoiseRecipe,
    RecipeConfig,
    ReverbRecipe,
    StretchRecipe,
)
from kubevox.errors import ConfigError
from kubevox.features.content import files_hash
from kubevox.features.pins import identity, pinned, recordings_in

RECIPES: dict[str, Callable[..., RecipeConfig]] = {
    "corpus": lambda folder, **more: BackgroundRecipe(corpus=str(folder), **more),
    "responses": lambda folder, **more: ReverbRecipe(responses=str(folder), **more),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.FLAC", "inner/c.ogg", "inner/d.mp3", "z/readme.txt", "notes.json"):
        path = tmp_path / "noise" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "noise"


def test_recordings_are_found_in_subfolders_in_the_order_of_their_names(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in recordings_in(folder)]
    assert found == ["a.FLAC", "b.wav", "inner/c.ogg", "inner/d.mp3"]
    assert recordings_in(str(folder)) == recordings_in(folder)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(ConfigError, match=r"corpus .*: no recordings \(.wav"):
        recordings_in(tmp_path, "corpus")
    with pytest.raises(ConfigError, match=r"responses .*: no such folder"):
        recordings_in(tmp_path / "gone", "responses")


@pytest.mark.parametrize("section", [NoiseRecipe(), BackgroundRecipe(), ReverbRecipe(), LogMelConfig()])
def test_what_names_no_files_is_left_alone(section: RecipeConfig) -> None:
    assert pinned(section) is section


@pytest.mark.parametrize("key", RECIPES)
def test_a_folder_is_pinned_by_content_wherever_it_lies(key: str, folder: Path, tmp_path: Path) -> None:
    section = pinned(RECIPES[key](folder))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "more.txt").write_text("no recording")
    elsewhere = pinned(RECIPES[key](copy))
    assert section.sha256 is not None
    assert identity(section) == identity(elsewhere)
    assert pinned(section) == section


@pytest.mark.parametrize("key", RECIPES)
@pytest.mark.parametrize("change", ["bytes", "name", "addition", "removal"])
def test_other_recordings_are_noticed(key: str, change: str, folder: Path) -> None:
    section = pinned(RECIPES[key](folder))
    if change == "bytes":
        before = (folder / "b.wav").stat()
        (folder / "b.wav").write_bytes(b"B.wav")
        os.utime(folder / "b.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "name":
        (folder / "b.wav").rename(folder / "e.wav")
    elif change == "addition":
        (folder / "e.wav").write_bytes(b"e")
    else:
        (folder / "b.wav").unlink()
    fresh = pinned(RECIPES[key](folder))
    assert fresh.sha256 != section.sha256
    with pytest.raises(ConfigError, match=f"{key} .*{fresh.sha256}, not {section.sha256}"):
        pinned(section)


@pytest.mark.parametrize("key", RECIPES)
def test_a_pin_stays_where_the_files_are_elsewhere(key: str, tmp_path: Path) -> None:
    section = RECIPES[key](tmp_path / "gone", sha256="a" * 64)
    assert pinned(section) == section
    with pytest.raises(ConfigError, match=f"{key} .*: no such folder"):
        pinned(RECIPES[key](tmp_path / "gone"))


def test_a_chain_is_pinned_step_by_step(folder: Path) -> None:
    chain = ChainRecipe(steps=[StretchRecipe(), BackgroundRecipe(corpus=str(folder)), ReverbRecipe()])
    steps = pinned(chain).steps
    assert steps[0] == chain.steps[0]
    assert steps[1] == pinned(chain.steps[1])
    assert steps[2] == chain.steps[2]
    assert str(folder) not in str(identity(pinned(chain)))
    assert str(folder) in str(identity(chain))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=3)), max_size=3, unique_by=lambda item: item[0]))
def test_no_two_lists_of_files_share_a_hash(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("files")
    for name, data in files:
        (root / name).write_bytes(data)
    found = files_hash(root, [root / name for name, _ in files])
    assert _seen.setdefault(found, files) == files


_seen: dict[str, list[tuple[str, bytes]]] = {}
