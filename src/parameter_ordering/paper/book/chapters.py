"""The chapters of the book, what each depends on, and whether it is up to date.

A chapter is a notebook of ``_toc.yml``. Its inputs are its code cells, its parameters, the sources
and packages that it imports, the data files that these name, and the results it used. Prose
is none: it is taken from the committed notebook whenever a page is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from parameter_ordering.paper.book.settings import BookError, Settings
from parameter_ordering.paper.store import sources
from parameter_ordering.paper.store.files import sha256

RECORD = "parameter_ordering"
"""Our key in a notebook's metadata. An executed one keeps its record there: inputs, results used,
origin, seconds. A committed one may say about how many ``minutes`` it takes; long ones go first."""

_TAGS_THAT_MATTER = {"parameters", "raises-exception", "skip-execution"}


class State(NamedTuple):
    """Whether a chapter can be shown, and why not."""

    name: str
    """``current``, ``stale``, ``unexecuted``, ``damaged``, or ``text`` when there is no code."""
    why: str = ""

    @property
    def runs(self) -> bool:
        """Whether a build has to execute the chapter."""
        return self.name in ("stale", "unexecuted", "damaged")


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book under one profile.

    Args:
        settings: of the book.
        docname: the path without its suffix, relative to the book; Sphinx's name for the page.
    """

    settings: Settings
    docname: str

    @property
    def path(self) -> Path:
        """The committed notebook."""
        return self.settings.root / f"{self.docname}.ipynb"

    @property
    def executed(self) -> Path:
        """The executed notebook, with its record; it depends on the profile."""
        return self.settings.build / "executed" / self.settings.profile / f"{self.docname}.ipynb"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What papermill is given: where the profile differs from the chapter's own values."""
        return self.settings.parameters.get(self.docname, {})

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        """The committed notebook's content."""
        return read(self.path)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that the chapter's outputs depend on, but for the results it will use."""
        cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        imports = sources.Imports(self.path.parent)
        named: set[str] = set()
        for cell in cells:
            imports.follow_code(cell.source)
            named.update(sources.strings(sources.python(cell.source)))
        names = {Path(each).name for each in named | imports.strings()}
        return {
            "cells": [[cell.source, *sorted(_TAGS_THAT_MATTER & tags(cell))] for cell in cells],
            "parameters": dict(self.parameters),
            "data": self.settings.data_checksums(names),
            **imports.described(),
        }

    def state(self) -> State:
        """Whether the executed notebook shows what the inputs of now would give."""
        if not any(cell.cell_type == "code" for cell in self.notebook.cells):
            return State("text", "no code")
        if not self.executed.is_file():
            return State("unexecuted", f"never executed with profile {self.settings.profile}")
        try:
            executed = read(self.executed)
            record = executed.metadata[RECORD]
            before, used = record["inputs"], record["results"]
        except (BookError, KeyError, TypeError):
            return State("damaged", "the executed notebook cannot be read")
        if unfinished(executed):
            return State("damaged", "the executed notebook is unfinished")
        why = [*_differences(before, self.inputs), *self._lost(used)]
        return (
            State("stale", "; ".join(why)) if why else State("current", f"as of {record['date']}")
        )

    def _lost(self, used: Mapping[str, str]) -> list[str]:
        why = []
        for name, checksum in used.items():
            path = self.settings.results / name
            if not (path.is_file() and path.with_suffix(".json").is_file()):
                why.append(f"result {name} is gone")
            elif sha256(path) != checksum:
                why.append(f"result {name} is not the one that was used")
        return why


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, or `BookError` if the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError, AttributeError) as error:
        raise BookError(f"{path} is not a notebook: {error}") from error


def tags(cell: nbformat.NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def unfinished(notebook: nbformat.NotebookNode) -> bool:
    """Whether a code cell did not run to its end, or failed."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source.strip() or "skip-execution" in tags(cell):
            continue
        papermill = cell.metadata.get("papermill", {})
        if papermill.get("status") != "completed" or papermill.get("exception"):
            return True
        if any(output.output_type == "error" for output in cell.outputs):
            return True
    return False


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed, in words."""
    why = []
    old, new = before["cells"], now["cells"]
    if len(old) != len(new):
        why.append(f"{len(new)} code cells, there were {len(old)}")
    elif old != new:
        changed = [
            str(n) for n, pair in enumerate(zip(old, new, strict=True), 1) if pair[0] != pair[1]
        ]
        why.append(f"code cell {', '.join(changed)} changed")
    for kind in ("parameters", "sources", "packages", "data"):
        for name in sorted(before[kind].keys() | now[kind].keys()):
            old, new = (
                json.dumps(inputs[kind].get(name), sort_keys=True) for inputs in (before, now)
            )
            if old != new:
                plain = kind in ("sources", "data")
                why.append(
                    f"{kind.removesuffix('s')} {name} {'changed' if plain else f'{old} -> {new}'}"
                )
    return why
