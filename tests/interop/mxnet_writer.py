"""Writes MXNet's NDArray list files, which nothing else does any more."""

import struct

import numpy as np

VERSIONS = {"old": None, "V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA}
FLAGS = {np.dtype(np.float32): 0, np.dtype(np.float16): 2, np.dtype(np.int64): 6}


def header(version, shape, flag, storage=0):
    magic, code = VERSIONS[version], "I" if version == "old" else "q"
    fields = [] if magic is None else [struct.pack("<I", magic)]
    if version in ("V2", "V3"):
        fields.append(struct.pack("<i", storage))
    fields.append(struct.pack(f"<i{len(shape)}{code}", len(shape), *shape))
    return b"".join([*fields, struct.pack("<iii", 1, 0, flag)])


def encode(version, array):
    return header(version, array.shape, FLAGS[array.dtype]) + array.tobytes()


def array_list(arrays, names, magic=0x112):
    names = [struct.pack("<Q", len(name)) + name for name in names]
    parts = [
        struct.pack("<QQQ", magic, 0, len(arrays)),
        *arrays,
        struct.pack("<Q", len(names)),
        *names,
    ]
    return b"".join(parts)


def mxnet_name(torch_name):
    leaves = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    module, leaf = torch_name.rsplit(".", 1)
    leaf = leaves.get(leaf, "gamma" if "bn" in module else "weight")
    if module in ("conv1a", "bn7"):
        return f"{module}_{leaf}"
    block, layer = module.split(".")
    kind, branch = layer.split("_")
    stage, _, index = block[1:].partition("_")
    stage += f"b{index}" if index else "a"
    return f"{'bn' if kind == 'bn' else 'res'}{stage}_{branch}_{leaf}"
