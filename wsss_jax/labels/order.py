"""Who labels which patches, in which order.

Both follow from the seed and from names alone, so that a new patch or person changes nothing for
the others: a patch keeps its place among those that were there before.
"""

import hashlib
from collections.abc import Mapping, Sequence

_LARGEST = 2**64


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
    if _draw("overlap", seed, patch) < overlap:
        return tuple(people)
    return (max(people, key=lambda person: _draw("deal", seed, patch, person)),)


def sort_patches(
    patches: Sequence[str],
    person: str,
    seed: int,
    priority: Mapping[str, float] | None = None,
    random_share: float = 1.0,
) -> list[str]:
    """Sorts patches into the order in which a person is shown them.

    Args:
      patches: their names.
      person: whose order.
      seed: another one gives another order.
      priority: of each patch; the highest come first. None = a random order.
      random_share: of the patches shown (0 to 1), how many are drawn at random instead, so that
        what is learned from them holds for all.

    Returns:
      All patches.
    """
    shuffled = sorted(patches, key=lambda patch: _draw("order", seed, person, patch))
    if priority is None:
        return shuffled
    first = sorted(shuffled, key=lambda patch: -priority[patch])  # equal ones stay shuffled
    queues = (iter(first), iter(shuffled))
    order: dict[str, None] = {}
    for place in range(len(patches)):
        at_random = _draw("random share", seed, person, str(place)) < random_share
        order[next(patch for patch in queues[at_random] if patch not in order)] = None
    return list(order)


def _draw(purpose: str, seed: int, *names: str) -> float:
    """Draws a number in [0, 1) that depends on the purpose, the seed and the names alone."""
    text = "\0".join((purpose, str(seed), *names))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _LARGEST
