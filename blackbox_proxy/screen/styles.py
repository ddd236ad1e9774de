"""The style sheet that pages with tokens have in common."""

from __future__ import annotations

from importlib.resources import files


def token_styles() -> str:
    """Colours in light and dark, tokens by their shift, and the table of a token's candidates."""
    return (files("blackbox_proxy.screen") / "tokens.css").read_text(encoding="utf-8")
