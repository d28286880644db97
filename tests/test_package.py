"""The public names of the package, and what it takes to have them.

What is tested: every public name stands once in the front and is defined where that says; an
unknown name is an `AttributeError`; the front imports nothing heavier than torch; without the extra
``paper`` the method works and the experiments say what is missing.
"""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import parameter_ordering as package
from parameter_ordering import paper

FRONT = ast.parse(Path(package.__file__).read_text())
HOMES = [
    (alias.asname, node.module)
    for node in FRONT.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
    if alias.asname
]
HEAVY = {"matplotlib", "pandas", "scipy", "seaborn", "sklearn", "xarray"}


def test_each_public_name_stands_once():
    names = [name for name, _ in HOMES]
    assert len(names) == len(set(names)) >= 14
    assert set(names) <= set(dir(package))


@pytest.mark.parametrize(("name", "home"), HOMES)
def test_a_public_name_is_defined_where_the_front_says(name, home):
    assert getattr(package, name) is getattr(import_module(home), name)
    assert getattr(package, name).__module__ == home


def test_the_experiments_are_found_when_asked_for():
    assert package.experiments is import_module("parameter_ordering.paper.experiments")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'parameter_ordering' has no attribute 'freez'"):
        package.freez  # noqa: B018


def test_the_front_imports_nothing_heavier_than_torch():
    code = f"import sys, parameter_ordering; sys.exit(bool({HEAVY!r} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_the_experiments_say_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(paper, "_of_the_extra", lambda: ["xarray", "no-such-package"])
    with pytest.raises(ImportError, match=r"need no-such-package: pip install .*\[paper\]"):
        package.experiments  # noqa: B018
    with pytest.raises(SystemExit, match=r"parameter-ordering: .* pip install .*\[paper\]"):
        paper.command()
