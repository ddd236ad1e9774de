"""The routes as an OpenAPI description, for tools that read one. Pure.

What a field may hold is what requests.py reads; bounds that hang on the model (`logprobs`, the window) are not in it,
so a request that fits the description may still be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from blackbox_proxy.serve.requests import ChatRequest, CompletionRequest
from blackbox_proxy.serve.wire import Json

_REFUSED = {
    "400": "What was asked for cannot be given; the error's `param` names the field.",
    "401": "A key is needed.",
    "403": "Called by a name, or from a page, that is not allowed.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "429": "There is no room, or the base's API has none: `Retry-After` says when there may be.",
    "500": "A defect of the server, or the base's API refused what it was sent.",
    "502": "The base's API cannot be reached.",
    "503": "The server is ending, or has as much in work as it takes.",
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(version: str, own_fields: Mapping[str, Json], others: Mapping[str, str]) -> Json:
    """The description. own_fields: schemas of a request's fields besides, or in place of those of all models; others:
    routes that are only read, each with what it tells.
    """
    models: list[type[BaseModel]] = [CompletionRequest, ChatRequest]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = schemas["$defs"]
    for model in models:
        found[model.__name__]["properties"] |= own_fields
    paths: Json = {
        "/v1/completions": {"post": _written("Continue a text", "CompletionRequest", "a text_completion")},
        "/v1/chat/completions": {"post": _written("Answer messages", "ChatRequest", "a chat.completion")},
        "/v1/models": {"get": _read("The models that are served")},
        "/v1/models/{name}": {
            "get": {
                **_read("One of them"),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
    }
    paths |= {path: {"get": _read(told)} for path, told in others.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "blackbox_proxy", "version": version},
        "paths": paths,
        "components": {"schemas": {**found, "Error": _ERROR}},
    }


def _written(summary: str, model: str, answer: str) -> Json:
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    told = f"{answer}, or a stream of its chunks where `stream` is true"
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": told, "content": _STREAMED}, **_responses()},
    }


_STREAMED: Json = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {}}}


def _read(summary: str) -> Json:
    return {"summary": summary, "responses": {"200": {"description": summary}, **_responses()}}


def _responses() -> Json:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": told, "content": error} for status, told in _REFUSED.items()}
