"""Under each figure, folded away: where it comes from, and how to draw it again."""

import ast
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.store.sources import python

_MANY = 4


def folded(
    chapter: Chapter,
    record: dict[str, Any],
    source: str,
    code: str = "",
    files: Sequence[tuple[str, str]] = (),
) -> str:
    """MyST for the fold under a figure: how it was drawn, and the results it shows.

    Args:
        chapter: whose figure it is.
        record: of the chapter's execution.
        source: the cell that draws it.
        code: what of the cell goes into the fold, if it does not stand open.
        files: the drawing and its numbers, kind and path of each.
    """
    results = _shown(chapter, record["uses"], source)
    lines = [code_block(code), ""] if code else []
    if files:
        links = (f"{{download}}`{kind} </{path}>`" for kind, path in files)
        lines += [f"- The figure and the numbers in it: {', '.join(links)}."]
    lines += [*_drawing(chapter, record)]
    if not results:  # a result tells its own data
        lines += _files(chapter, record["inputs"]["data"])
    tell = _result if len(results) <= _MANY else _brief
    for name in results:
        lines += tell(chapter, name)
    return "\n".join(["`````{dropdown} How this figure was made", *lines, "`````"])


def code_block(code: str) -> str:
    """Python that is shown and not run, as MyST."""
    return f"````{{code-block}} python\n{code}\n````"


def _shown(chapter: Chapter, uses: list[str], code: str) -> list[str]:
    """The results in the variables that a cell reads; all of the chapter's if that is not plain."""
    cells = [cell.source for cell in chapter.notebook.cells if cell.cell_type == "code"]
    held = [
        statement.targets[0].id
        for cell in cells
        for statement in python(cell).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func).rpartition(".")[2] == "results"
    ]
    read = {node.id for node in ast.walk(python(code)) if isinstance(node, ast.Name)}
    shown = [name for variable, name in zip(held, uses, strict=False) if variable in read]
    plain = len(held) == len(uses) == len(set(held))
    return list(dict.fromkeys(shown if plain and shown else uses))


def _drawing(chapter: Chapter, record: dict[str, Any]) -> Iterator[str]:
    packages = record["inputs"]["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    yield f"- The chapter was executed on {_where(record['origin'])}, in {record['seconds']:.1f} s."
    yield f"- With {versions}."
    given = ", ".join(f"{name} = {value!r}" for name, value in record["parameters"].items())
    yield f"- Profile {record['profile']}" + (f", which sets {given}." if given else ".")
    yield "- To draw it again:"
    yield ""
    yield "  ```text"
    yield f"  parameter-ordering execute --force {chapter.docname}"
    yield "  ```"
    yield ""


def _files(chapter: Chapter, checksums: dict[str, str]) -> Iterator[str]:
    for name, checksum in checksums.items():
        size = (chapter.settings.root / name).stat().st_size
        yield f"- File `{name}`: {_size(size)}, SHA-256 `{checksum}`."


def _result(chapter: Chapter, name: str) -> Iterator[str]:
    note, link = _note(chapter, name)
    inputs = note["inputs"]
    yield f"**{inputs.get('method', name)}**"
    yield ""
    yield f"- Arrays: {link}."
    yield f"- Computed on {_where(note['origin'])}, in {note['seconds']:.1f} s."
    if "data" in inputs:
        about = note["attributes"].get("data", {}).get("name", "Data")
        yield f"- {about.strip('<>')}; SHA-256 of the values `{inputs['data']}`."
    settings = inputs.get("settings", {})
    if settings:
        yield "- Settings: " + ", ".join(f"{key} = {_show(v)}" for key, v in settings.items()) + "."
    yield ""


def _brief(chapter: Chapter, name: str) -> Iterator[str]:
    note, link = _note(chapter, name)
    yield f"- {link}, computed in {note['seconds']:.1f} s; its attributes hold settings and data."


def _note(chapter: Chapter, name: str) -> tuple[dict[str, Any], str]:
    """What is known of a result, and a link to its arrays."""
    path = chapter.settings.results / name
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    target = os.path.relpath(path, chapter.settings.root)
    return note, f"{{download}}`{name} </{target}>` (NetCDF, {_size(note['bytes'])})"


def _where(origin: dict[str, Any]) -> str:
    return (
        f"{origin['date']} by version {origin['version']}, commit `{origin['commit']}`, "
        f"on {origin['machine']}, Python {origin['python']}"
    )


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
