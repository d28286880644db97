"""The notebook that a reader takes away: it carries its figures and numbers, and runs by itself."""

import posixpath
import re
from collections.abc import Mapping
from typing import Any

import nbformat

from parameter_ordering.paper.book.chapters import RECORD, Chapter
from parameter_ordering.paper.book.pages import with_outputs

_GLUE = re.compile(r"\{glue:text\}`(?:(?P<page>[^`:]+)::)?(?P<key>[^`:]+)(?::(?P<form>[^`]+))?`")
_LINK = re.compile(r"\{(?:doc|ref)\}`([^`<]+?)(?: ?<[^`>]*>)?`")
_CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
_MIME = "application/papermill.record/"


def download(
    chapter: Chapter, executed: Mapping[str, nbformat.NotebookNode], repository: str = ""
) -> nbformat.NotebookNode:
    """The executed chapter with its values in the text, after a cell that says what it needs.

    Args:
        chapter: of the book.
        executed: notebooks by docname, for the values that pages glue from each other.
        repository: where the package is to be had, or nothing.
    """
    notebook = nbformat.from_dict(chapter.notebook)
    if chapter.docname in executed:
        notebook.cells = list(with_outputs(notebook, executed[chapter.docname]))
    values = {name: _glued(each) for name, each in executed.items()}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _plain(cell.source, values, chapter.docname)
        else:
            for output in cell.outputs:
                for about in output.get("metadata", {}).values():
                    if isinstance(about, dict):
                        about.pop("csv", None)
                        about.pop("narrow", None)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_setup(repository)))
    notebook.metadata.pop(RECORD, None)
    return notebook


def _setup(repository: str) -> str:
    source = f"git+{repository}" if repository else "the folder of the project's repository"
    return (
        "# This notebook runs where the package is. In an environment without it:\n"
        f"# %pip install 'parameter-ordering[paper] @ {source}' myst-nb\n"
        "import parameter_ordering  # an ImportError here means: take the line above"
    )


def _glued(notebook: nbformat.NotebookNode) -> dict[str, str]:
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            text = output.get("data", {}).get(_MIME + "text/plain")
            if name and text is not None:
                found[name] = text
    return found


def _plain(text: str, values: Mapping[str, Mapping[str, str]], here: str) -> str:
    """MyST's roles as plain Markdown, which any viewer of notebooks shows."""

    def value(found: re.Match) -> str:
        page = posixpath.join(posixpath.dirname(here), found["page"] or posixpath.basename(here))
        page = posixpath.normpath(re.sub(r"\.ipynb$", "", page))
        return _formatted(values.get(page, {}).get(found["key"], found["key"]), found["form"])

    text = _GLUE.sub(value, text)
    text = _LINK.sub(lambda found: f"*{found[1].strip()}*", text)
    return _CITE.sub(lambda found: f"[{found[1]}]", text)


def _formatted(text: str, form: str | None) -> str:
    literal: Any = text.strip("'\"")
    try:
        return format(float(literal) if form and form[-1] != "d" else int(literal), form or "")
    except ValueError:
        return str(literal)
