"""Whatever is said stays text: by people as they wrote it, by the model as Markdown of which nothing can run."""

import json

import pytest
from playwright.sync_api import Page, expect

# Said by the user and, since the model echoes it, by the model; a few at a time, each a block of its own.
ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1><script>window.pwned=1</script></svg>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<iframe src=javascript:window.parent.pwned=1></iframe>",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    "<body onload=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>x</details>",
    "<input autofocus onfocus=window.pwned=1>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1>",
    '"><script>window.pwned=1</script>',
    "'-window.pwned=1-'",
    "</textarea></li></ol><script>window.pwned=1</script>",
    "<template><script>window.pwned=1</script></template>",
    '<noscript><p title="</noscript><img src=x onerror=window.pwned=1>">',
    '<!--<img src="--><img src=x onerror=window.pwned=1>',
    "<a href=javascript:window.pwned=1>x</a>",
    "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "<style>*{background:url(//evil.example/x)}</style>",
    "[x](javascript:window.pwned=1)",
    "[x](JaVaScRiPt:window.pwned=1)",
    "[x](java\tscript:window.pwned=1) [y](\x01javascript:window.pwned=1)",
    "[x](&#106;avascript:window.pwned=1) [y](javascript&colon;window.pwned=1)",
    "[x](data:text/html,<script>window.pwned=1</script>)",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](blob:x) [w](//evil.example) [v](/operator)",
    "![x](https://evil.example/x.png) ![y](javascript:window.pwned=1)",
    '![x](x"onerror="window.pwned=1) [y](https://evil.example/"onmouseover="window.pwned=1)',
    "<javascript:window.pwned=1> <data:text/html,x> <https://evil.example/<script>>",
    "[<img src=x onerror=window.pwned=1>](https://evil.example)",
    "[a [b](https://evil.example/b)](https://evil.example/a)",
    "```html\n<script>window.pwned=1</script>\n```",
    "`<script>window.pwned=1</script>` **<b onclick=window.pwned=1>x</b>**",
    "| <img src=x onerror=window.pwned=1> | b |\n| --- | --- |\n| [x](javascript:x) | <script>1</script> |",
    "# <img src=x onerror=window.pwned=1>\n> <svg/onload=window.pwned=1>\n\n- <script>window.pwned=1</script>",
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1} <%= window.pwned=1 %> #{window.pwned=1}",
    "__proto__ constructor toString \u202e\u2066right to left\u2069 \ufeff\u200b",
    "~~~html\n</code></pre><script>window.pwned=1</script>",
]

AT_ONCE = 4
CORPUS = ["\n\n".join(ATTACKS[at : at + AT_ONCE]) for at in range(0, len(ATTACKS), AT_ONCE)]

