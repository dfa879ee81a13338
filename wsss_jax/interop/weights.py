"""Weights from a file of any framework, and how they fill a network.

All names are those of the released PyTorch checkpoints: what a file of another framework calls
them is translated, what the network holds is listed by them.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.interop import mxnet_files, torch_files
from wsss_jax.interop.torch_names import to_flax

REPORT_FILE = "init.txt"
CLASSIFIERS = {1: "fc8.weight", 2: "decoder.last_conv.8.weight"}  # by phase; (C, ...)
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Parts of names that wrappers put in: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_dist_wrapped_module"),
)
# What only the names of our networks (or of torchvision's ResNet) have: phase 1, phase 2.
_BLOCKS = (
    re.compile(r"(?:^|\.)(?P<block>(?:conv1a|b2)\.)"),
    re.compile(r"(?:^|\.)(?P<block>backbone\.|layer1\.0\.conv1\.)"),
)
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|shadow|teacher|momentum)(?:[._]|$)")
_OPTIMIZER = re.compile(r"(?:^|\.)(?:optimi[sz]ers?|optimizer_states?|opt_state)(?:\.|$)")
_SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 6  # tensors of a module are named one by one up to here


class Weights(NamedTuple):
    """What a file holds.

    `arrays` are float32, in PyTorch's names and layout, and may be views of one buffer. `lacks` and
    `exceeds` are prefixes of what a file of this `kind` does not have for us, and of what it has
    for another purpose: ImageNet weights come with the classifier of ImageNet and without ours.
    """

    path: Path
    kind: str
    arrays: dict[str, np.ndarray]
    lacks: tuple[str, ...] = ()
    exceeds: tuple[str, ...] = ()


class Network(NamedTuple):
    """Where a network lies in a file.

    Attributes:
      names: name of a tensor in the file -> its name in the network.
      note: what else the file holds of it, to be told; may be empty.
    """

    names: dict[str, str]
    note: str


class Report(NamedTuple):
    """What became of every tensor: (name, shape, reason) each, the reason "" for `loaded`."""

    source: str
    loaded: list[tuple[str, tuple[int, ...], str]]
    initial: list[tuple[str, tuple[int, ...], str]]
    unused: list[tuple[str, tuple[int, ...], str]]


def read(path: Path) -> Weights:
    """Reads a file of weights; what wrote it is seen from its content.

    PyTorch checkpoints of either phase (`.pth`, zip or legacy, in whatever containers and wrappers,
    see `find_network`), `.safetensors` with the same names, the ImageNet weights of ResNet38
    (`ilsvrc-cls_rna-a1_cls1000_ep-0001.params`, MXNet) and of ResNet-101 (torchvision), and DeepLab
    checkpoints (`deeplab-resnet.pth.tar`).

    Raises:
      InputError: no such file, or it is damaged, hostile, or holds something else.
    """
    if not path.is_file():
        what = "is a folder that holds no run" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; name a file of weights")
    with path.open("rb") as file:
        head = file.read(9)
    if head[:8] == mxnet_files.MAGIC:
        arrays = mxnet_files.to_torch_names(mxnet_files.load(path))
        kind, lacks, exceeds = "ImageNet weights, MXNet", ("fc8.",), ("linear1000_",)
        return Weights(path, kind, _float32(path, arrays), lacks, exceeds)
    network = Network({}, "")

    def choose(names: Collection[str]) -> Collection[str]:
        nonlocal network
        network = find_network(path, names)
        return network.names.keys()

    if head[8:] == b"{" or path.suffix == ".safetensors":
        kind, arrays = "safetensors", _load_safetensors(path, choose)
    else:
        kind, arrays = "PyTorch", torch_files.load(path, choose)
    kind += network.note
    arrays = _float32(path, {network.names[name]: array for name, array in arrays.items()})
    if "layer1.0.conv1.weight" in arrays:
        arrays = {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in arrays.items()}
        return Weights(path, f"ImageNet weights, {kind}", arrays, ("aspp.", "decoder."), ("fc.",))
    return Weights(path, kind, arrays)


def find_network(path: Path, names: Collection[str]) -> Network:
    """Finds one of our networks among the tensors of a file.

    People save networks inside of others (Lightning's `model.`), wrapped (`module.` of DataParallel
    and of averaged models, `_orig_mod.` of torch.compile) and in containers (`state_dict`), beside
    optimizers and running averages of the weights. The network is where its blocks are; the weights
    as they were trained are preferred to averages of them.

    Args:
      path: of the file, for the message.
      names: of all its tensors, containers and all.

    Raises:
      InputError: none there, or several.
    """
    places = _places(names)
    trained = [place for place in places if not _AVERAGE.search(place)]
    if not places:
        some = ", ".join(list(names)[:3])
        raise InputError(
            f"{path}: holds neither ResNet38 nor DeepLabV3+ (it has {some or 'nothing'}); name "
            "a checkpoint of phase 1 or 2"
        )
    if len(trained) > 1 or (len(places) > 1 and not trained):
        listed = ", ".join(place.rstrip(".") or "the top" for place in trained or places)
        raise InputError(
            f"{path}: holds several networks ({listed}): save the one to use by "
            "torch.save(model.state_dict(), path), and give that file"
        )
    chosen = trained[0] if trained else next(iter(places))
    beside = [place for place in places if place != chosen]
    ours: dict[str, str] = {}
    for name in names:
        other = any(name.startswith(place) for place in beside if place)
        if other or not name.startswith(chosen) or _OPTIMIZER.search(name):
            continue
        parts = [part for part in name[len(chosen) :].split(".") if part not in _WRAPPERS]
        if parts[-1] not in _COUNTERS:
            ours[name] = ".".join(parts)
    if len(set(ours.values())) < len(ours):
        raise InputError(
            f"{path}: holds two tensors of one name, with and without wrappers: save the network "
            "alone by torch.save(model.state_dict(), path), and give that file"
        )
    listed = ", ".join(place.rstrip(".") for place in beside)
    note = f", not the averages beside it ({listed})" if beside else ""
    return Network(ours, note)


def _places(names: Collection[str]) -> list[str]:
    """What comes before the blocks of our networks in the names of tensors."""
    places: dict[str, None] = {}
    for block in _BLOCKS:
        wrappers = tuple(filter(None, places))  # one may be called as a block of the other network
        for name in names:
            found = None if name.startswith(wrappers) else block.search(name)
            if found and not _OPTIMIZER.search(name, 0, found.start("block")):
                places[name[: found.start("block")]] = None
    return list(places)


def _load_safetensors(
    path: Path, choose: Callable[[Collection[str]], Collection[str]]
) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in choose(file.keys()):
                kind = file.get_slice(name).get_dtype()
                if kind not in _SAFETENSORS_FLOATS:
                    raise InputError(
                        f"{path}: {name} holds {kind}, which is not read as weights; save floats "
                        "of 16 or 32 bits"
                    )
                arrays[name] = file.get_tensor(name)
    except (safetensors.SafetensorError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a whole safetensors file ({error}); copy it anew") from error
    return arrays


def _float32(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{path}: {name} holds {array.dtype}, not weights; save floats")
        with np.errstate(over="ignore"):
            found[name] = array.astype(np.float32, copy=False)
        if not np.isfinite(found[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite; take another file")
    return found


def phase_of(weights: Weights) -> int:
    """The phase whose network the weights belong to, 1 or 2.

    Raises:
      InputError: neither.
    """
    for phase, block in ((1, "b2."), (2, "backbone.")):
        if any(name.startswith(block) for name in weights.arrays):
            return phase
    some = ", ".join(list(weights.arrays)[:3])
    raise InputError(
        f"{weights.path}: holds neither ResNet38 nor DeepLabV3+ (it has {some or 'nothing'}); name "
        "a checkpoint of phase 1 or 2"
    )


def num_classes(weights: Weights, phase: int) -> int | None:
    """C of a checkpoint; None for weights without classifier, such as ImageNet's."""
    classifier = weights.arrays.get(CLASSIFIERS[phase])
    return None if classifier is None else classifier.shape[0]


