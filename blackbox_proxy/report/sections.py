"""The parts of the page around the texts: figures in short, plots along a text, tables of influence, alpha, reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from blackbox_proxy.analysis import LOW, Group, Moved
from blackbox_proxy.report import plots
from blackbox_proxy.report.numbers import money, num, percent, signed
from blackbox_proxy.report.overview import Overview, View
from blackbox_proxy.screen.visible import quoted, visible_text
from blackbox_proxy.trace import TracedText

_PROMPT = 3000  # characters of a prompt that are shown
_INDEX = 500  # texts that the index lists


def safe(text: object) -> str:
    """Anything as text of a page."""
    return escape(visible_text(str(text), breaks=True))


def _weights(weights: Any) -> str | None:
    """Learned weights in a line."""
    if not isinstance(weights, Mapping):
        return None
    antiexperts = [weight for weight in weights["antiexperts"] if weight is not None]
    numbers = [weights["base"], *weights["experts"], *antiexperts, weights["tail"]]
    return ", ".join(f"{number:.3g}" for number in numbers)


# -- the top ----------------------------------------------------------------------------------------------------------


def head(overview: Overview) -> str:
    settings, summary = overview.settings, overview.summary
    named = [
        ("base", settings.get("base")),
        ("expert", settings.get("expert")),
        ("anti-expert", settings.get("antiexpert")),
        ("alpha", settings.get("alpha")),
        ("weights", _weights(settings.get("weights"))),
        ("tail", settings.get("tail")),
        ("candidates asked for", settings.get("top_logprobs")),
        ("temperature", settings.get("temperature")),
    ]
    said = " · ".join(f"{name} <b>{safe(value)}</b>" for name, value in named if value is not None)
    whole, usage = summary.overall, summary.usage
    tiles = [
        (f"{summary.tokens}", f"tokens in {summary.texts} text{'s' if summary.texts != 1 else ''}"),
        (percent(whole.changed), "likeliest token changed by the proxy"),
        (percent(whole.beyond), "chosen from beyond what the base showed"),
        (num(whole.distance), "mean distance of p from q (total variation, 0 to 1)"),
        (percent(summary.covered_mass), "of the base’s probability was shown, on average"),
        (f"{summary.calls_per_token:.2f}", f"calls per token ({usage.api_calls} in all)"),
        (percent(summary.drafted), "of tokens accepted from a draft"),
    ]
    if summary.cost is not None:
        billed = f"{usage.prompt_tokens} prompt + {usage.completion_tokens} output tokens"
        tiles.append((money(summary.cost), f"cost, by the prices given, of {billed}"))
    shown = "".join(f"<li><b>{value}</b>{label}</li>" for value, label in tiles)
    warned = "".join(f'<p class="say">{safe(line)}</p>' for line in advice(overview))
    return (
        f'<header><h1>What the proxy did</h1><p class="soft">{said or safe(overview.name)}</p></header>'
        f'<ul class="tiles">{shown}</ul>{warned}\n'
    )


def advice(overview: Overview) -> list[str]:
    """What should be known of the trace before its numbers are believed, in words."""
    summary, found = overview.summary, []
    if overview.trace.torn:
        found.append("The last line of the trace was cut off and is left out.")
    failed = sum(view.text.error is not None for view in overview.views)
    if failed:
        found.append(f"{failed} of {summary.texts} texts ended too early, with an error; what there was is counted.")
    if summary.low:
        found.append(
            f"At {summary.low} of {summary.overall.tokens} places the base showed less than {LOW:.0%} of its "
            "probability: what it hides is estimated there. More candidates (top_logprobs) would tell."
        )
    if overview.trace.alpha == 0.0:
        found.append("Alpha is 0: p is the base’s own distribution, so nothing was moved.")
    return found


def index(views: Sequence[View], shown: int) -> str:
    """The list of texts, where there are several."""
    if len(views) == 1:
        return ""
    rows = "".join(_entry(view, linked=view.number <= shown) for view in views[:_INDEX])
    said = f" The first {shown} are shown below; all are counted." if shown < len(views) else ""
    listed = f" The list holds the first {_INDEX}." if len(views) > _INDEX else ""
    return (
        f'<nav><h2>Texts</h2><p class="soft">{len(views)} texts.{said}{listed}</p><ol class="index">{rows}</ol></nav>\n'
    )


def _entry(view: View, *, linked: bool) -> str:
    begins = safe(" ".join(_prompt(view.text.prompt).split())[-60:]) or "(no prompt)"
    name = f'<a href="#s{view.number}">{begins}</a>' if linked else begins
    error = " · ended with an error" if view.text.error else ""
    figures = f"{view.summary.tokens} tokens, {percent(view.summary.overall.changed)} changed{error}"
    return f"<li><bdi>{name}</bdi> <small>{figures}</small></li>"


def _finish(text: TracedText) -> str:
    """Why it ended, and the server's own word for it where there is one."""
    reason = text.steps[-1].reason if text.steps else None
    return f"{text.finish_reason}" + ("" if reason is None else f" ({reason})")


