"""The final label of a patch, from the answers of several people."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from wsss_jax.labels.replay import CANNOT_TELL

RULES = ("unanimous", "majority")

UNANIMOUS, MAJORITY, SETTLED = "unanimous", "majority", "settled"
WAITING, DISAGREEMENT, DROPPED = "waiting", "disagreement", "cannot tell"


class Consensus(NamedTuple):
    """What becomes of a patch.

    Attributes:
      label: C of 0 and 1; None = the patch has none.
      how: it has it ("unanimous", "majority", "settled"), or why not: "waiting" for answers,
        "disagreement", "cannot tell".
    """

    label: tuple[int, ...] | None
    how: str


def decide(
    answers: Mapping[str, str], expected: Collection[str], rule: str, settled: str = ""
) -> Consensus:
    """Decides on the label of a patch.

    Args:
      answers: person -> label such as "0110", or "?": cannot tell.
      expected: people who are to answer.
      rule: "unanimous", all give the same label, as in section IV of the paper; or "majority",
        of each class what more than half of those say who can tell, if these are more than half.
      settled: the chief's answer, which wins; "" = none.
    """
    if settled:
        return Consensus(_parse(settled), DROPPED if settled == CANNOT_TELL else SETTLED)
    if not answers or any(person not in answers for person in expected):
        return Consensus(None, WAITING)
    votes = list(answers.values())
    if len(set(votes)) == 1:
        return Consensus(_parse(votes[0]), DROPPED if votes[0] == CANNOT_TELL else UNANIMOUS)
    if rule == UNANIMOUS:
        return Consensus(None, DISAGREEMENT)
    labels = [label for label in map(_parse, votes) if label is not None]
    if 2 * len(labels) <= len(votes):
        return Consensus(None, DROPPED if labels == [] else DISAGREEMENT)
    yes = [sum(values) for values in zip(*labels)]
    if any(2 * count == len(labels) for count in yes):
        return Consensus(None, DISAGREEMENT)
    return Consensus(tuple(int(2 * count > len(labels)) for count in yes), MAJORITY)


def _parse(answer: str) -> tuple[int, ...] | None:
    return None if answer == CANNOT_TELL else tuple(map(int, answer))
