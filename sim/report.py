"""One run as one self-contained HTML page: nothing is fetched, nothing runs, it opens from a mail in ten years' time.

The page is plain templates over what the verdict and the journal already know. The plots are drawn as SVG with text and
in the page's own colours, so that they can be read in the dark, searched, and read aloud. Everything from outside is
escaped; the same run gives the same page, but for the wall time.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sim import ink, plots
from sim.evidence import WHOLE_RUN, Evidence
from sim.quantities import show_duration, show_factor, show_share
from sim.schedule import MODES, ORDERS
from sim.verdict import Status, Verdict
from sim.workload import Replay, caveat_of
from sim.world import Run

ROWS_MAX = 200
NARROW_IN = 4.6

HEADLINES = {
    Status.PASSED: "passed",
    Status.FAILED: "failed",
    Status.INVALID: "invalid",
    Status.BASELINE_UNHEALTHY: "baseline unhealthy",
    Status.INCONCLUSIVE: "inconclusive",
    Status.CLEANUP_FAILED: "clean-up failed",
    Status.ABORTED: "aborted",
}
STATE_CLASSES = {"OPEN": "bad", "CLOSED": "good"}
LEVEL_CLASSES = {"NORMAL": "good", "EMERGENCY": "bad", "MAINTENANCE": "bad"}
SAMPLED = (
    ": a sample. The verdict and this page saw every turn, but neither each call of the provider "
    "nor breakers that stayed closed, so these are not drawn."
)
OUTCOME_MEANINGS = {
    "answered": "and stored before the client was told",
    "failed": "the client got an error, or gave up",
    "shed": "refused to protect the service or a dependency, or given an apology",
}


def write(run: Run, path: Path, again: str = "") -> None:
    """Write the report of `run` to `path`, as UTF-8 HTML.

    Parameters
    ----------
    run : Run
    path : Path
    again : str
        The command that repeats the run; without it, one with the scenario's file left to fill in.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    path.write_text(page(run, again), encoding="utf-8")


def page(run: Run, again: str = "") -> str:
    """Return the whole page."""
    evidence = run.evidence
    verdict = run.verdict
    return _PAGE.substitute(
        style=_STYLE,
        name=_text(run.scenario.name),
        status=verdict.status.name.lower(),
        headline=HEADLINES[verdict.status],
        meaning=_text(_meaning(verdict)),
        description=_paragraph(run.scenario.description) + _paragraph(caveat_of(run.scenario.workload)),
        facts=_facts(run, evidence),
        expectations=_expectations(run, evidence),
        timeline=_figure(
            "timeline", lambda width: plots.timeline(run, width=width, heading=False), _timeline_words(run, evidence)
        ),
        latency=_figure(
            "latency",
            lambda width: plots.answered_within(run, width=width),
            "The share of arrivals that had their whole answer within a time. A curve ends at its phase's success "
            "rate: a turn without an answer is never within any time.",
        ),
        phases=_phases(evidence),
        accounting=_accounting(verdict),
        failures=_failures(verdict),
        faults=_faults(verdict, evidence),
        breakers=_breakers(evidence),
        levels=_levels(evidence),
        helped=_helped(evidence),
        again=_again(run, again),
    )


# --- sections -----------------------------------------------------------------------------------------------------


def _meaning(verdict: Verdict) -> str:
    failed = sum(not result.held for result in verdict.results)
    if verdict.status is Status.FAILED and not verdict.unbalanced:
        return f"{failed} of {len(verdict.results)} expectations did not hold"
    if verdict.status is Status.PASSED and not verdict.results:
        return "nothing was expected of it"
    return verdict.meaning


def _facts(run: Run, evidence: Evidence) -> str:
    count = run.verdict.accounting
    answered = evidence.arrived.latencies()
    p50, p95 = np.quantile(answered, (0.5, 0.95)) if answered else (np.nan, np.nan)
    share = count.answered / count.arrivals if count.arrivals else np.nan
    facts = [
        ("turns", f"{count.arrivals:,}"),
        ("answered", show_share(share)),
        ("median latency", show_duration(p50)),
        ("95th percentile", show_duration(p95)),
        ("in the world", show_duration(run.virtual_seconds)),
        ("on the wall", f'<span id="wall">{_text(show_duration(run.wall_seconds))}</span>'),
    ]
    if evidence.retried:
        facts.insert(1, ("attempts, by turns", show_factor(len(evidence.attempted) / evidence.arrivals)))
    return "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)


