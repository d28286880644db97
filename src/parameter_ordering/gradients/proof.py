"""Whether shares add up to the gradient that they are shares of."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from parameter_ordering.gradients.factors import Rows, Sum
from parameter_ordering.gradients.recorder import Pass


def adds_up(name: str, terms: Sequence[Rows], gradient: Tensor, noise: float, within: Pass) -> bool:
    """Also when each is weighted by a random number, where that is known."""
    rows = together(terms)
    pairs = [(rows.total(), dense(gradient))]
    if name in within.sums and within.weights is not None:
        pairs.append((rows.weighted(within.weights).total(), within.sums[name]))
    size = max(float(t.norm()) for pair in pairs for t in pair)
    return all(
        float((have - want).norm()) <= within.tolerance * size + noise for have, want in pairs
    )


def together(terms: Sequence[Rows]) -> Rows:
    """The shares in several uses of a parameter, as one."""
    return terms[0] if len(terms) == 1 else Sum(terms)


def dense(g: Tensor) -> Tensor:
    """A gradient that may be sparse, as that of an embedding."""
    return g.to_dense() if g.is_sparse else g


def finite(gradients: Mapping[str, Tensor]) -> bool:
    """What is not finite, as before a GradScaler has found its scale, proves nothing."""
    return all(bool(dense(g).isfinite().all()) for g in gradients.values())


def noise_of(gradients: Mapping[str, Tensor], within: Pass) -> float:
    """What rounding may leave of a gradient that vanishes, measured by the largest."""
    norms = (float(dense(g).norm()) for g in gradients.values())
    return 1e-3 * within.tolerance * max(norms, default=0.0)
