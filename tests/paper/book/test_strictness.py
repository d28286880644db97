"""What could pass unseen is refused, before anything runs, in words that name the remedy."""

import json
import os

import pytest

from parameter_ordering.paper.book import settings as settings_module
from parameter_ordering.paper.book.check import problems
from parameter_ordering.paper.book.settings import BookError, Settings

PARAMETERS = "chapters/parameters.yml"


def write(name, text):
    return lambda book: (book.root / name).write_text(text)


def metadata(name, change):
    def apply(book):
        path = book.root / f"{name}.ipynb"
        notebook = json.loads(path.read_text())
        change(notebook["metadata"])
        path.write_text(json.dumps(notebook))

    return apply


REFUSED = {
    "unknown parameter": (
        write(PARAMETERS, "smoke: {chapters/one: {m: 2}}"),
        "one.ipynb has no parameter 'm'; it has: n, name",
    ),
    "text for a number": (
        write(PARAMETERS, "smoke: {chapters/one: {n: '2'}}"),
        "takes n as a int, like 3, and is given '2'",
    ),
    "fraction for a whole number": (
        write(PARAMETERS, "smoke: {chapters/one: {n: 2.5}}"),
        "takes n as a int",
    ),
    "truth for a number": (
        write(PARAMETERS, "smoke: {chapters/one: {n: true}}"),
        "takes n as a int",
    ),
    "number for text": (
        write(PARAMETERS, "smoke: {chapters/one: {name: 1}}"),
        "takes name as a str",
    ),
    "unknown chapter": (
        write(PARAMETERS, "smoke: {chapters/four: {n: 2}}"),
        "no chapter 'chapters/four'; there are: chapters/one, chapters/two, chapters/three",
    ),
    "chapter without a cell for parameters": (
        write(PARAMETERS, "smoke: {chapters/two: {n: 2}}"),
        "two.ipynb has no cell tagged 'parameters'",
    ),
    "parameter that stands twice": (
        write(PARAMETERS, "smoke:\n  chapters/one: {n: 2, n: 3}\n"),
        'found duplicate key "n"',
    ),
    "profile that stands twice": (
        write(PARAMETERS, "smoke: {}\nsmoke: {}\n"),
        'found duplicate key "smoke"',
    ),
    "parameters that are no mapping": (
        write(PARAMETERS, "smoke: [chapters/one]\n"),
        "must map each profile to chapters",
    ),
    "malformed parameters": (write(PARAMETERS, "smoke: {"), "parameters.yml"),
    "key of the contents that stands twice": (
        lambda book: book.edit("_toc.yml", "root: summary", "root: summary\nroot: chapters/one"),
        'found duplicate key "root"',
    ),
    "key of the configuration that stands twice": (
        lambda book: book.edit("_config.yml", "title:", "title: Another\ntitle:"),
        'found duplicate key "title"',
    ),
    "malformed contents": (write("_toc.yml", "format: jb-book\n"), "_toc.yml"),
    "page that is not there": (
        lambda book: book.edit("_toc.yml", "chapters/three", "chapters/four"),
        "names chapters/four, and there is no such page",
    ),
    "no contents": (lambda book: (book.root / "_toc.yml").unlink(), "_toc.yml"),
    "no kernel named": (
        metadata("chapters/two", lambda m: m.clear()),
        "is no notebook that names its kernel",
    ),
    "kernel of another language": (
        metadata("chapters/two", lambda m: m["kernelspec"].update(name="ir", language="R")),
        "needs a kernel of R",
    ),
    "cut-off notebook": (
        lambda book: os.truncate(book.root / "chapters/two.ipynb", 100),
        "two.ipynb is no notebook",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused(book, what):
    apply, message = REFUSED[what]
    Settings(book.root).check()
    apply(book)
    with pytest.raises(BookError) as error:
        Settings(book.root).check()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "parameters", ["{n: 2}", "{n: 4, name: b}", "{}"], ids=["one", "both", "none"]
)
def test_good_parameters_pass(book, parameters):
    write(PARAMETERS, f"smoke: {{chapters/one: {parameters}}}")(book)
    Settings(book.root, "smoke").check()


def test_unknown_profile(book):
    with pytest.raises(BookError, match="no profile 'smok'; there are: paper, smoke"):
        Settings(book.root, "smok")


def test_profile_from_the_environment(book, monkeypatch):
    monkeypatch.setenv("PARAMETER_ORDERING_PROFILE", "smoke")
    assert Settings(book.root).profile == "smoke"
    assert Settings(book.root, "paper").profile == "paper"


def test_another_jupyter_book(book, monkeypatch):
    monkeypatch.setattr(settings_module, "version", lambda name: "2.1.0")
    with pytest.raises(BookError, match=r"needs jupyter-book 1 and finds 2\.1\.0"):
        Settings(book.root).check()


def test_no_kernel(book, monkeypatch):
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    with pytest.raises(BookError, match="pip install ipykernel"):
        Settings(book.root).check()


def test_a_refused_build_runs_nothing(book):
    write(PARAMETERS, "smoke: {chapters/one: {m: 2}}")(book)
    status, output = book.build()
    assert status != 0
    assert "has no parameter 'm'" in output
    assert not (book.root / "_build/executed").exists()


HTML = "_build/html/"
WRONG = {
    "page gone": (lambda b: (b.root / HTML / "chapters/two.html").unlink(), "two.html is missing"),
    "page too many": (write(HTML + "chapters/old.html", "</html>"), "old.html is no page"),
    "page cut off": (
        lambda b: os.truncate(b.root / HTML / "chapters/two.html", 5000),
        "two.html is cut off",
    ),
    "empty page": (write(HTML + "chapters/two.html", ""), "two.html is cut off"),
    "error on a page": (
        lambda b: b.edit(
            HTML + "chapters/two.html", "</html>", '<div class="output traceback"></html>'
        ),
        "two.html shows an error",
    ),
    "image gone": (
        lambda b: [p.unlink() for p in b.root.glob(HTML + "_images/*")],
        "points to ../_images",
    ),
    "arrays gone": (
        lambda b: [p.unlink() for p in b.root.glob(HTML + "_downloads/*/*")],
        "points to ../_downloads",
    ),
    "figure gone": (
        lambda b: b.edit(HTML + "chapters/one.html", 'id="pixel"', 'id="other"'),
        "one.html lacks the figure pixel",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_check_finds(built, what):
    apply, message = WRONG[what]
    settings = Settings(built.root)
    assert not list(problems(settings, built.root / HTML))
    apply(built)
    assert any(message in problem for problem in problems(settings, built.root / HTML))


def test_check_finds_an_empty_build(book):
    assert len(list(problems(Settings(book.root), book.root / HTML))) == 4


def test_check_fails_while_a_chapter_is_stale(built):
    assert built.command("check") == (0, "4 pages, nothing wrong\n")
    built.edit("data/numbers.csv", "3", "4")
    status, output = built.command("check")
    assert status == 1
    assert "chapters/two is stale" in output