def _expectations(run: Run, evidence: Evidence) -> str:
    if not run.verdict.results:
        return "<p>The scenario expects nothing.</p>"
    rows = []
    for result in run.verdict.results:
        kind, subject = run.scenario.expectations[result.index].window
        span = evidence.window(kind, subject if kind != "always" else WHOLE_RUN)
        where = "-" if span is None else f"{ink.clock(span.start)}–{ink.clock(span.end)}"
        sign = '<span class="yes">held</span>' if result.held else '<span class="no">failed</span>'
        note = " (baseline)" if result.baseline else ""
        rows.append((sign, _text(result.text + note), _text(result.measured), where))
    heads = ("Result", "Expected", "Measured", "From–to")
    return _table("What was expected and what was found", heads, rows, named=1)


def _timeline_words(run: Run, evidence: Evidence) -> str:
    count = run.verdict.accounting
    words = [
        f"{count.answered:,} of {count.arrivals:,} turns were answered, {count.failed:,} failed, {count.shed:,} shed."
    ]
    opened = [change for change in evidence.changes if change.after == "OPEN"]
    if opened:
        times = "once, " if len(opened) == 1 else f"{len(opened):,} times, first "
        words.append(f"Breakers opened {times}{opened[0].breaker} at {ink.clock(opened[0].at)}.")
    if evidence.faults:
        words.append("Shaded: while a fault was in force.")
    return " ".join(words)


def _phases(evidence: Evidence) -> str:
    rows = []
    for name, latencies in plots.phases(evidence).items():
        found = latencies[np.isfinite(latencies)]
        quantiles = np.quantile(found, (0.5, 0.95, 0.99)) if len(found) else np.full(3, np.nan)
        share = len(found) / len(latencies) if len(latencies) else np.nan
        rows.append(
            (
                plots.WORDS.get(name, name),
                f"{len(latencies):,}",
                show_share(share),
                *(show_duration(float(value)) for value in quantiles),
            )
        )
    heads = ("Turns that arrived", "Number", "Answered", "p50", "p95", "p99")
    return _table("Latency is that of answered turns", heads, rows, numbers=range(1, 6))


def _accounting(verdict: Verdict) -> str:
    count = verdict.accounting
    rows = [
        (name, f"{getattr(count, name):,}", show_share(getattr(count, name) / max(1, count.arrivals)), meaning)
        for name, meaning in OUTCOME_MEANINGS.items()
    ]
    sign, words = ("=", "every arrival is accounted for") if count.adds_up else ("≠", "some turns are unaccounted for")
    sum_text = f"{count.answered:,} + {count.failed:,} + {count.shed:,} {sign} {count.arrivals:,} arrivals: {words}"
    if verdict.unbalanced:
        sum_text += f", and Little's law is broken: {_text(verdict.unbalanced)}"
    return _table(sum_text, ("Outcome", "Turns", "Share", "Meaning"), rows, numbers=(1, 2))


def _failures(verdict: Verdict) -> str:
    if not verdict.failures:
        return "<p>Every turn was answered.</p>"
    rows = [(f"<code>{_text(kind)}</code>", f"{count:,}") for kind, count in verdict.failures.items()]
    return _table("Turns without an answer, by the kind of error", ("Error", "Turns"), _bounded(rows), numbers=(1,))


def _faults(verdict: Verdict, evidence: Evidence) -> str:
    if not verdict.faults:
        return "<p>None were injected.</p>"
    rows = []
    for fault in verdict.faults:
        _, start, end = evidence.faults[fault.fault]
        until = ink.clock(end) if fault.fault in evidence.touched else "never lifted"
        touched = f"{fault.touched:,}" if fault.touched else '<span class="no">0: it proved nothing</span>'
        rows.append((_text(fault.what), f"<code>{_text(fault.kind)}</code>", ink.clock(start), until, touched))
    heads = ("Fault", "Kind", "From", "To", "Operations changed")
    return _table("Each fault and how many operations it changed", heads, _bounded(rows), numbers=(2, 3, 4))


def _breakers(evidence: Evidence) -> str:
    if not evidence.changes:
        return "<p>None changed its state.</p>"
    rows = []
    for change in evidence.changes:
        after = f'<span class="{STATE_CLASSES.get(change.after, "")}">{_text(change.after)}</span>'
        name = f"<code>{_text(change.breaker)}</code>"
        rows.append((ink.clock(change.at), name, f"{_text(change.before)} → {after}", _text(change.reason)))
    heads = ("At", "Breaker", "State", "Reason")
    return _table("Every change of state and why", heads, _bounded(rows), numbers=(0,))


