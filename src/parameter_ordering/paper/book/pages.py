"""The notebook that Sphinx is given: the committed cells, with the outputs of the execution.

Code that a reader need not see is not between the text and its figures. What drew a figure goes
into the fold under it, what prepares the page into one fold at its end; both cells are tagged
``hide-input``, or ``remove-cell`` where there is nothing to show. Other code stands open, and under
the parameters stands the command that sets them.
"""

import ast
import hashlib
import os
from collections.abc import Iterator

import nbformat

from parameter_ordering.paper.book.chapters import RECORD, Chapter, read, tags
from parameter_ordering.paper.book.provenance import code_block, folded
from parameter_ordering.paper.book.settings import BookError
from parameter_ordering.paper.store.files import write_text
from parameter_ordering.paper.store.sources import python

_SVG = "image/svg+xml"
_GLUE = "application/papermill.record"


def page(chapter: Chapter) -> nbformat.NotebookNode:
    """The chapter as it is to be shown.

    Prose and layout come from the committed notebook, so that editing them executes nothing;
    outputs come from the executed one, which has the same code cells.

    Raises:
        BookError: if the chapter is not up to date.
    """
    state = chapter.state()
    notebook = nbformat.from_dict(chapter.notebook)
    if state.name == "text":
        return notebook
    if state.runs:
        raise BookError(f"{chapter.docname} is {state.name}: {state.why}")
    executed = read(chapter.executed)
    record = executed.metadata[RECORD]
    cells, prepares = [], []
    for cell in with_outputs(notebook, executed):
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        here, marked = tags(cell), cell.metadata.setdefault("tags", [])
        if _shows(cell, "image/"):
            files = _figure_files(chapter, cell)
            code = cell.source if "hide-input" in here else ""
            cells.append(_markdown(folded(chapter, record, cell.source, code, files)))
        elif here & {"hide-input", "remove-cell", "injected-parameters"}:
            prepares.append(cell.source)
        if "parameters" in here:
            cells.append(_markdown(_rerun(chapter, cell)))
        if "hide-input" in here:
            marked.remove("hide-input")
            marked.append("remove-input" if _shows(cell, "") else "remove-cell")
    if prepares:
        cells.append(_markdown(_at_the_end(prepares)))
    notebook.cells = cells
    return notebook


def with_outputs(
    notebook: nbformat.NotebookNode, executed: nbformat.NotebookNode
) -> Iterator[nbformat.NotebookNode]:
    """The cells of one notebook, its code cells with the outputs of the other."""
    ran = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            done = next(ran)
            if "injected-parameters" in tags(done):  # papermill's own cell: what the profile sets
                yield done
                done = next(ran)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        yield cell


def _figure_files(chapter: Chapter, cell: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Keep a cell's drawings and their numbers as files, with names and kinds; set what they show.

    The description that the run made comes after the one that the cell has.
    """
    folder = chapter.settings.build / "figures" / chapter.docname
    options = cell.metadata.setdefault("mystnb", {})
    name = options.get("figure", {}).get("name") or f"drawing-{cell.execution_count}"
    files = []
    for output in cell.outputs:
        about = output.get("metadata", {}).get(_SVG, {})
        if _SVG not in output.get("data", {}):
            continue
        for kind, text in (("svg", output["data"][_SVG]), ("csv", about.pop("csv", ""))):
            if text.count("\n") > 1:
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / f"{name}.{kind}", "".join(text))
                path = os.path.relpath(folder / f"{name}.{kind}", chapter.settings.root)
                files.append((kind.upper(), path))
        _keep_narrow(chapter, output["data"][_SVG], about.pop("narrow", ""))
        image = options.setdefault("image", {})
        image["alt"] = ". ".join(
            part.rstrip(". ") for part in (image.get("alt", ""), about.pop("alt", "")) if part
        )
    return files


def _keep_narrow(chapter: Chapter, wide: str, narrow: str) -> None:
    """Keep a drawing for phones under the name that Sphinx will give to the wide one."""
    if narrow:
        name = hashlib.sha256("\n".join(wide.splitlines()).encode()).hexdigest()
        folder = chapter.settings.build / "figures" / "narrow"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{name}.svg", narrow)


def _rerun(chapter: Chapter, cell: nbformat.NotebookNode) -> str:
    """The command that runs the chapter with another value of its first parameter."""
    names = [
        each.targets[0].id for each in python(cell.source).body if isinstance(each, ast.Assign)
    ]
    name = "t0" if "t0" in names else names[0]
    command = f"papermill {chapter.docname}.ipynb out.ipynb -p {name} VALUE"
    return f"```{{container}} rerun\nTo run this page with other values: `{command}`\n```"


def _at_the_end(prepares: list[str]) -> str:
    code = "\n\n".join(prepares)
    return f"`````{{dropdown}} Code that prepares this page\n{code_block(code)}\n`````"


def _markdown(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(text)


def _shows(cell: nbformat.NotebookNode, kind: str) -> bool:
    """Whether a reader sees an output of this kind; glued values are none."""
    if tags(cell) & {"remove-cell", "remove-output"}:
        return False
    for output in cell.get("outputs", []):
        kinds = output.get("data", {"text/plain": ""} if output.get("text") else {})
        if any(each.startswith(kind) and not each.startswith(_GLUE) for each in kinds):
            return True
    return False
