"""What lies in a model's folder or hub repository, beside its weights: read, never trusted to be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def file_of(name: str, file: str) -> Path | None:
    """One file of a folder or hub id; None where it has none, or cannot be reached."""
    if Path(name).is_dir():
        found = Path(name) / file
        return found if found.is_file() else None
    from transformers.utils import cached_file

    try:
        path = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except Exception:  # not a hub id, no right to it …: whoever loads the model will say so
        return None
    return None if path is None else Path(path)


def declared(name: str, file: str) -> dict[str, Any]:
    """What a JSON file of a folder or hub id says; nothing where there is none that can be read."""
    path = file_of(name, file)
    try:
        found = {} if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def declared_ends(name: str) -> list[int]:
    """The ids that end a text as the model's own files say it; none where they do not.

    A configuration class has a default for what its file leaves out (2 for Llama), which may be any word. Models that
    also see or hear keep it in the configuration of their text part.
    """
    config = declared(name, "config.json")
    parts = [config.get(key) for key in ("text_config", "language_config", "llm_config")]
    for said in (declared(name, "generation_config.json"), config, *parts):
        ends = said.get("eos_token_id") if isinstance(said, dict) else None
        if ends is not None:
            return [int(i) for i in (ends if isinstance(ends, list) else [ends])]
    return []
