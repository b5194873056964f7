"""What long work says: events for the pipeline's runner, a bar on a terminal, nothing much in a log."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubevox.progress import EVENT_PREFIX, ProgressBar, note, parse_event, result, track


@pytest.fixture
def events(monkeypatch, capsys):
    """Switch events on; gives what was emitted since the last call."""
    monkeypatch.setenv("KUBEVOX_EVENTS", "1")

    def emitted():
        captured = capsys.readouterr()
        assert captured.err == ""
        found = [parse_event(line) for line in captured.out.splitlines()]
        assert None not in found
        return found

    return emitted


def test_a_result_and_a_note_reach_the_runner(events):
    result("ingest", utterances=3, summary="3 recordings — ok", nothing=None)
    note("one\nfact")
    assert events() == [
        {
            "kind": "result",
            "stage": "ingest",
            "fields": {"utterances": 3, "summary": "3 recordings — ok", "nothing": None},
        },
        {"kind": "note", "message": "one\nfact"},
    ]


def test_the_end_of_the_work_is_always_said(events):
    with ProgressBar("train", 1000, "batches") as bar:
        for _ in range(1000):
            bar.update(loss="0.5")
    said = events()
    assert 1 <= len(said) < 100  # not a line an item
    assert said[-1] == {
        "kind": "progress",
        "task": "train",
        "done": 1000,
        "total": 1000,
        "unit": "batches",
        "figures": {"loss": "0.5"},
    }


def test_tracking_gives_the_items_unchanged(events):
    assert list(track("abc", "read", 3)) == ["a", "b", "c"]
    assert events()[-1]["done"] == 3


def test_without_a_runner_notes_go_to_the_log_and_results_are_not_printed(monkeypatch, capsys):
    monkeypatch.delenv("KUBEVOX_EVENTS", raising=False)
    note("a fact")
    result("ingest", utterances=3)
    assert list(track("abc", "read", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "a fact\n")  # quick work needs no line in a log


def test_on_a_terminal_there_is_a_bar_that_is_gone_afterwards():
    code = "from kubevox.progress import track; print(*track('abc', 'reading', 3, 'files'))"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, 80))
    os.set_blocking(ours, False)
    environment = {key: value for key, value in os.environ.items() if key != "KUBEVOX_EVENTS"}
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    drawn = os.read(ours, 100_000).decode()
    os.close(theirs)
    os.close(ours)
    assert run.stdout == "a b c\n"
    assert "reading" in drawn
    assert "/3" in drawn
    assert drawn.endswith("\r")
    assert drawn.rstrip("\r").rpartition("\r")[2].strip() == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["summary", "figures", "report"]), json_values))
def test_any_result_survives_the_pipe(fields):
    with contextlib.redirect_stdout(io.StringIO()) as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBEVOX_EVENTS", "1")
        result("stage", **fields)
    text = pipe.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert parse_event(f"    {text}") == {"kind": "result", "stage": "stage", "fields": fields}  # KFP indents


@given(st.text() | st.text().map(lambda text: EVENT_PREFIX + text))
def test_other_lines_are_no_events(line):
    assert parse_event(line) is None or "kind" in parse_event(line)


@pytest.mark.parametrize("line", ["", "::kubevox", "::kubevox {", "::kubevox [1]", '::kubevox {"a": 1}', "kubevox {}"])
def test_broken_events_are_ordinary_text(line):
    assert parse_event(line) is None
