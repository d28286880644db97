"""A chapter runs again exactly when something that it depends on has changed.

One table: an edit of the book, and the chapters that it must make stale, with what is said of it.
What a build then does is tested on the same book in ``test_build``.
"""

import json
import os
import time

import nbformat
import pytest

from parameter_ordering.paper.book.chapters import RECORD, Chapter
from parameter_ordering.paper.book.settings import Settings
from parameter_ordering.paper.store import sources

ONE, TWO, THREE = "chapters/one", "chapters/two", "chapters/three"
EXECUTED = "_build/executed/paper/chapters/one.ipynb"


def states(book, profile=None):
    settings = Settings(book.root, profile)
    return {name: Chapter(settings, name).state() for name in settings.notebooks}


@pytest.fixture
def built(built, monkeypatch):
    monkeypatch.syspath_prepend(built.root / "lib")
    return built


def edit(name, old, new):
    return lambda book: book.edit(name, old, new)


def edit_notebook(name, change):
    def apply(book):
        path = book.root / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        nbformat.write(notebook, path)

    return apply


def damage_result(book):
    (path,) = book.root.glob("_build/results/*.nc")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(pattern):
    def apply(book):
        (path,) = book.root.glob(pattern)
        path.unlink()

    return apply


def cut(name):
    return lambda book: os.truncate(book.root / name, (book.root / name).stat().st_size // 2)


def add_helper(book):
    (book.root / "chapters/science.py").write_text("def result(n): ...\n")


def skip(notebook):
    notebook.cells[3].metadata.update(tags=["skip-execution"])
    notebook.cells[3].metadata.papermill.update(status="pending")


def add(name):
    def apply(book):
        path = book.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("0")

    return apply


def touch_everything(book):
    for path in book.root.rglob("*"):
        os.utime(path, (time.time() + 5, time.time() + 5))


TABLE = {
    "nothing": (lambda book: None, {}),
    "every time stamp": (touch_everything, {}),
    "prose of a chapter": (edit(f"{ONE}.ipynb", "# One", "# Number one"), {}),
    "prose added": (
        edit_notebook(ONE, lambda n: n.cells.insert(2, nbformat.v4.new_markdown_cell("More."))),
        {},
    ),
    "look of a cell": (
        edit_notebook(ONE, lambda n: n.cells[4].metadata.update(tags=["hide-input"])),
        {},
    ),
    "prose of a page": (edit("summary.md", "The square", "Its square"), {}),
    "order of chapters": (edit("_toc.yml", "- file: chapters/two\n", ""), {}),
    "comment in a source": (
        edit("lib/science.py", "    return n * n", "    return n * n  # !"),
        {},
    ),
    "parameters of another profile": (edit("chapters/parameters.yml", "n: 2", "n: 5"), {}),
    "data that nothing names": (add("data/new.csv"), {}),
    "code": (
        edit_notebook(ONE, lambda n: n.cells[3].update(source=n.cells[3].source + "\n1")),
        {ONE: "code cell 3 changed"},
    ),
    "code added": (
        edit_notebook(ONE, lambda n: n.cells.append(nbformat.v4.new_code_cell("1"))),
        {ONE: "5 code cells, there were 4"},
    ),
    "default of a parameter": (
        edit_notebook(ONE, lambda n: n.cells[2].update(source="n: int = 4\nname: str = 'a'")),
        {ONE: "code cell 2 changed"},
    ),
    "which cell holds the parameters": (
        edit_notebook(ONE, lambda n: n.cells[2].metadata.clear()),
        {ONE: "code cell 2 changed"},
    ),
    "parameters of the profile": (
        lambda book: (book.root / "chapters/parameters.yml").write_text(
            "smoke: {chapters/one: {n: 2}}\npaper: {chapters/one: {n: 4}}\n"
        ),
        {ONE: "parameter n null -> 4"},
    ),
    "source of two chapters": (
        edit("lib/science.py", "n * n", "n * n * 1"),
        {ONE: "source science changed", THREE: "source science changed"},
    ),
    "source of one chapter": (
        edit("lib/style.py", "Image(base64", "Image(data=base64"),
        {ONE: "source style changed"},
    ),
    "source that stands in the way": (
        add_helper,
        {ONE: "source science changed", THREE: "source science changed"},
    ),
    "tag that changes what happens": (
        edit_notebook(ONE, lambda n: n.cells[3].metadata.update(tags=["raises-exception"])),
        {ONE: "code cell 3 changed"},
    ),
    "data": (edit("data/numbers.csv", "3", "4"), {TWO: "data data/numbers.csv changed"}),
    "data of benchmarks": (
        add("benchmarks/numbers.csv"),
        {TWO: "data benchmarks/numbers.csv changed"},
    ),
    "a file beside the chapters": (
        edit("chapters/notes.yml", "a", "b"),
        {TWO: "data chapters/notes.yml changed"},
    ),
    "data gone": (remove("data/numbers.csv"), {TWO: "data data/numbers.csv changed"}),
    "result gone": (remove("_build/results/*.nc"), {ONE: "is gone", THREE: "is gone"}),
    "note of a result gone": (remove("_build/results/*.json"), {ONE: "is gone", THREE: "is gone"}),
    "result damaged": (
        damage_result,
        {ONE: "is not the one that was used", THREE: "is not the one that was used"},
    ),
    "outputs gone": (remove(EXECUTED), {ONE: "never executed with profile paper"}),
    "outputs cut off": (cut(EXECUTED), {ONE: "cannot be read"}),
    "outputs without a record": (
        edit_notebook(EXECUTED[:-6], lambda n: n.metadata.pop(RECORD)),
        {ONE: "cannot be read"},
    ),
    "a cell that was not run": (
        edit_notebook(
            EXECUTED[:-6], lambda n: n.cells[3].metadata.papermill.update(status="pending")
        ),
        {ONE: "unfinished"},
    ),
    "a cell that is never run": (edit_notebook(EXECUTED[:-6], skip), {}),
    "a cell that papermill marked": (
        edit_notebook(
            EXECUTED[:-6], lambda n: n.cells[3].metadata.papermill.update(exception=True)
        ),
        {ONE: "unfinished"},
    ),
    "a cell that failed": (
        edit_notebook(
            EXECUTED[:-6],
            lambda n: n.cells[3].outputs.append(
                nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
            ),
        ),
        {ONE: "unfinished"},
    ),
}


@pytest.mark.parametrize("change", TABLE)
def test_an_edit_makes_stale_what_depends_on_it(built, change):
    apply, expected = TABLE[change]
    apply(built)
    found = {name: state.why for name, state in states(built).items() if state.runs}
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name]


