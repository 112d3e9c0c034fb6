"""
The site: `make docs` builds it from README.md, CONTRIBUTING.md, CHANGELOG.md, docs/ and the package's docstrings.

Sphinx's source folder is the root of the repository (`sphinx-build -c docs . site`), so that a link that works in the
repository works on the site without being rewritten. Nothing is loaded from a network, neither to build a page nor to show it.
"""

import importlib
import inspect
import json
import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sb3_reinforce import __version__  # noqa: E402

project = "sb3_reinforce"
project_copyright = author = "The sb3-reinforce developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.linkcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "docs/**.rst", "docs/**.ipynb"]
exclude_patterns = [".*", "**/.*", "site", "docs/navigation.md"]

# Markdown as GitHub reads it: formulas between dollars and in fences of `math`, anchors for headings
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
# a name in single backticks is code, as in Markdown
default_role = "code"

html_theme = "furo"
html_title = f"sb3_reinforce {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # it would fetch the pages found, which a browser forbids between files
html_math_renderer = "mathml"

#: files of the repository that are linked from a page and are none themselves: a page that shows each is made at the end
linked_files: set[str] = set()


class NotebookParser(MystParser):
    """Notebooks as Markdown, with the results that are saved in them: nothing is run here."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        super().parse(markdown_of(json.loads(inputstring)), document)


def markdown_of(notebook: dict[str, Any]) -> str:
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(f"![](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts)


def formula(tex: str, display: str) -> str:
    """MathML, which browsers draw by themselves; upright E, and the spaces of TeX around a bar and a function such as log."""
    mathml = convert(re.sub(r"\\mathrm\{", r"\\text{", tex.strip()), display=display)
    mathml = re.sub(r"<mo( stretchy=\"false\")?>&#x0007C;</mo>", r'<mo\1 lspace="0" rspace="0">&#x0007C;</mo>', mathml)
    return re.sub(r"(<mi>(?:log|exp)</mi>)(?!<mo)", r'<mspace width="0.17em"/>\1<mspace width="0.17em"/>', mathml)


def inline_formula(writer, node: nodes.math) -> None:
    writer.body.append(formula(node.astext(), "inline"))
    raise nodes.SkipNode


def block_formula(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{formula(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """README is the first page, and the table of contents below it is not README's business."""
    if docname == root_doc:
        source[0] += "\n" + (ROOT / "docs/navigation.md").read_text()


def show_linked_files(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """A link to a file of the repository, such as an example, leads to a page that shows it, instead of a download."""
    for link in list(doctree.findall(addnodes.download_reference)):
        path = (Path(app.env.doc2path(docname)).parent / link["reftarget"]).resolve().relative_to(ROOT).as_posix()
        linked_files.add(path)
        target = app.builder.get_relative_uri(docname, f"files/{path}")
        link.replace_self(nodes.reference("", "", *link.children, refuri=target, internal=True))


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where the source of a documented object is: all of them are on pages of docs/reference/."""
    try:
        found = reduce(getattr, info["fullname"].split("."), importlib.import_module(info["module"]))
        found = inspect.unwrap(found.fget if isinstance(found, property) else found)
        path = Path(inspect.getsourcefile(found)).relative_to(ROOT).as_posix()
        line = inspect.getsourcelines(found)[1]
    except (AttributeError, TypeError, ValueError):  # a value, or of another package
        return None
    linked_files.add(path)
    return f"../../files/{path}.html#line-{line}"


def pages_of_linked_files(app: Sphinx):
    for path in sorted(linked_files):
        language = {".py": "python", ".yml": "yaml", ".cff": "yaml"}.get(Path(path).suffix, "text")
        code = app.builder.highlighter.highlight_block((ROOT / path).read_text(), language, lineanchors="line")
        yield f"files/{path}", {"title": path, "body": f"<h1>{path}</h1>\n{code}"}, "page.html"


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """The page that a browser or a web server opens for a folder."""
    if exception is None and app.builder.name == "html":
        (Path(app.outdir) / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def setup(app: Sphinx) -> None:
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("source-read", add_navigation)
    app.connect("doctree-resolved", show_linked_files)
    app.connect("html-collect-pages", pages_of_linked_files)
    app.connect("build-finished", add_index)