def fit(
    weights: Weights,
    shapes: Mapping[str, tuple[int, ...]],
    initial: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    *,
    strict: bool,
    remedy: str,
) -> tuple[dict[str, Any], Report]:
    """Fills a network with weights.

    Args:
      weights: from `read`.
      shapes: of every tensor of the network, in PyTorch's names and layout.
      initial: gives the initial values of the tensors that the file does not fill.
      strict: everything must fit; weights of ImageNet may lack and have what is in their nature.
      remedy: what the user can do about weights that do not fit, for the message.

    Returns:
      the variables, and what became of every tensor.

    Raises:
      InputError: names the first tensor that is missing, left over or of another shape.
    """
    loaded, unfilled, unused = [], [], []
    for name, shape in shapes.items():
        found = weights.arrays.get(name)
        if found is None:
            if strict and not name.startswith(weights.lacks):
                raise InputError(
                    f"{weights.path}: {name} {shape} of the network is not in the file: {remedy}"
                )
            unfilled.append((name, shape, "not in the file"))
        elif found.shape != shape:
            if strict:
                raise InputError(
                    f"{weights.path}: {name} has the shape {found.shape} in the file and {shape} "
                    f"in the network: {remedy}"
                )
            unfilled.append((name, shape, f"has the shape {found.shape} in the file"))
        else:
            loaded.append((name, shape, ""))
    for name, array in weights.arrays.items():
        if name not in shapes:
            if strict and not name.startswith(weights.exceeds):
                raise InputError(
                    f"{weights.path}: {name} {array.shape} is not in the network: {remedy}"
                )
            unused.append((name, array.shape, "not in the network"))
    if not loaded:
        raise InputError(f"{weights.path}: nothing in it fits the network: {remedy}")
    state_dict = {name: weights.arrays[name] for name, _, _ in loaded}
    if unfilled:
        state_dict |= initial([name for name, _, _ in unfilled])
    source = f"{weights.path} ({weights.kind})"
    return to_flax(state_dict), Report(source, loaded, unfilled, unused)


