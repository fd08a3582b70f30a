"""Order and randomness by arithmetic: every epoch has every sample once, and nothing depends on earlier draws."""

import numpy as np
import pytest

from titokctl.data.order import batch_positions, epoch_order, scattered, spread_positions, uniform


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (7, 7), (5, 12), (100, 32), (1, 4)])
def test_every_epoch_holds_every_sample_once(count: int, batch: int) -> None:
    steps = 4 * count
    drawn = [batch_positions(5, step, batch, count) for step in range(steps)]
    epochs, positions = (np.concatenate(part) for part in zip(*drawn, strict=True))
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(int(epochs[-1])):
        assert sorted(positions[epochs == epoch]) == list(range(count))


def test_a_batch_needs_no_replay() -> None:
    replayed = [batch_positions(3, step, 16, 1000)[1] for step in range(200)]
    epoch_order.cache_clear()
    np.testing.assert_array_equal(batch_positions(3, 199, 16, 1000)[1], replayed[199])


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1, -1) for epoch in (0, 1)]
    assert len(set(orders)) == 6


def test_the_order_never_changes() -> None:
    assert epoch_order(0, 0, 8).tolist() == [7, 4, 2, 6, 5, 0, 1, 3]
    assert scattered(0, 0, 8, np.arange(8)).tolist() == [0, 1, 4, 5, 6, 7, 2, 3]
    assert uniform(1, 2, np.array([3]), np.array([4])).tolist() == [0.5573661009846101]


@pytest.mark.parametrize("count", [1, 2, 5, 64, 1000, 4097])
def test_an_order_that_is_not_stored_has_every_sample_once(count: int) -> None:
    orders = [scattered(7, epoch, count, np.arange(count)) for epoch in range(3)]
    assert all((np.sort(order) == np.arange(count)).all() for order in orders)
    assert len({tuple(order) for order in orders}) == 3 or count < 5


def test_an_order_that_is_not_stored_has_no_pattern() -> None:
    order = scattered(7, 0, 100_000, np.arange(100_000)) / 100_000
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert np.histogram(np.diff(order) % 1.0, 20)[0].std() < 5 * (100_000 / 20) ** 0.5


def test_batches_of_a_billion_samples_cost_next_to_nothing() -> None:
    epoch_order.cache_clear()
    last = 10**9 // 2048
    epochs, positions = batch_positions(3, last, 2048, 10**9)
    assert set(epochs) == {0, 1}
    assert positions.min() >= 0
    assert positions.max() < 10**9
    assert len(np.unique(positions[epochs == 0])) == (epochs == 0).sum()
    assert epoch_order.cache_info().misses == 0


def test_an_order_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1


@pytest.mark.parametrize("wrong", [(0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0)])
def test_impossible_batches(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no batch"):
        batch_positions(*wrong)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    positions = np.arange(20_000)
    u = uniform(7, 1, np.zeros_like(positions), positions)
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert np.abs(np.histogram(u, 20, (0, 1))[0] - 1000).max() < 150
    others = [
        uniform(7, 1, np.ones_like(positions), positions),
        uniform(7, 2, np.zeros_like(positions), positions),
        uniform(8, 1, np.zeros_like(positions), positions),
        np.roll(u, 1),
    ]
    assert max(abs(np.corrcoef(u, other)[0, 1]) for other in others) < 0.03
    chosen = uniform(7, 1, np.zeros(3, int), np.array([5, 900, 5]))
    np.testing.assert_array_equal(chosen, u[[5, 900, 5]])


@pytest.mark.parametrize(("total", "count", "period"), [(600, 8, 5), (600, 12, 30), (1_000, 10, 10), (64, 16, 4)])
def test_spread_positions_meet_classes_that_take_turns(total, count, period):
    positions = spread_positions(total, count)
    assert (np.diff(positions) > 0).all()
    assert positions[0] < total / count
    assert positions[-1] >= total - total / count
    assert len(set((positions % period).tolist())) > min(count, period) / 3


@pytest.mark.parametrize(("total", "count"), [(5, 5), (3, 8), (1, 1), (0, 4)])
def test_spread_positions_are_all_where_there_are_few(total, count):
    assert spread_positions(total, count).tolist() == list(range(total))
