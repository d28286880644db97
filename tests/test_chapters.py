"""The parameters cells of the experiment chapters are the defaults of the experiments.

And no chapter's text hangs on a value of its settings.
"""

import json
import re
from dataclasses import fields
from pathlib import Path

import papermill
import pytest

from parameter_ordering import experiments
from parameter_ordering.paper.book.settings import Settings
from parameter_ordering.paper.experiments.experiment import Experiment

BOOK = Settings(Path(__file__).parents[1])
CHAPTERS = sorted((BOOK.root / "chapters" / "experiments").glob("*.ipynb"))


def defaults(chapter: Path) -> dict:
    inspected = papermill.inspect_notebook(str(chapter))
    return {name: eval(entry["default"]) for name, entry in inspected.items()}


def test_there_are_five_chapters():
    assert len(CHAPTERS) == 5


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_runs_the_settings_of_its_experiment(chapter):
    experiment = getattr(experiments, chapter.stem)()
    assert isinstance(experiment, Experiment)
    given = defaults(chapter)
    assert given == {name: getattr(experiment, name) for name in given}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_offers_every_setting_but_those_that_make_its_variants(chapter):
    own = {"orders", "shared_weights", "own_data", "kappa", "shard", "device"}
    own |= {"stages", "optimizer", "momentum", "fresh_optimizer", "minibatches", "initial_weights"}
    own |= {"noise", "probability", "standardized"}
    experiment = getattr(experiments, chapter.stem)()
    assert set(defaults(chapter)) == {field.name for field in fields(experiment)} - own


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_every_parameter_reaches_the_experiment(chapter):
    cells = json.loads(chapter.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for name in defaults(chapter):
        assert f"{name}={name}" in code


@pytest.mark.parametrize("docname", BOOK.notebooks)
def test_no_number_in_the_text_is_called_by_the_value_of_a_setting(docname):
    """With other parameters there would be nothing of that name."""
    keys = re.findall(r"{glue:text}`([^:`]*)", (BOOK.root / f"{docname}.ipynb").read_text())
    assert not [key for key in keys if re.search(r" \d", key)]
