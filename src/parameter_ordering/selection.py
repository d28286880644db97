"""Selection of the k smallest in linear time, with ties in a random order that anyone can redo.

A full sort is the slow way to a mask, and so is a permutation of all p parameters to break ties
with: here the k-th smallest is selected, and random integers are made for its ties alone.
"""

import torch
from torch import Tensor


def mark_first(scores: list[Tensor], masks: list[Tensor], k: int, seed: int) -> None:
    """Set the masks of a model: below the k-th smallest score, and as many of its ties as lack."""
    kth = kth_smallest(concatenate(scores), k)
    keys, lacking, start = [], k, 0
    for s, mask in zip(scores, masks, strict=True):
        # One element rather than a scalar: a scalar would be rounded to the type of s.
        torch.lt(s, kth.to(s.device), out=mask)
        lacking -= int(mask.count_nonzero())
        tied = (s == kth.to(s.device)).nonzero().squeeze(1)
        keys.append(tie_breaks(tied.add_(start), seed))
        start += len(s)
    last = kth_smallest(concatenate(keys), lacking)
    # What is tied is found again: kept until here, it would be a third array of size p.
    for s, mask, key in zip(scores, masks, keys, strict=True):
        mask.masked_scatter_(s == kth.to(s.device), key <= last.to(key.device))


def kth_smallest(flat: Tensor, k: int) -> Tensor:
    """The k-th smallest element, shape (1,), of a 1-D tensor, which may be overwritten."""
    if flat.device.type != "cpu":
        return flat.kthvalue(k, keepdim=True).values
    # In place and several times faster than torch's on the CPU, which makes int64 indices too.
    values = flat.float() if flat.dtype == torch.bfloat16 else flat
    values.numpy().partition(k - 1)
    return values[k - 1 : k].clone()


_GOLDEN = 0x9E3779B97F4A7C15
_SHIFTS_AND_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_CACHED = 2**15  # int64 that stay in the cache of a core between one pass and the next


def tie_breaks(places: Tensor, seed: int) -> Tensor:
    """Random int64, distinct for distinct ``places``, which it overwrites.

    The outputs at ``places``, from 0, of SplitMix64 seeded with ``seed`` (Steele, Lea and Flood,
    Fast splittable pseudorandom number generators, OOPSLA 2014), read as signed: a bijection of
    the integers modulo 2**64, found for any place without those before it, on any device.
    """
    for z in places.split(_CACHED):
        z.add_(1).mul_(_GOLDEN - 2**64).add_(seed)
        for shift, factor in _SHIFTS_AND_FACTORS:
            # Torch's shift of int64 copies the sign into the high bits, where zeros belong.
            z.bitwise_xor_((z >> shift).bitwise_and_((1 << 64 - shift) - 1))
            z.mul_(factor - 2**64 if factor >> 63 else factor)
    return places


def concatenate(parts: list[Tensor]) -> Tensor:
    """A new 1-D tensor on the first part's device, in the common type."""
    return torch.cat([part.to(parts[0].device) for part in parts])
