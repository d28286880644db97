"""The public names of the package.

What is tested: every public name is what the imports for type checkers say, and is defined where
they say; an unknown name is an `AttributeError`; the package alone, which the build of the book
imports, brings no torch with it.
"""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import parameter_ordering as package


def homes():
    """Public names and their modules, as the TYPE_CHECKING block imports them."""
    tree = ast.parse(Path(package.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_the_lists_name_the_same():
    assert package.__all__ == dir(package)
    assert sorted(package.__all__) == sorted(homes())


@pytest.mark.parametrize(("name", "home"), homes().items())
def test_a_public_name_is_what_type_checkers_see(name, home):
    if home == package.__name__:
        assert getattr(package, name) is import_module(f"{home}.{name}")
    else:
        assert getattr(package, name) is getattr(import_module(home), name)
        assert getattr(package, name).__module__ == home


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'parameter_ordering' has no attribute 'freez'"):
        package.freez  # noqa: B018


def test_the_package_alone_imports_no_torch():
    code = "import sys, parameter_ordering; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
