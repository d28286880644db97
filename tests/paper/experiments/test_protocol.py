"""What a run is made of: its minibatches, its seeds and its weights, whoever runs beside it.

The objects carry their own numbers, so that a minibatch says what it is made of.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parameter_ordering import experiments
from parameter_ordering.paper.experiments import protocol
from parameter_ordering.paper.experiments.models import perceptron
from parameter_ordering.paper.experiments.protocol import (
    Diverged,
    Minibatches,
    build_all,
    kappa_of,
    seeds,
    train,
    uniform,
)
from parameter_ordering.paper.experiments.shard import Shard


def numbered(objects, sets=1):
    """Objects that tell who they are: x[i, j] = (i, j), y[i, j] = 1000 i + j."""
    i, j = torch.meshgrid(torch.arange(sets), torch.arange(objects), indexing="ij")
    return torch.stack([i, j], -1).float(), 1000.0 * i + j


@given(st.data(), st.integers(2, 40), st.integers(1, 4))
def test_an_epoch_visits_each_object_at_most_once(data, objects, runs):
    S = data.draw(st.integers(1, objects))
    x, y = numbered(objects)
    minibatches = Minibatches(x, y, S, range(runs))
    for _ in range(2):
        rows, answers = zip(*[next(minibatches) for _ in range(objects // S)], strict=True)
        assert rows[0].shape == (runs, 1, S, 2)
        assert answers[0].shape == (runs, 1, S)
        rows, answers = torch.cat(rows, 2), torch.cat(answers, 2)
        assert torch.equal(rows[..., 1], answers)
        for visited in answers[:, 0]:
            assert len(visited.unique()) == objects // S * S
    assert minibatches.t == 2 * (objects // S)


def test_epochs_and_runs_differ():
    x, y = numbered(100)
    minibatches = Minibatches(x, y, 100, range(2))
    first, second = next(minibatches)[1][:, 0], next(minibatches)[1][:, 0]
    orders = [tuple(each.tolist()) for each in (*first, *second)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("draw", protocol.DRAWS)
@pytest.mark.parametrize("t", [0, 1, 5, 6, 14])
def test_a_copy_goes_on_where_they_were(draw, t):
    x, y = numbered(20)
    minibatches = Minibatches(x, y, 3, range(2), draw)
    for _ in range(t):
        next(minibatches)
    copy = minibatches.copy()
    for _ in range(9):
        for ours, theirs in zip(next(copy), next(minibatches), strict=True):
            assert torch.equal(ours, theirs)
    assert copy.t == minibatches.t == t + 9


def test_objects_drawn_with_replacement_come_again_in_an_epoch():
    x, y = numbered(100)
    minibatches = Minibatches(x, y, 100, range(1), "replacement")
    seen = len(next(minibatches)[1].unique())
    assert 50 < seen < 75  # 1 - 1/e of them, four deviations


def test_minibatches_of_a_run_do_not_depend_on_the_other_runs():
    x, y = numbered(10)
    one, many = Minibatches(x, y, 3, [5]), Minibatches(x, y, 3, [4, 5, 6])
    for _ in range(8):
        assert torch.equal(next(one)[0][0], next(many)[0][1])


@pytest.mark.parametrize("fetched", [1, 50])
def test_how_many_are_fetched_at_a_time_changes_nothing(fetched, monkeypatch):
    x, y = numbered(20)
    expected, same = (Minibatches(x, y, 3, range(2)) for _ in range(2))
    expected = [next(expected) for _ in range(15)]
    monkeypatch.setattr(protocol, "_FETCHED", fetched)
    for rows, answers in expected:
        got, y_got = next(same)
        assert torch.equal(got, rows)
        assert torch.equal(y_got, answers)


def test_each_run_draws_from_its_own_objects():
    x, y = numbered(10, sets=3)
    minibatches = Minibatches(x, y, 4, range(3))
    for _ in range(5):
        rows, answers = next(minibatches)
        for run in range(3):
            assert (rows[run, ..., 0] == run).all()
            assert torch.equal(answers[run], 1000 * run + rows[run, ..., 1])


def test_seeds_depend_on_purpose_and_run_alone():
    assert seeds(3, "weights", [4, 9]) == [*seeds(3, "weights", [4]), *seeds(3, "weights", [9])]
    every = [
        number
        for seed in (0, 1)
        for purpose in ("weights", "minibatches", "own order", "common order", "C_0")
        for number in seeds(seed, purpose, range(20))
    ]
    assert len(set(every)) == len(every)


def test_seeds_stay_what_they_were():
    """Or no result that is published can be had again."""
    now = {purpose: seeds(0, purpose, [1])[0] for purpose in protocol._PURPOSES}
    assert now == {
        "weights": 3831201730,
        "minibatches": 901243215,
        "ties": 1961547765,
        "own order": 3679268941,
        "common order": 2040376534,
        "C_0": 1565899405,
    }


def test_weights_of_a_run_do_not_depend_on_the_other_runs():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, many = (build_all(lambda: perceptron(4, 3, 1), each) for each in ([5], [4, 5, 6]))
    for name, w in one.named_parameters():
        assert torch.equal(w[0], many.get_parameter(name)[1])
        assert not torch.equal(w[0], many.get_parameter(name)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_drawn_for_a_run_does_not_depend_on_the_other_runs():
    like = {"w": torch.zeros(1, 1, 2, 5)}
    assert torch.equal(uniform(like, [5])["w"][0], uniform(like, [4, 5, 6])["w"][1])
    many = uniform({"w": torch.zeros(1, 1, 5000)}, [1, 2])["w"]
    assert many.shape == (2, 1, 5000)
    assert many.min() >= 0
    assert many.max() <= 1
    assert abs(many.mean() - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5


def test_kappa():
    assert kappa_of("1/t")(4) == 1 / 4
    assert kappa_of("1/(t+1)")(4) == 1 / 5
    assert kappa_of("0.1") == 0.1


@pytest.mark.parametrize("setting", ["1/s", "", "0", "-0.5", "1.5", "nan", "inf"])
def test_an_unknown_kappa_is_refused(setting):
    with pytest.raises(ValueError, match=r"kappa must be .* or a number in \(0, 1\], got"):
        kappa_of(setting)


def test_all_that_watches_the_training_sees_each_iteration():
    experiment = experiments.boston_housing(hidden=2, orders=("all_samples",))
    shard = Shard(experiment, range(2))
    training = shard._training()
    train(training, shard.minibatches, 3, lambda loss: None)
    for watching in (training.covariance, training.all_samples, training.moments):
        assert watching.t == 3


def test_the_first_model_that_diverged_is_named():
    losses = torch.zeros(2, 4, 1)
    losses[0, 2], losses[1, 1] = torch.inf, torch.nan
    with pytest.raises(Diverged) as raised:
        protocol._finite(losses.sum(), lambda x: x, lambda output, y: output, losses, losses, t=9)
    assert raised.value.args == (0, 2, 9, torch.inf)
