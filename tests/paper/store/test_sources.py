"""What a piece of code depends on: followed by hand on a small package, import by import."""

import sys

import pytest

from parameter_ordering.paper.store import sources
from parameter_ordering.paper.store.sources import Imports, dependencies, fingerprint

FILES = {
    "pack/__init__.py": "from pack.deep import thing\nfrom .other import another as renamed\n",
    "pack/deep.py": "import numpy\nthing = 1\n",
    "pack/other.py": "from . import lazy\nanother = 2\n",
    "pack/lazy.py": "def f():\n    import scipy.stats\n",
    "pack/alone.py": "import os\n",
    "pack/sub/__init__.py": "",
    "pack/sub/leaf.py": "from ..alone import os\nfrom ..deep import thing\n",
    "late/__init__.py": "def __getattr__(name): ...\n",
    "late/one.py": "import pack.alone\n",
    "late/two.py": "",
    "single.py": "import single\nimport missing_from_everywhere\n",
}


def closure(code, folder):
    imports = Imports(folder)
    imports.follow_code(code)
    return imports


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "modules", "packages"),
    [
        ("import os, sys", "", ""),
        ("import pack.alone", "pack pack.alone", ""),
        ("from pack import alone", "pack pack.alone", ""),
        ("from pack import thing", "pack pack.deep", "numpy"),
        ("from pack import renamed", "pack pack.other pack.lazy", "scipy"),
        ("import pack", "pack pack.deep pack.other pack.lazy", "numpy scipy"),
        ("from pack import *", "pack pack.deep pack.other pack.lazy", "numpy scipy"),
        (
            "from pack.sub.leaf import x",
            "pack pack.alone pack.deep pack.sub pack.sub.leaf",
            "numpy",
        ),
        ("from late import anything", "late late.one late.two pack pack.alone", ""),
        ("def f():\n    if 1:\n        import pack.alone", "pack pack.alone", ""),
        ("%matplotlib inline\n!ls\nimport single", "single", "missing_from_everywhere"),
        ("import torch.nn", "", "torch"),
        ("this is no Python", "", ""),
    ],
)
def test_closure(folder, code, modules, packages):
    imports = closure(code, folder)
    assert sorted(imports.modules) == sorted(modules.split())
    assert sorted(imports.packages) == sorted(packages.split())


def test_nothing_is_imported(folder):
    (folder / "single.py").write_text("raise SystemExit\n")
    assert "single" in closure("import single", folder).modules
    assert "single" not in sys.modules


def test_this_package_leaves_out_what_it_does_not_use():
    found = dependencies("import parameter_ordering.paper.experiments.experiment")["sources"]
    assert {
        "parameter_ordering.covariance",
        "parameter_ordering.paper.experiments.data",
    } <= found.keys()
    assert (
        not {"parameter_ordering.paper.exhibits.figures", "parameter_ordering.paper.store.results"}
        & found.keys()
    )
    assert not any(name.startswith("parameter_ordering.paper.book") for name in found)


@pytest.mark.parametrize(
    ("text", "with_docstrings", "without"),
    [
        ('def f(x):\n    """Doc."""\n    return x + 1\n', True, True),
        ('def f(x):  # why\n    """Doc."""\n\n    return (x\n            + 1)\n', True, True),
        ('def f(x):\n    """Another."""\n    return x + 1\n', False, True),
        ('"""A module."""\n\n\ndef f(x):\n    return x + 1\n', False, True),
        ('def f(x):\n    """Doc."""\n    return x + 2\n', False, False),
        ('def f(y):\n    """Doc."""\n    return y + 1\n', False, False),
        ('def f(x):\n    """Doc."""\n    return x + 1\n\nf(1)\n', False, False),
        ("no Python", False, False),
    ],
)
def test_fingerprint(tmp_path, text, with_docstrings, without):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text('def f(x):\n    """Doc."""\n    return x + 1\n')
    two.write_text(text)
    assert (fingerprint(one) == fingerprint(two)) == with_docstrings
    assert (fingerprint(one, docstrings=False) == fingerprint(two, docstrings=False)) == without


def test_what_is_no_python_counts_as_text(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("no Python")
    two.write_text("no Python either")
    assert fingerprint(one) != fingerprint(two)


def test_versions():
    found = dependencies("import numpy, sklearn, missing_from_everywhere")["packages"]
    assert found["numpy"] == sys.modules["importlib.metadata"].version("numpy")
    assert found["sklearn"] == sources.version("scikit-learn")
    assert found["missing_from_everywhere"] == "not installed"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_strings(folder):
    (folder / "single.py").write_text("NAMES = ['a.csv', f'{1}b']\n# 'c'\n")
    assert closure("import single", folder).strings() == {"a.csv", "b"}
