"""``jupyter-book build`` on a small book: what it runs, what it shows, and when it fails.

Every build is strict: ``-W -n --keep-going``.
"""

import os
import re
import signal
import sys
import time

import nbformat
import psutil
import pytest
import xarray as xr

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.settings import Settings

PAGES = ["summary", "chapters/one", "chapters/two", "chapters/three"]


def executed(output):
    """The chapters that a build says it has executed."""
    return sorted(re.findall(r"\] (\S+) executed in", output))


def times(book):
    return {page: (book.root / f"_build/html/{page}.html").stat().st_mtime_ns for page in PAGES}


def shown(book):
    """The pages, but for the version that some links to style sheets have from the second build."""
    return {page: re.sub(r"\.css(\?v=\w+)?", ".css", book.html(page)) for page in PAGES}


def rewritten(book, before):
    return [page for page, when in times(book).items() if when != before[page]]


def good(outcome):
    status, output = outcome
    assert status == 0, output
    return output


def failed(outcome):
    status, output = outcome
    assert status != 0, output
    return output


def test_nothing_changed(built):
    before = times(built)
    assert not executed(good(built.build()))
    assert not rewritten(built, before)


def test_prose_changes_its_page_alone_and_executes_nothing(built):
    before = times(built)
    built.edit("chapters/one.ipynb", "# One", "# One\\n\\nIn other words.")
    assert not executed(good(built.build()))
    assert rewritten(built, before) == ["summary", "chapters/one"]  # Sphinx writes the root always
    assert "In other words" in built.html("chapters/one")
    assert 'id="pixel"' in built.html("chapters/one")


def test_a_new_title_reaches_the_side_bar_of_every_page(built):
    built.edit("chapters/three.ipynb", "# Three", "# The third")
    assert not executed(good(built.build()))
    assert all("The third" in built.html(page) for page in PAGES)


def test_numbers_follow_the_sources_onto_every_page(built):
    assert "9</span>" in built.html("summary")
    before = times(built)
    built.edit("lib/science.py", '{"n": n}', '{"n": n, "sign": -1}')
    built.edit("lib/science.py", "return n * n", "return -n * n")
    assert executed(good(built.build())) == ["chapters/one", "chapters/three"]
    assert rewritten(built, before) == ["summary", "chapters/one", "chapters/three"]
    assert "\N{MINUS SIGN}9</span>" in built.html("summary")
    assert "three has -9" in built.html("chapters/three")


def test_execute_and_build_share_their_work(built):
    built.edit("lib/style.py", '"""Draws."""', '"""Draws well."""')
    status, output = built.command("execute", "one")
    assert status == 0
    assert executed(output) == ["chapters/one"]
    before = times(built)
    assert not executed(good(built.build()))
    assert rewritten(built, before) == ["summary", "chapters/one"]
    assert built.command("execute")[1] == "nothing to execute: all is current\n"
    assert executed(built.command("execute", "--force", "chapters/two")[1]) == ["chapters/two"]
    assert "no one chapter 'four'" in failed(built.command("execute", "four"))


def test_a_failing_cell_fails_the_build_and_loses_nothing(built):
    built.edit("chapters/one.ipynb", "['y'].item()", "['y'].item() // 0")
    built.edit("data/numbers.csv", "3", "4")
    output = failed(built.build())
    assert "chapters/one: cell [3] failed with ZeroDivisionError" in output
    assert "y = result(n)['y'].item() // 0" in output
    assert executed(output) == ["chapters/two"]
    built.edit("chapters/one.ipynb", "item() // 0", "item()")
    assert not executed(good(built.build()))  # as it was before


def test_what_is_no_longer_glued_is_no_longer_shown(built):
    built.edit("chapters/one.ipynb", "glue('square'", "glue('cube'")
    output = failed(built.build())
    assert "Glue reference 'square' not found in doc 'chapters/one'" in output
    assert "9</span>" not in built.html("summary")
    again = failed(built.build())  # a warning is not forgotten because nothing changed since
    assert "Glue reference 'square' not found in doc 'chapters/one'" in again


def test_a_chapter_that_leaves_the_book_leaves_no_page(built):
    built.edit("_toc.yml", "- file: chapters/two\n", "")
    good(built.build())
    assert not (built.root / "_build/html/chapters/two.html").exists()