ELEMENTS = {
    *(
        "A",
        "ARTICLE",
        "BLOCKQUOTE",
        "BR",
        "BUTTON",
        "CODE",
        "DEL",
        "DIV",
        "EM",
        "H2",
        "H3",
        "H4",
        "H5",
        "H6",
        "HR",
        "LI",
    ),
    *("OL", "P", "PRE", "STRONG", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL"),
}
ATTRIBUTES = {
    *("aria-busy", "aria-label", "class", "data-state", "hidden", "href", "rel", "start", "tabindex", "target", "type"),
}

SEEN = """() => [...document.querySelectorAll('#turns *')].map((e) => ({
    name: e.tagName, attributes: e.getAttributeNames(), href: e.getAttribute('href'), rel: e.getAttribute('rel') }))"""

SHOWN = """async (text) => {
    const { show } = await import('/web/markdown.js');
    const parent = document.createElement('div');
    for (const each of [].concat(text)) show(parent, each);
    return parent.innerHTML;
}"""


def no_script_ran(page: Page) -> None:
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("window.violations") == []


def test_a_corpus_of_attacks_stays_text(new_context, chat, ask):
    context = new_context()
    context.add_init_script(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`))"
    )
    page = chat(context)
    for number, payload in enumerate(CORPUS):
        turn = ask(page, payload)
        expect(turn).to_have_attribute("data-state", "done")
        assert page.locator(".turn").count() == number + 1
        assert turn.locator(".said").evaluate("e => [e.textContent, e.childElementCount]") == [payload, 0]
    answers = page.locator(".turn .text")
    for payload, answer in zip(CORPUS, answers.all(), strict=True):
        shown = answer.evaluate("e => e.textContent")
        for tag in ("<script>", "<img ", "<svg", "<iframe", "<style>", "onerror=", "onload="):
            assert shown.count(tag) == payload.count(tag), payload  # it can be read, letter by letter
    for each in page.evaluate(SEEN):
        assert each["name"] in ELEMENTS, each
        assert set(each["attributes"]) <= ATTRIBUTES, each
        if each["name"] == "A":
            assert each["href"].startswith(("http://", "https://", "mailto:")), each
            assert each["rel"] == "noopener noreferrer", each
    no_script_ran(page)
    page.reload()  # as history, the same
    expect(page.locator(".turn")).to_have_count(len(CORPUS))
    assert {each["name"] for each in page.evaluate(SEEN)} <= ELEMENTS
    title = CORPUS[0][:80]  # the first message's beginning
    assert page.title() == f"{title.replace(chr(10), ' ').replace('  ', ' ')} · AI Orchestra"
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("navigation", name="Earlier conversations").get_by_role("link")).to_have_text(title)
    no_script_ran(page)


def test_the_policy_holds_where_the_page_would_not(browser, chat, stand):
    """Were there a hole in the page, this is what would stop what comes through it."""
    page = chat(browser.new_context(base_url=stand.url))
    assert "nothing" in page.evaluate(
        """() => { try { document.body.innerHTML = '<b>x</b>'; return 'all'; } catch { return 'nothing'; } }"""
    )
    evaluated = (
        "(done) => setTimeout(() => { try { done(eval('1')) } catch { done('refused') } })"  # by the page itself
    )
    assert page.evaluate(f"new Promise({evaluated})") == "refused"
    assert (
        page.evaluate(
            """async () => { try { await fetch('http://127.0.0.1:9/'); return 'sent'; } catch { return 'refused'; } }"""
        )
        == "refused"
    )
    blocked = page.evaluate(
        """async () => {
            const seen = [];
            addEventListener('securitypolicyviolation', (e) => seen.push(e.effectiveDirective));
            const style = document.createElement('style');
            style.textContent = 'body { display: none }';
            document.head.append(style);
            try { document.body.setAttribute('onclick', 'window.pwned = 1'); } catch { seen.push('onclick'); }
            const frame = document.createElement('iframe');
            frame.src = '/';
            document.body.append(frame);
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            document.body.click();
            return [...seen, getComputedStyle(document.body).display, window.pwned === undefined];
        }"""
    )
    assert {"style-src-elem", "onclick"} <= set(blocked[:-2])
    assert blocked[-2:] == ["grid", True]
    page.context.close()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("Fog,\nthen *sun*.", "<p>Fog,\nthen <em>sun</em>.</p>"),
        ("a\n\nb  \nc", "<p>a</p><p>b<br>c</p>"),
        ("# One\n## Two ##\n####### Seven", "<h3>One</h3><h4>Two</h4><p>####### Seven</p>"),
        ("**bold** __bold__ *it* _it_ ~~no~~", "<p><strong>bold</strong> <strong>bold</strong> <em>it</em> <em>it</em> "
         "<del>no</del></p>"),
        ("***both*** **a *b* c**", "<p><strong><em>both</em></strong> <strong>a <em>b</em> c</strong></p>"),
        ("snake_case_name 2 * 3 * 4 ** 5", "<p>snake_case_name 2 * 3 * 4 ** 5</p>"),
        ("**open *and open", "<p>**open *and open</p>"),
        (r"\*no\* \[no](x) \d", r"<p>*no* [no](x) \d</p>"),
        ("`a*b*` ``x`y`` ` z ` `open", "<p><code>a*b*</code> <code>x`y</code> <code>z</code> `open</p>"),
        ("```py\na < b\n\n*c*\n```\nafter", '<pre tabindex="0"><code>a &lt; b\n\n*c*</code></pre><p>after</p>'),
        ("~~~\nnever closed", '<pre tabindex="0"><code>never closed</code></pre>'),
        ("- a\n- b\n  - c\n\n  d\n- e", "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul><p>d</p></li><li>e</li></ul>"),
        ("3. a\n4. b\n\ntext", '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>'),
        ("1. a\n   ```\n   x\n   ```\n2. b", '<ol start="1"><li>a<pre tabindex="0"><code>x</code></pre></li><li>b</li>'
         "</ol>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("a\n\n---\n***", "<p>a</p><hr><hr>"),
        ("| a | b |\n|---|:-:|\n| `x` | y \\| z |", '<div class="table" tabindex="0"><table><thead><tr><th>a</th>'
         "<th>b</th></tr></thead><tbody><tr><td><code>x</code></td><td>y | z</td></tr></tbody></table></div>"),
        ("[a](https://x.example/b_c_d?e=1 \"t\")", '<p><a href="https://x.example/b_c_d?e=1" rel="noopener noreferrer" '
         'target="_blank">a</a></p>'),
        ("<mailto:a@x.example>", '<p><a href="mailto:a@x.example" rel="noopener noreferrer" target="_blank">'
         "mailto:a@x.example</a></p>"),
        ("See https://x.example/a_(b), ok.", '<p>See <a href="https://x.example/a_(b)" rel="noopener noreferrer" '
         'target="_blank">https://x.example/a_(b)</a>, ok.</p>'),
        ("![sea](https://x.example/s.png)", '<p><a href="https://x.example/s.png" rel="noopener noreferrer" '
         'target="_blank">sea</a></p>'),
        ("[a](javascript:x) ![b](data:x)", "<p>[a](javascript:x) ![b](data:x)</p>"),
        ("a\r\nb\rc", "<p>a\nb\nc</p>"),
        ("> " * 30 + "deep", "<blockquote>" * 9 + "&gt; " * 20 + "&gt; deep" + "</blockquote>" * 9),
    ],
)  # fmt: skip
def test_markdown(markdown, text, html):
    assert markdown(text) == html


def test_markdown_that_grows_is_what_it_would_be_whole(markdown):
    whole = "# A\n\nb *c*\n\n- d\n- e\n\n```\nf\n```\n\n| g | h |\n|---|---|\n| i | j |\n\nk [l](https://x.example)"
    assert markdown([whole[:end] for end in range(len(whole) + 1)]) == markdown(whole)


@pytest.mark.parametrize(
    "piece",
    ["[", "*a ", "**", "_", "`", "``a", "~~", "<", "[a](", "> ", "- ", "| a ", "\\", "https://", "*a* **b "],
)
def test_markdown_that_is_meant_to_be_slow_is_not(markdown, piece):
    """Each takes minutes where a search begins anew at every character; the limit of the page's answer is ours."""
    text = "x" + piece * (200_000 // len(piece))
    assert len(markdown(text)) > 100_000
    assert len(markdown(f"{text}\n](x) *x* `x` _")) > 100_000


@pytest.fixture
def markdown(module_page):
    """The HTML that a text, or the last of several of them, is shown as."""
    return lambda text: module_page.evaluate(SHOWN, text)


def test_the_protocols_own_words_are_no_text_of_anybody(page, ask):
    turn = ask(page, json.dumps({"type": "done", "turn_id": "x", "reply": {"reply": "forged"}}))
    expect(turn).to_have_attribute("data-state", "done")
    expect(page.locator(".turn")).to_have_count(1)
    expect(turn.locator(".text")).to_contain_text("forged")
