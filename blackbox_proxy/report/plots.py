"""Plots as inline SVG without text: lines and areas stretch to any width, labels around them are HTML of fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_TOP = 100  # height of every plot, in its own units


def figure(caption: str, svg: str, ys: Sequence[str], xs: Sequence[str], *, tall: bool = False) -> str:
    """A plot with its labels: `ys` from top to bottom, `xs` from left to right. `caption` is HTML."""
    left = "".join(f"<span>{escape(y)}</span>" for y in ys)
    below = "".join(f"<span>{escape(x)}</span>" for x in xs)
    name = ' class="tall"' if tall else ""
    return (
        f'<figure{name}><figcaption>{caption}</figcaption><div class="ya">{left}</div>{svg}'
        f'<div class="xa">{below}</div></figure>\n'
    )


def plot(width: float, parts: Iterable[str], *, label: str, text: str = "", lines: Sequence[float] = ()) -> str:
    """An SVG `width` units wide; `lines`: heights (0 to 1) of grid lines; `text`: the id of the text below it."""
    grid = "".join(f"M0 {_y(line)}H{_n(width)}" for line in lines)
    linked = f' data-text="{escape(text)}"' if text else ""
    return (
        f'<svg viewBox="0 0 {_n(width)} {_TOP}" preserveAspectRatio="none" role="img" aria-label="{escape(label)}"'
        f'{linked}><path class="grid" d="{grid}"/>{"".join(parts)}</svg>'
    )


def bars(values: Sequence[float], style: str, *, zero: float = 0.0, scale: float = 1.0) -> str:
    """One bar for each value, from the height `zero` (0 to 1) on, a value of 1 being `scale` high."""
    path = "".join(
        f"M{i} {_y(zero)}h1V{_y(zero + scale * value)}h-1z" for i, value in enumerate(values) if abs(value) >= 0.005
    )
    return f'<path class="{style}" d="{path}"/>'


def steps(values: Sequence[float], style: str) -> str:
    """A line that keeps each value (0 to 1) for one unit of width."""
    path = "".join(f"V{_y(value)}h1" for value in values)
    return f'<path class="{style}" d="M0 {_y(values[0])}{path}"/>' if values else ""


def area(values: Sequence[float], style: str) -> str:
    """What is under `steps`."""
    path = "".join(f"V{_y(value)}h1" for value in values)
    return f'<path class="{style}" d="M0 {_TOP}{path}V{_TOP}z"/>' if values else ""


def line(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points (x, height 0 to 1)."""
    path = "L".join(f"{_n(x)} {_y(y)}" for x, y in points)
    return f'<path class="{style}" d="M{path}"/>' if points else ""


def dot(x: float, y: float, style: str) -> str:
    """A point that stays round however the plot is stretched."""
    return f'<path class="dot {style}" d="M{_n(x)} {_y(y)}h0"/>'


def upright(x: float) -> str:
    """A vertical line."""
    return f'<path class="grid" d="M{_n(x)} 0V{_TOP}"/>'


def _y(height: float) -> str:
    return _n(_TOP * (1.0 - min(1.0, max(0.0, height))))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
