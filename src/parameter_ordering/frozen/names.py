"""Names of parameters, whatever wrappers stand around their modules."""

from collections import defaultdict
from collections.abc import Iterable

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def bare(name: str) -> str:
    """The name without what DistributedDataParallel, torch.compile and their like put into it.

    >>> bare("_orig_mod.module.encoder._checkpoint_wrapped_module.weight")
    'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Names:
    """Where each of some names stands: by itself, or else by what is left of it without wrappers.

    >>> Names(["module.0.weight", "module.0.bias"])["0.bias"]
    [1]
    """

    def __init__(self, names: Iterable[str]):
        self._names = list(names)
        self._exact: defaultdict[str, list[int]] = defaultdict(list)
        self._bare: defaultdict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(self._names):
            self._exact[name].append(i)
            self._bare[bare(name)].append(i)

    def __getitem__(self, name: str) -> list[int]:
        return self._exact.get(name) or self._bare.get(bare(name), [])

    def one(self, name: str) -> str | None:
        """The only name that is meant, or None."""
        found = self[name]
        return self._names[found[0]] if len(found) == 1 else None
