"""Choices of ways as text, as a configuration and a table hold them."""

import pytest

from wsss_jax.models.lowering import Choice, Shape, parse_choice

CHOICES = {
    "cuda, 3x3, 512 to 1024 at 28, dilation 2: space to batch, space to batch, inside": Choice(
        "cuda",
        Shape(28, 28, 512, 1024, 3, 1, 2),
        ("space to batch", "space to batch", "inside"),
    ),
    "cpu, 1x1, 64 to 128 at 28x20, stride 2: product, XLA, copied": Choice(
        "cpu", Shape(28, 20, 64, 128, 1, 2, 1), ("product", "XLA", "copied")
    ),
}


@pytest.mark.parametrize("text", CHOICES)
def test_a_choice_is_read_as_it_is_written(text):
    assert parse_choice(text) == CHOICES[text]
    assert str(CHOICES[text]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cuda, 3x3, 512 to 1024 at 28: XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28: XLA, XLA, XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28: XLA, XLA, fast",
        "cuda, 3x5, 512 to 1024 at 28: XLA, XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28x28: XLA, XLA, XLA",
        "gpu, 3x3, 512 to 1024 at 28: XLA, XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28, dilation 1: XLA, XLA, XLA",
        # What would compute something else, or nothing:
        "cpu, 3x3, 512 to 1024 at 28: product, XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28: XLA, product, XLA",
        "cuda, 3x3, 512 to 1024 at 28: space to batch, XLA, XLA",
        "cuda, 3x3, 512 to 1024 at 28, stride 2, dilation 2: XLA, XLA, space to batch",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"no choice of ways|can be computed by"):
        parse_choice(text)


@pytest.mark.parametrize("dilation,left", [(1, (3, 1)), (6, (3, 6)), (13, (3, 13)), (14, (1, 1))])
def test_a_kernel_is_cropped_to_what_reaches_the_image(dilation, left):
    shape = Shape(9, 14, 4, 4, 3, 1, dilation).crop()
    assert (shape.size, shape.dilation) == left
