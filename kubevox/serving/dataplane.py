"""KServe's data plane, for which whatever it cannot take apart is the client's error."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import ValidationError

from kubevox.serving.library import DataPlane, InferenceRequest, InferRequest, InvalidInput, RequestInput

__all__ = ["CheckedDataPlane", "first_problem"]

_BINARY = "inference-header-content-length"


class _BinaryInput(RequestInput):
    """An input whose data may lie behind the JSON."""

    data: list[Any] | None = None


class _BinaryRequest(InferenceRequest):
    """The JSON part of a request of the binary data extension."""

    inputs: list[_BinaryInput]


class CheckedDataPlane(DataPlane):
    """A request that KServe cannot take apart is the client's error.

    Args:
        model_registry: KServe's.
        max_instances: recordings a request may hold.
    """

    def __init__(self, model_registry: Any, max_instances: int) -> None:
        super().__init__(model_registry)
        # Far more than any request needs. Millions of empty objects fit a body, and all else would wait for them.
        self._most_commas = 10_000 + 16 * max_instances

    def metadata(self) -> dict[str, Any]:
        """KServe's, without the extension that is closed here."""
        return super().metadata() | {"extensions": ["binary_tensor_data"]}

    def decode(
        self,
        body: Any,
        headers: dict[str, str] | None,
        protocol_version: str = "v1",
        model_name: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """KServe's, for a V1 body of whatever content type."""
        # Only a content type of exactly application/json is JSON to KServe; here every V1 body is.
        if isinstance(body, bytes) and protocol_version == "v1":
            self._refuse_many_elements(body)
        kept = {name: value for name, value in (headers or {}).items() if name != "content-type"}
        try:
            return super().decode(body, kept, protocol_version, model_name)
        except InvalidInput:
            raise
        except Exception as error:  # whatever the bytes of a client make KServe's parsers raise
            raise InvalidInput(f"not a request that can be read: {type(error).__name__}: {error!s:.200}") from None

    def decode_inference_request(
        self, body: bytes | InferenceRequest, headers: dict[str, str], model_name: str | None
    ) -> InferRequest:
        """KServe's, with the types of a binary request checked first."""
        if isinstance(body, bytes):
            # KServe takes the JSON of a binary request as it is, whatever the types in it.
            length = headers.get(_BINARY)
            if length is not None and not (length.isdecimal() and len(length) < 20):
                raise InvalidInput(f"header {_BINARY}: expected a number, got {length[:20]!r}")
            described = body[: int(length)] if length else body
            self._refuse_many_elements(described)
            try:
                content = orjson.loads(described)
                if not isinstance(content, dict):
                    raise InvalidInput('expected a JSON object: {"inputs": [...]}')
                parsed = (_BinaryRequest if length else InferenceRequest).model_validate(content)
            except orjson.JSONDecodeError as error:
                raise InvalidInput(f"not valid JSON: {error}") from None
            except ValidationError as error:
                raise InvalidInput(first_problem(error.errors())) from None
            if length is None:
                body = parsed
        else:
            parsed = body
        for text in (parsed.id or "", *(item.name for item in parsed.inputs)):
            if not _is_unicode(text):
                raise InvalidInput("the request holds text that is not valid Unicode")
        return super().decode_inference_request(body, headers, model_name)

    def _refuse_many_elements(self, text: bytes) -> None:
        if text.count(b",") > self._most_commas:
            raise InvalidInput(f"JSON with more than {self._most_commas} elements")


def first_problem(errors: Any) -> str:
    """The first of pydantic's complaints about a body, in one line."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"not valid JSON: {first['ctx']['error']}"
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
    return f"{place or 'body'}: {first['msg']}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
