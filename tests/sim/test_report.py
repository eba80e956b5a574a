"""The report: one well-formed page that fetches nothing, escapes everything, and says what the run proved."""

import os
import re
import subprocess
import sys
from html import escape
from html.parser import HTMLParser

import pytest
from msgspec import structs

from orchestra.events import BreakerChanged, CallHedged, CallRetried, FellBack, OperatorActed
from sim import report
from sim.journal import ClientArrived, FaultStarted, Journal, RunStarted
from sim.quantities import show_share
from sim.scenario import parse, replaying
from sim.verdict import reach
from sim.workload import Replay, Row
from sim.world import Run, rehearse

STORY = """
name: a small brownout
description: Twenty seconds of trouble.
duration: 60s
workload: {open_loop: {rate: 4/s, users: 20, generated_tokens: 50, context_tokens: 100}}
world:
  provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
settings: {guards: {unified: {breaker: {open_seconds: 3}}}}
faults:
  - provider_failing: {at: 20s, for: 20s, rate: 90%}
expectations:
  - {before: fault, success_rate: ">= 99%"}
  - {during: fault, within: 10s, breaker: unified opens}
  - {always: run, p95: "< 1ms"}
  - {always: accounted}
"""
VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = """<script>alert('x')</script>"&'"""


class Page(HTMLParser):
    """Holds a page to well-formedness: every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> is there twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open or tag in VOID, f"<{tag}/> stays open in HTML"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def run():
    return rehearse(parse(STORY), seed=7)


@pytest.fixture(scope="module")
def html(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(run, path)
    return path.read_text(encoding="utf-8")


def rows(html, caption):
    """The cells of the table with this caption, as text."""
    table = next(part for part in html.split("<table>") if re.match(f"<caption>{caption}", part))
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body)
    ]


def hostile(run):
    """The run, with markup wherever text comes from outside."""
    journal = Journal()
    for entry in run.journal:
        if isinstance(entry, RunStarted):
            journal.record(structs.replace(entry, scenario=HOSTILE))
        elif isinstance(entry, FaultStarted):
            journal.record(structs.replace(entry, what=HOSTILE, kind=HOSTILE))
        elif isinstance(entry, BreakerChanged):
            journal.record(structs.replace(entry, breaker=HOSTILE, reason=HOSTILE))
        else:
            journal.record(entry)
    scenario = structs.replace(
        run.scenario,
        name=HOSTILE,
        description=HOSTILE,
        settings={"guards.unified.breaker.open_seconds": HOSTILE},
        expectations=(),
    )
    return Run(scenario, run.seed, run.door, journal, reach((), journal, (HOSTILE,)), 60.0, 1.0)


def told_as(run, journal):
    """The run, as if `journal` were what it told."""
    return Run(run.scenario, 7, run.door, journal, reach((), journal), 100.0, 1.0)


def test_the_page_is_well_formed_and_its_ids_are_unique(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]*)"', html)) | set(re.findall(r"url\(#([^)]*)\)", html))
    assert referred <= set(ids)
    assert html.startswith("<!DOCTYPE html>")


def test_nothing_is_fetched_and_nothing_runs(html):
    assert not re.search(r"https?:|src=|@import|<script|<link|<iframe|javascript:|\son\w+=", html, re.IGNORECASE)
    assert not re.search(r"""(?:href|url\()=?["']?(?!["']?#)[\w/.]+:?//""", html)
    assert all(reference.startswith("#") for reference in re.findall(r'href="([^"]*)"', html))
    assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)\)", html))
    assert "default-src 'none'" in html  # and a browser would refuse to


def test_the_page_can_be_read_aloud(html):
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)] == ["h1"] + ["h2"] * 9
    pictures = page.all("svg")
    assert len(pictures) == 4
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 40 for picture in pictures)
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) >= 7
    assert "prefers-color-scheme: dark" in html


