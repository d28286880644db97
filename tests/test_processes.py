"""The two processes that tests run on: results by rank, and errors that arrive."""

import pytest
import torch
from torch import distributed

from tests.processes import run_on_two


def _sum(rank, number):
    total = torch.tensor(rank + number)
    distributed.all_reduce(total)
    return rank, total


def _fail_on(rank, which):
    if rank == which:
        raise KeyError(f"of {rank}")
    distributed.barrier()


def test_results_are_by_rank_and_errors_arrive():
    for number in (1, 5):
        assert run_on_two(_sum, number) == [(0, 2 * number + 1), (1, 2 * number + 1)]
    for which in (0, 1):
        with pytest.raises(KeyError, match=f"of {which}"):
            run_on_two(_fail_on, which)
    assert [rank for rank, _ in run_on_two(_sum, 0)] == [0, 1]
