"""Scores of units and tensors against loops, and the way back to parameters."""

import pytest
import torch

from parameter_ordering.granularity import by_tensors, by_units, to_parameters
from parameter_ordering.order import frozen_mask, rank

SHAPES = {"conv": (4, 2, 3, 3), "weight": (3, 5), "bias": (3,), "scale": ()}


def random_scores(leading=()):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand((*leading, *shape), generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("reduce", [torch.mean, torch.amax, torch.sum, torch.linalg.vector_norm])
def test_aggregates_are_those_of_loops(reduce):
    scores = random_scores()
    units, tensors = by_units(scores, reduce), by_tensors(scores, reduce)
    for name, score in scores.items():
        rows = score if score.ndim else score[None]
        expected = torch.stack([reduce(row.flatten(), dim=-1) for row in rows])
        torch.testing.assert_close(units[name], expected.reshape(score.shape[:1]))
        torch.testing.assert_close(tensors[name], reduce(score.flatten(), dim=-1))


@pytest.mark.parametrize("by", [by_units, by_tensors])
def test_an_ensemble_equals_its_models(by):
    scores = random_scores((2, 3))
    together = by(scores, ensemble_dims=2)
    masks = to_parameters(frozen_mask(together, 2, [5, 6], ensemble_dims=2), scores)
    for run in range(2):
        for variant in range(3):
            one = {name: score[run, variant] for name, score in scores.items()}
            mask = to_parameters(frozen_mask(by(one), 2, 5 + run), one)
            for name in SHAPES:
                assert torch.equal(together[name][run, variant], by(one)[name])
                assert torch.equal(masks[name][run, variant], mask[name])


def test_k_counts_units_and_freezes_them_whole():
    scores = random_scores()
    for k in range(12):
        mask = to_parameters(frozen_mask(by_units(scores), k), scores)
        for name, score in scores.items():
            assert mask[name].shape == score.shape
            assert mask[name].is_contiguous()
        rows = [row.flatten() for m in mask.values() for row in (m if m.ndim else m[None])]
        assert sum(bool(row.all()) for row in rows) == sum(bool(row.any()) for row in rows) == k


def test_single_parameters_pass_through():
    ranks = rank(random_scores())
    spread = to_parameters(ranks, random_scores())
    assert all(torch.equal(spread[name], r) for name, r in ranks.items())


def test_wrong_input_is_named():
    like = {"weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="'bias' is not among"):
        to_parameters({"bias": torch.ones(2)}, like)
    with pytest.raises(ValueError, match=r"'weight': \(2, 3\) does not begin with \(3,\)"):
        to_parameters({"weight": torch.ones(3)}, like)
    with pytest.raises(ValueError, match="'bias' of shape"):
        by_tensors({"bias": torch.ones(2)}, ensemble_dims=2)