def test_it_says_which_expectation_failed(html, run):
    assert not run.verdict.passed
    assert '<p class="verdict failed"><strong>failed</strong> <span>1 of 4 expectations did not hold</span></p>' in html
    assert "<title>a small brownout: failed</title>" in html
    found = rows(html, "What was expected")
    assert [row[0] for row in found] == ["held", "held", "failed", "held"]
    for row, result in zip(found, run.verdict.results, strict=True):
        assert row[1].replace("&lt;", "<").replace("&gt;", ">") in (result.text, f"{result.text} (baseline)")
        assert row[2] == result.measured
    assert [row[3] for row in found] == ["0:00–0:20", "0:20–0:40", "0:00–1:00", "0:00–1:00"]


def test_a_run_that_passed_says_so(run):
    scenario = structs.replace(run.scenario, expectations=run.scenario.expectations[:1])
    passed = Run(scenario, 7, run.door, run.journal, reach(scenario.expectations, run.journal), 60.0, 1.0)
    assert "<strong>passed</strong> <span>every expectation held</span>" in report.page(passed)


def test_the_numbers_are_those_of_the_verdict(html, run):
    count = run.verdict.accounting
    found = rows(
        html, re.escape(f"{count.answered:,} + {count.failed:,} + {count.shed:,} = {count.arrivals:,} arrivals")
    )
    assert [row[:3] for row in found] == [
        [name, f"{number:,}", show_share(number / count.arrivals)]
        for name, number in (("answered", count.answered), ("failed", count.failed), ("shed", count.shed))
    ]
    assert rows(html, "Turns without an answer") == [
        [kind, f"{number:,}"] for kind, number in run.verdict.failures.items()
    ]
    (fault,) = run.verdict.faults
    assert rows(html, "Each fault") == [
        ["provider failing 90%", "provider_failing", "0:20", "0:40", f"{fault.touched:,}"]
    ]
    changes = [entry for entry in run.journal if isinstance(entry, BreakerChanged)]
    assert [(row[1], row[2], row[3]) for row in rows(html, "Every change of state")] == [
        (change.breaker, f"{change.before} → {change.after}", change.reason) for change in changes
    ]
    phases = rows(html, "Latency is that of answered turns")
    assert sum(int(row[1]) for row in phases) == count.arrivals


def test_it_can_be_seen_again(html, run):
    assert "orchestra sim run SCENARIO.yaml --seed 7 --door orchestrator" in html
    assert run.journal.digest in html
    assert "guards.unified.breaker.open_seconds = 3" in html
    assert "orchestra sim run that.yaml --seed 7 &amp;&amp; x" in report.page(
        run, "orchestra sim run that.yaml --seed 7 && x"
    )


def test_a_replay_is_seen_again_by_its_trace(run):
    scenario = replaying(Replay("arrivals.csv", (Row(0.0, 10, 10), Row(1.0, 10, 10))))
    assert "orchestra sim run --trace TRACE.csv --seed 7" in report.page(rehearse(scenario, seed=7))


def with_scenario(run, scenario):
    return Run(scenario, run.seed, run.door, run.journal, run.verdict, run.virtual_seconds, run.wall_seconds)


def test_the_plots_wear_the_colours_of_the_page(html):
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert all("var(--ink)" in picture and "var(--sans)" in picture for picture in pictures)
    assert not any("#ffffff" in picture or "DejaVu" in picture for picture in pictures)
    assert "provider failing 90%" in Page(html).words
    assert len(html) < 400_000


def test_markup_from_files_is_text(run):
    html = report.page(hostile(run))
    page = Page(html)
    assert page.all("script") == []
    assert "<script" not in html.lower()
    assert page.words.count(HOSTILE) >= 5
    assert all(set(attributes) <= {"class"} for attributes in page.all("span") if "id" not in attributes)


