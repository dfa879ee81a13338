"""Serves the maps of a workdir, to be looked at in a browser, or writes pages without a server."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import ml_collections

from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError
from wsss_jax.labels.correction_folder import Origin, find_origin
from wsss_jax.labels.corrections import open_corrections
from wsss_jax.sampling import splits
from wsss_jax.slides.outputs import cohort, results
from wsss_jax.slides.viewing import static_copy
from wsss_jax.slides.viewing.collection import Collection
from wsss_jax.web import security, server
from wsss_jax.web.access import Access
from wsss_jax.web.corrections import CorrectionPages
from wsss_jax.web.pages import make_app
from wsss_jax.web.tokens import load_tokens
from wsss_jax.web.viewer import Viewer, write_copy
from wsss_jax.wording import format_count

FIELDS = {
    "maps": rules.TEXT,
    "slides": rules.TEXT,
    "people": rules.sequence(rules.NAME),
    "host": rules.NAME,
    "port": rules.integer(0, 65535),
    "hosts": rules.sequence(rules.NAME),
    "corrections": rules.TEXT,
    "patients": rules.TEXT,
    "export": rules.TEXT,
    "export_maps": rules.sequence(rules.NAME),
    "export_mpp": rules.number(0, 100),
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses to serve nobody; see `config.validate`."""
    if not config.people:
        raise InputError(f"{prefix}people is empty: name at least one person")
    if len(set(config.people)) < len(config.people):
        raise InputError(f"{prefix}people: a name is there twice")


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Serves the pages until it is stopped, or writes copies of them.

    Raises:
      InputError: no maps, a port that is taken.
      SystemExit: SIGINT, SIGTERM or SIGHUP came, which is how it ends.
    """
    folder = Path(config.maps)
    if not config.maps or not _has_maps(folder):
        raise InputError(
            f"config.maps: {config.maps or '(empty)'} has no maps of slides: name the workdir of "
            "the job 'segment', --config.maps=runs/maps"
        )
    slides = Path(config.slides) if config.slides else None
    if slides is not None and not slides.is_dir():
        raise InputError(f"config.slides: {slides} is no folder")
    maps = Collection(folder, slides)
    if config.export:
        _export(config, maps)
        return
    tokens = load_tokens(workdir, config.people)
    with ExitStack() as stack:
        stack.callback(maps.close)
        listening = stack.enter_context(server.bind(config.host, config.port))
        port = listening.getsockname()[1]
        access = Access(f"view_{port}", lambda: [(token, name) for name, token in tokens.items()])
        correcting = None
        routes = []
        if config.corrections:
            origin = _find_origin(folder)
            table = splits.read_patients(Path(config.patients)) if config.patients else None
            opened = stack.enter_context(open_corrections(Path(config.corrections), origin, table))
            correcting = origin.field
            pages = CorrectionPages(opened, maps.find_slide, access.identify)
            routes = pages.list_routes()
        viewer = Viewer(folder, maps, access, correcting)
        _show_addresses(
            maps, tokens, server.format_address(security.find_address(config.host), port)
        )
        hosts = security.list_hosts(config.host, config.hosts)
        server.serve(make_app([*viewer.list_routes(), *routes], hosts), listening)


def _has_maps(folder: Path) -> bool:
    """Whether a folder is a workdir of maps, of which none need be finished."""
    is_begun = (folder / cohort.INDEX).is_file()
    return is_begun or (folder.is_dir() and any(results.list_finished(folder)))


def _find_origin(folder: Path) -> Origin:
    """Finds what the networks of the maps learned from, which the job made all of them with.

    Raises:
      InputError: there is no finished map.
    """
    for _, summary in results.list_finished(folder):
        return find_origin(folder, summary)
    raise InputError(f"{folder}: no map is finished that could be corrected")


def _show_addresses(maps: Collection, tokens: Mapping[str, str], address: str) -> None:
    """Prints where each person looks."""
    print(format_count(len(maps.list_names()), "map"))
    width = max(map(len, tokens))
    for name, token in tokens.items():
        print(f"  {name:<{width}}  {address}/enter/{token}")
    print("Whoever has an address sees all slides. Ctrl-C ends.", flush=True)


def _export(config: ml_collections.ConfigDict, maps: Collection) -> None:
    """Writes pages that need no server."""
    names = config.export_maps or maps.list_names()
    for name in names:
        folder = Path(config.export) / name
        with maps.use(name) as opened:
            size = write_copy(opened, maps.find_folder(name), folder, config.export_mpp)
        print(f"{folder / static_copy.PAGE}: {size / 1e6:.1f} MB with its tiles")
    maps.close()
