"""What a person sees of a run, and what the log keeps."""

import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.progress import EVENT_PREFIX
from pipelines.view import RunView


def event(**fields) -> str:
    return f"    {EVENT_PREFIX}{json.dumps(fields)}\n"


def result(stage: str, **fields) -> str:
    return event(kind="result", stage=stage, fields=fields)


def task(name: str, *said: str, status: str = "SUCCESS") -> str:
    """The output of KFP's local runner for one task."""
    return (
        f"{'-' * 80}\n"
        f"07:44:01.149 - INFO - Executing task \x1b[96m'{name}'\x1b[0m\n"
        "07:44:01.149 - INFO - Streamed logs:\n\n"
        "    [KFP Executor 2026-01-01 07:44:01,201 INFO]: Looking for component\n"
        + "".join(said)
        + f"\n07:44:03.360 - INFO - Task \x1b[96m'{name}'\x1b[0m finished with status \x1b[92m{status}\x1b[0m\n"
    )


def traceback(*last: str) -> str:
    lines = ["Traceback (most recent call last):", '  File "dataset.py", line 1, in ingest', *last]
    return "".join(f"    {line}\n" for line in lines)


GOOD = task("ingest", result("ingest", summary="3 recordings", utterances=3), "    a warning of some library\n") + task(
    "validate-2", result("validate", summary="3 accepted", reused=True)
)
FAILED = (
    task("ingest", result("ingest", summary="3 recordings"))
    + task("split", traceback("kubevox.errors.SplitError: a split needs at least 3 speakers: s1"), status="FAILURE")
    + task("find-champion", result("find_champion", summary="none yet"))
)


@pytest.fixture
def show(tmp_path):
    """Show a run's output; gives the view, what the person saw, and the log."""

    def run(*parts: str, out: io.StringIO | None = None):
        out = out or io.StringIO()
        log = tmp_path / "log.txt"
        view = RunView(log, out)
        for part in parts:
            view.write(part)
        view.close()
        return view, out.getvalue(), log.read_text(encoding="utf-8")

    return run


def test_each_stage_is_a_line_with_its_summary_and_time(show):
    view, seen, _ = show(GOOD)
    first, second = seen.splitlines()
    assert first.split() == ["ingest", "3", "recordings", "(0.0", "s)"]
    assert second.split() == ["validate", "reused:", "3", "accepted", "(0.0", "s)"]
    assert [found["stage"] for found in view.results] == ["ingest", "validate"]
    assert view.result("ingest")["utterances"] == 3
    assert view.result("validate")["reused"] is True
    assert view.result("deploy") is None
    assert (view.failed, view.error) == (None, None)


def test_the_last_result_of_a_stage_that_ran_twice_counts(show):
    view, _, _ = show(task("train", result("train", n=1)), task("train-2", result("train", n=2)))
    assert view.result("train")["n"] == 2
    assert [found["n"] for found in view.results] == [1, 2]


def test_the_log_keeps_every_line_without_colours(show):
    _, seen, log = show(GOOD)
    assert "a warning of some library" not in seen
    assert "    a warning of some library\n" in log
    assert "Executing task 'ingest'\n" in log
    assert "\x1b" not in log
    assert EVENT_PREFIX in log


def test_a_note_is_shown(show):
    _, seen, _ = show(task("ingest", event(kind="note", message="made the corpus")))
    assert "made the corpus" in seen


def test_the_users_error_is_taken_out_of_the_traceback(show):
    view, seen, log = show(FAILED)
    assert view.failed == "split"
    assert view.error == "a split needs at least 3 speakers: s1"
    assert "Traceback" not in seen
    assert "Traceback" in log


def test_an_error_that_was_handled_is_not_the_reason(show):
    handled = traceback("kubevox.errors.StorageError: not there yet")
    view, _, _ = show(task("ingest", handled), task("split", traceback("KeyError: 'x'"), status="FAILURE"))
    assert (view.failed, view.error, view.unexpected) == ("split", None, "KeyError: 'x'")


def test_the_first_failure_counts_even_when_other_tasks_ran_after_it(show):
    view, _, _ = show(
        task("split", traceback("KeyError: 'x'"), status="FAILURE"),
        task("find-champion", traceback("kubevox.errors.RegistryError: y"), status="FAILURE"),
    )
    assert (view.failed, view.error, view.unexpected) == ("split", None, "KeyError: 'x'")


@given(st.lists(st.integers(0, len(FAILED)), max_size=30))
def test_it_does_not_matter_how_the_output_is_cut_into_pieces(tmp_path_factory, cuts):
    edges = [0, *sorted(cuts), len(FAILED)]
    log = tmp_path_factory.getbasetemp() / "pieces.txt"
    out = io.StringIO()
    view = RunView(log, out)
    for start, end in itertools.pairwise(edges):
        assert view.write(FAILED[start:end]) == end - start
    view.close()
    assert (view.failed, view.error) == ("split", "a split needs at least 3 speakers: s1")
    assert [found["stage"] for found in view.results] == ["ingest", "find_champion"]
    assert len(out.getvalue().splitlines()) == 2
    assert log.read_text().count("\n") == FAILED.count("\n")


def test_a_last_line_without_an_end_is_read_at_the_close(show):
    view, _, log = show("Executing task 'split'\n\x1b[31mkubevox.errors.SplitError: cut off\x1b[0m")
    assert view.error == "cut off"
    assert log.endswith("kubevox.errors.SplitError: cut off\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_moves_in_one_line(show):
    steps = [
        event(kind="progress", task="train", done=done, total=4, unit="epochs", figures={"uar": 0.5})
        for done in range(1, 5)
    ]
    _, seen, _ = show(task("train", *steps, result("train", summary="best of 4")), out=Terminal())
    assert seen.count("\n") == 1
    assert "4/4 epochs  uar 0.5" in seen
    last = seen.rstrip("\n").rpartition("\x1b[2K")[2]
    assert last.split()[:4] == ["train", "best", "of", "4"]


def test_in_a_log_quick_progress_takes_no_lines(show):
    steps = [event(kind="progress", task="train", done=n, total=9, unit="it", figures={}) for n in range(10)]
    _, seen, _ = show(task("train", *steps, result("train", summary="done")))
    assert len(seen.splitlines()) == 1
