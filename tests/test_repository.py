"""The repository's files agree with each other.

What is tested: what is imported is declared; every direct dependency is pinned within its range;
conda, pre-commit and the citation name the same versions; the table of contents names every page;
the notebooks are thin and stripped; the README's verbs and links exist.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sphinx.util.matching import get_matching_files

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
CONDA = {
    "matplotlib-base": "matplotlib",
    "playwright-python": "playwright",
    "pytorch-cpu": "torch",
    "ruamel.yaml": "ruamel-yaml",
}
NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))


def direct():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in extras.values() for line in extra]
    return [each for each in map(Requirement, lines) if each.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_a_dependency_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_pins_are_sorted_and_pinned_once():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert lines == [f"{name}=={version}" for name, version in PINS.items()]
    assert list(PINS) == sorted(PINS)
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


def test_conda_takes_the_pinned_versions():
    *packages, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    versions = dict(line.split("=") for line in packages if "=" in line)
    assert versions.pop("python") == "3.11"
    assert versions == {name: PINS[CONDA.get(name, name)] for name in versions}
    names = {CONDA.get(name, name) for name in versions}
    # pip brings these: conda-forge may not have them.
    names |= {"axe-playwright-python", "backpack-for-pytorch", "schedulefree"}
    needed = PROJECT["dependencies"] + [
        line
        for extra in ("paper", "book", "cluster", "integrations", "test", "web")
        for line in PROJECT["optional-dependencies"][extra]
    ]
    assert {Requirement(line).name for line in needed} - {PROJECT["name"]} <= names
    assert "-c constraints.txt" in pip["pip"]


def test_pre_commit_takes_the_pinned_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = [line.split("==") for hook in hooks for line in hook["additional_dependencies"]]
    assert [version for _, version in pinned] == [PINS[name] for name, _ in pinned]


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def pages(part):
    """File names in a piece of _toc.yml."""
    if isinstance(part, list):
        return [name for each in part for name in pages(each)]
    found = [part[key] for key in ("root", "file") if key in part]
    return found + [
        name for key in ("parts", "chapters", "sections") for name in pages(part.get(key, []))
    ]


def test_the_table_of_contents_names_every_page():
    listed = pages(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    files = [path for kind in ("*.ipynb", "*.md") for path in (ROOT / "chapters").rglob(kind)]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT).with_suffix("")) for path in files)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 15


@pytest.mark.parametrize("verb", ["book", "test"])
def test_the_verbs_of_the_readme_are_in_the_makefile(verb):
    assert f"make {verb}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{verb}:.*## ", (ROOT / "Makefile").read_text(), re.M)


def test_the_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_what_tools_leave_in_hidden_folders_is_no_page(tmp_path):
    for path in (".pytest_cache/README.md", ".venv/lib/page.md", "chapters/page.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    excluded = yaml.safe_load((ROOT / "_config.yml").read_text())["exclude_patterns"]
    pages = get_matching_files(tmp_path, exclude_patterns=excluded)
    assert list(pages) == ["chapters/page.md"]


def imported(folder):
    """Top-level packages that the modules of a folder import, but for Python's own and ours."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def required_by(name):
    """The requirements of a package; none if it is not here, as those of the benchmarks may be."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_what_is_imported_is_declared(folder):
    # What a declared dependency itself requires, as jupyter-book does Sphinx, is not repeated.
    declared = [requirement.name for requirement in direct()]
    lines = [Requirement(line) for name in declared for line in required_by(name)]
    required = [line.name for line in lines if not line.marker or line.marker.evaluate()]
    known = {canonicalize_name(name) for name in declared + required}
    owners = packages_distributions()
    missing = {
        name
        for name in imported(folder) - {"benchmarks", "parameter_ordering", "tests"}
        if not known & {canonicalize_name(owner) for owner in owners.get(name, [name])}
    }
    assert missing == set()
