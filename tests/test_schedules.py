import math

import pytest

from configs import base
from wsss_jax import schedules
from wsss_jax.errors import InputError
from wsss_jax.methods import phase1


def test_mu_of_the_paper():
    pda = base.phase1("luad_histoseg", "paper").pda
    mu = [schedules.mu(epoch, pda) for epoch in range(40)]
    assert mu[:3] == [1, 1, 1]
    assert mu[3] == pytest.approx(0.985)
    assert mu[19] == pytest.approx(0.985**17)
    assert mu[30] == pytest.approx(0.985**28) and mu[30] > 0.65
    assert mu[31:] == [0.65] * 9


def test_mu_of_the_released_code():
    pda = base.phase1("luad_histoseg", "reference").pda
    mu = [schedules.mu(epoch, pda) for epoch in range(40)]
    assert mu[:3] == [0, 0, 0]
    assert mu[3] == pytest.approx(0.941192)
    assert mu[22] == pytest.approx(0.98**22) and mu[22] < 0.65 < mu[21]
    assert mu[39] == mu[22]


def test_mu_constant_and_off():
    assert {schedules.mu(e, base.phase1("", "paper", "constant").pda) for e in range(5)} == {0.7}
    assert {schedules.mu(e, base.phase1("", "paper", "off").pda) for e in range(5)} == {0.0}


def test_learning_rates_of_the_groups():
    optimizer = base.phase1("luad_histoseg", "reference").optimizer
    rates = schedules.learning_rates(optimizer, total_steps=10)
    assert {name: float(rate(0)) for name, rate in rates.items()} == pytest.approx(
        {"weight": 0.01, "bias": 0.02, "head_weight": 0.1, "head_bias": 0.2}
    )
    assert float(rates["weight"](4)) == pytest.approx(0.01 * 0.6**0.9)
    assert float(rates["weight"](10)) == 0


def test_the_learning_rate_grows_with_the_batch_if_configured():
    optimizer = base.phase1("luad_histoseg").optimizer
    assert schedules.scale_learning_rate(optimizer, 80).learning_rate == 0.01
    optimizer.base_batch_size = 20
    assert schedules.scale_learning_rate(optimizer, 80).learning_rate == pytest.approx(0.04)
    assert schedules.scale_learning_rate(optimizer, 20).learning_rate == 0.01


def test_cosine_decay():
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.decay = "cosine"
    rate = schedules.learning_rates(optimizer, total_steps=12)["head_weight"]
    # cos of 0, 30, 60, 90, 180 degrees
    expected = {0: 0.1, 2: 0.05 * (1 + math.sqrt(3) / 2), 4: 0.075, 6: 0.05, 12: 0, 99: 0}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("decay", ["polynomial", "cosine"])
def test_the_learning_rate_warms_up(decay):
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.decay = decay
    cold = schedules.learning_rates(optimizer, total_steps=12)["bias"]
    optimizer.warm_up = 4
    warmed = schedules.learning_rates(optimizer, total_steps=12)["bias"]
    for step, share in enumerate((0.25, 0.5, 0.75, 1, 1, 1)):
        assert float(warmed(step)) == pytest.approx(share * float(cold(step)))
    optimizer.warm_up = 12
    with pytest.raises(InputError, match=r"warm_up is 12 steps .* takes 12: set .*warm_up=1,"):
        schedules.learning_rates(optimizer, total_steps=12)


def test_the_attention_warms_up_from_the_step_where_it_begins():
    pda = base.phase1("luad_histoseg", "reference").pda  # off in three epochs
    values = phase1.make_values(pda, steps_per_epoch=10)
    assert values(3, 31) == {"mu": schedules.mu(3, pda)}
    pda.warm_up = 8
    values = phase1.make_values(pda, steps_per_epoch=10)
    shares = [values(step // 10, step)["attention_share"] for step in (0, 29, 30, 32, 37, 38, 90)]
    assert shares == [0, 0, 0, 0.25, 0.875, 1, 1]


def test_staged_halves_after_each_part_of_the_run():
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.decay, optimizer.learning_rate = "staged", 1e-3
    rate = schedules.learning_rates(optimizer, total_steps=80 * 7)["weight"]
    found = [float(rate(step)) for step in range(80 * 7 + 1)]
    assert found == pytest.approx([1e-3 * 0.5 ** min(step // 140, 3) for step in range(80 * 7 + 1)])
    uneven = schedules.learning_rates(optimizer, total_steps=10)["weight"]  # parts of 2.5 steps
    expected = [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    assert [float(uneven(step)) / 1e-3 for step in range(10)] == pytest.approx(expected)
    optimizer.stages = 1
    assert float(schedules.learning_rates(optimizer, 10)["weight"](9)) == pytest.approx(1e-3)


def test_triangular_goes_up_and_down_within_each_stage():
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.decay, optimizer.learning_rate = "triangular", 1e-3
    rate = schedules.learning_rates(optimizer, total_steps=80 * 4)["weight"]  # half cycles of 20
    found = {step: float(rate(step)) for step in (0, 10, 20, 30, 40, 60, 80, 100, 319)}
    assert found == pytest.approx(
        {
            0: 1e-3,
            10: (1e-3 + 2e-2) / 2,
            20: 2e-2,
            30: (1e-3 + 2e-2) / 2,
            40: 1e-3,
            60: 2e-2,
            80: 0.5e-3,
            100: 1e-2,
            319: (1e-3 + (2e-2 - 1e-3) / 20) / 8,
        },
        rel=1e-5,
    )
    assert schedules.learning_rates(optimizer, total_steps=0)  # of too few patches for a batch
