"""``{at-a-glance}``: what the book ran, where and for how long, as the build knows it."""

import json
from collections.abc import Iterator
from importlib.metadata import version

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from parameter_ordering.paper.book.chapters import RECORD, Chapter, read
from parameter_ordering.paper.book.settings import Settings

_VERSIONS = ("torch", "numpy", "jupyter-book", "papermill")


class AtAGlance(SphinxDirective):
    """A table of two columns, from the records of the executed chapters."""

    settings: Settings  # of the book, set by the extension

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows = "".join(
            f'<tr><th scope="row">{name}</th><td>{value}</td></tr>'
            for name, value in at_a_glance(self.settings)
        )
        html = f'<table class="glance"><tbody>{rows}</tbody></table>'
        return [nodes.raw("", html, format="html")]


def at_a_glance(settings: Settings) -> Iterator[tuple[str, str]]:
    """Names and values: scope, runs, machine, time, versions, date and commit."""
    chapters = [Chapter(settings, name) for name in settings.notebooks]
    records = [read(each.executed).metadata[RECORD] for each in chapters if each.executed.is_file()]
    used = sorted({name for record in records for name in record["results"]})
    notes = [_note(settings, name) for name in used]
    notes = [note for note in notes if note]
    where = [note["origin"] for note in notes] + [record["origin"] for record in records]
    settings_of = [note["inputs"].get("settings", {}) for note in notes]
    runs = sorted({each["runs"] for each in settings_of if "runs" in each})
    hours = sum(note["seconds"] for note in notes) / 3600
    yield (
        "Scope",
        "every experiment and figure of the paper, with controls, and what goes beyond it",
    )
    data = "Boston Housing, MNIST and three synthetic sets, all in the repository or drawn by it"
    yield "Data", data
    if runs:
        yield "Runs", f"{runs[-1]} of each experiment; {len(notes)} stored results"
    if where:
        machines = sorted({each["machine"] for each in where})
        yield "Machine", "; ".join(machines)
        yield (
            "Time",
            f"{hours:.1f} hours of training, as far as it was stored, and the pages after it",
        )
        commits = sorted({str(each["commit"]) for each in where})
        first, last = (f(str(each["date"])[:10] for each in where) for f in (min, max))
        yield "Date", last if first == last else f"{first} to {last}"
        yield "Commit", ", ".join(f"<code>{each}</code>" for each in commits)
        python = sorted({each["python"] for each in where})
        packages = (f"{name} {version(name)}" for name in _VERSIONS)
        yield "Versions", f"Python {', '.join(python)}, {', '.join(packages)}"


def _note(settings: Settings, name: str) -> dict:
    path = (settings.results / name).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
