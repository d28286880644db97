"""The notebook that Sphinx is given: the committed cells, with the outputs of the execution."""

import nbformat

from parameter_ordering.paper.book.chapters import RECORD, Chapter, read, tags
from parameter_ordering.paper.book.provenance import folded
from parameter_ordering.paper.book.settings import BookError


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
    ran = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            done = next(ran)
            if "injected-parameters" in tags(done):  # papermill's own cell: what the profile sets
                cells.append(done)
                done = next(ran)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cells.append(cell)
        if _shows_a_figure(cell):
            fold = folded(chapter, executed.metadata[RECORD], cell.source)
            cells.append(nbformat.v4.new_markdown_cell(fold))
    notebook.cells = cells
    return notebook


def _shows_a_figure(cell: nbformat.NotebookNode) -> bool:
    outputs = cell.get("outputs", [])
    kinds = (kind for output in outputs for kind in output.get("data", {}))
    hidden = tags(cell) & {"remove-cell", "remove-output"}
    return not hidden and any(kind.startswith("image/") for kind in kinds)
