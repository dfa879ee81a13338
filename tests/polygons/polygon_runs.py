"""Runs of the job `polygons`, and what they wrote."""

from configs import polygons as polygons_config
from data import patch_files
from data.dataset import save_dataset
from data.synthetic import DATASET
from wsss_jax import config as config_lib
from wsss_jax import jobs

TUMOR, STROMA, *_ = DATASET.classes
EXCLUDED = DATASET.excluded


def run(files, workdir, **fields):
    config = polygons_config.get_config()
    config.files = str(files)
    if not {"dataset", "classes"} & fields.keys():
        save_dataset(DATASET, workdir.parent / "tissue.json")
        config.dataset = str(workdir.parent / "tissue.json")
    for name, value in fields.items():
        config[name] = str(value) if name in ("images", "dataset") else value
    config_lib.validate(config)
    jobs.run(config, workdir)


def read_mask(path):
    return patch_files.read_mask(path, DATASET, None)


def list_files(folder):
    """Name -> content of all files but those about the run."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    about = ("config.json", "dataset.json", "written.jsonl", "failed.txt")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name not in about}
