"""Random numbers of an ensemble, each run's from its own seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Noise:
    """Draws tensors (R, ...); what a run gets depends on its seed and on ``purpose`` alone.

    >>> alone = Noise([8], "masks").normal((1, 3), torch.device("cpu"))
    >>> torch.equal(Noise([7, 8], "masks").normal((2, 3), alone.device)[1:], alone)
    True
    """

    def __init__(self, seeds: Sequence[int], purpose: str):
        words = [[seed, *purpose.encode()] for seed in seeds]
        states = [int(np.random.SeedSequence(each).generate_state(1)[0]) for each in words]
        self._generators = [torch.Generator().manual_seed(state) for state in states]

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal numbers."""
        drawn = [torch.randn(shape[1:], generator=g) for g in self._generators]
        return torch.stack(drawn).to(device)

    def coins(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """True or False, each with probability 1/2."""
        drawn = [torch.randint(2, shape[1:], generator=g) for g in self._generators]
        return torch.stack(drawn).bool().to(device)
