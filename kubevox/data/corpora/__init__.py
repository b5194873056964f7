"""The corpora that Kubevox knows, one module each.

A new corpus is one module with a :class:`~kubevox.data.corpora.base.Corpus` in it and one line in ``_MODULES``.
"""

from __future__ import annotations

import importlib

from kubevox.config import CorpusSource, parse_section
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.errors import ConfigError

__all__ = ["Corpus", "Recording", "by_machine", "corpus_class", "corpus_names", "open_corpus"]

_MODULES = {
    "commonvoice": "CommonVoice",
    "cremad": "CremaD",
    "emodb": "EmoDb",
    "fleurs": "Fleurs",
    "folder": "Folder",
    "nemo": "Nemo",
    "ravdess": "Ravdess",
    "ravnursson": "Ravnursson",
    "savee": "Savee",
    "synthetic": "Synthetic",
    "tess": "Tess",
}


def corpus_names() -> list[str]:
    """The names that ``data.corpora`` may use."""
    return sorted(_MODULES)


def corpus_class(name: str, where: str = "data.corpora") -> type[Corpus]:
    """The class of a corpus.

    Raises:
        ConfigError: there is no such corpus; ``where`` says who named it.
    """
    if name not in _MODULES:
        import difflib

        near = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{where}: unknown corpus '{name}'; known are {', '.join(corpus_names())}{hint}")
    kind: type[Corpus] = getattr(importlib.import_module(f"{__name__}.{name}"), _MODULES[name])
    return kind


def by_machine(name: str) -> bool:
    """Whether a speaker or recording ``corpus:...`` is of a corpus whose voices are made by a machine."""
    corpus = name.partition(":")[0]
    return corpus in _MODULES and corpus_class(corpus).synthetic


def open_corpus(source: CorpusSource, where: str = "data.corpora") -> Corpus:
    """The corpus that a source names, with its options checked; nothing is read or downloaded yet.

    Raises:
        ConfigError: no such corpus, an option it does not have, or a path it needs.
    """
    kind = corpus_class(source.name, where)
    options = parse_section(kind.Options, source.options, f"{where}: options of corpus '{source.name}'")
    corpus = kind(source.path, options)
    corpus.may_download = source.download
    if kind.needs_path and not source.path:
        from kubevox.data.corpora.downloads import default_folder, how_to_get

        needed = f"{where}: corpus '{source.name}' needs a path: the folder that holds its recordings, or their archive"
        if not source.download:
            raise ConfigError(f"{needed}{'; or set its key download' if corpus.downloads else ''}")
        if not corpus.downloads:
            raise ConfigError(f"{needed}; it cannot be downloaded by itself ({how_to_get(corpus)})")
        corpus.path = default_folder(corpus)
    return corpus
