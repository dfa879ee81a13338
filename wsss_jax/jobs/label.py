"""Serves the pages on which people label patches, and the chief's."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError
from wsss_jax.labels import consensus, priority, project
from wsss_jax.labels.existing import read_labels
from wsss_jax.labels.patches import read_slide_paths
from wsss_jax.labels.project import Project
from wsss_jax.labels.replay import DONE, Event, Replay
from wsss_jax.labels.store import ANNOTATOR, CHIEF, TAKEN_IN, Store
from wsss_jax.web import security, server
from wsss_jax.web.chief import Chief
from wsss_jax.web.labeling import Labeling, Pages
from wsss_jax.web.pages import KEYS, make_app, now
from wsss_jax.web.surroundings import Surroundings

FIELDS = {
    **project.FIELDS,
    "rule": rules.one_of(*consensus.RULES),
    "people": rules.sequence(rules.NAME),
    "overlap": rules.PROBABILITY,
    "seed": rules.SEED,
    "chief": rules.NAME,
    "host": rules.NAME,
    "port": rules.integer(0, 65535),
    "hosts": rules.sequence(rules.NAME),
    "idle": rules.number(1, 3600),
    "order": rules.one_of(*priority.ORDERS),
    "phase1": rules.TEXT,
    "random_share": rules.PROBABILITY,
    "existing": rules.TEXT,
    "existing_by": rules.NAME,
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses people with the same name, and an order without a run; see `config.validate`."""
    names = (*config.people, config.chief, config.existing_by)
    if not config.people:
        raise InputError(f"{prefix}people is empty: name at least one person")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{prefix}people, chief and existing_by: {twice[0]!r} is there twice")
    if config.order != "random" and not config.phase1:
        raise InputError(
            f"{prefix}order is {config.order!r}: name the run that ranks, --{prefix}phase1"
        )


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Serves the pages until it is stopped. Everything is in the database at any moment.

    Raises:
      InputError: no patches, another labeling, a port that is taken.
      SystemExit: SIGINT, SIGTERM or SIGHUP came, which is how it ends.
    """
    found = project.load_project(config)
    if found.dataset.num_classes > len(KEYS):
        raise InputError(
            f"{found.dataset.name} has {found.dataset.num_classes} classes, but there are keys for "
            f"{len(KEYS)}: label groups of them first"
        )
    existing = read_labels(config.existing, found.patches, found.dataset) if config.existing else {}
    ranks = None
    if config.order != "random":
        paths = {name: patch.path for name, patch in found.patches.items()}
        ranks = priority.rank(config.order, config.phase1, found.dataset.classes, paths)
    if odd := project.list_odd_patches(found.patches):
        print(
            f"{len(odd)} of {len(found.patches)} patches cannot be read, or are not as large as "
            f"the others, such as {odd[0]}: training will refuse them"
        )
    random_share = 1.0 if config.order == "random" else config.random_share
    settings = project.Settings(
        config.people, config.overlap, config.seed, random_share, config.rule
    )
    with server.bind(config.host, config.port) as listening, project.open_to_write(found) as store:
        store.add_patches(list(found.patches))
        store.add_people(config.people, ANNOTATOR)
        store.add_people([config.chief], CHIEF)
        if existing:
            take_in(store, config.existing_by, existing)
        desk = project.make_desk(found, store, settings, config.leave_out, ranks)
        store.save_settings(settings._asdict())
        port = listening.getsockname()[1]
        pages = Pages(
            frozenset(security.list_hosts(config.host, config.hosts)),
            f"label_{port}",
            config.idle,
            config.chief,
        )
        surroundings = Surroundings(read_slide_paths(Path(config.data.root)))
        labeling = Labeling(desk, found.patches, surroundings, pages)
        chief = Chief(
            labeling,
            config.rule,
            lambda: project.export(found, desk, config.rule),
            str(found.out),
        )
        _show_addresses(found, store, [*config.people, config.chief], config.host, port)
        try:
            server.serve(
                make_app([*labeling.list_routes(), *chief.list_routes()], pages.hosts), listening
            )
        finally:
            print(f"all labels are in {found.database}")


def take_in(store: Store, name: str, labels: Mapping[str, str]) -> None:
    """Takes in labels that were there before; what was taken in before and is no more, goes."""
    store.add_people([name], TAKEN_IN)
    number = next(person.number for person in store.list_people() if person.name == name)
    replay = Replay(each.event for each in store.list_events() if each.person == number)
    before = {patch: event.value for patch, event in replay.answers.items()}
    patches = store.list_patches()
    given = {patches[patch]: label for patch, label in labels.items()}
    changed = {patch: label for patch, label in given.items() if before.get(patch) != label}
    gone = dict.fromkeys(before.keys() - given.keys(), "")
    time = now()
    store.add_events(
        number,
        [
            (secrets.token_hex(16), Event(DONE, patch, label, 0, time))
            for patch, label in (changed | gone).items()
        ],
    )
    print(
        f"{len(changed)} labels taken in as those of {name!r}, {len(given) - len(changed)} were "
        f"there, {len(gone)} are gone"
    )


def _show_addresses(
    found: Project, store: Store, people: Sequence[str], host: str, port: int
) -> None:
    """Prints where each person labels."""
    tokens = {person.name: person.token for person in store.list_people()}
    address = server.format_address(security.find_address(host), port)
    print(f"{len(found.patches)} patches, labels in {found.database}")
    width = max(map(len, people))
    for name in people:
        print(f"  {name:<{width}}  {address}/enter/{tokens[name]}")
    print("An address opens one person's pages: give it to nobody else. Ctrl-C ends.", flush=True)
