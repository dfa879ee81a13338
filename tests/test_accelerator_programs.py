"""Training steps as they are lowered for accelerators, without having one."""

import re

import jax
import pytest

from benchmarks import programs, train

PLATFORMS = ("cuda", "tpu")
BATCH, SIZE, WIDTH = 2, 224, 1 / 16
_CONVOLUTION = re.compile(
    r"stablehlo\.convolution\(.*dim_numbers = \[(?P<image>[^]]*)\]x\[(?P<kernel>[^]]*)\]->"
    r"\[(?P<result>[^]]*)\], window = \{stride = (?P<stride>\[[^]]*\]).*"
    r"rhs_dilate = (?P<dilation>\[[^]]*\])"
)
_NHWC = "b, 0, 1, f"


@pytest.fixture(scope="module", params=train.PHASES)
def traced(request):
    program = programs.make_train_step(request.param, "float32", WIDTH, BATCH, SIZE)
    step = jax.jit(programs.map_on_mesh(program.function, 1), donate_argnums=0)
    return program, step.trace(*program.arguments)


@pytest.fixture(scope="module", params=PLATFORMS)
def step(request, traced):
    """The arguments of a step, and its text."""
    program, lowered = traced[0], traced[1].lower(lowering_platforms=(request.param,))
    return program.arguments, lowered.as_text()


def test_no_convolution_is_dilated(step):
    """Kernels take a step for every pixel; only those of stride 2 and their gradients take two."""
    counts = {"forward": 0, "input gradient": 0, "kernel gradient": 0}
    for line in step[1].splitlines():
        if "stablehlo.convolution(" not in line:
            continue
        match = _CONVOLUTION.search(line)
        if match["kernel"].startswith("i"):  # the output's gradient is the kernel
            counts["kernel gradient"] += 1
            assert match["image"] == "f, 0, 1, b" and match["result"] == "0, 1, b, f"
            assert match["stride"] == "[1, 1]"
            assert match["dilation"] in ("[1, 1]", "[2, 2]")  # of stride 2
        else:
            direction = {"0, 1, i, o": "forward", "0, 1, o, i": "input gradient"}[match["kernel"]]
            counts[direction] += 1
            assert match["image"] == match["result"] == _NHWC
            assert match["dilation"] == "[1, 1]"
            assert match["stride"] in ("[1, 1]", "[2, 2]")
    assert min(counts.values()) > 20


def test_products_of_float32_are_exact(step):
    """Without a word of it, accelerators would round what they multiply."""
    lines = [
        line
        for line in step[1].splitlines()
        if "stablehlo.convolution(" in line or "stablehlo.dot_general" in line
    ]
    assert len(lines) > 60
    for line in lines:
        assert line.count("HIGHEST") == 2, line


def test_the_state_is_updated_in_place(step):
    arguments, text = step
    (main,) = (line for line in text.splitlines() if "func.func public @main(" in line)
    inputs = re.split(r"%arg\d+: ", main.partition("->")[0])[1:]
    buffers = len(jax.tree.leaves(arguments[0]))
    assert sum("tf.aliasing_output" in each for each in inputs[:buffers]) == buffers
    assert not any("tf.aliasing_output" in each for each in inputs[buffers:])


def test_a_step_does_not_wait_for_the_host(step):
    """It calls nothing but the marks of XLA's partitioner, and sends nothing to the host."""
    text = step[1]
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {
        "Sharding",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
    }
    for operation in ("infeed", "outfeed", "send", "recv"):
        assert f"stablehlo.{operation}" not in text
