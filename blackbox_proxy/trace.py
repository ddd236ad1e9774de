"""A trace: finished texts with every step and all its candidates in a file, to be looked at later (`report`).

JSON lines in UTF-8. The first line says what the file is and how its texts were decoded:

    {"format": "blackbox-proxy trace", "version": 1, "package": "0.1.0", "settings": {"alpha": 1.0, …}, "notice": "…"}

Then one line for each text:

    {"row": …, "prompt": …, "id": …, "text": "…", "finish_reason": "stop", "error": null, "steps": [step, …]}

"row" is the place of a bulk run's row among all rows, else null. A step has its token (text, or a list of bytes where
it is no whole UTF-8), the text it released, its id, covered mass, what was spent (`usage`, without zeros), `drafted`,
`local`, `changed` and `end` where they are true, and its candidates as columns: `tokens`, `ids`, `log_q`, `log_expert`,
`log_antiexpert`, `log_p` (nats, six decimals; null is minus infinity); the places of those that are `ends` or of the
`tail`, and of those whose offset is `estimated`, of a `prefix` or `neutral`; `texts` where the API printed a token
otherwise than its bytes read.

A trace holds the prompts and the texts themselves, and no API key or address.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np

from blackbox_proxy.errors import InputError
from blackbox_proxy.text.reading import unmarked
from blackbox_proxy.tuner import Texts
from blackbox_proxy.types import Candidates, FinishReason, Floats, Generation, How, Prompt, Step, Token, Usage
from blackbox_proxy.version import __version__

FORMAT = "blackbox-proxy trace"
VERSION = 1

_NOTICE = "This file holds the prompts and the decoded texts in full. It holds no API key."
_DECIMALS = 6
_TRUTHS = ("drafted", "local", "changed", "end")


@dataclass(frozen=True, slots=True)
class TracedText:
    """One text of a trace. `error`: why it ended too early, if it did; `finish_reason` is None then."""

    prompt: Any
    text: str
    steps: tuple[Step, ...] = field(repr=False)
    finish_reason: FinishReason | None
    id: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace as it was read. `settings`: how its texts were decoded. `torn`: its last line was not whole."""

    settings: Mapping[str, Any]
    texts: tuple[TracedText, ...]
    package: str = __version__
    torn: bool = False

    @property
    def alpha(self) -> float | None:
        """The weight of the pair, where it was one number."""
        value = self.settings.get("alpha")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class TraceFile:
    """A trace that is being written, one text at a time.

    The file is made when this is, so that a name that cannot be written costs nothing. Raises InputError for that, for
    a file that is there already (unless `overwrite`), and with `append` for one that is no trace of the same settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any] | None = None, *, append: bool = False, overwrite: bool = False
    ) -> None:
        self.path = path
        self._file: IO[bytes]
        self._empty = False
        header = {
            "format": FORMAT,
            "version": VERSION,
            "package": __version__,
            "settings": dict(settings or {}),
            "notice": _NOTICE,
        }
        try:
            if append and path.exists() and path.stat().st_size:
                self._file = _continued(path, header)
                return
            self._file = path.open("wb" if overwrite or append else "xb")
        except FileExistsError as error:
            raise InputError(f"{path} exists already", hint="Name another file for the trace.") from error
        except OSError as error:
            raise InputError(f"the trace {path} cannot be written: {error}", hint="Name another file.") from error
        self._write(header)
        self._empty = True

    def add(
        self,
        prompt: Prompt,
        steps: Sequence[Step],
        *,
        id: Any = None,
        row: int | None = None,
        error: BaseException | str | None = None,
    ) -> None:
        """One text: its steps, and where it ended too early why; `row`: which of a run's it is, see `retain`."""
        steps = tuple(steps)
        self._empty = False
        said = (
            ": ".join(filter(None, (type(error).__name__, str(error)))) if isinstance(error, BaseException) else error
        )
        self._write(
            {
                "row": row,
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "id": id,
                "text": "".join(step.text for step in steps),
                "finish_reason": steps[-1].finish_reason if steps else None,
                **({"reason": steps[-1].reason} if steps and steps[-1].reason is not None else {}),
                "error": said,
                "steps": [_step_record(step) for step in steps],
            }
        )

    def retain(self, done: Callable[[int], bool]) -> None:
        """Leave out the texts of rows that are not done: they are asked again, and stand here once."""
        with self.path.open("rb") as lines:
            left_out = any(_is_of_other(line, done) for line in lines)
        if not left_out:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        with self.path.open("rb") as lines, new.open("wb") as kept:
            kept.writelines(line for line in lines if not _is_of_other(line, done))
        self._file.close()
        new.replace(self.path)
        self._file = self.path.open("ab")

    def close(self) -> None:
        """A new file that no text came to is taken away again, so that the next try finds its name free."""
        self._file.close()
        if self._empty:
            self.path.unlink(missing_ok=True)
            self._empty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        """One line, with one call."""
        try:
            line = json.dumps(record, ensure_ascii=False, default=str, separators=(",", ":")).encode()
        except UnicodeEncodeError:  # half characters in what somebody passed through
            line = json.dumps(record, default=str, separators=(",", ":")).encode()
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"the trace {self.path} cannot be written: {error.strerror or error}", hint="Make room for it."
            ) from error


