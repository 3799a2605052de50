"""The site of greenletio's documentation: ``make docs``. Warnings are errors there."""

import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import greenletio

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

project = "greenletio"
author = "greenletio contributors"
copyright = f"2026, {author}"
version = release = greenletio.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
# Signatures name types as their module does, without its name: some names are of both faces.
suppress_warnings = ["ref.python"]
default_role = "literal"  # docstrings name things in single backquotes

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

# Only with a network; `make docs` does without.
intersphinx_mapping = {}

html_theme = "furo"
html_title = f"greenletio {release}"
html_static_path = ["_static"]
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp"
linkcheck_anchors = False


class Known(Directive):
    """``{known} tests/some/known.toml``: a table of the tests that are listed there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = ROOT / self.arguments[0]
        self.state.document.settings.record_dependencies.add(str(path))
        with path.open("rb") as file:
            entries = tomllib.load(file)["fails"]
        rows = []
        for entry in entries:
            tests = nodes.entry()
            for name in entry["tests"]:
                tests += nodes.paragraph("", "", nodes.literal(name, name))
            pythons = ", ".join(entry.get("pythons", ["all"]))
            cells = [nodes.entry("", nodes.paragraph(text=entry["reason"])), tests]
            cells.append(nodes.entry("", nodes.paragraph(text=pythons)))
            rows.append(nodes.row("", *cells))
        titles = [
            nodes.entry("", nodes.paragraph(text=text)) for text in ("reason", "tests", "Python")
        ]
        group = nodes.tgroup("", cols=3)
        group += [nodes.colspec(colwidth=width) for width in (40, 50, 10)]
        group += nodes.thead("", nodes.row("", *titles))
        group += nodes.tbody("", *rows)
        return [nodes.table("", group)]


def setup(app: Sphinx) -> None:
    app.add_directive("known", Known)
