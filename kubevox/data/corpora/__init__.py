"""The corpora that Kubevox knows, one module each.

A new corpus is one module with a :class:`~kubevox.data.corpora.base.Corpus` in it and one line in ``_MODULES``.
"""

from __future__ import annotations

import importlib

from kubevox.config import CorpusSource, parse_section
from kubevox.data.corpora.base import Corpus, Recording
from kubevox.errors import ConfigError

__all__ = ["Corpus", "Recording", "corpus_names", "open_corpus"]

_MODULES = {
    "emodb": "EmoDb",
    "folder": "Folder",
    "ravdess": "Ravdess",
    "synthetic": "Synthetic",
}


def corpus_names() -> list[str]:
    """The names that ``data.corpora`` may use."""
    return sorted(_MODULES)


def open_corpus(source: CorpusSource, where: str = "data.corpora") -> Corpus:
    """The corpus that a source names, with its options checked; nothing is read from the disk yet.

    Raises:
        ConfigError: no such corpus, an option it does not have, or a path it needs.
    """
    if source.name not in _MODULES:
        import difflib

        near = difflib.get_close_matches(source.name, _MODULES, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{where}: unknown corpus '{source.name}'; known are {', '.join(corpus_names())}{hint}")
    kind: type[Corpus] = getattr(importlib.import_module(f"{__name__}.{source.name}"), _MODULES[source.name])
    options = parse_section(kind.Options, source.options, f"{where}: options of corpus '{source.name}'")
    if kind.needs_path and not source.path:
        raise ConfigError(f"{where}: corpus '{source.name}' needs a path: the folder that holds its recordings")
    return kind(source.path, options)