def _levels(evidence: Evidence) -> str:
    if not evidence.levels:
        return "<p>The level stayed NORMAL.</p>"
    spent = [
        (_level(level), show_duration(seconds), show_share(seconds / max(evidence.duration_s, seconds)))
        for level, seconds in evidence.time_in_levels().items()
    ]
    rows = []
    for change in evidence.levels:
        health = "-" if change.health is None else f"{change.health:.0f} %"
        step = f"{_text(change.before)} → {_level(change.after)}"
        rows.append((ink.clock(change.at), step, health, _text(change.reason)))
    heads = ("At", "Level", "Health", "Reason")
    return _table("Time in each level", ("Level", "Time", "Share"), spent, numbers=(1, 2)) + _table(
        "Every step and why", heads, _bounded(rows), numbers=(0,)
    )


def _level(level: str) -> str:
    return f'<span class="{LEVEL_CLASSES.get(level, "")}">{_text(level)}</span>'


def _helped(evidence: Evidence) -> str:
    counts = [
        (f"<code>{_text(target)}</code>", _text(what), f"{count:,}")
        for (target, what), count in evidence.help_counts().items()
    ]
    acts = [
        (ink.clock(act.at), f"<code>{_text(act.target)}</code>", _text(act.action), _text(act.reason))
        for act in evidence.operated
    ]
    tables = []
    if counts:
        tables.append(_table("Calls", ("Dependency", "What was done", "Times"), _bounded(counts), numbers=(2,)))
    if acts:
        heads = ("At", "Target", "Action", "Reason")
        tables.append(_table("What operators did", heads, _bounded(acts), numbers=(0,)))
    return "".join(tables) or "<p>No call was retried, hedged or answered by a fallback, and no operator acted.</p>"


def _again(run: Run, again: str) -> str:
    workload = run.scenario.workload
    beside = isinstance(workload, Replay) and not workload.is_named
    source = ["--trace", "TRACE.csv"] if beside else ["SCENARIO.yaml"]
    command = again or shlex.join(["orchestra", "sim", "run", *source, "--seed", str(run.seed), "--door", run.door])
    command += f" --mode {run.mode}" if not again and run.mode != MODES[0] else ""
    facts = [
        ("Seed", f"{run.seed}"),
        ("Door", _text(run.door)),
        ("Order of ready callbacks", _text(ORDERS[run.mode])),
        ("Entries in the journal", f"{len(run.journal):,}{SAMPLED if run.journal.sampled else ''}"),
        ("Digest of the journal", f"<code>{run.journal.digest}</code>"),
        ("Exit code", f"{run.verdict.exit_code}"),
    ]
    if run.scenario.settings:
        chosen = [f"<code>{_text(name)} = {_text(value)}</code>" for name, value in run.scenario.settings.items()]
        facts.append(("Settings of the scenario", "<br>".join(chosen)))
    if run.verdict.left_behind:
        facts.append(("Left behind", "<br>".join(_bounded_items(map(_text, run.verdict.left_behind)))))
    listed = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return f'<pre tabindex="0"><code>{_text(command)}</code></pre><dl class="list">{listed}</dl>'


# --- pieces -------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Escape, and leave out what no HTML page may hold: control characters and lone surrogates."""
    printable = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", str(value)
    )
    return escape(printable)


def _paragraph(text: str) -> str:
    return f"<p>{_text(text.strip())}</p>" if text.strip() else ""


def _bounded_items(items: Iterable[str]) -> list[str]:
    listed = list(items)
    return listed if len(listed) <= ROWS_MAX else [*listed[:ROWS_MAX], f"and {len(listed) - ROWS_MAX:,} more"]


