"""Asking a host over HTTP: the unmodified openai client, plain requests, and what the answers are compared with."""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from typing import Any

import openai
from openai import AsyncOpenAI

SOUP = " ate “naïve” soup — 日本語 €5!"
KEY = "sk-local"
HI: list[Any] = [{"role": "user", "content": "hi"}]
TRIMMING = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CERTIFICATES = ssl.create_default_context()


def client_of(url: str, api_key: str = "none") -> AsyncOpenAI:
    """One set of certificates for all clients: reading them takes longer than most of these tests."""
    http_client = openai.DefaultAsyncHttpxClient(verify=CERTIFICATES)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=30, http_client=http_client)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request that no client library would send."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def spelled(token: str) -> bytes:
    """A token of a completion as bytes."""
    if token.startswith("bytes:"):
        return bytes(int(escape, 16) for escape in re.findall(r"\\x([0-9a-f]{2})", token))
    return token.encode()
