"""Hashes that name content, and the commit that made it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.provenance import canonical_json, content_hash, git_commit

ROOT = Path(__file__).resolve().parent.parent
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value, chance):
    items = list(value.items())
    chance.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert content_hash(dict(items)) == content_hash(value)


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_different_parts_never_share_a_hash_by_running_together(one, other):
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


def test_a_hash_is_the_same_in_every_process():
    code = "from kubevox.provenance import content_hash; print(content_hash(['å', 1.5, None], b'x'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == content_hash(["å", 1.5, None], b"x")


def test_what_has_no_json_has_no_hash():
    for value in (float("nan"), float("inf"), {1, 2}, object()):
        with pytest.raises((ValueError, TypeError)):
            content_hash(value)


def test_the_commit_of_an_image_comes_from_its_environment(monkeypatch):
    git_commit.cache_clear()
    monkeypatch.setenv("KUBEVOX_COMMIT", "0123abcd")
    assert git_commit() == "0123abcd"
    git_commit.cache_clear()


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBEVOX_COMMIT", raising=False)
    code = (
        "import sys, shutil; from pathlib import Path; import kubevox; "
        "shutil.copytree(Path(kubevox.__file__).parent, sys.argv[1], ignore=shutil.ignore_patterns('__pycache__'))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "kubevox"], cwd=ROOT, check=True)
    code = "from kubevox.provenance import git_commit; print(git_commit())"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "unknown\n"
