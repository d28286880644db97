"""The order: ranks, exact k, seeded ties and the orders made from an order, against ``sorted``."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from parameter_ordering.order import frozen_mask, mean_frozen, rank, reverse, shuffle_within
from parameter_ordering.selection import tie_breaks

SHAPES = {"weight": (4, 3), "empty": (0, 2), "bias": (4,), "scale": ()}
P = 17
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.uint8, torch.int8, torch.int32, torch.int64]


def split_mix_64(seed, count):
    """SplitMix64 as it was published, one output after the other."""
    state = seed % 2**64
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        yield z - 2**64 if z >= 2**63 else z


def slow_ranks(scores, seed):
    """Ranks of one model by Python's sort of (score, random integer)."""
    flat = [value for score in scores.values() for value in score.flatten().tolist()]
    keys = list(zip(flat, split_mix_64(seed, len(flat)), strict=True))
    place = {key: number for number, key in enumerate(sorted(keys), start=1)}
    return [place[key] for key in keys]


def flat(tensors, ensemble_dims=0):
    return torch.cat([t.flatten(ensemble_dims) for t in tensors.values()], -1)


def split(values, dtype=torch.float64, leading=()):
    """A tensor of shape (*leading, P) as the parameters of a model."""
    values = torch.as_tensor(values, dtype=torch.float64).to(dtype)
    sizes = [math.prod(shape) for shape in SHAPES.values()]
    parts = values.split(sizes, -1)
    return {n: v.reshape((*leading, *s)) for (n, s), v in zip(SHAPES.items(), parts, strict=True)}


# Few distinct values, so that most draws have ties inside and across the tensors, and almost ties.
few_values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, 1 + 2.0**-52, math.inf])
many_values = st.floats(allow_nan=False)
scores_of_a_model = st.lists(few_values, min_size=P, max_size=P).map(split) | st.lists(
    many_values, min_size=P, max_size=P
).map(split)
seeds = st.integers(-(2**63), 2**63 - 1)


def test_the_example_of_the_paper():
    assert rank({"w": torch.tensor([0.3, 0.2, 0.25])})["w"].tolist() == [3, 1, 2]


def test_tie_breaks_are_the_published_generator():
    # The first output for the seed 0 is the one that every implementation quotes.
    assert next(split_mix_64(0, 1)) == 0xE220A8397B1DCDAF - 2**64
    for seed in (0, 1, -5, 2**63 - 1):
        outputs = tie_breaks(torch.arange(50), seed)
        assert outputs.tolist() == list(split_mix_64(seed, 50))


@given(scores_of_a_model, seeds)
def test_ranks_are_those_of_a_sort(scores, seed):
    ranks = rank(scores, seed)
    assert flat(ranks).tolist() == slow_ranks(scores, seed)
    assert flat(ranks).sort().values.tolist() == list(range(1, P + 1))
    for name, score in scores.items():
        assert ranks[name].shape == score.shape
        assert ranks[name].dtype == torch.int64


@given(scores_of_a_model, seeds, st.integers(0, P))
def test_the_mask_is_exact_and_agrees_with_the_ranks(scores, seed, k):
    before = {name: score.clone() for name, score in scores.items()}
    mask, ranks = frozen_mask(scores, k, seed), rank(scores, seed)
    assert flat(mask).sum() == k
    for name in scores:
        assert mask[name].dtype == torch.bool
        assert torch.equal(mask[name], ranks[name] <= k)
        assert torch.equal(scores[name], before[name])


@given(scores_of_a_model, seeds, st.integers(0, P), st.integers(0, P))
def test_masks_are_nested(scores, seed, k, more):
    k, more = sorted((k, more))
    assert not (flat(frozen_mask(scores, k, seed)) & ~flat(frozen_mask(scores, more, seed))).any()


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_every_type(dtype):
    generator = torch.Generator().manual_seed(1)
    scores = split(torch.randint(0, 7, (P,), generator=generator), dtype)
    if dtype.is_floating_point:
        scores["weight"][0, 0] = -math.inf
        scores["bias"][0] = math.inf
    ranks = rank(scores, seed=3)
    assert flat(ranks).tolist() == slow_ranks(scores, 3)
    for k in range(P + 1):
        assert torch.equal(flat(frozen_mask(scores, k, seed=3)), flat(ranks) <= k)


