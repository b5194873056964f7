"""Reads a configuration file and applies overrides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from kubevox.config.explain import parse_section
from kubevox.config.sections import Config, CorpusSource
from kubevox.errors import ConfigError

__all__ = ["corpus_source", "load_config"]


def corpus_source(word: str, configured: Iterable[CorpusSource]) -> CorpusSource:
    """What ``name=folder``, or ``name`` alone, means on a command line.

    Args:
        word: as it was typed.
        configured: the configuration's corpora; the options and caps that one of this name has are kept.

    Raises:
        ConfigError: the word is neither.
    """
    name, _, path = word.partition("=")
    known = next((source for source in configured if source.name == name), None)
    try:
        source = known or CorpusSource(name=name)
    except ValueError:
        raise ConfigError(f"--corpora {word!r}: expected name=folder, such as ravdess=/data/ravdess") from None
    return source.model_copy(update={"path": path or None})


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a configuration file and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ConfigError: one line naming the key, its value, the file (or the override) and the nearest valid key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        tree = yaml.load(text, _YamlLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as task:, data:, train:, found {type(tree).__name__}")
    sources: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected section.key=value")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: value is not valid YAML: {_yaml_problem(error)}") from None
        _put(tree, key.split("."), parsed, f"--set {override}")
        sources[key] = f"--set {key}"
    return parse_section(Config, tree, str(path), sources)


class _YamlLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; by itself YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


def _put(tree: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    node: Any = tree
    for index, key in enumerate(path[:-1]):
        if isinstance(node, list):
            node = _list_item(node, key, override)
            continue
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{override}: {'.'.join(path[: index + 1])} is a value, not a section")
    if isinstance(node, list):
        _list_item(node, path[-1], override)
        node[int(path[-1])] = value
    else:
        node[path[-1]] = value


def _list_item(node: list[Any], key: str, override: str) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(f"{override}: {key!r} is not an index into a list of {len(node)}")
    return node[int(key)]
