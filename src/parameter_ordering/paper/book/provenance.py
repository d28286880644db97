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
    cells = [python(cell.source) for cell in chapter.notebook.cells if cell.cell_type == "code"]
    assigned = [each for cell in cells for each in cell.body if isinstance(each, ast.Assign)]
    held = [each for each in assigned if _is_results(each)]
    variables = [ast.unparse(each.targets[0]) for each in held]
    if not len(variables) == len(uses) == len(set(variables)):
        return list(dict.fromkeys(uses))
    behind = {variable: {name} for variable, name in zip(variables, uses, strict=True)}
    for each in assigned:  # and what is made of them
        if each not in held:
            for target in _names(each.targets[0]):
                behind[target] = set().union(*(behind.get(name, ()) for name in _names(each.value)))
    shown = set().union(*(behind.get(name, ()) for name in _names(python(code))))
    return [name for name in uses if name in shown] or list(dict.fromkeys(uses))


def _is_results(statement: ast.Assign) -> bool:
    """Whether a variable is given what ``results`` gives."""
    call = statement.value
    return (
        isinstance(statement.targets[0], ast.Name)
        and isinstance(call, ast.Call)
        and ast.unparse(call.func).rpartition(".")[2] == "results"
    )


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


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