def summary(report: Report) -> str:
    """The report in a few lines for the terminal; long lists are told by module."""
    total = len(report.loaded) + len(report.initial)
    values = sum(_size(shape) for _, shape, _ in report.loaded)
    lines = [
        f"weights from {report.source}",
        f"  loaded: {len(report.loaded)} of {total} tensors, {values:,} values",
    ]
    for title, entries in (
        ("left at its initial value", report.initial),
        ("in the file but not used", report.unused),
    ):
        lines += [f"  {title}: {line}" for line in _grouped(entries)]
    return "\n".join(lines)


def _grouped(entries: Iterable[tuple[str, tuple[int, ...], str]]) -> list[str]:
    lines = []

    def module_and_reason(entry: tuple[str, tuple[int, ...], str]) -> tuple[str, str]:
        return entry[0].partition(".")[0], entry[2]

    for (module, reason), group in groupby(
        sorted(entries, key=module_and_reason), module_and_reason
    ):
        members = list(group)
        if len(members) > _LISTED:
            lines.append(f"{module}, {len(members)} tensors: {reason}")
        else:
            lines += [f"{name} {shape}: {reason}" for name, shape, _ in members]
    return lines


def write_report(report: Report, path: Path) -> None:
    """The report with a line for every tensor."""
    lines = [f"weights from {report.source}"]
    for status, entries in zip(("loaded", "initial", "unused"), report[1:], strict=True):
        for name, shape, reason in entries:
            lines.append(f"{status:8}{name} {shape}" + (f": {reason}" if reason else ""))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def save_safetensors(state_dict: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes `.safetensors` in PyTorch's names.

    Raises:
      InputError: it could not be written, such as to a full disk.
    """
    with atomic_path(path) as temporary:
        try:
            safetensors.numpy.save_file(
                {name: np.ascontiguousarray(value) for name, value in state_dict.items()}, temporary
            )
        except safetensors.SafetensorError as error:  # the library's name for an OSError
            raise InputError(
                f"{path}: could not be written ({error}): free some space or name another --workdir"
            ) from error
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # the library keeps the file from all other users


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