def _bounded(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    if len(rows) <= ROWS_MAX:
        return rows
    empty = [""] * (len(rows[0]) - 1)
    return [*rows[:ROWS_MAX], (f"and {len(rows) - ROWS_MAX:,} more", *empty)]


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]], numbers: Iterable[int] = (), named: int = 0
) -> str:
    """Return a table in a frame that scrolls by itself. Cells are HTML; the `named` one of a row names it."""
    right = dict.fromkeys(numbers, ' class="number"')
    head = "".join(f'<th scope="col"{right.get(column, "")}>{text}</th>' for column, text in enumerate(heads))
    body = ""
    for row in rows:
        cells = (
            f'<th scope="row"{right.get(column, "")}>{cell}</th>'
            if column == named
            else f"<td{right.get(column, '')}>{cell}</td>"
            for column, cell in enumerate(row)
        )
        body += f"<tr>{''.join(cells)}</tr>\n"
    return (
        f'<div class="frame" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _figure(name: str, draw: Callable[[float], Figure], caption: str) -> str:
    """Return the figure twice, for wide and for narrow windows; style shows one of them."""
    wide = _svg(draw(ink.WIDTH_IN), f"{name}-wide", caption)
    narrow = _svg(draw(NARROW_IN), f"{name}-narrow", caption)
    return (
        f'<figure><div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _svg(figure: Figure, name: str, label: str) -> str:
    """Return inline SVG in the page's ink and font, its ids prefixed with `name` since a page's ids are unique."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unnamed)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"(font-family: |font: [\w. ]*px )[^;\"]*", r"\1var(--sans)", text)
    text = text.replace(ink.INK, "var(--ink)").replace(ink.MUTED, "var(--muted)").replace(ink.BLUE, "var(--blue)")
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{_text(label)}">', text, count=1
    )
    return text.strip()


_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #26282b; --soft: #5c6167; --muted: #8a8f94;
  --line: #dfe1e0; --good: #00694d; --bad: #b03a00; --doubt: #7a5c00; --blue: #0072b2;
  --sans: system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181a; --card: #1e2124; --ink: #e4e6e8; --soft: #a6acb2; --muted: #83898f;
    --line: #34393d; --good: #4fd0a5; --bad: #ff9b63; --doubt: #e8c547; --blue: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; }
p { max-width: 44rem; overflow-wrap: anywhere; }
.eyebrow { margin: 0 0 .35rem; color: var(--soft); font-size: .9rem; }
.verdict { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem .75rem; margin: 0 0 1rem;
  max-width: none; }
.verdict strong { font-size: 1.05rem; padding: .1rem .7rem; border: 1.5px solid currentColor; border-radius: 99px; }
.passed strong { color: var(--good); }
.failed strong, .aborted strong, .cleanup_failed strong, .invalid strong { color: var(--bad); }
.inconclusive strong, .baseline_unhealthy strong { color: var(--doubt); }
dl { margin: 0; }
dd { margin: 0; }
dt { color: var(--soft); font-size: .85rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1rem; margin: 1.75rem 0 0;
  padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.facts dd { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.list { display: grid; gap: .6rem; margin-top: 1rem; }
.list dd { overflow-wrap: anywhere; }
.frame { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; min-width: min(100%, 32rem); font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem 1.6rem .42rem 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; }
.yes, .good { color: var(--good); } .no, .bad { color: var(--bad); font-weight: 600; }
.yes::before { content: "✓ "; } .no::before { content: "✗ "; }
.yes, .no { white-space: nowrap; }
figure { margin: 0 0 1.5rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; max-width: 44rem; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
.narrow { display: none; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; } .wide { display: none; } .narrow { display: block; }
  h1 { font-size: 1.5rem; } th, td { padding-right: .8rem; } tbody th:not(.number) { min-width: 7rem; }
  .facts { grid-template-columns: 1fr 1fr; } }
@media print { body { background: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
code, pre { font-family: var(--mono); font-size: .88em; }
pre { overflow-x: auto; margin: 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
""".strip()

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$name: $headline</title>
<style>
$style
</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">AI Orchestra, a rehearsal in virtual time</p>
<h1>$name</h1>
<p class="verdict $status"><strong>$headline</strong> <span>$meaning</span></p>
$description
<dl class="facts">$facts</dl>
</header>
<section>
<h2>Expectations</h2>
$expectations
</section>
<section>
<h2>Second by second</h2>
$timeline
</section>
<section>
<h2>How long answers took</h2>
$latency
$phases
</section>
<section>
<h2>Where every turn went</h2>
$accounting
$failures
</section>
<section>
<h2>Faults</h2>
$faults
</section>
<section>
<h2>Circuit breakers</h2>
$breakers
</section>
<section>
<h2>Degradation levels</h2>
$levels
</section>
<section>
<h2>Retries, hedges, fallbacks, operators</h2>
$helped
</section>
<section>
<h2>See it again</h2>
$again
</section>
</main>
</body>
</html>
""")
