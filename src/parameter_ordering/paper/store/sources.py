"""What a piece of code is made of: the project's sources that it imports, and versions of the rest.

Imports are followed statically, inside functions too, so nothing is run and nothing is missed that
is written as an import. A module counts as the project's if it belongs to this package or to no
installed distribution (a helper beside a notebook); all others count by their version.
"""

import ast
import hashlib
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_STARTED = time.time()
_INSTALLED = tuple(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))


def dependencies(code: str) -> dict[str, dict[str, str]]:
    """What a piece of Python computes with: `Imports.described`, docstrings left out.

    Example:
        >>> found = dependencies("from parameter_ordering.order import rank")
        >>> "parameter_ordering.order" in found["sources"], "torch" in found["packages"]
        (True, True)
    """
    imports = Imports()
    imports.follow_code(code)
    return imports.described(docstrings=False)


def refuse_edited(code: str) -> None:
    """Make sure that this process runs what ``code`` imports as it is on disk.

    Raises:
        RuntimeError: a source of the project was edited after this process began.
    """
    imports = Imports()
    imports.follow_code(code)
    for name, path in imports.modules.items():
        if path.stat().st_mtime > _STARTED:
            raise RuntimeError(
                f"{name} was edited after this process began, so what would run is not what is "
                "on disk. Restart the kernel or worker, then run again."
            )


class Imports:
    """The closure of the import statements that it is given to follow.

    Args:
        folder: where the code runs, searched for modules before ``sys.path``.

    Attributes:
        modules: path of each module of the project, by name.
        packages: names of the top-level packages that are not the project's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.modules: dict[str, Path] = {}
        self.packages: set[str] = set()
        self._path = [*([str(folder)] if folder else []), *sys.path]
        self._followed: set[str] = set()
        self._located: dict[str, Path | None] = {}

    def described(self, *, docstrings: bool = True) -> dict[str, dict[str, str]]:
        """``{"sources": {module: hash}, "packages": {name: version}}``.

        Args:
            docstrings: whether a changed docstring is a change. Comments and layout never are.
        """
        return {
            "sources": {
                name: fingerprint(path, docstrings=docstrings)
                for name, path in sorted(self.modules.items())
            },
            "packages": {"python": platform.python_version()}
            | {name: _version(name) for name in sorted(self.packages)},
        }

    def strings(self) -> set[str]:
        """All strings that stand in the modules of the project."""
        return {each for path in self.modules.values() for each in strings(_read(path))}

    def follow_code(self, code: str) -> None:
        """Add what a cell of a notebook imports."""
        self.follow(python(code))

    def follow(self, tree: ast.AST, package: str = "") -> None:
        """Add what ``tree`` imports; ``package`` is what its relative imports start from."""
        for node in _imports(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._module(alias.name)
            else:
                module = _absolute(node, package)
                for alias in node.names:
                    self._member(module, alias.name)

    def _module(self, name: str) -> None:
        path = self._locate(name)
        if path is None or name in self._followed:
            return
        self._followed.add(name)
        tree = _read(path)
        is_package = path.name == "__init__.py"
        self.follow(tree, name if is_package else name.rpartition(".")[0])
        if is_package and _looks_up_names_when_asked(tree):
            for file in path.parent.glob("*.py"):
                if file != path:
                    self._module(f"{name}.{file.stem}")

    def _member(self, module: str, name: str) -> None:
        """``from module import name``: follow the module that defines the name, no more."""
        path = self._locate(module)
        if path is None:
            return
        if path.name == "__init__.py":
            if self._locate(f"{module}.{name}"):
                return self._module(f"{module}.{name}")
            for node in _imports(_read(path)):
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        if (alias.asname or alias.name) == name:
                            return self._member(_absolute(node, module), alias.name)
        return self._module(module)

    def _locate(self, name: str) -> Path | None:
        """Path of a module of the project; its parent packages, which run with it, are added."""
        if name not in self._located:
            self._located[name] = self._search(name)
        return self._located[name]

    def _search(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        if top in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(top, self._path)
        path = Path(spec.origin) if spec and spec.origin else None
        if path is None or path.suffix != ".py" or (top != _PACKAGE and _is_installed(path)):
            self.packages.add(top)
            return None
        found, dotted = [(top, path)], top
        for part in rest:
            if path.name != "__init__.py":
                return None
            candidates = (path.parent / f"{part}.py", path.parent / part / "__init__.py")
            path = next((file for file in candidates if file.is_file()), None)
            if path is None:
                return None
            dotted += f".{part}"
            found.append((dotted, path))
        self.modules.update(found)
        return path


def fingerprint(path: Path, *, docstrings: bool = True) -> str:
    """Hash of a Python file by its meaning: comments and layout do not count."""
    return _fingerprint(path.read_text(encoding="utf-8"), docstrings)


def strings(tree: ast.Module) -> Iterator[str]:
    """The strings that stand in a piece of Python."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def python(cell: str) -> ast.Module:
    """The Python in a notebook's cell: lines of IPython magic are emptied."""
    lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in cell.splitlines())
    return _parse("\n".join(lines))


@cache
def _fingerprint(text: str, docstrings: bool) -> str:
    tree = _parse(text)
    if not docstrings:
        tree = _bare(deepcopy(tree))
    meaning = ast.dump(tree) if tree.body else text
    return hashlib.sha256(meaning.encode()).hexdigest()


def _read(path: Path) -> ast.Module:
    return _parse(path.read_text(encoding="utf-8"))


@cache
def _parse(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError:  # the run will say so, with the place
        return ast.parse("")


@cache
def _imports(tree: ast.AST) -> tuple[ast.Import | ast.ImportFrom, ...]:
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))


def _bare(tree: ast.Module) -> ast.Module:
    owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _absolute(node: ast.ImportFrom, package: str) -> str:
    relative = "." * node.level + (node.module or "")
    return resolve_name(relative, package) if node.level else relative


def _looks_up_names_when_asked(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _INSTALLED)


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # sklearn comes with scikit-learn
        names = _distributions().get(name, [])
        return ", ".join(version(distribution) for distribution in names) or "not installed"


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())
