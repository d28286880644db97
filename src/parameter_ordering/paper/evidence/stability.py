r"""How alike an order is in independent runs (figures 2, 4, 6, 8).

Ranks are arrays (R, p), one row a run. Spearman's correlation of two runs' ranks, averaged over all
pairs of runs, is the share of the ranks' variance that all runs have in common; Kendall's
coefficient of concordance is :math:`W = (1 + (R - 1) \rho) / R`. For random orders its mean is 0
and its standard deviation :math:`\sqrt{2 / (R (R - 1) (p - 1))}`, exactly. Parameters whose
gradient never varied, in either of two runs, are left out: their places are drawn by lot.

Runs that start from weights of their own may grow the same hidden units in another sequence. So
units are matched first, run by run, by the weights they have and not by the ranks under test: a
matching that looks at ranks finds agreement in any order, a random one too.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from parameter_ordering.paper.evidence.statistics import Estimate, from_parts, jackknife

Match = Callable[[int, int], np.ndarray]


class HiddenUnits(NamedTuple):
    """Where the weights of each hidden unit stand among the p parameters, (H, n + 1) and (H, K)."""

    incoming: np.ndarray
    outgoing: np.ndarray


def hidden_units(sizes: Mapping[str, int]) -> HiddenUnits | None:
    """The hidden units of a two-layer perceptron; None for a model of one tensor, which has none.

    Args:
        sizes: number of weights by name, as ``named_parameters`` has them: weights (H, n) and bias
            (H,) of the hidden layer, weights (K, H) and bias (K,) of the output.

    Raises:
        ValueError: the model is neither of the two.

    >>> hidden_units({"0.weight": 6, "0.bias": 2, "2.weight": 2, "2.bias": 1})
    HiddenUnits(incoming=array([[0, 1, 2, 6],
           [3, 4, 5, 7]]), outgoing=array([[8],
           [9]]))
    """
    if len(sizes) == 1:
        return None
    tensors = np.split(np.arange(sum(sizes.values())), np.cumsum(list(sizes.values()))[:-1])
    if len(tensors) != 4 or len(tensors[2]) != len(tensors[1]) * len(tensors[3]):
        raise ValueError(f"not a perceptron with one hidden layer and biases: {dict(sizes)}")
    weight, bias, outgoing, output_bias = tensors
    H = len(bias)
    return HiddenUnits(
        np.concatenate([weight.reshape(H, -1), bias[:, None]], 1),
        outgoing.reshape(len(output_bias), H).T,
    )


def match_by_weights(weights: np.ndarray, units: HiddenUnits) -> Match:
    r"""Match hidden units between runs by the direction of their weights.

    The one-to-one assignment that maximizes the sum of :math:`\cos(u, v) \cos(a, b)` over pairs of
    units with incoming weights u, v (bias included) and outgoing weights a, b. A ReLU unit is the
    same function if its incoming weights are multiplied by c > 0 and its outgoing ones divided by
    it; cosines do not see that. Nor do they see how large the weights are, on which the variance of
    the gradient depends most.

    Args:
        weights: (R, p), of all runs.
        units: where the units are.

    Returns:
        A function of two runs: the indices (p,) that bring the second run's parameters into the
        places of the first's.
    """
    incoming, outgoing = (
        _directions(weights[:, units.incoming]),
        _directions(weights[:, units.outgoing]),
    )

    def match(a: int, b: int) -> np.ndarray:
        similarity = (incoming[a] @ incoming[b].T) * (outgoing[a] @ outgoing[b].T)
        return _rearranged(similarity, units, weights.shape[1])

    return match


def rank_correlations(
    ranks: np.ndarray, alive: np.ndarray | None = None, match: Match | None = None
) -> np.ndarray:
    """Spearman's correlation of every pair of runs, (R, R), with ones on the diagonal.

    Args:
        ranks: (R, p); any values that are in the same order will do.
        alive: (R, p) bool, the parameters whose gradient varied; all if None.
        match: brings the parameters of one run into the places of another's.

    >>> rank_correlations(np.array([[1, 2, 3], [3, 2, 1]]))
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    ranks = rankdata(ranks, axis=1)
    alive = np.ones(ranks.shape, bool) if alive is None else np.asarray(alive)
    rho = np.eye(len(ranks))
    for a, b in combinations(range(len(ranks)), 2):
        places = np.arange(ranks.shape[1]) if match is None else match(a, b)
        both = alive[a] & alive[b][places]
        if both.sum() < 3:
            raise ValueError(f"runs {a} and {b} have {both.sum()} parameters in common: no order")
        pair = np.stack([ranks[a][both], ranks[b][places][both]])
        if not both.all():
            pair = rankdata(pair, axis=1)
        rho[a, b] = rho[b, a] = np.corrcoef(pair)[0, 1]
    return rho