def test_what_no_page_may_hold_is_replaced(run):
    scenario = structs.replace(run.scenario, name="a\x00b\ud800c\x1b[31m", description="\x9f")
    html = report.page(with_scenario(run, scenario))
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}[31m" in html
    html.encode()


def test_levels_are_told_with_their_times_and_causes(run, story):
    steps = [(20.0, "NORMAL", "LIMITED"), (80.0, "LIMITED", "NORMAL")]
    html = report.page(told_as(run, story(levels=steps)))
    assert rows(html, "Time in each level") == [["NORMAL", "40s", "40%"], ["LIMITED", "60s", "60%"]]
    assert rows(html, "Every step and why") == [
        ["0:20", "NORMAL → LIMITED", "50 %", "a test says so"],
        ["1:20", "LIMITED → NORMAL", "50 %", "a test says so"],
    ]
    assert "The level stayed NORMAL." in report.page(told_as(run, story()))


def test_retries_hedges_fallbacks_and_operators_are_told(run, story):
    more = [
        CallRetried(1.0, "c", "unified", 2, 0.1, "provider-failed"),
        CallHedged(2.0, "c", "memory"),
        FellBack(3.0, "c", "unified", HOSTILE, "breaker-open"),
        OperatorActed(65.0, "level", "latch MAINTENANCE", HOSTILE),
    ]
    html = report.page(told_as(run, story(turns=[(1.0, "answered", 1.0)], retries=[(2.0, 1)], more=more)))
    assert sorted(row[:3] for row in rows(html, "Calls")) == [
        ["memory", "hedged", "1"],
        ["unified", f"{escape(HOSTILE)} instead", "1"],
        ["unified", "retried", "1"],
    ]
    assert rows(html, "What operators did") == [["1:05", "level", "latch MAINTENANCE", escape(HOSTILE)]]
    assert "attempts, by turns</dt><dd>2.00x" in html
    assert "<script" not in html
    calm = report.page(told_as(run, story(turns=[(1.0, "answered", 1.0)])))
    assert "No call was retried" in calm
    assert "attempts, by turns" not in calm


def test_a_cut_off_run_says_so(run):
    entries = [entry for entry in run.journal if entry.at < 30.0]
    while not isinstance(entries[-1], ClientArrived):  # somebody is under way
        entries.pop()
    journal = Journal(entries)
    verdict = reach(run.scenario.expectations, journal, ("task x",))
    html = report.page(Run(run.scenario, 7, "service", journal, verdict, 30.0, 1.0))
    assert "<strong>aborted</strong>" in html
    assert "never lifted" in html
    assert "some turns are unaccounted for" in html
    assert "task x" in html
    Page(html)


def test_a_run_without_anything_is_a_page(run):
    scenario = structs.replace(run.scenario, faults=(), expectations=(), settings={}, description="")
    journal = Journal([RunStarted(0.0, "nothing", 0, "orchestrator", 60.0, {})])
    words = Page(report.page(Run(scenario, 0, "orchestrator", journal, reach((), journal), 0.0, 0.0))).words
    for said in ("expects nothing", "None were injected", "None changed its state", "Every turn was answered"):
        assert said in words


def test_long_lists_are_cut_and_say_so(run):
    journal = Journal([RunStarted(0.0, "flapping", 0, "orchestrator", 1000.0, {}), ClientArrived(1.0, 1, "", "", 1, 1)])
    for number in range(500):
        journal.record(BreakerChanged(float(number), "unified", "CLOSED", "OPEN", "why"))
    html = report.page(Run(run.scenario, 0, "orchestrator", journal, reach((), journal), 0.0, 0.0))
    changes = rows(html, "Every change of state")
    assert len(changes) == report.ROWS_MAX + 1
    assert changes[-1][0] == "and 300 more"


def test_the_same_run_gives_the_same_page_in_any_process(tmp_path):
    (tmp_path / "story.yaml").write_text(STORY)
    pages = []
    for hash_seed in ("1", "2"):
        path = tmp_path / f"{hash_seed}.html"
        command = ["-m", "orchestra", "sim", "run", "story.yaml", "--seed", "7", "--report", path.name]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        pages.append(re.sub(r'<span id="wall">.*?</span>', "", path.read_text(encoding="utf-8")))
    assert pages[0] == pages[1]
    assert "<code>orchestra sim run story.yaml --seed 7</code>" in pages[0]
