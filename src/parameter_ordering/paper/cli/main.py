"""The verbs of ``parameter-ordering``, and how each is called."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.check import problems
from parameter_ordering.paper.book.execute import execute as run_chapters
from parameter_ordering.paper.book.execute import take_turn
from parameter_ordering.paper.book.settings import PAPER, BookError, Settings

CLAIMS = "chapters/claims.yml"
REFERENCE = "chapters/reference.csv"
VERDICTS = "chapters/verdicts.yml"

app = App(
    name="parameter-ordering",
    help="Runs the chapters of the book, as `jupyter-book build` does, and experiments.",
)
app.command(  # by its path, for it is slow to import
    "parameter_ordering.paper.cli.run:app",
    name="run",
    help="Run an experiment without a notebook.",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Book:
    """Which book, with which parameters.

    Attributes:
        book: the folder of _toc.yml (default: here or above).
        profile: paper, or one of chapters/parameters.yml (default: $PARAMETER_ORDERING_PROFILE, or
            paper).
    """

    book: Path | None = None
    profile: str | None = None

    def settings(self) -> Settings:
        """What is in it.

        Raises:
            BookError: there is no book here or above.
        """
        here = Path.cwd()
        folders = [self.book] if self.book else [here, *here.parents]
        for folder in folders:
            if self.book or (folder / "_toc.yml").is_file():
                return Settings(folder, self.profile)
        raise BookError("there is no book here or above: go to its folder, or give --book FOLDER")


_HERE = Book()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 if all is well, 1 if not, 2 for a wrong call."""
    try:
        verb, given, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, TypeError, ValueError) as error:
        print(f"parameter-ordering: {error}", file=sys.stderr)
        return 2
    try:
        return verb(*given.args, **given.kwargs) or 0
    except BookError as error:
        print(f"parameter-ordering: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130


@app.command
def status(book: Book = _HERE) -> int:
    """List each chapter with its state and why.

    It is current, stale, unexecuted, damaged, or text if it has no code. The exit status is 1 if
    one has to be executed.
    """
    settings = book.settings()
    settings.check()
    chapters = [Chapter(settings, name) for name in settings.notebooks]
    width = max((len(chapter.docname) for chapter in chapters), default=0)
    states = [chapter.state() for chapter in chapters]
    for chapter, state in zip(chapters, states, strict=True):
        print(f"{chapter.docname:{width}}  {state.name:10}  {state.why}")
    return int(any(state.runs for state in states))


@app.command
def execute(*chapter: str, force: bool = False, book: Book = _HERE) -> int:
    """Run chapters whose inputs changed.

    Runs papermill on those of the chapters whose code, parameters, imports, data or results
    changed, side by side. The pages are drawn by `jupyter-book build`.

    Args:
        chapter: as chapters/order, or order (default: all).
        force: run them even if nothing changed.
    """
    settings = book.settings()
    settings.check()
    chapters = _chapters(settings, chapter)
    turn = take_turn(settings, print)
    try:
        states = [(each, each.state()) for each in chapters]
        due = [each for each, state in states if state.runs or (force and state.name != "text")]
        if not due:
            print("nothing to execute: all is current")
            return 0
        for each, state in states:
            if each in due:
                print(f"{each.docname} is {state.name}: {state.why}")
        run_chapters(settings, due)
    finally:
        turn.release()
    return 0


@app.command
def check(book: Book = _HERE) -> int:
    """Look whether the built book is whole.

    Says what is wrong with _build/html: pages or figures that are missing, cut off, stale, built
    with another profile or showing an error; links that lead nowhere.
    """
    settings = book.settings()
    settings.check()
    found = list(problems(settings, settings.build / "html"))
    for name in settings.notebooks:
        state = Chapter(settings, name).state()
        if state.runs:
            found.append(f"{name} is {state.name}: {state.why}")
    return _told(found, f"{len(settings.docnames)} pages, nothing wrong")


@app.command
def compare(book: Book = _HERE) -> int:
    """Hold the stored results against the reference values.

    Compares the losses that the figures draw with chapters/reference.csv: means over runs, on the
    scale of their spread. Names each value that moved; computes nothing.
    """
    from parameter_ordering.paper.evidence import reference
    from parameter_ordering.paper.experiments import book_runs  # slow to import
    from parameter_ordering.paper.store.results import NotStored

    settings = book.settings()
    if settings.profile != PAPER:
        print(f"reference values are the paper's: profile {settings.profile} is not compared")
        return 0
    try:
        cases = book_runs.stored(settings.results)
    except NotStored as error:
        raise BookError(str(error)) from error
    found = reference.problems(settings.root / REFERENCE, cases)
    return _told(found, f"{len(cases)} cases, no number moved")


@app.command
def accept(book: Book = _HERE) -> int:
    """Take the stored results as the reference values.

    Writes chapters/reference.csv and chapters/verdicts.yml from the stored results, after saying
    what moved. Computes nothing: chapters that are not executed are named.
    """
    from parameter_ordering.paper.evidence import ledger, reference
    from parameter_ordering.paper.evidence.claims import load_claims
    from parameter_ordering.paper.experiments import book_runs  # slow to import
    from parameter_ordering.paper.store.results import NotStored, only_stored

    settings = book.settings()
    if settings.profile != PAPER:
        raise BookError(f"what profile {settings.profile} gives is no result to accept")
    try:
        cases = book_runs.stored(settings.results)
        claims = load_claims(settings.root / CLAIMS)
        with only_stored(settings.results):
            rows = ledger.judge(claims, book_runs.one_data_set())
            rows += ledger.judge(claims, book_runs.new_data(), "new data")
    except (NotStored, ValueError) as error:
        raise BookError(str(error)) from error
    for line in reference.problems(settings.root / REFERENCE, cases):
        print(line)
    reference.accept(settings.root / REFERENCE, cases)
    ledger.commit(rows, settings.root / VERDICTS)
    print(f"accepted {len(cases)} cases in {REFERENCE}, {len(rows)} verdicts in {VERDICTS}")
    return 0


def _told(found: Sequence[str], nothing: str) -> int:
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(nothing)
    return int(bool(found))


def _chapters(settings: Settings, names: Sequence[str]) -> list[Chapter]:
    """The chapters of these names: whole paths, or the last part."""
    chosen = [_docname(settings, name) for name in names] or settings.notebooks
    return [Chapter(settings, name) for name in dict.fromkeys(chosen)]


def _docname(settings: Settings, name: str) -> str:
    wanted = name.removesuffix(".ipynb")
    found = [each for each in settings.notebooks if wanted in (each, each.rpartition("/")[2])]
    if len(found) != 1:
        raise BookError(
            f"there is no one chapter {name!r}; there are: {', '.join(settings.notebooks)}"
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