class TracedTuner(Texts):
    """A tuner whose texts are put into a trace as they end, too early or not. What makes no text has no place in a
    trace, and is refused: ask the tuner itself.
    """

    def __init__(self, tuner: Texts, trace: TraceFile) -> None:
        self._tuner = tuner
        self._trace = trace
        self.equation = tuner.equation

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tuner, name)
        if callable(found) and name != "close":
            raise InputError(f"a trace keeps texts, and {name} makes none", hint="Ask the tuner without a trace.")
        return found

    def check(self, prompt: Prompt, max_tokens: int = 256) -> None:
        self._tuner.check(prompt, max_tokens)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Step]:
        steps: list[Step] = []
        why: BaseException | None = None
        asked = self._tuner.astream(prompt, **options)
        try:
            async for step in asked:
                steps.append(step)
                yield step
        except BaseException as error:
            why = error
            raise
        finally:
            await cast(Any, asked).aclose()
            if steps:
                self._trace.add(prompt, steps, error=None if steps[-1].finish_reason else why)


def write_trace(
    path: Path | str,
    texts: Iterable[tuple[Prompt, Generation]],
    settings: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write finished texts with their prompts. `settings`: whatever tells how they were decoded; `alpha` (a number) and
    `prices` ("1.5,1.5,2") are understood by the report. Raises InputError where the file cannot be written.
    """
    with TraceFile(Path(path), settings, overwrite=overwrite) as trace:
        for prompt, generation in texts:
            trace.add(prompt, generation.steps)


def read_trace(path: Path | str) -> Trace:
    """What `write_trace` or --trace wrote. Raises InputError for what is no trace, or one of a later version.

    A last line that was cut off (a process killed while it wrote) is left out, and `torn` says so.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _header(file.readline(), path)
            texts, torn = [], False
            for number, line in enumerate(unmarked(file), 2):
                if not line.endswith(b"\n"):
                    torn = True
                    break
                try:
                    texts.append(_text(json.loads(line)))
                except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                    raise InputError(
                        f"{path}, line {number}: {_reason(error)}", hint="The trace is damaged: make it anew."
                    ) from error
    except OSError as error:
        raise InputError(f"the trace {path} cannot be read: {error}", hint="Name a file that --trace wrote.") from error
    return Trace(header.get("settings") or {}, tuple(texts), str(header.get("package", "")), torn)


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(line)
        ours = isinstance(header, dict) and header.get("format") == FORMAT
    except ValueError:
        ours = False
    if not ours:
        raise InputError(f"{path} is no trace", hint="Name a file that `generate --trace` or `run --trace` wrote.")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise InputError(
            f"{path} is a trace of version {header.get('version')}, this reads {VERSION}",
            hint="Update blackbox-proxy.",
        )
    return dict(header)


def _continued(path: Path, header: Mapping[str, Any]) -> IO[bytes]:
    """A trace to go on with; a line that was cut off goes."""
    with path.open("rb") as before:
        there = _header(before.readline(), path)
    if _deciding(there.get("settings")) != _deciding(json.loads(json.dumps(header["settings"], default=str))):
        raise InputError(
            f"{path} is a trace of texts decoded with other settings", hint="Name another file for the trace."
        )
    file = path.open("r+b")
    whole = path.stat().st_size
    while whole > 0:
        file.seek(whole - 1)
        if file.read(1) == b"\n":
            break
        whole -= 1
    file.truncate(whole)
    file.seek(whole)
    return file


_ROW = re.compile(rb'\{"row":(\d+),')


def _is_of_other(line: bytes, done: Callable[[int], bool]) -> bool:
    """Whether a line is of a row that is not done."""
    found = _ROW.match(line)
    return found is not None and not done(int(found[1]))


def _deciding(settings: Any) -> Any:
    """Settings without the prices: those decide no text."""
    return {key: value for key, value in settings.items() if key != "prices"} if isinstance(settings, dict) else None


# -- a step as plain data ---------------------------------------------------------------------------------------------


def _step_record(step: Step) -> dict[str, Any]:
    record: dict[str, Any] = {"token": _spelled(step.token), "text": step.text, "id": step.token_id}
    record["covered_mass"] = round(float(step.covered_mass), _DECIMALS)
    record |= {name: True for name in _TRUTHS if getattr(step, name)}
    if step.finish_reason is not None:
        record["finish_reason"] = step.finish_reason
    if step.reason is not None:
        record["reason"] = step.reason
    usage = {name: value for name, value in asdict(step.usage).items() if value}
    if usage:
        record["usage"] = usage
    record["candidates"] = _candidates_record(step.candidates)
    return record


def _candidates_record(candidates: Candidates) -> dict[str, Any]:
    tokens = candidates.tokens
    record: dict[str, Any] = {
        "tokens": [None if token.bytes is None else _spelled(token.bytes) for token in tokens],
        "ids": [token.id for token in tokens],
        "log_q": _numbers(candidates.log_q),
        "log_expert": _numbers(candidates.log_expert),
        "log_antiexpert": _numbers(candidates.log_antiexpert),
        "log_p": _numbers(candidates.log_p),
    }
    places = {
        "ends": [i for i, token in enumerate(tokens) if token.end],
        "tail": [int(i) for i in np.flatnonzero(candidates.tail)],
        "estimated": [i for i, how in enumerate(candidates.how) if how == "estimated"],
        "prefix": [i for i, how in enumerate(candidates.how) if how == "prefix"],
        "neutral": [i for i, how in enumerate(candidates.how) if how == "neutral"],
    }
    texts = {str(i): token.text for i, token in enumerate(tokens) if token.text != _printed(token.bytes)}
    return record | {name: found for name, found in places.items() if found} | ({"texts": texts} if texts else {})


def _spelled(token: bytes) -> str | list[int]:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return list(token)


def _printed(token: bytes | None) -> str:
    return "" if token is None else token.decode("utf-8", "replace")


def _numbers(values: Floats) -> list[float | None]:
    return [round(value, _DECIMALS) if math.isfinite(value) else None for value in values.tolist()]


# -- and back ---------------------------------------------------------------------------------------------------------


def _text(record: Mapping[str, Any]) -> TracedText:
    return TracedText(
        record["prompt"],
        str(record["text"]),
        tuple(_step(step) for step in record["steps"]),
        record["finish_reason"],
        record.get("id"),
        record.get("error"),
    )


def _step(record: Mapping[str, Any]) -> Step:
    return Step(
        token=_bytes(record["token"]) or b"",
        text=record["text"],
        token_id=record["id"],
        candidates=_candidates(record["candidates"]),
        covered_mass=float(record["covered_mass"]),
        drafted=bool(record.get("drafted")),
        changed=bool(record.get("changed")),
        end=bool(record.get("end")),
        finish_reason=record.get("finish_reason"),
        usage=Usage(**record.get("usage", {})),
        local=bool(record.get("local")),
        reason=record.get("reason"),
    )


def _candidates(record: Mapping[str, Any]) -> Candidates:
    ends, texts = set(record.get("ends", ())), record.get("texts", {})
    spellings = [_bytes(spelling) for spelling in record["tokens"]]
    tokens = tuple(
        Token(id, spelling, texts.get(str(i), _printed(spelling)), i in ends)
        for i, (id, spelling) in enumerate(zip(record["ids"], spellings, strict=True))
    )
    count = len(tokens)
    tail = np.zeros(count, dtype=np.bool_)
    tail[record.get("tail", [])] = True
    how: list[How] = ["exact"] * count
    kinds: tuple[How, ...] = ("estimated", "prefix", "neutral")
    for kind in kinds:
        for i in record.get(kind, ()):
            how[i] = kind
    columns = [_floats(record[name]) for name in ("log_q", "log_expert", "log_antiexpert", "log_p")]
    if any(len(column) != count for column in columns):
        raise ValueError("columns of unequal length")
    return Candidates(tokens, columns[0], columns[1], columns[2], columns[3], tail, tuple(how))


def _bytes(spelling: str | list[int] | None) -> bytes | None:
    return spelling.encode("utf-8") if isinstance(spelling, str) else None if spelling is None else bytes(spelling)


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([-np.inf if value is None else value for value in values], dtype=np.float64)
