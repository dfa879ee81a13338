"""The defaults of the jobs on labels by people; the others are in `base`."""

from ml_collections import ConfigDict


def _labels(rule: str) -> dict:
    """What pages and export have in common."""
    return {
        "data": {
            # folder that configs/sample.py has filled, one with PNG files in `patches`, or a data
            # set, whose training patches are labeled
            "root": "",
            # shipped name or path of a description; "" = <root>/dataset.json
            "dataset": "",
        },
        # names of the classes, for a root without a description: one is written there
        "classes": (),
        "database": "",  # SQLite file with everything that people did; "" = <root>/labels.sqlite
        "leave_out": (),  # people whose answers do not count, such as those of a trial
        # the final label: "unanimous", others are dropped (section IV of the paper), or "majority"
        "rule": rule,
        "out": "",  # folder of the data set that is exported; "" = <root>/labeled
    }


def label() -> ConfigDict:
    """The pages on which people label."""
    return ConfigDict(
        {
            "job": "label",
            **_labels("unanimous"),
            "people": ("me",),  # who labels
            "overlap": 1.0,  # share of the patches that all of them label; others are dealt out
            "seed": 0,  # of dealing, and of the order in which each is shown the patches
            "chief": "chief",  # who sees what all say, settles and exports
            "host": "127.0.0.1",  # address to serve at; "0.0.0.0" = to all of the network
            "port": 8765,  # 0 = any that is free
            "hosts": (),  # further names by which browsers know this machine, such as a proxy's
            "idle": 30.0,  # seconds without a movement after which nobody is taken to be looking
            "order": "random",  # or what the run `phase1` finds "uncertain", or "rare", first
            "phase1": "",  # trained run, for these orders
            "random_share": 0.25,  # of the patches that are shown at random in spite of them
            # labels that are there already, which count as those of one more person: a CSV with
            # the columns patch, and label or the classes; or "names", those in the names of files
            "existing": "",
            "existing_by": "existing",
        }
    )


def study() -> ConfigDict:
    """Time and consensus of labels and of drawings."""
    return ConfigDict(
        {
            "job": "study",
            "labels": "",  # database of patch labels; "" = none
            # folder with masks, <person>/<patch>.png, and times.csv: person, patch, seconds; or a
            # second database; "" = none
            "drawings": "",
        }
    )


def export_labels() -> ConfigDict:
    """The data set that follows from the labels, without the pages.

    People, overlap and seed are those with which the patches were dealt last.
    """
    return ConfigDict({"job": "export_labels", **_labels("")})  # "" = as on the pages