def test_smoke_does_not_pass_as_the_paper(built):
    paper = shown(built)
    output = good(built.build(PARAMETER_ORDERING_PROFILE="smoke"))
    assert executed(output) == ["chapters/one", "chapters/three", "chapters/two"]
    assert all("Nothing here is a result of the paper" in built.html(page) for page in PAGES)
    assert "4</span>" in built.html("summary")
    assert "# Parameters" in built.html("chapters/one")  # the cell that papermill puts in
    assert "profile" in failed(built.command("check"))
    good(built.command("check", "--profile", "smoke"))
    assert not executed(good(built.build()))
    assert shown(built) == paper


def test_under_a_figure_stands_where_it_comes_from(built):
    page = built.html("chapters/one")
    fold = page[page.index("How this figure was made") :]
    for text in ("parameter-ordering execute --force chapters/one", "Profile paper", "xarray"):
        assert text in fold
    link = re.search(r'href="\.\./(_downloads/\w+/square-\w+\.nc)"', fold)
    arrays = xr.load_dataset(built.root / "_build/html" / link[1], engine="h5netcdf")
    assert arrays["y"].item() == 9
    assert "How this figure was made" not in built.html("chapters/three")


def test_pages_keep_their_place_and_notebooks_stay_free_of_outputs(built):
    assert (built.root / "_build/html/_sources/chapters/one.ipynb").is_file()
    for path in (built.root / "chapters").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells)
    page = (built.root / "_build/executed/paper/chapters/one.ipynb").read_text()
    assert str(built.root) not in page


def test_progress_is_dropped_and_warnings_are_kept(built):
    progress = r"print(f'\r{7 * 11} %', end='\n', file=sys.stderr)"
    built.write_notebook(
        "two", ["# Two", f"import sys, warnings\n{progress}\nwarnings.warn('mind')"]
    )
    good(built.build())
    assert "77 %" not in built.html("chapters/two")
    assert "UserWarning: mind" in built.html("chapters/two")


def test_the_running_interpreter_is_the_kernel_whatever_its_name(built):
    code = "import os, sys\\nprint('runs', sys.executable, os.environ['OMP_NUM_THREADS'])"
    built.edit("chapters/two.ipynb", '"name": "python3"', '"name": "no-such-kernel"')
    built.edit("chapters/three.ipynb", "from science import result", code)
    built.edit("chapters/three.ipynb", "print('three has', result(3)['y'].item())", "1")
    good(built.build())
    assert f"runs {sys.executable} 1" in built.html("chapters/three")


def test_two_builds_at_once_take_turns(built):
    built.edit("data/numbers.csv", "3", "4")
    builds = [built.start(), built.start()]
    outputs = [good(build.wait()) for build in builds]
    assert sorted(len(executed(output)) for output in outputs) == [0, 1]
    assert any("waiting for another build" in output for output in outputs)
    good(built.command("check"))


@pytest.fixture
def sleeping(built):
    """A build that runs a chapter that takes long; nothing of it outlives the test."""
    sign = built.root / "running"
    code = f"import time; open({str(sign)!r}, 'w'); time.sleep(100)"
    built.edit("chapters/two.ipynb", "from pathlib import Path", code)
    build = built.start()
    deadline = time.monotonic() + 60
    while not sign.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = psutil.Process(build.pid).children(recursive=True)
    yield build, processes
    for process in (build, *processes):
        if process.is_alive() if process is build else process.is_running():
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_build_that_ends_takes_its_kernels_with_it(sleeping, number):
    build, processes = sleeping
    assert len(processes) == 2
    os.kill(build.pid, number)
    failed(build.wait(20))
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("which", "message"),
    [(0, "chapters/two: its process ended with status -9"), (1, "chapters/two: DeadKernelError")],
    ids=["worker", "kernel"],
)
def test_a_process_that_dies_fails_the_build(sleeping, which, message):
    build, processes = sleeping
    processes[which].kill()
    assert message in failed(build.wait(20))


def test_a_full_disk_fails_the_build_and_leaves_nothing_half_done(built, monkeypatch):
    monkeypatch.syspath_prepend(built.root / "lib")
    built.edit("chapters/one.ipynb", "n: int = 3", "n: int = 4")
    one = Chapter(Settings(built.root), "chapters/one")
    for size, results, is_stale in ((1_000, 1, True), (3_000, 2, True), (10_000, 2, False)):
        failed(built.build(limit=size))
        assert len(list(built.root.glob("_build/results/*.nc"))) == results
        assert one.state().runs == is_stale
        assert not list(built.root.glob("_build/**/*.part"))
    assert not executed(good(built.build()))
    good(built.command("check"))
