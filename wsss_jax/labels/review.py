"""What several people have answered, patch by patch, and how far they agree."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wsss_jax.labels import agreement
from wsss_jax.labels.agreement import MISSING
from wsss_jax.labels.consensus import Consensus, decide
from wsss_jax.labels.desk import Desk
from wsss_jax.labels.replay import CANNOT_TELL, DONE, Event
from wsss_jax.labels.store import CHIEF


class Reviewed(NamedTuple):
    """A patch and what was said of it.

    Attributes:
      number: of the patch.
      name: of the patch.
      answers: person -> label such as "0110", or "?".
      consensus: what follows.
    """

    number: int
    name: str
    answers: Mapping[str, str]
    consensus: Consensus


class Agreement(NamedTuple):
    """How far people agree; nan where undefined.

    Attributes:
      people: names, P.
      patches: that two or more people have answered.
      consensus: labels on which all agree / all labels, as in Table V.
      cohen: pair of people -> kappa of each class, (C,).
      fleiss: kappa of each class, (C,).
      krippendorff: alpha of each class, (C,).
      confusions: (C, C), see `agreement.count_confusions`.
    """

    people: tuple[str, ...]
    patches: int
    consensus: float
    cohen: Mapping[tuple[str, str], np.ndarray]
    fleiss: np.ndarray
    krippendorff: np.ndarray
    confusions: np.ndarray


def review(desk: Desk, rule: str) -> list[Reviewed]:
    """Reviews all patches, in the order of their names.

    Args:
      desk: the labeling.
      rule: of `consensus.RULES`.
    """
    answers: dict[int, dict[str, str]] = {number: {} for number in desk.names}
    for person in desk.list_voters():
        for patch, event in desk.answers(person.number).items():
            if patch in answers:
                answers[patch][person.name] = event.value
    chiefs = [number for number, person in desk.people.items() if person.role == CHIEF]
    settled = desk.answers(chiefs[0]) if chiefs else {}  # they settle together
    nothing = Event(DONE, 0)
    return [
        Reviewed(
            number,
            name,
            answers[number],
            decide(
                answers[number],
                desk.expected.get(number, ()),
                rule,
                settled.get(number, nothing).value,
            ),
        )
        for number, name in sorted(desk.names.items(), key=lambda item: item[1])
    ]


def tabulate_votes(
    answers: Sequence[Mapping[str, str]], people: Sequence[str], classes: int
) -> np.ndarray:
    """Arranges answers as votes.

    Args:
      answers: of each patch, person -> label.
      people: P names.
      classes: C.

    Returns:
      (P, N, C) int8, see `agreement`.
    """
    votes = np.full((len(people), len(answers), classes), MISSING, np.int8)
    for index, by_person in enumerate(answers):
        for row, person in enumerate(people):
            answer = by_person.get(person, CANNOT_TELL)
            if answer != CANNOT_TELL:
                votes[row, index] = [int(value) for value in answer]
    return votes


def compare_people(desk: Desk, reviewed: Sequence[Reviewed]) -> Agreement:
    """Measures how far those agree whose answers count; see `measure_agreement`."""
    people = [person.name for person in desk.list_voters()]
    votes = tabulate_votes([each.answers for each in reviewed], people, len(desk.classes))
    return measure_agreement(votes, people)


def measure_agreement(votes: np.ndarray, people: Sequence[str]) -> Agreement:
    """Measures how far people agree.

    Args:
      votes: (P, N, C), see `agreement`.
      people: P names.
    """
    classes = range(votes.shape[-1])
    answered = (votes != MISSING).all(axis=-1).sum(axis=0)
    return Agreement(
        people=tuple(people),
        patches=int((answered >= 2).sum()),
        consensus=agreement.measure_consensus(votes),
        cohen={
            (people[a], people[b]): np.array(
                [agreement.cohen_kappa(votes[a, :, c], votes[b, :, c]) for c in classes]
            )
            for a, b in itertools.combinations(range(len(people)), 2)
        },
        fleiss=np.array([agreement.fleiss_kappa(votes[..., c]) for c in classes]),
        krippendorff=np.array([agreement.krippendorff_alpha(votes[..., c]) for c in classes]),
        confusions=agreement.count_confusions(votes),
    )
