"""What C costs on models that trainers train, as a ratio to a forward and backward pass.

The ways are those of :mod:`benchmarks.covariance`, S = 32.
"""

from benchmarks.covariance import LARGER, measure


def run(quick: bool = False) -> list[dict]:
    """Rows of one way and model: median microseconds, and the ratio to backward alone."""
    return [
        row for model in LARGER for row in measure(model, 4 if quick else 32, 0 if quick else 60)
    ]
