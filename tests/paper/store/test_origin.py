"""Where a result came about: the commit as git tells it, and the version as installed."""

import subprocess
from importlib.metadata import version

import pytest

from parameter_ordering.paper.store import origin


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module's own file, if it stood elsewhere."""
    file = tmp_path / "module.py"
    file.touch()
    monkeypatch.setattr(origin, "__file__", str(file))
    return file


def git(folder, *command):
    who = ("-c", "user.name=A", "-c", "user.email=a@b")
    run = subprocess.run(
        ["git", "-C", folder, *who, *command], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_the_commit_and_whether_it_was_changed(module):
    folder = module.parent
    for command in ("init", "add .", "commit -m one"):
        git(folder, *command.split())
    head = git(folder, "rev-parse", "--short=12", "HEAD")
    git(folder, "tag", "-a", "v1", "-m", "one")
    assert origin.commit() == head
    module.write_text("1")
    assert origin.commit() == f"{head}+changes"


def test_without_a_checkout_the_commit_is_unknown(module):
    assert origin.commit() == "unknown"


def test_the_version_is_that_installed():
    assert origin.origin()["version"] == version("parameter-ordering")
