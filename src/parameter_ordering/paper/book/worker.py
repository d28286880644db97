"""Runs one chapter under papermill, in a process of its own: ``python -m ...book.worker``.

The job comes as one line of JSON on stdin, the outcome goes as one line to stdout, and progress to
stderr. The executed notebook appears at its place when all of its cells have run, or not at all.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill import PapermillExecutionError, execute_notebook
from traitlets import default

from parameter_ordering.paper.book.chapters import RECORD
from parameter_ordering.paper.store.files import replacing
from parameter_ordering.paper.store.origin import origin

_WIDGET = "application/vnd.jupyter.widget-view+json"


class _ThisInterpreter(AsyncKernelManager):
    """Starts this very interpreter, whatever a kernel named ``python3`` is on this machine."""

    @default("transport_encryption")
    def _encrypt_if_possible(self) -> str:
        return "auto"  # by default there is none

    @property
    def kernel_spec(self) -> KernelSpec:
        # It is told to end by an interrupt, and logs that as an error.
        return KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))


def main() -> None:
    """Take a job, run it, tell the outcome."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the kernel prints behind Python's back is no answer
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_build, daemon=True).start()
    outcome: dict[str, float | str]
    try:
        outcome = {"seconds": _run(job)}
    except PapermillExecutionError as error:
        outcome = {"error": _explain(error)}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(outcome), file=answer, flush=True)


def _run(job: dict[str, Any]) -> float:
    target = Path(job["executed"])
    target.parent.mkdir(parents=True, exist_ok=True)
    record = target.with_suffix(f".{os.getpid()}.record.part")
    os.environ["PARAMETER_ORDERING_RECORD"] = str(record)
    began = time.perf_counter()
    try:
        notebook = _execute(job)
        used = record.read_text(encoding="utf-8") if record.is_file() else ""
    finally:
        record.unlink(missing_ok=True)
    seconds = round(time.perf_counter() - began, 2)
    _tidy(notebook)
    facts, uses = origin(), [json.loads(line)["result"] for line in used.splitlines()]
    notebook.metadata[RECORD] = {
        **job["record"],
        "uses": uses,
        "results": _checksums(Path(job["results"]), uses),
        "date": facts["date"],
        "origin": facts,
        "seconds": seconds,
    }
    with replacing(target) as part:
        nbformat.write(notebook, part)
    return seconds


def _execute(job: dict[str, Any], attempts: int = 2) -> nbformat.NotebookNode:
    try:
        return execute_notebook(
            nbformat.reads(job["notebook"], as_version=4),
            None,
            job["record"]["parameters"],
            kernel_name="python3",
            language="python",
            kernel_manager_class=_ThisInterpreter,
            progress_bar={"desc": "cells", "file": sys.stderr},
            stderr_file=sys.stderr,
            cwd=job["folder"],
        )
    except RuntimeError as error:
        # Kernels that start together can pick the same port; the loser dies before its first cell.
        if attempts == 1 or "before replying to kernel_info" not in str(error):
            raise
        return _execute(job, attempts - 1)


def _tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop progress bars, and the paths of this machine that papermill notes."""
    for name in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(name, None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stderr":
                    lines = output.text.split("\n")
                    output.text = "\n".join(line for line in lines if "\r" not in line)
            cell.outputs = [output for output in cell.outputs if not _is_empty(output)]


def _is_empty(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return not output.text.strip()
    return _WIDGET in output.get("data", {})


def _checksums(folder: Path, names: list[str]) -> dict[str, str]:
    notes = {name: (folder / name).with_suffix(".json") for name in names}
    return {name: json.loads(note.read_text())["sha256"] for name, note in notes.items()}


def _explain(error: PapermillExecutionError) -> str:
    lines = [f"cell [{error.exec_count}] failed with {error.ename}: {error.evalue}", ""]
    return "\n".join([*lines, *(f"    {line}" for line in error.source.splitlines())])


def _end_with_the_build() -> None:
    """The build holds our stdin open as long as it lives."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
