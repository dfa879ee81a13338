"""Who labels which patches, in which order.

Both follow from the seed and from names alone, so that a new patch or person changes nothing for
the others: a patch keeps its place among those that were there before.
"""

import hashlib
from collections.abc import Mapping, Sequence

_LARGEST = 2**64


def is_shared(patch: str, overlap: float, seed: int) -> bool:
    """Tells whether all annotators label a patch; arguments as of `deal_patch`."""
    return _draw("overlap", seed, patch) < overlap


def deal_patch(patch: str, people: Sequence[str], overlap: float, seed: int) -> tuple[str, ...]:
    """Says who labels a patch.

    Args:
      patch: its name.
      people: names of the annotators.
      overlap: share of the patches (0 to 1) that all label; of the others each is labeled by one.
      seed: another one deals otherwise.

    Returns:
      Some of `people`, in their order.
    """
    if is_shared(patch, overlap, seed):
        return tuple(people)
    return (max(people, key=lambda person: _draw("deal", seed, patch, person)),)


def is_random(patch: str, random_share: float, seed: int) -> bool:
    """Tells whether a patch is of the random sample, which no priority has a part in.

    Args:
      patch: its name.
      random_share: how many patches (0 to 1) are of it.
      seed: another one draws another sample.
    """
    return _draw("sample", seed, patch) < random_share


def sort_patches(
    patches: Sequence[str],
    person: str,
    seed: int,
    priority: Mapping[str, float] | None = None,
    random_share: float = 1.0,
) -> list[str]:
    """Sorts patches into the order in which a person is shown them.

    With a priority, patches of a random sample are mixed in, as many as are in it: what is counted
    on those of them that were shown holds for all patches.

    Args:
      patches: their names.
      person: whose order.
      seed: another one gives another order.
      priority: of each patch; the highest come first. None = a random order.
      random_share: see `is_random`.

    Returns:
      All patches.
    """
    shuffled = sorted(patches, key=lambda patch: _draw("order", seed, person, patch))
    if priority is None:
        return shuffled
    sample = [patch for patch in shuffled if is_random(patch, random_share, seed)]
    others = [patch for patch in shuffled if not is_random(patch, random_share, seed)]
    others.sort(key=lambda patch: -priority[patch])  # equal ones stay shuffled
    order = []
    for place in range(len(patches)):
        at_random = _draw("turn", seed, person, str(place)) < random_share
        queue = sample if (at_random and sample) or not others else others
        order.append(queue.pop(0))
    return order


def _draw(purpose: str, seed: int, *names: str) -> float:
    """Draws a number in [0, 1) that depends on the purpose, the seed and the names alone."""
    text = "\0".join((purpose, str(seed), *names))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _LARGEST