def stability(correlations: np.ndarray) -> Estimate:
    """Mean over all pairs of runs, its error by jackknife over runs.

    The mean is linear in the matrix, so two orders of the same runs are compared by the stability
    of the difference of their matrices.

    >>> stability(np.ones((25, 25)))
    Estimate(value=1.0, standard_error=0.0, df=24, logarithmic=False)
    """
    R = len(correlations)
    if R < 3:
        raise ValueError(f"stability needs 3 runs or more, got {R}")
    pairs = correlations - np.diag(np.diag(correlations))
    total = pairs.sum()
    without = (total - 2 * pairs.sum(0)) / ((R - 1) * (R - 2))
    return from_parts(float(total / (R * (R - 1))), without)


def mask_correlations(ranks: np.ndarray, k: np.ndarray) -> np.ndarray:
    r"""Correlation of the frozen masks alpha(k) of every pair of runs, averaged over interior k.

    With it the components of alpha_hat(k) vary by
    :math:`\frac{k}{p} (1 - \frac{k}{p}) (1 + (R - 1) \rho_k) / R`: for a random order the
    correlation is 0 and they are as equal as R draws leave them, for an order that never changes it
    is 1.

    Args:
        ranks: (R, p).
        k: numbers of frozen parameters, from 0 to p.
    """
    p = ranks.shape[1]
    masks = (ranks[None] <= _interior(k)[:, None, None]).astype(np.float32)
    share = masks.mean(2, keepdims=True, dtype=float)
    centred = masks - share.astype(np.float32)
    products = np.einsum("krp,ksp->krs", centred, centred, optimize=True)
    return (products / (p * share * (1 - share))).mean(0)


def share_near_one(ranks: np.ndarray, k: np.ndarray, distance: float = 0.1) -> Estimate:
    r"""How many components of alpha_hat(k) are near 1, as a share of k, averaged over interior k.

    Near: frozen in at least 1 - ``distance`` of the runs. 1 for an order that never changes. Error
    by jackknife over runs.

    Args:
        ranks: (R, p).
        k: numbers of frozen parameters, from 0 to p.
        distance: from 1.
    """
    interior = _interior(k)

    def share(ranks: np.ndarray) -> float:
        near = [((ranks <= each).mean(0) >= 1 - distance).sum() / each for each in interior]
        return float(np.mean(near))

    return jackknife(share, ranks)


def _interior(k: np.ndarray) -> np.ndarray:
    return np.asarray(k)[1:-1]


def _directions(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _rearranged(similarity: np.ndarray, units: HiddenUnits, p: int) -> np.ndarray:
    _, partner = linear_sum_assignment(similarity, maximize=True)
    places = np.arange(p)
    for each in units:
        places[each] = each[partner]
    return places


def correlation(ranks: np.ndarray) -> float:
    """Spearman's correlation of an order between two runs, mean over pairs; of ranks (R, p)."""
    return stability(rank_correlations(ranks)).value
