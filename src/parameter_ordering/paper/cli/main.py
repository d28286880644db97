"""The verbs of ``parameter-ordering``, and how each is called."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.check import problems
from parameter_ordering.paper.book.execute import execute, take_turn
from parameter_ordering.paper.book.settings import PAPER, BookError, Settings
from parameter_ordering.paper.cli.run import HELP, run

CLAIMS = "chapters/claims.yml"
REFERENCE = "chapters/reference.csv"
VERDICTS = "chapters/verdicts.yml"
Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 if all is well, 1 if not, 2 for a wrong call."""
    given = _parser().parse_args(arguments)
    try:
        return given.command(given)
    except BookError as error:
        print(f"parameter-ordering: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _status(given: argparse.Namespace) -> int:
    settings = _settings(given)
    settings.check()
    chapters = [Chapter(settings, name) for name in settings.notebooks]
    width = max((len(chapter.docname) for chapter in chapters), default=0)
    states = [chapter.state() for chapter in chapters]
    for chapter, state in zip(chapters, states, strict=True):
        print(f"{chapter.docname:{width}}  {state.name:10}  {state.why}")
    return int(any(state.runs for state in states))


def _execute(given: argparse.Namespace) -> int:
    settings = _settings(given)
    settings.check()
    chapters = _chapters(settings, given.chapter)
    turn = take_turn(settings, print)
    try:
        states = [(chapter, chapter.state()) for chapter in chapters]
        due = [c for c, state in states if state.runs or (given.force and state.name != "text")]
        if not due:
            print("nothing to execute: all is current")
            return 0
        for chapter, state in states:
            if chapter in due:
                print(f"{chapter.docname} is {state.name}: {state.why}")
        execute(settings, due)
    finally:
        turn.release()
    return 0


def _check(given: argparse.Namespace) -> int:
    settings = _settings(given)
    settings.check()
    found = list(problems(settings, settings.build / "html"))
    for name in settings.notebooks:
        state = Chapter(settings, name).state()
        if state.runs:
            found.append(f"{name} is {state.name}: {state.why}")
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"{len(settings.docnames)} pages, nothing wrong")
    return int(bool(found))


def _compare(given: argparse.Namespace) -> int:
    from parameter_ordering.paper.evidence import reference
    from parameter_ordering.paper.experiments import book_runs  # slow to import
    from parameter_ordering.paper.store.results import NotStored

    settings = _settings(given)
    if settings.profile != PAPER:
        print(f"reference values are the paper's: profile {settings.profile} is not compared")
        return 0
    try:
        cases = book_runs.stored(settings.results)
    except NotStored as error:
        raise BookError(str(error)) from error
    found = reference.problems(settings.root / REFERENCE, cases)
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"{len(cases)} cases, no number moved")
    return int(bool(found))


def _accept(given: argparse.Namespace) -> int:
    from parameter_ordering.paper.evidence import ledger, reference
    from parameter_ordering.paper.evidence.claims import load_claims
    from parameter_ordering.paper.experiments import book_runs  # slow to import
    from parameter_ordering.paper.store.results import NotStored, only_stored

    settings = _settings(given)
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


def _settings(given: argparse.Namespace) -> Settings:
    if given.book:
        return Settings(given.book, given.profile)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "_toc.yml").is_file():
            return Settings(folder, given.profile)
    raise BookError("there is no book here or above: go to its folder, or give --book FOLDER")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parameter-ordering",
        description="Runs the chapters of the book, as `jupyter-book build` does, and experiments.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    book = argparse.ArgumentParser(add_help=False)
    book.add_argument(
        "--book", type=Path, metavar="FOLDER", help="where _toc.yml is (default: here or above)"
    )
    book.add_argument(
        "--profile",
        help="paper, or one of chapters/parameters.yml "
        "(default: $PARAMETER_ORDERING_PROFILE, or paper)",
    )

    def verb(name: str, command: Command, help: str, description: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(name, parents=[book], help=help, description=description)
        parser.set_defaults(command=command)
        return parser

    verb(
        "status",
        _status,
        "list each chapter with its state and why",
        "Lists each chapter with its state, and why: current, stale, unexecuted, damaged, or text "
        "if it has no code. The exit status is 1 if one has to be executed.",
    )
    execute_parser = verb(
        "execute",
        _execute,
        "run chapters whose inputs changed",
        "Runs papermill on those of the chapters whose code, parameters, imports, data or results "
        "changed, side by side. The pages are drawn by `jupyter-book build`.",
    )
    execute_parser.add_argument(
        "chapter", nargs="*", metavar="CHAPTER", help="as chapters/order, or order (default: all)"
    )
    execute_parser.add_argument(
        "--force", action="store_true", help="run them even if nothing changed"
    )
    verb(
        "check",
        _check,
        "look whether the built book is whole",
        "Says what is wrong with _build/html: pages or figures that are missing, cut off, stale, "
        "built with another profile or showing an error; links that lead nowhere.",
    )
    verb(
        "compare",
        _compare,
        "hold the stored results against the reference values",
        f"Compares the losses that the figures draw with {REFERENCE}: means over runs, on the "
        "scale of their spread. Names each value that moved; computes nothing.",
    )
    verb(
        "accept",
        _accept,
        "take the stored results as the reference values",
        f"Writes {REFERENCE} and {VERDICTS} from the stored results, after saying what moved. "
        "Computes nothing: chapters that are not executed are named.",
    )

    run_parser = verbs.add_parser(
        "run",
        help="run an experiment without a notebook",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run_parser.add_argument("experiment", metavar="EXPERIMENT", help="e.g. boston_housing")
    run_parser.add_argument(
        "settings",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="--out FOLDER, --jobs N, --backend dask --scheduler ADDRESS, --SETTING VALUE",
    )
    run_parser.set_defaults(command=lambda given: run(given.experiment, given.settings))
    return parser


if __name__ == "__main__":
    sys.exit(main())
