"""Which parameters of a model are followed."""

from collections.abc import Callable, Iterable

from torch import nn


def selected(
    model: nn.Module, which: Iterable[str] | Callable[[str, nn.Parameter], bool] | None
) -> dict[str, nn.Parameter]:
    """The parameters to follow, in the order of the model."""
    every = dict(model.named_parameters())
    if which is None or callable(which):
        names = [n for n, w in every.items() if w.requires_grad and (which is None or which(n, w))]
    else:
        names = list(which)
        if unknown := [name for name in names if name not in every]:
            raise ValueError(f"unknown parameters {unknown}; the model has {list(every)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in parameters={names}")
        if frozen := [name for name in names if not every[name].requires_grad]:
            raise ValueError(f"parameters {frozen} have requires_grad=False, so no gradient")
    if not names:
        raise ValueError("no parameter to follow: none is selected that requires a gradient")
    if compl := [name for name in names if every[name].is_complex()]:
        raise ValueError(f"parameters {compl} are complex: hold them as torch.view_as_real")
    chosen = set(names)
    return {name: w for name, w in every.items() if name in chosen}


def check_whole(parameters: dict[str, nn.Parameter]) -> None:
    """That no parameter is sharded over processes."""
    marks = "_local_tensor", "_is_flat_param"  # of fully_shard, of FullyShardedDataParallel
    sharded = [n for n, w in parameters.items() if any(hasattr(w, mark) for mark in marks)]
    if sharded:
        raise ValueError(
            f"{sharded} are sharded over processes (FSDP): no process sees the gradient of one "
            "sample with respect to them whole; estimate C with DistributedDataParallel, or before "
            "fully_shard, and shard the masks"
        )
