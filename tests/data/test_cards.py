"""Data cards: what they tell of a corpus and of a dataset, and that those in docs are what the code gives."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import pytest

from kubevox.config import CorpusSource, DataConfig, load_config
from kubevox.data import corpora
from kubevox.data.cards import card, overview, overview_table
from kubevox.data.corpora import corpus_class, corpus_names, open_corpus
from kubevox.data.dataset import ingest
from kubevox.data.validation import validate
from kubevox.errors import CorpusError

ROOT = Path(__file__).resolve().parents[2]
TASKS = [load_config(ROOT / "configs" / f"{name}.yaml").task for name in ("emotion", "language")]
DOCS = ROOT / "docs" / "corpora.md"


def row(text: str, first: str) -> list[str]:
    """The cells of the only row of a table that begins with a word."""
    [found] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in found.strip("|").split(" | ")]


# --- from the code


@pytest.mark.parametrize("name", corpus_names())
def test_the_card_in_docs_is_what_the_code_gives(name):
    told = f"kubevox data card {name} --to docs/data-cards/{name}.md"
    assert (ROOT / "docs" / "data-cards" / f"{name}.md").read_text() == card(corpus_class(name), tasks=TASKS), told


def test_there_is_no_card_of_a_corpus_that_is_not_known():
    assert {path.stem for path in (ROOT / "docs" / "data-cards").iterdir()} == set(corpus_names())


def test_the_table_in_docs_is_what_the_code_gives():
    expected = overview_table(map(corpus_class, corpus_names()))
    assert expected in DOCS.read_text(), "kubevox data corpora --markdown"
    assert len(expected.splitlines()) == 2 + len(corpus_names())


@pytest.mark.parametrize("name", corpus_names())
def test_a_card_tells_what_binds_its_reader(name):
    kind, text = corpus_class(name), card(corpus_class(name), tasks=TASKS)
    assert text.startswith(f"# {kind.title}\n")
    for fact in (kind.licence, kind.citation, kind.homepage, kind.access):
        assert " ".join(fact.split()) in text
    assert ("GDPR" in text) != kind.synthetic
    assert ("made by a machine" in text) == kind.synthetic
    assert "``" not in text
    assert ":class:" not in text


def test_a_card_tells_where_each_label_goes():
    text = card(corpus_class("ravdess"), tasks=TASKS)
    assert row(text, "calm") == ["calm", "192", "neutral"]
    assert row(text, "surprised") == ["surprised", "192", "surprise"]
    assert row(text, "en") == ["en", "English", "eng", "stan1293", "no label of it"]
    assert row(card(corpus_class("emodb"), tasks=TASKS), "boredom")[2] == "left out"
    assert row(card(corpus_class("fleurs"), tasks=TASKS), "nb")[1:] == [
        "Norwegian Bokmål",
        "nob",
        "norw1259",
        "norwegian",
    ]


def test_every_published_label_of_an_emotion_corpus_is_known_to_the_task():
    for name in corpus_names():
        kind = corpus_class(name)
        for label in kind.published.labels if kind.published else ():
            assert TASKS[0].label_of(name, label)[0], f"{name}: {label}"


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("CC BY-NC-ND 4.0", ["Not for commercial use.", "Altered versions"]),
        ("CC BY-NC-SA 4.0", ["Not for commercial use."]),
        ("CC BY 4.0", []),
        ("NCSA licence", []),
    ],
)
def test_a_licence_that_forbids_something_is_put_in_words(licence, terms):
    kind = type("Other", (corpus_class("ravdess"),), {"licence": licence, "__module__": "kubevox.data.corpora.ravdess"})
    said = row(card(kind), "licence")[1]
    assert [term for term in ("Not for commercial use.", "Altered versions") if term in said] == terms


def test_an_overview_counts_what_is_published():
    one = overview(corpus_class("cremad"))
    assert (one.name, one.recordings, one.speakers, one.download) == ("cremad", 7442, 91, False)
    none = overview(corpus_class("folder"))
    assert (none.languages, none.recordings, none.speakers) == ((), None, None)


# --- from a dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_wav):
    """EMO-DB, of which little was found, with one file that does not decode and one that is silent; in a store."""
    folder, store = tmp_path_factory.mktemp("emodb"), tmp_path_factory.mktemp("store")
    for number, name in enumerate(["03a01Fa", "03a02Fa", "08a01Wa", "08a02La", "09a01Na", "10b01Wb"]):
        write_wav(folder / "wav" / f"{name}.wav", 1.0 + 0.5 * number, 16_000, 200.0 + 40 * number)
    write_wav(folder / "wav" / "11a01Ta.wav", 1.0, amplitude=0.0)
    (folder / "wav" / "12a01Ta.wav").write_bytes(b"no audio" * 500)
    config = DataConfig(corpora=[CorpusSource(name="emodb", path=str(folder))], max_rejected_share=0.5)
    return ingest(config, str(store))[0]


def test_a_card_of_a_dataset_tells_what_differs_from_the_published(dataset):
    text = card(corpus_class("emodb"), dataset, tasks=TASKS)
    assert f"## In dataset {dataset.hash[:12]}" in text
    assert row(text, "found")[1] == "8"
    assert row(text, "failed to decode")[1] == "1"
    assert row(text, "stored")[1] == "7"
    assert row(text, "all") == ["all", "535", "8", "-527"]
    differing = text[text.index("| difference |") : text.index("| what is stored |")]
    assert row(differing, "happiness") == ["happiness", "71", "2", "-69"]


def test_a_card_of_a_dataset_tells_of_its_audio_and_its_people(dataset):
    text = card(corpus_class("emodb"), dataset, tasks=TASKS)
    assert row(text, "duration")[1] == "1.0 to 3.5 s, median 2.0 s"
    assert row(text, "sample rates")[1] == "16000 Hz 7"
    assert row(text, "sex")[1] == "female 3, male 4"
    assert row(text, "speakers")[1] == "5"
    labels = text[text.index("| minutes |") :]
    assert row(labels, "anger") == ["anger", "2", "2", "0.1", "angry"]
    assert "emodb:" not in text  # whoever speaks, not even by pseudonym


def test_a_card_with_a_validation_tells_what_was_refused(dataset):
    config = load_config(ROOT / "configs" / "emotion.yaml", ["validation.max_quarantined_share=1.0"])
    found = validate(dataset, TASKS[0], config.validation, dataset.uri.rpartition("/datasets/")[0])
    text = card(corpus_class("emodb"), dataset, found, TASKS)
    quality = text[text.index("## Validation") :]
    assert "6 accepted, 1 quarantined." in quality
    assert "silen" in quality
    low, middle, high = map(float, row(quality, "`duration_s`")[1:])
    assert 1.0 <= low <= middle <= high <= 3.5


def test_a_complete_corpus_is_said_to_be_complete(dataset):
    told = {"name": "emodb", "found": 535, "labels": dict(corpus_class("emodb").published.labels)}
    whole = type(dataset)(**{**vars(dataset), "corpora": (told,)})
    assert "What was found is what is published." in card(corpus_class("emodb"), whole)


def test_a_corpus_that_a_dataset_does_not_hold_is_said_to_be_missing(dataset):
    assert "Nothing of this corpus." in card(corpus_class("ravdess"), dataset)


# --- how to add one


def example() -> tuple[str, str]:
    """The module and the line of docs/corpora.md, "Adding a corpus"."""
    text = DOCS.read_text().partition("## Adding a corpus")[2]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    |\n))+", text, re.MULTILINE)]
    [module] = [block for block in blocks if "class MorningMoods" in block]
    [line] = [block.strip() for block in blocks if block.strip().startswith('"morningmoods":')]
    return module, line


def test_the_example_of_a_new_corpus_works(tmp_path, monkeypatch):
    source, line = example()
    module = types.ModuleType("kubevox.data.corpora.morningmoods")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "morningmoods.py", "exec"), module.__dict__)  # noqa: S102 - the example is what is tested
    name, kind = re.fullmatch(r'"(\w+)": "(\w+)",', line).groups()
    monkeypatch.setitem(corpora._MODULES, name, kind)

    for file in ("m3_happy_07.wav", "w1_sad_20.wav", "notes_of_mine.wav"):
        (tmp_path / file).write_bytes(b"x")
    opened = open_corpus(CorpusSource(name="morningmoods", path=str(tmp_path)))
    found = {r.source_id: (r.speaker, r.sex, r.raw_label) for r in opened.recordings()}
    assert found["morningmoods:m3_happy_07.wav"] == ("morningmoods:m3", "male", "happy")
    assert found["morningmoods:w1_sad_20.wav"] == ("morningmoods:w1", "female", "sad")
    with pytest.raises(CorpusError, match="not named as published"):
        opened.describe(tmp_path / "notes_of_mine.wav")
    published = corpus_class(name).published
    assert published.recordings == sum(published.labels.values()) == sum(published.speakers.values())
    assert row(card(corpus_class(name), tasks=TASKS), "calm")[1] == "200"
