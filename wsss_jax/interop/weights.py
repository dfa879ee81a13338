"""Reads weights from a file of any framework and fills a network with them.

All names are those of the released PyTorch checkpoints: names of other frameworks are translated,
and the tensors of a network are listed under them.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.interop import mxnet_files, torch_files
from wsss_jax.interop.torch_names import to_flax

REPORT_FILE = "init.txt"
CLASSIFIERS = {"phase1": "fc8.weight", "phase2": "decoder.last_conv.8.weight"}  # (C, ...)
SECOND_CLASSIFIER = "fc8_sub."  # prefix; of SC-CAM's sub-categories, beside "fc8."
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Parts that wrappers add to names: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_dist_wrapped_module"),
)
# Only names of our networks (or of torchvision's ResNet) have these: phase 1, phase 2.
_BLOCKS = (
    re.compile(r"(?:^|\.)(?P<block>(?:conv1a|b2)\.)"),
    re.compile(r"(?:^|\.)(?P<block>backbone\.|layer1\.0\.conv1\.)"),
)
# HistoSegNet's, and VGG16's, which is also a part of other networks: looked for last.
_VGG_BLOCK = re.compile(r"(?:^|\.)(?P<block>features\.0\.weight$)")
_VGG_CLASSIFIER = "classifier."  # 90 % of its file
_VGG_LATER_BLOCKS = tuple(f"features.{index}." for index in (17, 19, 21, 24, 26, 28))
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|shadow|teacher|momentum)(?:[._]|$)")
_OPTIMIZER = re.compile(r"(?:^|\.)(?:optimi[sz]ers?|optimizer_states?|opt_state)(?:\.|$)")
_SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_LISTED = 6  # tensors of a module; more of them become one line


class Weights(NamedTuple):
    """The contents of a file of weights.

    Attributes:
      path: of the file.
      kind: what wrote it, for messages.
      arrays: float32, in PyTorch's names and layout; may be views of one buffer.
      missing: prefixes of tensors of our networks that a file of this kind never has, such as our
        classifier next to ImageNet weights.
      extra: prefixes of tensors it has for another purpose, such as the classifier of ImageNet.
    """

    path: Path
    kind: str
    arrays: dict[str, np.ndarray]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


class Network(NamedTuple):
    """Where a file holds a network.

    Attributes:
      names: name of a tensor in the file -> its name in the network.
      note: which averages of it the file holds as well, for messages; may be empty.
    """

    names: dict[str, str]
    note: str


class Entry(NamedTuple):
    """A tensor of a network or of a file, and why the two do not match; "" if they do."""

    name: str
    shape: tuple[int, ...]
    reason: str = ""


class Report(NamedTuple):
    """What became of every tensor: loaded, left at its initial value, or not used."""

    source: str
    loaded: list[Entry]
    initial: list[Entry]
    unused: list[Entry]


def read(path: Path) -> Weights:
    """Reads a file of weights; its content, not its name, says which kind it is.

    PyTorch checkpoints of either phase (`.pth`, zip or legacy, in any containers and wrappers,
    see `find_network`), `.safetensors` with the same names, the ImageNet weights of ResNet38
    (`ilsvrc-cls_rna-a1_cls1000_ep-0001.params`, MXNet), of ResNet-101 and VGG16 (torchvision), and
    DeepLab checkpoints (`deeplab-resnet.pth.tar`).

    Raises:
      InputError: there is no such file, or it is damaged, hostile, or holds something else.
    """
    if not path.is_file():
        problem = "is a folder without a run" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; give a file of weights")
    with path.open("rb") as file:
        head = file.read(9)
    if head[:8] == mxnet_files.MAGIC:
        arrays = mxnet_files.to_torch_names(mxnet_files.load(path))
        arrays = _to_float32(path, arrays)
        second = SECOND_CLASSIFIER
        return Weights(path, "ImageNet weights, MXNet", arrays, ("fc8.", second), ("linear1000_",))
    network = Network({}, "")

    def choose(names: Collection[str]) -> Collection[str]:
        nonlocal network
        network = find_network(path, names)
        if _is_vgg(network.names.values()):  # its classifier is not even read
            kept = {k: v for k, v in network.names.items() if not v.startswith(_VGG_CLASSIFIER)}
            network = network._replace(names=kept)
        return network.names.keys()

    if head[8:] == b"{" or path.suffix == ".safetensors":
        kind, arrays = "safetensors", _load_safetensors(path, choose)
    else:
        kind, arrays = "PyTorch", torch_files.load(path, choose)
    kind += network.note
    arrays = _to_float32(path, {network.names[name]: array for name, array in arrays.items()})
    if "layer1.0.conv1.weight" in arrays:
        arrays = {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in arrays.items()}
        return Weights(path, f"ImageNet weights, {kind}", arrays, ("aspp.", "decoder."), ("fc.",))
    if _is_vgg(arrays):
        missing = ("bn1.", "bn2.", "bn3.", "fc.")
        return Weights(path, f"ImageNet weights, {kind}", arrays, missing, _VGG_LATER_BLOCKS)
    return Weights(path, kind, arrays)


def _is_vgg(names: Collection[str]) -> bool:
    """Whether tensors are of VGG16, and not of HistoSegNet, which has its first blocks."""
    return "features.0.weight" in names and "fc.weight" not in names


def find_network(path: Path, names: Collection[str]) -> Network:
    """Finds one of our networks among the tensors of a file.

    People save networks inside others (Lightning's `model.`), wrapped (`module.` of DataParallel
    and of averaged models, `_orig_mod.` of torch.compile) and in containers (`state_dict`), next to
    optimizers and running averages of the weights. The network is where its blocks are; trained
    weights are preferred to averages of them.

    Args:
      path: of the file, for the message.
      names: of all its tensors, with those of their containers.

    Raises:
      InputError: there is none, or there are several.
    """
    places = _find_places(names)
    trained = [place for place in places if not _AVERAGE.search(place)]
    if not places:
        _refuse_names(path, names)
    if len(trained) > 1 or (len(places) > 1 and not trained):
        listed = ", ".join(place.rstrip(".") or "the top" for place in trained or places)
        raise InputError(
            f"{path}: holds several networks ({listed}); save the one to use with "
            "torch.save(model.state_dict(), path), and give that file"
        )
    chosen = trained[0] if trained else places[0]
    others = [place for place in places if place != chosen]
    other_prefixes = tuple(filter(None, others))
    chosen_names: dict[str, str] = {}
    for name in names:
        if (
            not name.startswith(chosen)
            or name.startswith(other_prefixes)
            or _OPTIMIZER.search(name)
        ):
            continue
        parts = [part for part in name[len(chosen) :].split(".") if part not in _WRAPPERS]
        if parts[-1] not in _COUNTERS:
            chosen_names[name] = ".".join(parts)
    if len(set(chosen_names.values())) < len(chosen_names):
        raise InputError(
            f"{path}: holds two tensors of one name, with and without wrappers; save the network "
            "alone with torch.save(model.state_dict(), path), and give that file"
        )
    listed = ", ".join(place.rstrip(".") for place in others)
    note = f", not the averages next to it ({listed})" if others else ""
    return Network(chosen_names, note)


def _find_places(names: Collection[str]) -> list[str]:
    """Lists what comes before the blocks of our networks in the names of tensors."""
    places: dict[str, None] = {}
    for block in (*_BLOCKS, _VGG_BLOCK):
        if block is _VGG_BLOCK and places:
            break
        wrappers = tuple(filter(None, places))  # may have the name of a block of the other network
        for name in names:
            match = None if name.startswith(wrappers) else block.search(name)
            if match and not _OPTIMIZER.search(name, 0, match.start("block")):
                places[name[: match.start("block")]] = None
    return list(places)


def _load_safetensors(path: Path, choose: torch_files.Choose) -> dict[str, np.ndarray]:
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
        raise InputError(
            f"{path}: not a complete safetensors file ({error}); copy or download it again"
        ) from error
    return arrays


def _to_float32(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    converted = {}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{path}: {name} holds {array.dtype}, not weights; save floats")
        with np.errstate(over="ignore"):
            converted[name] = array.astype(np.float32, copy=False)
        if not np.isfinite(converted[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite; use another file")
    return converted


def find_method(weights: Weights) -> str:
    """Returns the method whose network the weights belong to.

    Raises:
      InputError: they belong to none.
    """
    blocks = ("phase1", "b2."), ("phase2", "backbone."), ("histosegnet", "features.")
    for method, block in blocks:
        if any(name.startswith(block) for name in weights.arrays):
            return method
    _refuse_names(weights.path, weights.arrays)


def _refuse_names(path: Path, names: Collection[str]) -> NoReturn:
    some = ", ".join(list(names)[:3])
    raise InputError(
        f"{path}: holds neither ResNet38 nor DeepLabV3+ (it has {some or 'nothing'}), nor VGG16; "
        "give a checkpoint of phase 1 or 2, or of HistoSegNet"
    )


def count_classes(weights: Weights, method: str) -> int | None:
    """Returns C of a checkpoint; None for weights without classifier, such as ImageNet's."""
    classifier = weights.arrays.get(CLASSIFIERS[method])
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
      strict: everything must fit but what the kind of file always lacks or adds.
      remedy: what the user can do about weights that do not fit, for the message.

    Returns:
      the variables, and what became of every tensor.

    Raises:
      InputError: names the first tensor that is missing, of another shape or not in the network;
        or nothing fits at all.
    """
    loaded, unfilled = [], []
    for name, shape in shapes.items():
        array = weights.arrays.get(name)
        if array is None:
            unfilled.append(Entry(name, shape, "not in the file"))
        elif array.shape != shape:
            unfilled.append(Entry(name, shape, f"of the shape {array.shape} in the file"))
        else:
            loaded.append(Entry(name, shape))
    unused = [
        Entry(name, array.shape, "not in the network")
        for name, array in weights.arrays.items()
        if name not in shapes
    ]
    if strict:
        _check_complete(weights, unfilled, unused, remedy)
    if not loaded:
        raise InputError(f"{weights.path}: nothing in it fits the network; {remedy}")
    state_dict = {entry.name: weights.arrays[entry.name] for entry in loaded}
    if unfilled:
        state_dict |= initial([entry.name for entry in unfilled])
    source = f"{weights.path} ({weights.kind})"
    return to_flax(state_dict), Report(source, loaded, unfilled, unused)


def _check_complete(
    weights: Weights, unfilled: Iterable[Entry], unused: Iterable[Entry], remedy: str
) -> None:
    """Refuses weights that lack or add anything but what their kind always lacks or adds."""
    for name, shape, reason in unfilled:
        if name in weights.arrays or not name.startswith(weights.missing):
            raise InputError(f"{weights.path}: {name} {shape} of the network is {reason}; {remedy}")
    for name, shape, reason in unused:
        if not name.startswith(weights.extra):
            raise InputError(f"{weights.path}: {name} {shape} of the file is {reason}; {remedy}")


def summarize(report: Report) -> str:
    """Summarizes a report in a few lines for the terminal; many tensors are counted by module."""
    total = len(report.loaded) + len(report.initial)
    values = sum(math.prod(entry.shape) for entry in report.loaded)
    lines = [
        f"weights from {report.source}",
        f"  loaded: {len(report.loaded)} of {total} tensors, {values:,} values",
    ]
    for title, entries in (
        ("left at its initial value", report.initial),
        ("in the file but not used", report.unused),
    ):
        lines += [f"  {title}: {line}" for line in _list_entries(entries)]
    return "\n".join(lines)


def _list_entries(entries: Iterable[Entry]) -> list[str]:
    def module_and_reason(entry: Entry) -> tuple[str, str]:
        return entry.name.partition(".")[0], entry.reason

    lines = []
    ordered = sorted(entries, key=module_and_reason)
    for (module, reason), group in groupby(ordered, module_and_reason):
        members = list(group)
        if len(members) > _MAX_LISTED:
            lines.append(f"{module}, {len(members)} tensors: {reason}")
        else:
            lines += [f"{entry.name} {entry.shape}: {reason}" for entry in members]
    return lines


def write_report(report: Report, path: Path) -> None:
    """Writes a report with a line for every tensor."""
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
                f"{path}: could not be written ({error}); free some space or use another --workdir"
            ) from error
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # the library keeps the file from all other users
