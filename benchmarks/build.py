"""What building the book costs: all of it, nothing changed, one text changed, and beside papermill.

The tracked files are copied to a folder of their own and built there, so nothing of an earlier
build is found. ``cores`` is the processor time of all processes over the time on the clock.
"""

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.execute import execute
from parameter_ordering.paper.book.settings import Settings

_ROOT = Path(__file__).parents[1]
_BUILD = [
    str(Path(sys.executable).with_name("jupyter-book")),
    "build",
    ".",
    "-W",
    "-n",
    "--keep-going",
]


def run(quick: bool = False) -> list[dict]:
    """Rows of one measurement each; ``quick`` builds the smoke profile."""
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder) / "book"
        _copy_tracked(book)
        environment = _environment(book, "smoke" if quick else "paper")
        rows = [{"what": "all of the book", **_measured(_BUILD, book, environment)}]
        rows.append({"what": "nothing changed", **_measured(_BUILD, book, environment)})
        rows.append({"what": "one text changed", **_after_an_edit(book, environment)})
        overhead = _overhead(Path(folder) / "small", environment, rounds=1 if quick else 9)
    return [*rows, {"what": "one chapter, over plain papermill", **overhead}]


def _after_an_edit(book: Path, environment: dict[str, str]) -> dict:
    path = next(iter(sorted((book / "chapters/experiments").glob("*.ipynb"))))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("One more sentence."))
    nbformat.write(notebook, path)
    before = _written(book)
    row = _measured(_BUILD, book, environment)
    after = _written(book)
    return {**row, "pages": [name for name, when in after.items() if when != before.get(name)]}


def _written(book: Path) -> dict[str, int]:
    pages = book / "_build/html/chapters"
    return {
        path.relative_to(pages).with_suffix("").as_posix(): path.stat().st_mtime_ns
        for path in sorted(pages.rglob("*.html"))
    }


def _overhead(book: Path, environment: dict[str, str], rounds: int) -> dict:
    """Medians of running one notebook of one cell, by turns in the two ways."""
    (book / "chapters").mkdir(parents=True)
    (book / "_toc.yml").write_text("format: jb-book\nroot: chapters/one\n")
    (book / "_config.yml").write_text("title: One\n")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell("1 + 1", metadata={"tags": ["parameters"]})]
    nbformat.write(notebook, book / "chapters/one.ipynb")
    plain = [sys.executable, "-m", "papermill", "chapters/one.ipynb", "plain.ipynb"]
    settings = Settings(book)
    ways = {
        "plain": lambda: _measured(plain, book, environment),
        "ours": lambda: execute(
            settings, [Chapter(settings, "chapters/one")], say=lambda line: None
        ),
    }
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    overhead = round(medians["ours"] - medians["plain"], 3)
    return {"seconds": overhead, "plain_seconds": medians["plain"], "rounds": rounds}


def _measured(command: Sequence[str], folder: Path, environment: dict[str, str]) -> dict:
    before, began = _processor_seconds(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    cores = (_processor_seconds() - before) / seconds
    chapters = len(re.findall(r"\] \S+ executed in", done.stdout))
    return {"seconds": round(seconds, 3), "cores": round(cores, 2), "chapters": chapters}


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _copy_tracked(target: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(_ROOT / name, target / name)


def _environment(book: Path, profile: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(book / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PARAMETER_ORDERING_PROFILE": profile}
