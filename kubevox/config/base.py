"""What every section of a configuration is made of: the base class, shared types, and how a key is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kubevox.config.explain import parse_section
from kubevox.errors import ConfigError
from kubevox.provenance import canonical_json, content_hash

__all__ = ["Device", "Positive", "PositiveInt", "Section", "Seed", "Share", "refusal", "refuse_empty_range"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Device = Literal["auto", "cpu", "cuda"]


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_holds_bool, value)))


def refusal(key: str, value: Any, why: str) -> PydanticCustomError:
    """What a section's validator raises about one of its keys, so that the error can name it like any other."""
    return PydanticCustomError("refused", "{why}", {"key": key, "value": value, "why": why})


def refuse_empty_range(section: Section, low: str, high: str) -> None:
    """Refuse a section whose key ``low`` exceeds its key ``high``."""
    least, most = getattr(section, low), getattr(section, high)
    if least > most:
        raise refusal(low, least, f"must not exceed {high} = {most:g}")


class Section(BaseModel):
    """A part of the configuration: immutable, closed to unknown keys, hashable by content."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        # Python, and so pydantic, takes true for 1.
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if field and _holds_bool(value) and bool not in (field.annotation, *get_args(field.annotation)):
                raise refusal(name, value, "this key takes no true or false")
        return values

    def to_json(self) -> str:
        """The section as canonical JSON: equal sections give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a section back from :meth:`to_json`'s text.

        Raises:
            ConfigError: the text is not such a section.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"section {cls.__name__}: not JSON ({error})") from None
        return parse_section(cls, value, f"section {cls.__name__}")

    def digest(self) -> str:
        """The section's content hash."""
        return content_hash(self.model_dump(mode="json"))
