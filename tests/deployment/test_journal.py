"""Who has a model's rollouts, and for how long; and that a journal is read back as it was written."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kubevox import storage
from kubevox.deployment.backend import ServedVersion
from kubevox.deployment.journal import Ending, Entry, Journal, OvertakenError, Owner, Start
from kubevox.errors import DeploymentError

NAME = "kubevox-mood"
START = Start(ServedVersion("2", "bundles/2"), ServedVersion("1", "bundles/1"), new=True)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def journal(store: str, lease_s: float = 60.0) -> Journal:
    return Journal(store, NAME, lease_s)


def write(store: str, number: int, **entry: Any) -> None:
    folder = Path(store, "rollouts", NAME)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:06d}.json").write_bytes(TypeAdapter(Entry).dump_json(Entry(number, **entry)))


def elsewhere(**how: Any) -> Owner:
    return replace(Owner("pod-7", "pod-7 another boot", 41, "12345"), **how)


def test_what_was_written_is_read_back_by_the_next_process(store: str) -> None:
    with journal(store) as first:
        first.begin(START)
        first.append("candidate")
        first.append("watching", percent=10)
        written = list(first.rollout)
        assert first.unfinished
    with journal(store) as second:
        assert list(second.rollout) == written
        assert [entry.event for entry in second.rollout] == ["registered", "candidate", "watching"]
        assert second.rollout[0].start == START
        assert len({entry.rollout for entry in second.rollout}) == 1
        assert {entry.bundle for entry in second.rollout} == {"bundles/2"}
        second.append("rolled_back", ending=Ending("rolled_back", "uar", "it is worse"))
        second.append("recorded", uri="rollouts/1.json")
        assert not second.unfinished
    with journal(store) as third:
        third.begin(START)
        assert [entry.event for entry in third.rollout] == ["registered"]
    names = storage.list_names(f"{store}/rollouts/{NAME}")
    assert names == [*(f"{number:06d}.json" for number in range(1, 13)), "alive.json"]


def test_entries_are_written_once(store: str) -> None:
    with journal(store) as mine:
        mine.begin(START)
        write(store, 3, at=time.time(), event="claimed", owner=elsewhere())
        with pytest.raises(OvertakenError, match="kubevox-mood: another process has taken this rollout over meanwhile"):
            mine.append("candidate")
        # And it does not release what is another's.
    assert sorted(storage.list_names(f"{store}/rollouts/{NAME}"))[-2:] == ["000003.json", "alive.json"]


def test_the_claim_of_a_process_of_this_machine_holds_as_long_as_it_lives(store: str) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    began = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19]
    owner = replace(Owner.this(), pid=sleeper.pid, began=began)
    write(store, 1, at=time.time() - 10_000, event="claimed", owner=owner)
    refusal = rf"kubevox-mood is being rolled out by process {sleeper.pid} on .*; wait until it has ended"
    with pytest.raises(DeploymentError, match=refusal), journal(store):
        pass
    sleeper.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
    with journal(store):  # nobody has asked yet how it ended: it is still in the process table
        pass
    sleeper.communicate()


def test_a_number_that_was_given_to_another_process_is_not_mistaken_for_the_first(store: str) -> None:
    write(store, 1, at=time.time(), event="claimed", owner=replace(Owner.this(), began="1"))
    with journal(store):
        pass


def test_another_machines_claim_holds_for_the_lease_and_no_longer(store: str) -> None:
    write(store, 1, at=time.time() - 40, event="claimed", owner=elsewhere())
    refusal = (
        r"process 41 on pod-7, whose last sign of life is 4\d s old; run again when it has ended, or when there was"
    )
    with pytest.raises(DeploymentError, match=refusal), journal(store, 60):
        pass
    with journal(store, 30):
        pass


def test_a_sign_of_life_prolongs_a_claim_and_another_processs_does_not(store: str) -> None:
    write(store, 1, at=time.time() - 40, event="claimed", owner=elsewhere())
    alive = {"host": "pod-7", "machine": elsewhere().machine, "pid": 41, "at": time.time() - 5}
    path = Path(store, "rollouts", NAME, "alive.json")
    path.write_text(json.dumps(alive))
    with pytest.raises(DeploymentError, match=r"last sign of life is [5-9] s old"), journal(store, 30):
        pass
    path.write_text(json.dumps(alive | {"pid": 42}))
    with journal(store, 30):
        pass


def test_a_process_gives_signs_of_life_while_it_has_the_log(store: str) -> None:
    path = Path(store, "rollouts", NAME, "alive.json")
    with journal(store, 0.15):
        first = json.loads(path.read_text())
        assert (first["pid"], first["machine"]) == (os.getpid(), Owner.this().machine)
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["at"] == first["at"]:
            assert time.monotonic() < deadline


def test_a_process_that_ended_by_an_error_has_released_the_log(store: str) -> None:
    with pytest.raises(ZeroDivisionError), journal(store):
        raise ZeroDivisionError
    with journal(store) as after:
        assert not after.unfinished


def test_a_forked_process_is_another(store: str) -> None:
    def claim(told: Any) -> None:
        try:
            with journal(store):
                told.put("has it")
        except DeploymentError:
            told.put("refused")

    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    with journal(store):
        process = context.Process(target=claim, args=(told,))
        process.start()
        process.join(30)
    assert told.get() == "refused"


def test_a_damaged_entry_is_named(store: str) -> None:
    with journal(store) as one:
        one.begin(START)
    path = Path(store, "rollouts", NAME, "000002.json")
    path.write_text('{"number": 2, "at": ')
    with pytest.raises(
        DeploymentError, match=r"000002\.json: damaged \(.*\); delete the folder and run again"
    ) as caught:
        journal(store).__enter__()
    assert len(str(caught.value).splitlines()) == 1


def test_a_rollout_whose_beginning_was_erased_with_its_model_is_none(store: str) -> None:
    with journal(store) as one:
        one.begin(START)
        one.append("candidate")
    Path(store, "rollouts", NAME, "000002.json").unlink()
    with journal(store) as after:
        assert not after.unfinished
        assert list(after.rollout) == []
        after.begin(START)


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "mood 1:ä"])
def test_any_models_name_makes_one_folder(store: str, name: str) -> None:
    with Journal(store, name, 60.0):
        pass
    (folder,) = Path(store, "rollouts").iterdir()
    assert (folder / "000001.json").exists()
    assert not folder.name.startswith(".")


texts = st.text(max_size=20)


@given(
    st.builds(
        Entry,
        number=st.integers(1, 10**6),
        at=st.floats(0, 2e9),
        event=st.sampled_from(["candidate", "watching", "claimed"]),
        percent=st.integers(0, 100),
        note=texts,
        owner=st.none() | st.builds(Owner, texts, texts, st.integers(1, 10**7), texts),
        start=st.none() | st.builds(Start, st.builds(ServedVersion, texts, texts), st.none()),
        ending=st.none() | st.builds(Ending, st.sampled_from(["promoted", "failed"]), texts, texts),
    )
)
def test_an_entry_survives_json(entry: Entry) -> None:
    kind = TypeAdapter(Entry)
    assert kind.validate_json(kind.dump_json(entry, exclude_defaults=True)) == entry
