"""The site of `make docs`: built without a warning, complete, and in need of nothing from a network."""

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.cmd.build import main as sphinx_build
from sphinx.util.inventory import InventoryFile

from sb3_reinforce.baselines import BaselineName
from sb3_reinforce.estimators import METHODS
from tests.chromium import Browser
from tests.test_docs import CHECKOUT

# Packages whose __all__ is public, besides what README, docs and examples import
PACKAGES = (
    "sb3_reinforce",
    "sb3_reinforce.estimators",
    "sb3_reinforce.tracking",
    "sb3_reinforce.vec_env",
    "sb3_reinforce.zoo",
)
SOURCES = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("examples/*.py")]


class Page(HTMLParser):
    """What a page loads, where its links lead, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "a":
            self.loaded += [values[name] for name in ("src", "href") if name in values]


def canonical(name: str) -> str:
    """:return: the full name of a function or class where it is defined; other names as they are"""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(CHECKOUT / "docs")]
    assert sphinx_build([*options, str(CHECKOUT), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def public_names() -> set[str]:
    names = {f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__}
    for text in map(Path.read_text, SOURCES):
        for module, imported in re.findall(r"^\s*from (sb3_reinforce[\w.]*) import ([\w, ]+)$", text, re.M):
            names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
        # in the text: functions and classes by their full names
        names |= set(re.findall(r"`(sb3_reinforce\.[\w.]+)\(", text))
    return names


def test_every_public_name_is_in_the_reference(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    described = {name for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]}
    assert "sb3_reinforce.REINFORCE" in described
    assert not [name for name in public_names() if not {name, canonical(name)} & described]


def test_every_baseline_and_every_estimator_has_a_section():
    """And so an anchor to link to."""
    baselines, estimators = (
        (CHECKOUT / f"docs/{name}.md").read_text().split("\n### ") for name in ("baselines", "estimators")
    )
    assert {section.splitlines()[0].strip("`") for section in baselines[1:]} == set(get_args(BaselineName))
    assert not [kind for kind in METHODS.values() if not any(f"`{kind.__name__}` in" in section for section in estimators[1:])]


def test_notebook_becomes_markdown():
    """Text as it is, code, printed text, and of a result the richest form that is saved."""
    from docs.conf import markdown_of

    html = {"data": {"text/html": ["<b>2</b>"], "text/plain": ["2"]}}
    image = {"data": {"image/png": "iVBO\n", "text/plain": ["<Figure>"]}}
    code = {"cell_type": "code", "source": ["print(1)\n", "2"], "outputs": [{"text": ["1\n"]}, html, image]}
    text = markdown_of({"cells": [{"cell_type": "markdown", "source": ["# Title\n", "text"]}, code]})
    expected = ["# Title\ntext", "```python\nprint(1)\n2\n```", "```text\n1\n\n```", "<b>2</b>"]
    assert text == "\n\n".join([*expected, "![](data:image/png;base64,iVBO)"])


def test_links_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or link in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append((path.relative_to(site), link))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((path.relative_to(site), link))
    assert not broken


def test_nothing_is_loaded_from_a_network(pages):
    assert not {loaded for page in pages.values() for loaded in page.loaded if urlsplit(loaded).scheme not in ("", "data")}


@pytest.mark.slow
def test_site_in_chromium(site, tmp_path):
    """Opened as files, without a server: search finds, formulas have a size, nothing is wider than a phone, no errors."""
    with Browser(tmp_path / "profile") as browser:
        for width in (1400, 390):
            browser.resize(width, 900)
            for name in ("README", "docs/theory", "docs/results", "docs/reference/agents"):
                browser.open((site / f"{name}.html").as_uri())
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
            browser.open((site / "docs/theory.html").as_uri())
            assert browser.evaluate("document.querySelector('.formula math').getBoundingClientRect().height") > 20
        browser.open((site / "search.html").as_uri() + "?q=ScoreFunctionEstimator")
        found = "document.querySelectorAll('#search-results li').length"
        assert browser.evaluate(f"new Promise(done => setTimeout(() => done({found}), 2000))") > 2
        assert not [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        requested = [
            event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
        ]
        assert requested
        assert not [address for address in requested if not address.startswith(("file:", "data:"))]
