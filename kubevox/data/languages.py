"""The languages of the known corpora, by the codes that other catalogues use.

Utterances carry ISO 639-1 codes. ISO 639-3 and Glottolog (https://glottolog.org) name the same languages where two
letters are not enough. Norwegian is one label of the language task with three codes: ``nb`` (Bokmål) and ``nn``
(Nynorsk) are two written standards of what is spoken in many dialects, and ``no`` is said where a corpus names
neither; what the text is written in does not tell one voice from another.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubevox.errors import CorpusError

__all__ = ["LANGUAGES", "TASK_LANGUAGES", "Language", "language"]


@dataclass(frozen=True)
class Language:
    """A language and its codes.

    Attributes:
        code: ISO 639-1.
        name: in English.
        iso639_3: ISO 639-3; of ``no`` the macrolanguage.
        glottocode: Glottolog's identifier.
    """

    code: str
    name: str
    iso639_3: str
    glottocode: str


LANGUAGES = {
    entry.code: entry
    for entry in (
        Language("da", "Danish", "dan", "dani1285"),
        Language("de", "German", "deu", "stan1295"),
        Language("en", "English", "eng", "stan1293"),
        Language("fi", "Finnish", "fin", "finn1318"),
        Language("fo", "Faroese", "fao", "faro1244"),
        Language("is", "Icelandic", "isl", "icel1247"),
        Language("nb", "Norwegian Bokmål", "nob", "norw1259"),
        Language("nl", "Dutch", "nld", "dutc1256"),
        Language("nn", "Norwegian Nynorsk", "nno", "norw1262"),
        Language("no", "Norwegian", "nor", "norw1258"),
        Language("pl", "Polish", "pol", "poli1260"),
        Language("sv", "Swedish", "swe", "swed1254"),
    )
}

TASK_LANGUAGES = {
    "danish": ("da",),
    "faroese": ("fo",),
    "icelandic": ("is",),
    "norwegian": ("nb", "nn", "no"),
    "swedish": ("sv",),
}
"""The labels of the language task, and the codes that ``configs/language.yaml`` maps onto each."""


def language(code: str) -> Language:
    """The language of an ISO 639-1 code.

    Raises:
        CorpusError: the code is not in the table.
    """
    if code not in LANGUAGES:
        raise CorpusError(
            f"language '{code}' is not known; known are {', '.join(LANGUAGES)} (add it to kubevox/data/languages.py)"
        )
    return LANGUAGES[code]
