"""A small book: three notebooks that compute, one page that glues from them, no torch.

``one`` has parameters and a result out of the store, ``two`` reads a file of ``data/`` and draws,
``three`` uses the result of ``one``; ``summary`` is prose with a number of ``one`` in it.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from jupyter_book.cli.main import main
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CONFIG = """\
title: A small book
execute:
  execute_notebooks: "off"
only_build_toc_files: true
sphinx:
  extra_extensions: [parameter_ordering.paper.book]
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

from parameter_ordering.paper.store.results import Store


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
    "from pathlib import Path\n\n[Path(p).stat() for p in ('../data/numbers.csv', 'notes.yml')]",
]
THREE = ["# Three", "from science import result\n\nprint('three has', result(3)['y'].item())"]


_IMPORTS = [
    "jupyter_book.sphinx",
    "jupyter_cache.base",
    "myst_nb.sphinx_ext",
    "papermill",
    "parameter_ordering.paper.book.extension",
    "sphinx.builders.html",
    "sphinx_book_theme",
    "sphinx_design",
]


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
            "chapters/notes.yml": "a: 1\n",
            "data/numbers.csv": "1,2,3\n",
            "lib/science.py": SCIENCE,
            "lib/style.py": STYLE,
        }
        for name, text in texts.items():
            (self.root / name).write_text(text)
        self.write_notebook("one", ONE, tagged=2)
        self.write_notebook("two", TWO)
        self.write_notebook("three", THREE)
        return self

    def write_notebook(self, name: str, cells: list[str], tagged: int | None = None) -> None:
        """A chapter without outputs; a cell that begins with ``#`` is prose."""
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(metadata={"kernelspec": kernel})
        for number, text in enumerate(cells):
            new = new_markdown_cell if text.startswith("#") else new_code_cell
            cell = new(text, id=f"cell-{number}")
            if number == tagged:
                cell.metadata["tags"] = ["parameters"]
            if "figure()" in text:
                cell.metadata["mystnb"] = {"figure": {"name": "pixel", "caption": "A pixel."}}
            notebook.cells.append(cell)
        nbformat.write(notebook, self.root / f"chapters/{name}.ipynb")

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

    def start(self, limit: int | None = None, **extra: str) -> "Build":
        """Start a strict ``jupyter-book build``.

        With a ``limit`` no file can grow beyond so many bytes, as on a full disk, and the output,
        which would be such a file, is dropped.
        """
        return Build(self, limit, extra)

    def build(self, limit: int | None = None, **extra: str) -> tuple[int, str]:
        """Run ``jupyter-book build``; exit status and output."""
        return self.start(limit, **extra).wait()

    def command(self, *arguments: str, **extra: str) -> tuple[int, str]:
        """Run ``parameter-ordering``; exit status and output."""
        run = subprocess.run(
            [sys.executable, "-m", "parameter_ordering.paper.cli.main", *arguments],
            cwd=self.root / "chapters",
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return run.returncode, run.stdout + run.stderr

    def html(self, page: str) -> str:
        """A page."""
        return (self.root / f"_build/html/{page}.html").read_text()


class Build(multiprocessing.get_context("fork").Process):
    """A running ``jupyter-book build``, forked from here: the imports are most of a small build."""

    def __init__(self, book: SmallBook, limit: int | None, extra: dict[str, str]) -> None:
        super().__init__()
        self._book, self._limit, self._extra = book, limit, extra
        self._output = open(os.devnull if limit else tempfile.mkstemp()[1], "r+")  # noqa: SIM115
        for name in _IMPORTS:
            import_module(name)
        self.start()

    def run(self) -> None:
        """The build itself."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        os.environ.update(self._book.environment(**self._extra))
        sys.path.insert(0, str(self._book.root / "lib"))
        for stream in (1, 2):
            os.dup2(self._output.fileno(), stream)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._limit))
        main(["build", str(self._book.root), "-W", "-n", "--keep-going"])

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Exit status and output."""
        self.join(seconds)
        self._output.seek(0)
        return self.exitcode, self._output.read()


@pytest.fixture
def book(tmp_path: Path) -> SmallBook:
    """A book of which nothing is built."""
    return SmallBook(tmp_path / "book").write()


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> SmallBook:
    book = SmallBook(tmp_path_factory.mktemp("built") / "book").write()
    status, output = book.build()
    assert status == 0, output
    shutil.copytree(book.root, book.root.with_name("original"))
    return book


@pytest.fixture
def built(_original: SmallBook) -> SmallBook:
    """A book that is built and up to date; always at the same place, as Sphinx wants it."""
    shutil.rmtree(_original.root)
    original = _original.root.with_name("original")
    shutil.copytree(original, _original.root, copy_function=_copy)
    return _original


def _copy(source: str, target: str) -> None:
    """The theme's files, which no test changes, are not copied."""
    (os.link if "/_static/" in source else shutil.copy2)(source, target)
