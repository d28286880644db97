"""The verbs on worlds: what they ask for and what they print; nothing is trained."""

import numpy as np
import pytest

from parameter_ordering.paper.cli import worlds
from parameter_ordering.paper.cli.main import main
from parameter_ordering.paper.experiments import space
from parameter_ordering.paper.experiments.worlds import _empty


@pytest.fixture
def asked(monkeypatch):
    """What results are asked for; these are made up."""
    asked = []

    def results(each, *, store, **how):
        asked.append((each, store.root, how))
        rng = np.random.default_rng(0)
        found = _empty(space.experiment(0, each.data_set))
        loss = 1 + found.k.values * rng.lognormal(size=found.loss.shape)
        found = found.assign(loss=found.loss.copy(data=loss), diverged=False)
        return found.fillna(0.5).expand_dims(world=[getattr(each, "world", 0)])

    monkeypatch.setattr(worlds, "results", results)
    return asked


def test_all_worlds_are_asked_for(asked, capsys, tmp_path):
    assert main(["worlds", "--number", "128", "--out", str(tmp_path), "--jobs", "2"]) == 0
    assert [each.data_set for each, *_ in asked] == list(space.DATA_SETS)
    assert {each.worlds for each, *_ in asked} == {128}
    assert {root for _, root, _ in asked} == {tmp_path}
    assert asked[0][2] == {"jobs": 2, "backend": "loky", "scheduler": None}
    assert "slower than random" in capsys.readouterr().out


def test_one_world_says_what_it_chose(asked, capsys, tmp_path):
    assert main(["world", "7", "--runs", "9", "--out", str(tmp_path)]) == 0
    assert {(each.world, each.runs) for each, *_ in asked} == {(7, 9)}
    shown = capsys.readouterr().out
    assert f"mnist: optimizer {space.chosen(7, 'mnist')['optimizer']}, lr" in shown
    assert "the same as random" in shown


@pytest.mark.parametrize("wrong", [["world"], ["world", "x"], ["worlds", "--number", "x"]])
def test_a_wrong_call_is_refused(asked, wrong, capsys):
    assert main(wrong) == 2
    assert not asked


def test_a_number_that_is_none_is_named(asked, capsys):
    assert main(["worlds", "--number", "0"]) == 1
    assert "worlds" in capsys.readouterr().err