def test_tensors_of_several_types_are_compared_exactly():
    # 1 + 2**-9 rounds to 1 in bfloat16, 1 + 2**-40 in float32 too: ties that a seed would break.
    scores = {
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "single": torch.tensor([1 + 2.0**-9, 0.5]),
        "double": torch.tensor(1 + 2.0**-40, dtype=torch.float64),
    }
    for seed in range(8):
        ranks = flat(rank(scores, seed))
        assert ranks.tolist() == [2, 5, 4, 1, 3]
        for k in range(6):
            assert torch.equal(flat(frozen_mask(scores, k, seed)), ranks <= k)


def test_strides_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    score = torch.randint(0, 5, (6, 7), generator=generator).float()
    for view in (score.T, score[:, ::2], score[0].expand(3, 7)):
        plain = view.clone(memory_format=torch.contiguous_format)
        assert torch.equal(rank({"w": view})["w"], rank({"w": plain})["w"])
        assert torch.equal(frozen_mask({"w": view}, 9)["w"], frozen_mask({"w": plain}, 9)["w"])


def test_a_parameter_itself_can_be_the_score():
    weight = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
    assert rank({"w": weight})["w"].tolist() == [2, 1]
    assert frozen_mask({"w": weight}, 1)["w"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("seed", "seeds_of_models"),
    [
        (7, [[7, 7], [8, 8], [9, 9]]),
        ([3, 1, 4], [[3, 3], [1, 1], [4, 4]]),
        ([[3, 1], [4, 1], [5, 9]], [[3, 1], [4, 1], [5, 9]]),
    ],
)
def test_an_ensemble_equals_its_models(seed, seeds_of_models):
    runs, variants = 3, 2
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 6, (runs, variants, P), generator=generator)
    scores = split(values, leading=(runs, variants))
    ranks = rank(scores, seed, ensemble_dims=2)
    shuffled = shuffle_within(ranks, seed, ensemble_dims=2)
    masks = {k: frozen_mask(scores, k, seed, ensemble_dims=2) for k in (0, 1, 8, P)}
    for model in itertools.product(range(runs), range(variants)):
        one, own_seed = split(values[model]), seeds_of_models[model[0]][model[1]]
        own = rank(one, own_seed)
        own_shuffled = shuffle_within(own, own_seed)
        for name in SHAPES:
            assert torch.equal(ranks[name][model], own[name])
            assert torch.equal(shuffled[name][model], own_shuffled[name])
        for k, mask in masks.items():
            own_mask = frozen_mask(one, k, own_seed)
            assert all(torch.equal(mask[name][model], own_mask[name]) for name in SHAPES)


def test_runs_break_ties_differently_and_do_not_depend_on_their_number():
    many = rank({"w": torch.zeros(5, 40)}, seed=2, ensemble_dims=1)["w"]
    assert torch.equal(rank({"w": torch.zeros(3, 40)}, seed=2, ensemble_dims=1)["w"], many[:3])
    assert len({tuple(ranks) for ranks in many.tolist()}) == 5


def test_ties_are_broken_uniformly():
    runs, p = 4000, 4
    ranks = rank({"w": torch.zeros(runs, p)}, seed=0, ensemble_dims=1)["w"]
    _, counts = torch.unique(ranks, dim=0, return_counts=True)
    expected = runs / math.factorial(p)
    assert len(counts) == math.factorial(p)
    # The 0.999 quantile of chi-squared with 23 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 49.7


def test_the_share_of_a_random_order_is_k_over_p():
    runs, p, k = 2000, 10, torch.tensor([3, 8])
    ranks = rank({"w": torch.zeros(runs, p)}, seed=0, ensemble_dims=1)["w"]
    share = mean_frozen(ranks, k)
    spread = (k / p * (1 - k / p) / runs).sqrt()
    assert ((share - k[:, None] / p).abs() < 5 * spread[:, None]).all()


@given(st.lists(st.permutations(range(1, 7)), min_size=1, max_size=5))
def test_mean_frozen_counts(ranks):
    ks = [0, 1, 4, 6]
    share = mean_frozen(np.array(ranks), ks)
    assert share.shape == (4, 6)
    for row, k in zip(share, ks, strict=True):
        expected = [sum(run[i] <= k for run in ranks) / len(ranks) for i in range(6)]
        assert row.tolist() == pytest.approx(expected)
        assert torch.equal(mean_frozen(torch.tensor(ranks), k), row)
    labelled = xr.Dataset({"ranks": (("run", "parameter"), ranks), "k": ks})
    assert torch.equal(mean_frozen(labelled["ranks"], labelled["k"]), share)