def _prompt(prompt: Any) -> str:
    """A prompt as text: messages with their roles, token ids as numbers."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(isinstance(part, dict) for part in prompt):
        return "\n\n".join(f"{part.get('role', '?')}: {part.get('content', '')}" for part in prompt)
    return f"token ids {prompt}"


# -- one text ---------------------------------------------------------------------------------------------------------


def text_head(view: View) -> str:
    prompt, summary, text = _prompt(view.text.prompt), view.summary, view.text
    short = prompt if len(prompt) <= _PROMPT else f"… {prompt[-_PROMPT:]}"
    left = f" (the last {_PROMPT} characters)" if short is not prompt else ""
    named = f"row {safe(text.id)} · " if text.id is not None else ""
    ended = f"ended by {safe(text.error)}" if text.error else f"finished: {safe(_finish(text))}"
    return (
        f'<p class="soft">{named}{summary.tokens} tokens, {percent(summary.overall.changed)} changed, '
        f"{summary.usage.api_calls} calls · {ended}</p>"
        f"<details{' open' if len(prompt) < 400 else ''}><summary>Prompt{left}</summary>"
        f'<div class="prompt" dir="auto">{safe(short)}</div></details>'
    )


def along(view: View, text: str) -> str:
    """What happened along a text, one unit of width for each token."""
    xs = ("1", f"token {len(view.places)}")
    figures = [
        plots.figure(caption, svg, ys, xs)
        for caption, svg, ys in (_shifts(view, text), _covered(view, text), _accepted(view, text), _calls(view, text))
    ]
    return f'<div class="two">{"".join(figures)}</div>'


_Figure = tuple[str, str, tuple[str, str, str]]
"""Its caption, its picture, and what stands at the top, in the middle and at the bottom."""


def _shifts(view: View, text: str) -> _Figure:
    shifts = [place.shift for place in view.places]
    bars = (
        plots.bars([max(value, 0.0) for value in shifts], "up", zero=0.5, scale=0.5),
        plots.bars([min(value, 0.0) for value in shifts], "down", zero=0.5, scale=0.5),
    )
    svg = plots.plot(len(shifts), bars, label="Shift of each token along the text", text=text, lines=(0.5,))
    caption = f"{_swatch('up')}raised and {_swatch('down')}lowered: p − q of the chosen token"
    return caption, svg, ("+1", "0", "−1")


def _covered(view: View, text: str) -> _Figure:
    # a closing step has no candidates, so nothing to cover
    covered = [place.covered_mass if place.chosen is not None else 1.0 for place in view.places]
    layers = (plots.area(covered, "covf"), plots.bars([place.tail_mass for place in view.places], "lowf"))
    svg = plots.plot(len(covered), layers, label="Covered mass and tail mass along the text", text=text, lines=(LOW,))
    caption = (
        f"{_swatch('call')}covered mass: the share of the base’s probability that it showed, and "
        f"{_swatch('low')}the share of p on tokens that it did not show"
    )
    return caption, svg, ("1", f"{LOW:g}", "0")


def _accepted(view: View, text: str) -> _Figure:
    layers = (plots.steps(view.course.accepted, "ups"),)
    svg = plots.plot(len(view.places), layers, label="Acceptance along the text", text=text, lines=(0.5,))
    caption = f"{_swatch('up')}accepted: the share of the last 20 tokens that came from a draft"
    return caption, svg, ("100 %", "50 %", "0")


def _calls(view: View, text: str) -> _Figure:
    course = view.course
    calls, cost = (course.calls[-1] if course.calls else 0), (course.cost[-1] if course.cost else 0.0)
    spent = [plots.steps([n / max(calls, 1) for n in course.calls], "call")]
    caption = f"{_swatch('call')}calls so far, {calls} in all"
    if cost:
        spent.append(plots.steps([value / cost for value in course.cost], "downs dash"))
        caption += f"; {_swatch('down')}dashed: cost so far, {money(cost)} in all"
    svg = plots.plot(len(view.places), spent, label="Calls and cost along the text", text=text)
    return caption, svg, (f"{calls}", "", "0")


def _swatch(colour: str) -> str:
    return f'<span class="sw" style="background:var(--{colour})"></span>'


# -- all texts --------------------------------------------------------------------------------------------------------


def influence(overview: Overview) -> str:
    """Which tokens the proxy moves most: by kind, by place, by side of an equation, by token."""
    parts = [
        "<section><h2>Which tokens the proxy moves</h2>",
        '<p class="soft">Over all texts. Distance: mean total variation between q and p, the bar. Shift: mean p − q of '
        "the chosen token. Changed: places whose likeliest token is no more the base’s.</p>",
        '<div class="two"><div><h3>By kind of token</h3>',
        _groups(overview.kinds, "kind"),
        "</div><div><h3>By place in the text</h3>",
        _groups(overview.positions, "token"),
        "</div></div>",
    ]
    if overview.sides:
        parts += ["<h3>In equations</h3>", _groups(overview.sides, "side")]
    if overview.moved:
        parts += [
            "<h3>Tokens raised most</h3>",
            '<p class="soft">By mean shift where they were chosen; where they stand most often.</p>',
            _moved(overview.moved),
        ]
    return "".join((*parts, "</section>\n"))


def _groups(groups: Iterable[Group], name: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(group.name)}</td><td>{group.tokens}</td>"
        f'<td class="v" style="--w:{100 * group.distance:.0f}">{num(group.distance)}</td>'
        f"<td>{signed(group.shift)}</td><td>{percent(group.changed)}</td></tr>"
        for group in groups
    )
    return (
        f'<table class="bars"><thead><tr><th>{name}</th><th>number</th><th>distance</th><th>shift</th><th>changed</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _moved(moved: Iterable[Moved]) -> str:
    rows = "".join(
        f'<tr><td class="t">{escape(quoted(one.token, end=one.end))}</td><td>{one.count}</td>'
        f"<td>{signed(one.shift)}</td><td>{percent(one.changed)}</td>"
        f'<td class="t">{_context(one)}</td></tr>'
        for one in moved
    )
    return (
        '<table class="bars"><thead><tr><th>token</th><th>times</th><th>shift</th><th>changed</th><th class="t">as in'
        f"</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _context(one: Moved) -> str:
    before, after = (escape(quoted(part)) if part else "" for part in one.context)
    token = escape(quoted(one.token, end=one.end))
    return f'<span class="soft">{before}</span><b>{token}</b><span class="soft">{after}</span>'


# -- alpha ------------------------------------------------------------------------------------------------------------


def alphas(overview: Overview) -> str:
    """Another alpha: the curve over the stored candidates, and the traces given as points on it."""
    if not overview.sweep:
        return ""
    said = (
        "<p>The text is held as it is. At every place p is computed anew, at other alphas, from the candidates that "
        "the trace has stored; the upright line is the alpha that was used. A text decoded at another alpha would go "
        "its own way from the first token that differs, so the curve is what changes <em>at these places</em>.</p>"
    )
    table = _runs(overview) if len(overview.runs) > 1 else ""
    return f"<section><h2>Another alpha</h2>{said}{_curve(overview)}{table}</section>\n"


def _curve(overview: Overview) -> str:
    points, alpha = overview.sweep, overview.trace.alpha
    unit, widest = alpha or 1.0, points[-1].scale
    known = [(run.alpha / unit, run) for run in overview.runs if run.alpha is not None] if alpha is not None else []
    if unit < 0:  # a curve to the left makes no picture that anybody expects
        known = []
    reach = max([widest, *(scale for scale, _ in known)])
    layers = (
        plots.upright(1.0),
        plots.line([(point.scale, point.changed) for point in points], "far"),
        plots.line([(point.scale, point.kept) for point in points], "ups"),
        plots.line([(point.scale, point.distance) for point in points], "downs dash"),
        *(plots.dot(scale, run.summary.overall.changed, "far") for scale, run in known if scale >= 0.0),
    )
    svg = plots.plot(reach, layers, label="Share of changed tokens over alpha", lines=(0.25, 0.5, 0.75))
    ticks = [f"{reach * unit * i / 4:.3g}" for i in range(5)]
    ticks[-1] = f"alpha {ticks[-1]}" if alpha is not None else f"{reach:.3g} × the alpha used"
    caption = (
        f"{_swatch('far')}likeliest token is not the base’s{' (dots: measured in the traces)' if known else ''}, "
        f"{_swatch('up')}likeliest token is this text’s, {_swatch('down')}dashed: distance of p from q"
    )
    return plots.figure(caption, svg, ("100 %", "50 %", "0"), ticks, tall=True)


def _runs(overview: Overview) -> str:
    priced = overview.summary.cost is not None
    rows = "".join(
        f"<tr><td>{safe(run.name)}</td><td>{'–' if run.alpha is None else f'{run.alpha:g}'}</td>"
        f"<td>{run.summary.texts}</td><td>{run.summary.tokens}</td><td>{percent(run.summary.overall.changed)}</td>"
        f"<td>{num(run.summary.overall.distance)}</td><td>{run.summary.calls_per_token:.2f}</td>"
        + (f"<td>{money(run.summary.cost)}</td>" if run.summary.cost is not None else "")
        + "</tr>"
        for run in overview.runs
    )
    cost = "<th>cost</th>" if priced else ""
    return (
        "<h3>The traces</h3><table><thead><tr><th>trace</th><th>alpha</th><th>texts</th><th>tokens</th><th>changed</th>"
        f"<th>distance</th><th>calls/token</th>{cost}</tr></thead><tbody>{rows}</tbody></table>"
    )


# -- how to read it ---------------------------------------------------------------------------------------------------


def reading(candidates: int) -> str:
    return f"""<section><h2>How to read this</h2>
<p>Proxy-tuning weighs each candidate of the base by the ratio of expert to anti-expert:
p ∝ q · (E / A)<sup>alpha</sup>. <b>q</b> is the base’s probability, <b>E</b> the expert’s, <b>A</b> the
anti-expert’s, <b>p</b> what the token was chosen by.</p>
<p><b>Shift</b> is p − q of the chosen token, <b>distance</b> half the sum of |p − q| over all candidates. For both, q
is normalised over the same candidates as p, so that what the base hides counts as no shift; the tables of candidates
show q as the base gave it.</p>
<p>Of each token at most {candidates} candidates are shown (those likeliest under p or q) and the chosen one; the others
are counted together. ▸ the chosen one; ~ q is an estimate, because the base did not show this token; ≈ E and A
are estimates, since no sum could have changed the choice; † they are of the longest part of the token that could be
scored; ‡ nothing is known of it, so its q is left as it is. The thin lines under a candidate are q (grey) and p (blue).
‥ a character that the next token finishes.</p>
<p>“By kind” and “by place” continue the analyses of the proxy-tuning paper (Liu et al. 2024, arXiv 2401.08565, section
6), whose Δ is the shift.</p></section>
"""
