"""A labeling of six patches in this process, which is asked as a browser asks."""

from starlette.testclient import TestClient

from configs import base_labels
from wsss_jax import config as config_lib
from wsss_jax.labels import project
from wsss_jax.labels.desk import Desk
from wsss_jax.labels.store import ANNOTATOR, CHIEF
from wsss_jax.web import security
from wsss_jax.web.chief import Chief
from wsss_jax.web.labeling import Labeling, Pages
from wsss_jax.web.pages import make_app
from wsss_jax.web.surroundings import Surroundings

NASTY = '<img src=x onerror="alert(1)">'
CLASSES = ("tumor", "stroma", NASTY)
ORIGIN = "http://127.0.0.1:8765"
PEOPLE = ("Ann", f"Bob {NASTY}")


class Server:
    """A labeling of six patches by two people and a chief."""

    def __init__(self, root, **changes):
        self.config = base_labels.label()
        self.config.data.root, self.config.classes = str(root), CLASSES
        self.config.people = PEOPLE
        self.config.update(changes)
        config_lib.validate(self.config)
        self.found = project.load_project(self.config)
        self._opened = project.open_to_write(self.found)
        self.store = self._opened.__enter__()
        self.store.add_patches(list(self.found.patches))
        self.store.add_people(self.config.people, ANNOTATOR)
        self.store.add_people([self.config.chief], CHIEF)
        config = self.config
        settings = project.Settings(config.people, config.overlap, config.seed, 1.0, config.rule)
        self.desk: Desk = project.make_desk(self.found, self.store, settings, config.leave_out)
        hosts = frozenset(security.list_hosts("127.0.0.1"))
        pages = Pages(hosts, "label_8765", 30, config.chief)
        labeling = Labeling(self.desk, self.found.patches, Surroundings({}), pages)
        chief = Chief(
            labeling,
            self.config.rule,
            lambda: project.export(self.found, self.desk, config.rule),
            str(self.found.out),
        )
        self.app = make_app([*labeling.list_routes(), *chief.list_routes()], hosts)
        self.tokens = {person.name: person.token for person in self.store.list_people()}

    def close(self):
        self._opened.__exit__(None, None, None)

    def visit(self, name=None):
        """Opens a browser of a person, at the page that is theirs."""
        client = TestClient(self.app, base_url=ORIGIN, headers={"origin": ORIGIN})
        if name is not None:
            answer = client.get(f"/enter/{self.tokens[name]}")
            assert answer.status_code == 200, answer.text
        return client

    def get_number(self, name):
        return next(n for n, person in self.desk.people.items() if person.name == name)

    def count_events(self):
        return len(list(self.store.list_events()))


def make_event(key, kind, patch, value="", looked=0, person=0):
    fields = {"key": key, "kind": kind, "patch": patch, "value": value, "looked": looked}
    return {"person": person, **fields}  # 0 = whoever sends it
