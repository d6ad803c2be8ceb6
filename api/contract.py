"""The OpenAPI document as it is published and committed: `python -m bpfilter.api.contract`.

FastAPI would describe refusals as plain JSON and add a validation error of its own shape; here
every refusal is what it really is, an RFC 9457 problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bpfilter.api.problems import MEDIA_TYPE

_OTHERS = ("HTTPValidationError", "ValidationError")
_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of an application; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version=app.openapi_version,
            description=app.description,
            routes=app.routes,
            separate_input_output_schemas=app.separate_input_output_schemas,
        )
        for operation in _operations(document):
            _mend(operation["responses"])
        for name in _OTHERS:
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from (found for method, found in path.items() if method in _METHODS)


def _mend(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for status in ("4XX", "5XX"):
        content = responses[status]["content"]
        responses[status]["content"] = {MEDIA_TYPE: next(iter(content.values()))}


def committed() -> str:
    """The text of docs/openapi.json."""
    from bpfilter.api.app import blueprint

    return json.dumps(describe(blueprint()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(committed(), end="")
