"""Where the book is, what is in it, and the profile it is built with; checked before anything runs.

``chapters/parameters.yml`` holds a mapping from profile to chapter to parameters. The profile
``paper`` needs no entry: what is not overridden is what the chapter's parameters cell says.
"""

import ast
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sphinx.errors import SphinxError
from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

from parameter_ordering.paper.store.files import sha256
from parameter_ordering.paper.store.strict_yaml import load_yaml

PAPER = "paper"


class BookError(SphinxError):
    """The book cannot be built; the message says why and what to do."""

    category = "The book cannot be built"


class Settings:
    """A book and the profile it is built with.

    Args:
        root: the folder of ``_toc.yml``.
        profile: by default ``$PARAMETER_ORDERING_PROFILE``, or else ``paper``.
        build: the folder for all that is made; by default ``_build`` in ``root``.

    Raises:
        BookError: no book there, an unknown profile, a file that is malformed or says a thing
            twice.
    """

    def __init__(self, root: Path, profile: str | None = None, build: Path | None = None) -> None:
        self.root = root.resolve()
        self.build = (build or root / "_build").resolve()
        self.results = self.build / "results"
        self.profile = profile or os.environ.get("PARAMETER_ORDERING_PROFILE") or PAPER
        profiles = _profiles(self.root / "chapters" / "parameters.yml")
        if self.profile not in {PAPER, *profiles}:
            known = ", ".join(sorted({PAPER, *profiles}))
            raise BookError(f"there is no profile {self.profile!r}; there are: {known}")
        self.profiles = profiles
        self.parameters: Mapping[str, Mapping[str, Any]] = profiles.get(self.profile, {})

    @cached_property
    def docnames(self) -> list[str]:
        """All pages of ``_toc.yml``, in its order."""
        toc = self.root / "_toc.yml"
        _load(toc)
        try:
            site = parse_toc_yaml(toc)
        except (MalformedError, OSError) as error:
            raise BookError(f"{toc}: {error}") from error
        return [re.sub(r"\.(ipynb|md)$", "", name) for name in site]

    @cached_property
    def notebooks(self) -> list[str]:
        """The pages that are notebooks."""
        return [name for name in self.docnames if self._is_file(f"{name}.ipynb")]

    def data_checksums(self, names: set[str]) -> dict[str, str]:
        """SHA-256 of those files that bear one of the names.

        They are looked for in ``data/`` and ``benchmarks/``, and among ``chapters/*.yml``.
        """
        return {name: sha for name, sha in self._data.items() if Path(name).name in names}

    def check(self) -> None:
        """Refuse what papermill would pass over in silence.

        Raises:
            BookError: another jupyter-book than the book is made for, no kernel, parameters for a
                chapter that is not there, that it does not have, or of another type.
        """
        check_jupyter_book()
        _load(self.root / "_config.yml")
        if find_spec("ipykernel_launcher") is None:
            raise BookError("there is no kernel to run the chapters with: pip install ipykernel")
        for name in self.docnames:
            if not self._is_file(f"{name}.md") and name not in self.notebooks:
                raise BookError(f"_toc.yml names {name}, and there is no such page")
        for name in self.notebooks:
            _check_kernel(self.root / f"{name}.ipynb")
        for profile, chapters in self.profiles.items():
            for docname, parameters in chapters.items():
                if docname not in self.notebooks:
                    raise BookError(
                        f"parameters.yml, {profile}: there is no chapter {docname!r}; "
                        f"there are: {', '.join(self.notebooks)}"
                    )
                _check_parameters(self.root / f"{docname}.ipynb", profile, parameters)

    @cached_property
    def _data(self) -> dict[str, str]:
        folders = (self.root / "data", self.root / "benchmarks")
        files = [file for each in folders for file in sorted(each.rglob("*")) if file.is_file()]
        files += sorted((self.root / "chapters").glob("*.yml"))
        return {file.relative_to(self.root).as_posix(): sha256(file) for file in files}

    def _is_file(self, name: str) -> bool:
        return (self.root / name).is_file()


def _load(path: Path) -> Any:
    try:
        return load_yaml(path)
    except (OSError, ValueError) as error:
        raise BookError(f"{path}: {error}") from error


def check_jupyter_book() -> None:
    """Raise `BookError` unless a jupyter-book is there that builds this book."""
    try:
        found = version("jupyter-book")
    except PackageNotFoundError:
        found = "none"
    if found.partition(".")[0] != "1":
        raise BookError(
            f"the book needs jupyter-book 1 and finds {found}: "
            "pip install 'jupyter-book<2' (version 2 builds nothing from _config.yml)"
        )


def _profiles(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    profiles = (_load(path) or {}) if path.is_file() else {}
    try:
        return TypeAdapter(dict[str, dict[str, dict[str, Any]]]).validate_python(profiles)
    except ValidationError as error:
        raise BookError(
            f"{path} must map each profile to chapters, and these to parameters: {error}"
        ) from error


def _check_kernel(path: Path) -> None:
    """Any kernel of Python will do: the running interpreter takes its place."""
    try:
        kernel = json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]
    except (ValueError, KeyError, TypeError) as error:
        raise BookError(f"{path} is no notebook that names its kernel, like python3") from error
    if kernel.get("language", "python") != "python":
        raise BookError(f"{path} needs a kernel of {kernel['language']}; chapters are in Python")


def _check_parameters(path: Path, profile: str, parameters: Mapping[str, Any]) -> None:
    from papermill import inspect_notebook  # slow to import, seldom needed

    known = inspect_notebook(str(path))
    if not known:
        raise BookError(
            f"parameters.yml, {profile}: {path.name} has no cell tagged 'parameters' to take them"
        )
    for name, value in parameters.items():
        if name not in known:
            raise BookError(
                f"parameters.yml, {profile}: {path.name} has no parameter {name!r}; "
                f"it has: {', '.join(known)}"
            )
        default = _literal(known[name]["default"])
        try:
            if default is not None:
                TypeAdapter(type(default)).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise BookError(
                f"parameters.yml, {profile}: {path.name} takes {name} as a "
                f"{type(default).__name__}, like {default!r}, and is given {value!r}"
            ) from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # an expression: no type to hold the value against
        return None
