"""A server that writes to the terminal of whoever asks it, and what of that may arrive there."""

from __future__ import annotations

import json
import re
import unicodedata

from api_answers import legacy
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

EVIL = (
    "a\x1b[2J\x1b]8;;http://evil.example\x07link\x1b]8;;\x07\x1b]0;title\x1b\\"
    "\x9b31m\x90q\x9c\x00\x08\x7f\r\x0b\x0c\u202etxt\u2066\u2028\u200b\ue000[red]b[/red]:bomb:\U000e0041z"
)
SGR = re.compile(r"\x1b\[[0-9;]*m")
LIVE = re.compile(r"\x1b\[(?:\?25[lh]|2K|\d*A)|\r")  # a line that is drawn again: spinners and bars


async def hostile(request: Request) -> Response:
    if request.method == "GET":
        return JSONResponse({"data": [{"id": "m", "owned_by": EVIL}]})
    body = json.loads(await request.body())
    if body["model"] == "refuses" or body.get("echo"):
        answer = {"error": {"message": f"no: {EVIL}", "type": EVIL, "code": EVIL, "param": EVIL}}
        return JSONResponse(answer, 400, {"x-request-id": "\x9b31m", "retry-after": "0"})
    if body["model"] == "html":
        return Response(f"<html>{EVIL}", 502 if "502" in str(body["prompt"]) else 404)
    n = body.get("max_tokens") or 1
    rows = [(EVIL, -0.1, {EVIL: -0.1, " b": -30.0, "\x1b[31m": -40.0})] * n
    return JSONResponse(legacy(*rows, text=EVIL * n))


def check_harmless(came: str, *, live: bool = False) -> str:
    """What arrived without our own styles, if that is all there was."""
    plain = SGR.sub("", came)
    plain = LIVE.sub("", plain) if live else plain
    bad = {c for c in plain if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    assert not bad, (bad, came)
    return plain