@given(scores_of_a_model, st.integers(0, 1000))
def test_shuffling_within_keeps_the_share_of_each_tensor(scores, seed):
    ranks = rank(scores, seed)
    shuffled = shuffle_within(ranks, seed)
    for name, r in ranks.items():
        assert shuffled[name].shape == r.shape
        for k in range(P + 1):
            assert (shuffled[name] <= k).sum() == (r <= k).sum()


def test_shuffling_within_permutes_each_tensor_in_its_own_way():
    order = torch.arange(40)
    shuffled = shuffle_within({"a": order, "b": order}, seed=0)
    assert not torch.equal(shuffled["a"], shuffled["b"])


def test_shuffling_within_is_random_also_where_ties_were_broken_with_its_seed():
    runs, p = 4000, 3
    ranks = rank({"w": torch.zeros(runs, p)}, seed=0, ensemble_dims=1)
    shuffled = shuffle_within(ranks, seed=0, ensemble_dims=1)["w"]
    pairs = torch.cat([ranks["w"], shuffled], -1)
    _, counts = torch.unique(pairs, dim=0, return_counts=True)
    expected = runs / math.factorial(p) ** 2
    assert len(counts) == math.factorial(p) ** 2
    # The 0.999 quantile of chi-squared with 35 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 66.6


@given(scores_of_a_model, seeds)
def test_reversing(scores, seed):
    ranks = rank(scores, seed)
    backwards = reverse(ranks)
    assert torch.equal(flat(ranks) + flat(backwards), torch.full((P,), P + 1))


def test_reversing_an_ensemble_reverses_its_models():
    ranks = rank({"w": torch.rand(2, 3), "b": torch.rand(2, 1)}, ensemble_dims=1)
    backwards = reverse(ranks, ensemble_dims=1)
    assert torch.equal(flat(backwards, 1), 5 - flat(ranks, 1))


@pytest.mark.parametrize("function", [rank, lambda s, **kw: frozen_mask(s, 1, **kw)])
@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ({}, {}, "empty"),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}, {}, "'b' contain NaN"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, {}, "'a' is torch.complex64"),
        ({"a": torch.ones(2, dtype=torch.bool)}, {}, "'a' is torch.bool"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3)}, {"ensemble_dims": 1}, "'b', (3,), differ"),
        ({"a": torch.ones(())}, {"ensemble_dims": 1}, "'a' of shape () lacks"),
        ({"a": torch.ones(2, 3)}, {"ensemble_dims": 1, "seed": [1, 2, 3]}, "shape (3,)"),
        ({"a": torch.ones(2)}, {"seed": [1]}, "seed must be an int"),
        ({"a": torch.ones(2)}, {"seed": 0.5}, "torch.float32"),
    ],
)
def test_wrong_input_is_named(function, scores, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(scores, **arguments)


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k is {k}.*\[0, 3\]"):
        frozen_mask({"w": torch.rand(2), "b": torch.rand(1)}, k)
    with pytest.raises(ValueError, match=rf"k is {k}.*\[0, 3\]"):
        mean_frozen([[1, 2, 3]], [0, k])


def test_a_mean_over_no_runs():
    with pytest.raises(ValueError, match=r"must be of shape \(runs, p\), got \(0, 3\)"):
        mean_frozen(torch.zeros(0, 3), 1)


def test_k_must_be_an_integer():
    with pytest.raises(TypeError):
        frozen_mask({"w": torch.rand(2)}, 1.0)
    with pytest.raises(TypeError):
        mean_frozen([[1, 2, 3]], [0.5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_gives_what_the_cpu_gives():
    generator = torch.Generator().manual_seed(1)
    scores = split(torch.randint(0, 6, (P,), generator=generator))
    on_gpu = {name: score.cuda() for name, score in scores.items()}
    mixed = on_gpu | {"bias": scores["bias"]}
    for k in range(P + 1):
        expected = flat(frozen_mask(scores, k, seed=5))
        for moved in (on_gpu, mixed):
            mask = frozen_mask(moved, k, seed=5)
            assert {n: m.device for n, m in mask.items()} == {n: s.device for n, s in moved.items()}
            assert torch.equal(flat({n: m.cpu() for n, m in mask.items()}), expected)
    ranks = {name: r.cpu() for name, r in rank(on_gpu, seed=5).items()}
    assert torch.equal(flat(ranks), flat(rank(scores, seed=5)))
    shuffled = shuffle_within(rank(on_gpu), seed=5)
    expected = shuffle_within(rank(scores), seed=5)
    assert all(torch.equal(shuffled[name].cpu(), expected[name]) for name in SHAPES)
