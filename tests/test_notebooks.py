"""The notebooks of the documentation: their cells run, and give what is saved in them."""

import ast
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parent.parent
NOTEBOOKS = sorted((CHECKOUT / "docs/notebooks").glob("*.ipynb"))


def run_cell(code: str, namespace: dict[str, Any]) -> tuple[str, str | None]:
    """What a code cell prints, and the HTML of its last line's value, if it has one."""
    body, value = ast.parse(code).body, None
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return printed.getvalue(), value._repr_html_() if hasattr(value, "_repr_html_") else None


def saved(outputs: list[dict[str, Any]]) -> tuple[str, str | None]:
    """The same of what is saved."""
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    html = ["".join(data["text/html"]) for output in outputs if "text/html" in (data := output.get("data", {}))]
    return printed, html[0] if html else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert run_cell(source, namespace) == saved(cell["outputs"]), source
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", source if cell["cell_type"] == "markdown" else ""):
            assert (path.parent / link).exists(), link


def test_notebooks_are_small():
    """A reader downloads them with the repository."""
    assert [path.stem for path in NOTEBOOKS] == ["policy_gradient", "without_rl"]
    assert all(path.stat().st_size < 100_000 for path in NOTEBOOKS)
