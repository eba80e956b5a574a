"""The web chat's files as they are served: every one of them, under which headers, and what a browser keeps of them."""

import re
import tomllib
from pathlib import Path

import pytest

from orchestra.gateway import web
from orchestra.model import Delta, Finish

ROOT = Path(__file__).resolve().parents[3]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = (web.FOLDER / web.PAGE).read_text()


async def silent(_prompt):
    yield Delta("")
    yield Finish("stop", "silent")


def parts(page):
    """The addresses of its files in a page, relative to where it lies."""
    return re.findall(r'(?:href|src)="(web/[^"]+)"', page)


def assert_guarded(answer):
    assert answer.header("cache-control") == "no-cache"
    assert answer.header("content-security-policy") == POLICY
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("referrer-policy") == "no-referrer"
    assert answer.header("cross-origin-opener-policy") == "same-origin"
    assert answer.header("cross-origin-resource-policy") == "same-origin"
    assert "microphone=()" in answer.header("permissions-policy")


def test_the_page_and_every_file_of_it_come_under_the_policy_as_what_they_are(visit):
    async def story(client):
        page = await client.ask("GET", "/")
        assert (page.status, page.header("content-type")) == (200, "text/html; charset=utf-8")
        assert page.text == PAGE
        assert_guarded(page)
        addresses = parts(page.text)
        names = {address.rpartition("/")[2] for address in addresses}
        assert names == {path.name for path in web.FOLDER.iterdir()} - {web.PAGE}
        kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
        for address in addresses:
            answer = await client.ask("GET", f"/{address}")
            name = address.rpartition("/")[2]
            assert (answer.status, answer.header("content-type")) == (200, kinds[name.rpartition(".")[2]])
            assert answer.text == (web.FOLDER / name).read_text()
            assert_guarded(answer)

    visit(story, silent)


def test_what_has_not_changed_is_not_sent_again(visit):
    async def story(client):
        page = await client.ask("GET", "/")
        etag = page.header("etag")
        for seen in (etag, f"W/{etag}", f'"other", {etag}'):
            again = await client.ask("GET", "/", if_none_match=seen)
            assert (again.status, again.text, again.header("etag")) == (304, "", etag)
            assert_guarded(again)
        assert (await client.ask("GET", "/", if_none_match='"other"')).status == 200
        head = await client.ask("HEAD", "/")
        assert (head.status, head.header("etag")) == (200, etag)

    visit(story, silent)


@pytest.mark.parametrize("name", ["none.js", "..%2Fweb.py", "%2e%2e%2fapp.py", "x/main.js", ""])
def test_nothing_else_is_given(visit, name):
    async def story(client):
        answer = await client.ask("GET", f"/web/{name}")
        assert (answer.status, answer.header("content-type")) == (404, "application/problem+json")

    visit(story, silent)


def test_another_content_has_another_tag(tmp_path):
    """So an upgrade is seen at once: a browser keeps nothing without asking."""
    for path in web.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = web.read_files(tmp_path)
    assert web.read_files(tmp_path) == before == web.read_files(web.FOLDER)
    (tmp_path / "markdown.js").write_text("// another")
    after = web.read_files(tmp_path)
    assert {name for name in after if after[name].etag != before[name].etag} == {"markdown.js"}
    assert len({each.etag for each in before.values()}) == len(before)


def test_the_page_has_no_script_or_style_within_it_and_names_no_other_origin():
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", PAGE)
    for path in web.FOLDER.iterdir():
        addresses = re.findall(r"https?://[\w.-]+", path.read_text())
        assert set(addresses) <= {"http://www.w3.org"}, path.name  # the namespace of SVG


@pytest.mark.parametrize("path", sorted(web.FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_no_script_makes_nodes_from_text(path):
    sinks = r"(inner|outer|Adjacent|set\w*)HTML|document\.write|DOMParser|ContextualFragment|\beval\b|Function\("
    assert not re.search(sinks, path.read_text())
    assert path.read_text().startswith("// @ts-check\n")


def test_the_wheel_has_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["orchestra", "sim", "chaos", "loadtests"]}  # whole folders, whatever is in them


def test_it_is_no_part_of_the_documented_interface(visit):
    async def story(client):
        document = (await client.ask("GET", "/docs/openapi.json")).text
        assert '"/web' not in document
        assert '"/":' not in document

    visit(story, silent)
