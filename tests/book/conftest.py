"""A small book: three notebooks that compute, one page that glues from them, no torch.

``one`` has parameters and a result out of the store, ``two`` reads a file of ``data/`` and draws,
``three`` uses the result of ``one``; ``summary`` is prose with a number of ``one`` in it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CONFIG = """\
title: A small book
execute:
  execute_notebooks: "off"
only_build_toc_files: true
sphinx:
  extra_extensions: [parameter_ordering.book]
"""
TOC = """\
format: jb-book
root: summary
chapters:
- file: chapters/one
- file: chapters/two
- file: chapters/three
"""
PARAMETERS = """\
smoke:
  chapters/one: {n: 2}
"""
SCIENCE = '''\
"""Computes."""

import xarray as xr

from parameter_ordering.store import Store


def square(n):
    """The square."""
    return n * n


def result(n):
    return Store().get("square", {"n": n}, lambda: xr.Dataset({"y": square(n)}))
'''
STYLE = '''\
"""Draws."""

import base64

from IPython.display import Image

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def figure():
    return Image(base64.b64decode(PIXEL))
'''
SUMMARY = """\
# A small book

The square is {glue:text}`chapters/one.ipynb::square:d`.
"""
ONE = [
    "# One",
    "from myst_nb import glue\nfrom science import result",
    "n: int = 3\nname: str = 'a'",
    "y = result(n)['y'].item()\nglue('square', y, display=False)",
    "from style import figure\n\nfigure()",
]
TWO = [
    "# Two",
    "from pathlib import Path\n\nlen(Path('../data/numbers.csv').read_text())",
]
THREE = ["# Three", "from science import result\n\nprint('three has', result(3)['y'].item())"]


def write_notebook(path: Path, cells: list[str], tagged: int | None = None) -> None:
    """A notebook without outputs; a cell that begins with ``#`` is prose."""
    notebook = new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    for number, text in enumerate(cells):
        new = new_markdown_cell if text.startswith("#") else new_code_cell
        cell = new(text, id=f"cell-{number}")
        if number == tagged:
            cell.metadata["tags"] = ["parameters"]
        notebook.cells.append(cell)
    nbformat.write(notebook, path)


class SmallBook:
    """A folder with the book in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self) -> "SmallBook":
        """Lay out the files."""
        for folder in ("chapters", "data", "lib"):
            (self.root / folder).mkdir(parents=True)
        texts = {
            "_config.yml": CONFIG,
            "_toc.yml": TOC,
            "summary.md": SUMMARY,
            "chapters/parameters.yml": PARAMETERS,
            "data/numbers.csv": "1,2,3\n",
            "lib/science.py": SCIENCE,
            "lib/style.py": STYLE,
        }
        for name, text in texts.items():
            (self.root / name).write_text(text)
        write_notebook(self.root / "chapters/one.ipynb", ONE, tagged=2)
        write_notebook(self.root / "chapters/two.ipynb", TWO)
        write_notebook(self.root / "chapters/three.ipynb", THREE)
        return self

    def copy(self, root: Path) -> "SmallBook":
        """The same book, with what was built, at another place."""
        shutil.copytree(self.root, root, symlinks=True)
        return SmallBook(root)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in a file."""
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def environment(self, **extra: str) -> dict[str, str]:
        """For the processes that build it."""
        paths = [str(self.root / "lib"), *sys.path]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **extra}

    def popen(self, *arguments: str, **extra: str) -> subprocess.Popen:
        """Start ``jupyter-book build``."""
        code = "from jupyter_book.cli.main import main; main()"
        command = [sys.executable, "-c", code, "build", str(self.root), "-W", "-n", "--keep-going"]
        return subprocess.Popen(
            [*command, *arguments],
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def build(self, *arguments: str, **extra: str) -> tuple[int, str]:
        """Run ``jupyter-book build``; exit status and output."""
        process = self.popen(*arguments, **extra)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def html(self, page: str) -> str:
        """A page."""
        return (self.root / f"_build/html/{page}.html").read_text()


@pytest.fixture
def book(tmp_path: Path) -> SmallBook:
    """A book of which nothing is built."""
    return SmallBook(tmp_path / "book").write()


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> SmallBook:
    book = SmallBook(tmp_path_factory.mktemp("built") / "book").write()
    status, output = book.build()
    assert status == 0, output
    return book


@pytest.fixture
def built(_built: SmallBook, tmp_path: Path) -> SmallBook:
    """A book that is built and up to date."""
    return _built.copy(tmp_path / "book")
