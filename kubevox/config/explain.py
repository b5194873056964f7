"""Turns whatever is wrong with a configuration into one line that names the key, the value, the file and the remedy."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from kubevox.errors import ConfigError

__all__ = ["parse_section"]

_S = TypeVar("_S", bound=BaseModel)


def parse_section(kind: type[_S], tree: Any, where: str, sources: dict[str, str] | None = None) -> _S:
    """Validate a tree of plain values against a section; ``where`` names its file in the error.

    Raises:
        ConfigError: one line naming the key, its value, the place and the nearest valid key.
    """
    try:
        return kind.model_validate(tree)
    except PydanticError as error:
        problems = error.errors(include_url=False)
        # An unknown key explains more than the complaints that follow from it.
        problems.sort(key=lambda problem: problem["type"] not in ("extra_forbidden", "invalid_key"))
        line = _explain(kind, tree, problems[0], where, sources or {})
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(" ".join(line.splitlines()) + more) from None


def _explain(kind: type[BaseModel], tree: Any, problem: Any, where: str, sources: dict[str, str]) -> str:
    # The tags of discriminated unions stand in pydantic's location but not in the file.
    location: list[str | int] = []
    node = tree
    for part in problem["loc"]:
        if isinstance(node, dict) and part not in node and problem["type"] != "missing" and part in _tags(node):
            continue
        location.append(part)
        node = _child(node, part)
        if problem["type"] == "missing" and node is None:
            break
    given = problem["input"]
    if problem["type"] == "refused":
        location += problem["ctx"]["key"].split(".")
        given = problem["ctx"]["value"]
    key = ".".join(str(part) for part in location) or "(top level)"
    place = _place(key, where, sources, problem["type"])
    known = sorted(_known_keys(kind, tree))
    if problem["type"] == "extra_forbidden":
        nearest = _nearest(key, known)
        hint = f"; did you mean '{nearest}'?" if nearest else "; none is known here"
        return f"{place}: unknown key '{key}' (value {_short(given)}){hint}"
    if problem["type"] == "invalid_key" or location[-1:] == ["[key]"]:
        section = ".".join(str(part) for part in location[:-2]) or "the top level"
        return f"{place}: key {given!r} in {section} is no text; put it in quotes (YAML takes a bare no for false)"
    if problem["type"] == "missing":
        missing = ".".join(str(part) for part in problem["loc"] if part not in _tags_along(tree, problem["loc"]))
        return f"{place}: key '{missing}' is missing"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        expected = problem.get("ctx", {}).get("expected_tags", "")
        discriminator = str(problem.get("ctx", {}).get("discriminator", "")).strip("'")
        tag = node.get(discriminator) if isinstance(node, dict) else node
        place = _place(f"{key}.{discriminator}", where, sources, problem["type"])
        choices = [choice.strip(" '") for choice in expected.split(",")] if expected else []
        nearest = _nearest(str(tag), choices) if tag is not None else None
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        options = f": expected one of {', '.join(choices)}" if choices else ": this key is needed"
        return f"{place}: '{key}.{discriminator}' = {_short(tag)}{options}{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "expected a section of keys"
    nearest_valid = _nearest(key, known) or key
    return f"{place}: '{key}' = {_short(given)}: {message} (nearest valid key: '{nearest_valid}')"


def _place(key: str, where: str, sources: dict[str, str], problem: str) -> str:
    """Who is to blame for a key: the file, or the overrides that set it or stand beside it."""
    setters = [name for override, name in sources.items() if f"{key}.".startswith(f"{override}.")]
    if setters:
        return setters[-1]
    section = key if problem == "extra_forbidden" else key.rpartition(".")[0]
    beside = [name for override, name in sources.items() if override.startswith(f"{section}.")]
    if problem == "extra_forbidden":
        return beside[-1] if beside else where  # a section that only an override speaks of
    return f"{where} with {', '.join(beside)}" if problem == "refused" and beside else where


def _tags(node: dict[str, Any]) -> set[Any]:
    return {node.get("kind"), node.get("architecture")} - {None}


def _tags_along(tree: Any, location: tuple[str | int, ...]) -> set[Any]:
    tags: set[Any] = set()
    node = tree
    for part in location:
        if isinstance(node, dict):
            tags |= {tag for tag in _tags(node) if tag not in node}
        node = _child(node, part)
    return tags


def _child(node: Any, part: str | int) -> Any:
    """The value under a key or an index, or None."""
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(key: str, known: list[str]) -> str | None:
    """The closest of the known dotted keys: a sibling before a stranger."""
    section, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    close = difflib.get_close_matches(name, [k.rpartition(".")[2] for k in siblings], n=1, cutoff=0.5)
    if close:
        return f"{section}.{close[0]}" if section else close[0]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    same_name = [k for k in known if difflib.SequenceMatcher(None, k.rpartition(".")[2], name).ratio() > 0.8]
    return same_name[0] if same_name else (siblings[0] if siblings else None)


def _known_keys(kind: type[BaseModel], tree: Any, prefix: str = "") -> set[str]:
    """All dotted keys that the section knows; unions and mappings follow the tree's own entries."""
    keys: set[str] = set()
    for name, field in kind.model_fields.items():
        keys.add(prefix + name)
        child = tree.get(name) if isinstance(tree, dict) else None
        keys |= _keys_of_annotation(field.annotation, child, f"{prefix}{name}.")
    return keys


def _keys_of_annotation(annotation: Any, tree: Any, prefix: str) -> set[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _known_keys(annotation, tree, prefix)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _keys_of_annotation(arguments[0], tree, prefix)
    if origin is dict and isinstance(tree, dict):
        return {f"{prefix}{k}" for k in tree} | {
            key for k, v in tree.items() for key in _keys_of_annotation(arguments[1], v, f"{prefix}{k}.")
        }
    if origin is list and isinstance(tree, list):
        return {key for i, v in enumerate(tree) for key in _keys_of_annotation(arguments[0], v, f"{prefix}{i}.")}
    keys: set[str] = set()
    for argument in arguments:
        member = argument if isinstance(argument, type) and issubclass(argument, BaseModel) else None
        if member is not None and isinstance(tree, dict):
            tag = {f.default for n, f in member.model_fields.items() if n in ("kind", "architecture")}
            if tag and not tag & _tags(tree):
                continue  # the union's other member
        keys |= _keys_of_annotation(argument, tree, prefix)
    return keys
