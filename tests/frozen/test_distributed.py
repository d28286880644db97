"""A freeze under the ways in which torch trains on many processes."""

import pytest
import torch
from torch import nn

from parameter_ordering.freezing import freeze
from tests.frozen.cases import (
    HALF,
    linear,
    same_bits,
    slowly,
)


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("views", [False, True])
def test_distributed_data_parallel_trains_the_free_alone(tmp_path, views, in_backward):
    model, optimizer = linear(lr=0.1, momentum=0.9)
    other_model, other = linear(lr=0.1, momentum=0.9)
    masks = [HALF["weight"], torch.zeros(2).bool()]
    freeze(optimizer, HALF, in_backward=in_backward)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)
        for x in torch.randn(4, 5, 3).double():
            optimizer.zero_grad(set_to_none=False)
            parallel(x).square().sum().backward()
            optimizer.step()
            loss = other_model(x).square().sum()
            slowly(
                list(other_model.parameters()),
                other,
                [torch.autograd.grad(loss, other_model.parameters())],
                masks,
            )
    finally:
        torch.distributed.destroy_process_group()
    assert same_bits(model.parameters(), other_model.parameters())
