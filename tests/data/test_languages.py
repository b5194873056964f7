"""The table of languages, and that the language task's configuration agrees with it."""

from __future__ import annotations

import pytest

from kubevox.config import load_config
from kubevox.data.languages import LANGUAGES, TASK_LANGUAGES, language
from kubevox.errors import CorpusError


def test_a_language_is_found_by_its_two_letters():
    faroese = language("fo")
    assert (faroese.name, faroese.iso639_3, faroese.glottocode) == ("Faroese", "fao", "faro1244")


def test_an_unknown_code_is_named_with_those_that_are_known():
    with pytest.raises(CorpusError, match=r"language 'xx' is not known; known are da, de, .* sv"):
        language("xx")


def test_codes_have_the_form_of_their_catalogues_and_are_distinct():
    for entry in LANGUAGES.values():
        assert len(entry.code) == 2
        assert len(entry.iso639_3) == 3
        assert entry.glottocode[:4].isalnum()
        assert entry.glottocode[4:].isdigit()
        assert len(entry.glottocode) == 8
    assert len({entry.iso639_3 for entry in LANGUAGES.values()}) == len(LANGUAGES)
    assert len({entry.glottocode for entry in LANGUAGES.values()}) == len(LANGUAGES)


def test_the_language_task_maps_the_codes_that_the_table_says(repository):
    task = load_config(repository / "configs" / "language.yaml").task
    assert tuple(task.labels) == tuple(TASK_LANGUAGES)
    for label, codes in TASK_LANGUAGES.items():
        for code in codes:
            assert language(code).code == code
            assert task.label_of("commonvoice", code) == (True, label)
    assert task.label_of("commonvoice", "nn") == task.label_of("fleurs", "nb") == (True, "norwegian")
