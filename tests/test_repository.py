"""The repository's files agree with each other.

What is tested: every direct dependency is pinned within its range; conda, pre-commit and the
citation name the same versions; the table of contents names every page;
the notebooks are thin and stripped; the README's verbs and links exist.
"""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
CONDA = {"matplotlib-base": "matplotlib", "pytorch-cpu": "torch"}
NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))


def direct():
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in extras.values() for line in extra]
    return [Requirement(line) for line in lines]


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
    names = {CONDA.get(name, name) for name in versions} | {"backpack-for-pytorch"}
    needed = PROJECT["dependencies"] + [
        line
        for extra in ("book", "cluster", "test")
        for line in PROJECT["optional-dependencies"][extra]
    ]
    assert {Requirement(line).name for line in needed} <= names
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
