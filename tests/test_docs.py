"""What README and docs name is there."""

import importlib
import re
from pathlib import Path

import pytest

from tests import runs  # noqa: F401  its processes are forked from one that has imported torch

CHECKOUT = Path(__file__).parent.parent
TESTS = {
    name
    for path in (CHECKOUT / "tests").glob("*.py")
    for name in [path.stem, *re.findall(r"^(?:    )?def (test_\w+)", path.read_text(), re.M)]
}
# The tables there name the tests of Stable-Baselines3 itself.
PAGES = [CHECKOUT / "README.md", *(p for p in sorted((CHECKOUT / "docs").glob("*.md")) if p.name != "results.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page):
    named = set(re.findall(r"`(?:tests/)?(test_\w+)", page.read_text()))
    assert not named - TESTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def places() -> list[str]:
    """Functions in the second column of README's table of the formula."""
    table = (CHECKOUT / "README.md").read_text().partition("| term | function |")[2].partition("\n\n")[0]
    return [place for row in table.splitlines()[2:] for place in re.findall(r"`([\w.]+)`", row.split("|")[2])]


@pytest.mark.parametrize("place", places())
def test_the_formula_is_where_readme_says(place):
    module, _, names = place.rpartition(".")
    owner = None
    if module.rpartition(".")[2][0].isupper():  # a method
        module, _, owner = module.rpartition(".")
    found = importlib.import_module(f"sb3_reinforce.{module}")
    assert callable(getattr(getattr(found, owner) if owner else found, names))


def test_places_are_found():
    assert "losses.score_loss" in places()
    assert len(places()) > 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_are_in_the_files_named(page):
    """`name` in `file.py`: the file has such a function or class."""
    for names, file in re.findall(r"((?:`\w+`(?:, | and )?)+) in `([\w/]+\.py)`", page.read_text()):
        found = [path for path in (CHECKOUT / "sb3_reinforce").rglob("*.py") if str(path).endswith(f"/{file}")]
        text = min(found, key=lambda path: len(path.parts)).read_text()  # compare.py, and not zoo/compare.py
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:(?:def|class) )?{name}\b", text, re.M), f"{name} is not in {file}"
