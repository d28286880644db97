"""The figure, the table and the words on stages, on ratios that are known."""

import json

import numpy as np
import pytest
from bs4 import BeautifulSoup

from parameter_ordering.paper.evidence.stage import EARLY, LATE, STAGES, Point
from parameter_ordering.paper.evidence.statistics import Ratio
from parameter_ordering.paper.exhibits import look_at_stages, stages

B = 1 + 0.05 * np.random.default_rng(0).normal(size=10)
NOISE = 0.01 * np.random.default_rng(1).normal(size=10)


def points(values, versus="random"):
    """A point a stage; none where the value is."""
    pairs = zip(STAGES, values, strict=True)
    return [Point(s, versus, None if v is None else Ratio(v * B + NOISE, B)) for s, v in pairs]


@pytest.fixture
def found():
    better, worse = [0.5] * len(STAGES), [2.0] * len(STAGES)
    crossing = [0.5] * (len(STAGES) - 2) + [1.0, 2.0]
    nothing = [None] * len(STAGES)
    both = points(better) + points([1.0] * len(STAGES), "random_within_tensors")
    every = {"mnist": both, "synthetic_1": points(crossing), "synthetic_2": points(worse)}
    return every | {"synthetic_3": points(nothing)}


def test_the_words_say_on_which_data_sets(found):
    assert stages.summary(found) == {
        "better early": "MNIST and Synthetic 1",
        "worse early": "Synthetic 2",
        "neither early": "Synthetic 3",
        "better late": "MNIST",
        "worse late": "Synthetic 1 and Synthetic 2",
        "neither late": "Synthetic 3",
        "crosses": "Synthetic 1",
    }


def test_the_figure_has_a_line_for_each_data_set_and_the_two_stages(found):
    figure = stages.stage_figure(found)
    random, within = figure.axes
    assert [each.get_label() for each in random.containers] == [
        "MNIST", "Synthetic 1", "Synthetic 2", "Synthetic 3",
    ]  # fmt: skip
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in random.containers}
    np.testing.assert_allclose(drawn["Synthetic 2"][:, 0], STAGES)
    np.testing.assert_allclose(drawn["Synthetic 2"][:, 1], 2, rtol=0.02)
    assert len(drawn["Synthetic 3"]) == 0
    assert len(within.containers[0].lines[0].get_xydata()) == len(STAGES)
    marks = [line.get_xdata()[0] for line in random.lines if line.get_linestyle() == ":"]
    assert marks == [EARLY, LATE]
    left, right = random.get_xlim()
    assert left > right, "training goes from left to right"


def test_the_table_has_a_row_a_stage(found):
    lines = stages.stage_table(found).splitlines()
    assert "MNIST, to random within each tensor" in lines[3]
    assert len([line for line in lines if line.startswith(("9", "6", "4", "2", "1", "5"))]) == 8


def test_the_script_is_given_the_ratios_with_their_intervals(found):
    html = look_at_stages.look_at_stages(found).html
    assert len(html) < 100_000
    sets = {
        each["name"]: each for each in json.loads(BeautifulSoup(html, "html.parser").script.string)
    }
    lines = sets["Synthetic 1"]["ratios"]["random"]
    assert [line[0] for line in lines] == [float(f"{stage:.3g}") for stage in STAGES]
    assert all(low <= value <= high for _, value, low, high in lines)
    assert lines[0][1] == pytest.approx(0.5, rel=0.02)
    assert sets["Synthetic 3"]["ratios"]["random"] == []