@pytest.mark.parametrize(("package", "stale"), [("xarray", {ONE, THREE}), ("torch", set())])
def test_a_new_version_makes_stale_what_imports_it(built, monkeypatch, package, stale):
    version = sources._version
    monkeypatch.setattr(sources, "_version", lambda n: "999" if n == package else version(n))
    found = {name: state.why for name, state in states(built).items() if state.runs}
    assert found.keys() == stale
    assert all(f'package {package} "{version(package)}" -> "999"' == why for why in found.values())


@pytest.mark.parametrize(
    ("before", "now", "stale"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, False),
        ({"a": 1, "b": [1, 2]}, {"b": [2, 1], "a": 1}, True),
        ({"a": 1}, {"a": True}, True),
    ],
)
def test_a_parameter_that_is_a_mapping(built, before, now, stale):
    def give(value):
        cells = ["# Two", "settings = {}", "settings"]
        built.write_notebook("two", cells, tagged=1)
        profiles = {"smoke": {TWO: {"settings": value}}}
        (built.root / "chapters/parameters.yml").write_text(json.dumps(profiles))

    give(before)
    status, output = built.command("execute", "two", "--profile", "smoke")
    assert status == 0, output
    give(now)
    assert states(built, "smoke")[TWO].runs == stale


def test_profiles_do_not_share_outputs(built):
    assert all("profile smoke" in state.why for state in states(built, "smoke").values())
    assert not any(state.runs for state in states(built).values())


def test_a_chapter_without_code_has_nothing_to_run(built):
    edit_notebook(TWO, lambda n: n.cells.pop())(built)
    assert states(built)[TWO].name == "text"


def test_status_says_why_and_fails_while_something_is_due(built):
    assert built.command("status")[0] == 0
    built.edit("data/numbers.csv", "3", "4")
    status, output = built.command("status")
    assert status == 1
    assert [line.split()[:2] for line in output.splitlines()] == [
        [ONE, "current"],
        [TWO, "stale"],
        [THREE, "current"],
    ]
    assert "data data/numbers.csv changed" in output


def test_the_record_tells_all_inputs(built):
    record = json.loads((built.root / EXECUTED).read_text())["metadata"][RECORD]
    assert record["profile"] == "paper"
    assert [name.split("-")[0] for name in record["results"]] == ["square"]
    assert set(record["inputs"]["sources"]) >= {
        "science",
        "style",
        "parameter_ordering.paper.store.results",
    }
    assert record["inputs"]["packages"].keys() >= {"python", "xarray"}
    assert record["origin"].keys() == {"date", "version", "commit", "machine", "python"}
