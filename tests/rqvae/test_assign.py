"""Collisions: nearest free codes, spill-over, further level.

python -m pytest tests/rqvae/test_assign.py
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minionerec.errors import UserError
from rqvae.quantizers.collisions import (
    colliding,
    distinct_rows,
    extra_level,
    nearest_free,
    prefix_ids,
    resolve_collisions,
)
from rqvae.quantizers.rqkmeans import Quantised, fit_rqkmeans, nearest, residual_before


@pytest.mark.parametrize("shape, values", [((40, 3), 2), ((30, 200), 9), ((0, 4), 1), ((1, 1), 1)])
def test_distinct_rows_are_those_of_numpy_in_its_order(shape, values):
    """Minus zero is zero, and equal rows are one."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-values, values + 1, shape).astype(np.float32) * np.float32(0.3)
    rows[::7] *= np.float32(-1)
    expected = np.unique(rows, axis=0, return_inverse=True)
    for found, wanted in zip(distinct_rows(rows), expected, strict=True):
        assert np.array_equal(found, wanted)


def quantised(points, codes, codebooks) -> Quantised:
    """A quantiser's result written by hand."""
    books = [np.array(book, np.float32).reshape(len(book), -1) for book in codebooks]
    points = np.array(points, np.float32).reshape(len(points), -1)
    return Quantised(np.array(codes, np.int64), books, points, [0.0] * len(books), {})


def random_quantised(
    num_items: int, sizes: list[int], seed: int, width: int = 3, twins: float = 0.2
) -> Quantised:
    """Greedy residual codes of random points against random codebooks; some points occur more than
    once.
    """
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num_items, width)).astype(np.float32)
    copies = rng.random(num_items) < twins
    points[copies] = points[rng.integers(0, num_items, copies.sum())]
    books = [
        rng.normal(size=(size, width)).astype(np.float32) / (level + 1)
        for level, size in enumerate(sizes)
    ]
    residual, codes = points.copy(), []
    for book in books:
        codes.append(nearest(residual, book))
        residual -= book[codes[-1]]
    return Quantised(np.stack(codes, 1), books, points, [0.0] * len(sizes), {})


def final_error(fitted: Quantised, codes: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Squared distance of each item to the sum of its codes."""
    total = sum(book[codes[items, level]] for level, book in enumerate(fitted.codebooks))
    return np.square(fitted.points[items].astype(np.float64) - total).sum(axis=1)


def test_prefixes_are_numbered_as_python_would():
    codes = np.random.default_rng(0).integers(0, 3, size=(50, 4))
    ids = prefix_ids(codes)
    for depth in range(1, 5):
        prefixes = [tuple(row[:depth]) for row in codes.tolist()]
        numbers = {prefix: n for n, prefix in enumerate(sorted(set(prefixes)))}
        assert ids[:, depth - 1].tolist() == [numbers[prefix] for prefix in prefixes]


def test_six_levels_of_huge_codebooks_do_not_overflow():
    codes = np.array([[2**31 - 1] * 6, [2**31 - 1] * 5 + [0], [2**31 - 1] * 6])
    assert colliding(codes).tolist() == [True, False, True]


# --------------------------------------------------------------------------------------------------
# Nearest free code, worked by hand


def test_the_best_member_keeps_the_code_and_the_other_goes_to_the_nearest_free_one():
    # Codes at 0, 1, 5, 9. Items at 0.4 and 0.1 both chose code 0; moving the first costs .36 - .16
    # = .2, the second .8.
    fitted = quantised([0.4, 0.1], [[0], [0]], [[0, 1, 5, 9]])
    assert nearest_free(fitted, [4]).tolist() == [[1], [0]]


def test_a_code_that_a_lone_item_has_is_not_free():
    # As above, but code 1 belongs to the third item, although that one would be as well off
    # elsewhere.
    fitted = quantised([0.4, 0.1, 1.0], [[0], [0], [1]], [[0, 1, 5, 9]])
    assert nearest_free(fitted, [4]).tolist() == [[2], [0], [1]]


def test_items_of_one_prefix_are_placed_jointly_not_one_after_the_other():
    # Codes at 0, 1, 3; items at 0, .3 and .45 all chose 0. Nearest pair first would send .45 to 1
    # and .3 to 3, which costs .3025 + 7.29; the other way round costs .49 + 6.5025.
    fitted = quantised([0.0, 0.3, 0.45], [[0], [0], [0]], [[0, 1, 3]])
    assert nearest_free(fitted, [3]).tolist() == [[0], [1], [2]]


def test_only_codes_under_the_same_prefix_are_used_while_there_is_room():
    fitted = quantised(
        [[0, 0.2], [0, 0.1], [10, 0.9]],
        [[0, 0], [0, 0], [1, 1]],
        [[[0, 0], [10, 0]], [[0, 0], [0, 1]]],
    )
    assert nearest_free(fitted, [2, 2]).tolist() == [[0, 1], [0, 0], [1, 1]]


def test_a_full_prefix_spills_the_item_that_loses_least_to_the_nearest_prefix_with_room():
    # First codes at 0, 1 and 8, second codes at -.1 and +.1: three items near 0, the one at 0.4 is
    # nearest to prefix 1. Pair (1, 0) = 0.9 is taken, (1, 1) = 1.1 is free: error .49; the others
    # would have to pay 1.2 and 1.0 there.
    fitted = quantised(
        [-0.1, 0.1, 0.4, 0.9], [[0, 0], [0, 1], [0, 1], [1, 0]], [[0, 1, 8], [-0.1, 0.1]]
    )
    assert nearest_free(fitted, [3, 2]).tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]


def test_a_full_tree_below_a_first_code_changes_the_first_code():
    # One code at levels 2 and 3 each: only one item fits under a first code. Items at 0, 0.1 and
    # 5.2: the second moves to the nearest first code with room, which is 2, not 5 (whose place the
    # third item has).
    fitted = quantised([0.0, 0.1, 5.2], [[0, 0, 0], [0, 0, 0], [2, 0, 0]], [[0, 2, 5], [0], [0]])
    assert nearest_free(fitted, [3, 1, 1]).tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]


def test_the_last_free_sid_of_the_catalogue_is_found():
    fitted = quantised([0.0] * 8, [[0, 0, 0]] * 8, [[0, 1], [0, 1], [0, 1]])
    assert sorted(map(tuple, nearest_free(fitted, [2, 2, 2]).tolist())) == list(
        itertools.product(range(2), repeat=3)
    )


def test_equal_items_get_the_nearest_codes_in_item_order():
    fitted = quantised([0.1] * 4, [[1], [1], [1], [1]], [[-3, 0, 1, 4, 9]])
    assert nearest_free(fitted, [5])[:, 0].tolist() == [1, 2, 0, 3]


def test_equal_items_leave_a_full_prefix_in_item_order():
    fitted = quantised([0.0] * 4, [[0, 0]] * 4, [[0, 1], [0, 0.2]])
    assert nearest_free(fitted, [2, 2]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


# --------------------------------------------------------------------------------------------------
# Nearest free code, properties


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.floats(0.1, 1),
    st.integers(0, 2**32 - 1),
)
def test_every_item_ends_with_a_sid_of_its_own_and_the_lone_ones_keep_theirs(sizes, fill, seed):
    """Up to a catalogue that fills every SID there is."""
    num_items = max(1, int(fill * np.prod(sizes)))
    fitted = random_quantised(num_items, sizes, seed)
    codes = nearest_free(fitted, sizes)
    assert len(set(map(tuple, codes.tolist()))) == num_items
    assert (codes >= 0).all() and (codes < sizes).all()
    alone = ~colliding(fitted.codes)
    assert (codes[alone] == fitted.codes[alone]).all()
    assert (codes == nearest_free(fitted, sizes)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_within_a_prefix_no_other_distribution_costs_less(num_items, seed):
    """Against every injective choice of the codes that are not a lone item's, if one member keeps
    each group's code.
    """
    fitted = random_quantised(num_items, [1, 7], seed)
    codes = nearest_free(fitted, [1, 7])
    movers = np.flatnonzero(colliding(fitted.codes))
    taken = set(fitted.codes[~colliding(fitted.codes), 1].tolist())
    residual = residual_before(fitted, 1, movers).astype(np.float64)
    cost = np.square(residual[:, None] - fitted.codebooks[1][None]).sum(axis=2)
    before = fitted.codes[movers, 1]
    groups = set(before.tolist())

    def kept(choice) -> set[int]:
        return {int(code) for code, old in zip(choice, before, strict=True) if code == old}

    choices = [
        choice
        for choice in itertools.permutations(
            [code for code in range(7) if code not in taken], len(movers)
        )
        if kept(choice) == groups
    ]
    least = min(sum(cost[row, code] for row, code in enumerate(choice)) for choice in choices)
    assert kept(codes[movers, 1]) == groups
    assert cost[np.arange(len(movers)), codes[movers, 1]].sum() == pytest.approx(least, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_single_item_too_many_is_spilled_at_least_total_cost(seed):
    """One overfull prefix, one leaver: compare with every choice of leaver and place."""
    rng = np.random.default_rng(seed)
    books = [rng.normal(size=(3, 2)), rng.normal(size=(3, 2)) * 0.3]
    fitted = quantised(
        books[0][0] + rng.normal(size=(4, 2)) * 0.3, [[0, 0], [0, 0], [0, 1], [0, 1]], books
    )
    codes = nearest_free(fitted, [3, 3])
    points = fitted.points.astype(np.float64)

    def error(item, first, second):
        return float(
            np.square(points[item] - fitted.codebooks[0][first] - fitted.codebooks[1][second]).sum()
        )

    least = min(
        error(leaver, first, second)
        + sum(error(item, 0, code) for item, code in zip(stay, places, strict=True))
        for leaver in range(4)
        for first in (1, 2)
        for second in range(3)
        for stay in [[item for item in range(4) if item != leaver]]
        for places in itertools.permutations(range(3))
        if {code for item, code in zip(stay, places, strict=True) if code == fitted.codes[item, 1]}
        == {0, 1}
    )
    assert final_error(fitted, codes, np.arange(4)).sum() == pytest.approx(least, rel=1e-5)


# --------------------------------------------------------------------------------------------------
# Items that are there already


def test_a_new_item_takes_the_nearest_code_that_nobody_has():
    # Codes at 0, 1, 5, 9 under prefix 0; old items have codes 0 and 1, and code 2 under another
    # prefix.
    fitted = quantised([0.4, 8.0], [[0, 0], [0, 3]], [[0, 100], [0, 1, 5, 9]])
    assert nearest_free(fitted, [2, 4], np.array([[0, 0], [0, 1], [1, 2]])).tolist() == [
        [0, 2],
        [0, 3],
    ]


def test_a_new_item_leaves_a_prefix_that_old_items_fill():
    fitted = quantised([0.4], [[0, 0]], [[0, 1, 8], [-0.1, 0.1]])
    assert nearest_free(fitted, [3, 2], np.array([[0, 0], [0, 1], [1, 0]])).tolist() == [[1, 1]]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**32 - 1)
)
def test_new_items_never_take_what_old_ones_have_and_free_lone_ones_stay(sizes, share_old, seed):
    """Up to a catalogue that fills every SID there is."""
    space = int(np.prod(sizes))
    rng = np.random.default_rng(seed)
    num_old = int(share_old * (space - 1))
    num_new = int(rng.integers(1, space - num_old + 1))
    taken = np.stack(np.unravel_index(rng.permutation(space)[:num_old], sizes), axis=1).reshape(
        num_old, len(sizes)
    )
    fitted = random_quantised(num_new, sizes, seed)
    codes = nearest_free(fitted, sizes, taken)
    final = [*map(tuple, codes.tolist()), *map(tuple, taken.tolist())]
    assert len(set(final)) == num_old + num_new
    before = [*map(tuple, fitted.codes.tolist()), *map(tuple, taken.tolist())]
    assert all(
        codes[row].tolist() == list(sid)
        for row, sid in enumerate(before[:num_new])
        if before.count(sid) == 1
    )
    if not num_old:
        assert (codes == nearest_free(fitted, sizes)).all()


def test_more_items_than_sids_are_refused_in_one_line():
    fitted = quantised([0.0, 0.1], [[0], [0]], [[0, 1]])
    with pytest.raises(
        UserError,
        match=r"^sids.codebook_sizes: \[2\] makes 2 SIDs for 3 items; add a level or codes$",
    ):
        nearest_free(fitted, [2], np.array([[1]]))


# --------------------------------------------------------------------------------------------------
# Against the reference's way


def sinkhorn_rounds(fitted: Quantised, rounds: int = 20, epsilon: float = 0.003) -> np.ndarray:
    """The reference's ``generate_indices.py``: each colliding group again, alone, through Sinkhorn
    at the last level.
    """
    codes, last = fitted.codes.copy(), fitted.codes.shape[1] - 1
    for _ in range(rounds):
        if not colliding(codes).any():
            break
        group_of = prefix_ids(codes)[:, -1]
        for group in np.unique(group_of[colliding(codes)]):
            items = np.flatnonzero(group_of == group)
            distances = np.square(
                residual_before(fitted, last, items).astype(np.float64)[:, None]
                - fitted.codebooks[last]
            ).sum(axis=2)
            middle = (distances.max() + distances.min()) / 2
            plan = np.exp(-(distances - middle) / (distances.max() - middle) / epsilon)
            for _ in range(50):
                plan /= plan.sum(axis=1, keepdims=True) * len(plan)
                plan /= plan.sum(axis=0, keepdims=True) * plan.shape[1]
            codes[items, last] = plan.argmax(axis=1)
    return codes


def test_re_assigned_codes_are_near_where_the_reference_s_are_anywhere():
    """Median rank of a new code among all 64 by distance, 0 the nearest; the reference also leaves
    collisions.
    """
    fitted = crowd(3000, 64, 8)

    def ranks(codes: np.ndarray) -> np.ndarray:
        moved = np.flatnonzero((codes != fitted.codes).any(axis=1))
        first = codes.copy()
        first[:, -1] = 0
        before = Quantised(first, fitted.codebooks, fitted.points, [], {})
        distances = np.square(residual_before(before, 2, moved)[:, None] - fitted.codebooks[2]).sum(
            axis=2
        )
        return (distances < distances[np.arange(len(moved)), codes[moved, 2]][:, None]).sum(axis=1)

    ours, theirs = nearest_free(fitted, [64] * 3), sinkhorn_rounds(fitted)
    print(
        f"median rank: ours {np.median(ranks(ours))}, Sinkhorn {np.median(ranks(theirs))}; still colliding: "
        f"{colliding(ours).sum()} and {colliding(theirs).sum()} of {colliding(fitted.codes).sum()} items"
    )
    assert np.median(ranks(ours)) <= 2 and np.median(ranks(theirs)) >= 10
    assert not colliding(ours).any()


# --------------------------------------------------------------------------------------------------
# The other policies


def test_further_codes_follow_distance_then_item_order_and_only_where_items_collide():
    #                  group (0,): errors .3 .1 .1 -> places 2 0 1         alone
    fitted = quantised([0.3, -0.1, 0.1, 5.0], [[0], [0], [0], [1]], [[0, 5]])
    assert extra_level(fitted).tolist() == [2, 0, 1, -1]
    assert resolve_collisions(fitted, [2], "extra_level") == (
        [(0, 2), (0, 0), (0, 1), (1,)],
        [2, 3],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_with_a_further_level_no_sid_is_a_prefix_of_another(sizes, num_items, seed):
    sids, final_sizes = resolve_collisions(
        random_quantised(num_items, sizes, seed), sizes, "extra_level"
    )
    for sid, other in itertools.combinations(sids, 2):
        assert sid != other[: len(sid)] and other != sid[: len(other)]
    assert all(code < size for sid in sids for code, size in zip(sid, final_sizes, strict=False))
    assert max(map(len, sids)) == len(final_sizes)


def test_a_further_level_is_not_added_when_nothing_collides():
    fitted = quantised([0.0, 1.0], [[0], [1]], [[0, 1]])
    assert resolve_collisions(fitted, [2], "extra_level") == ([(0,), (1,)], [2])


def test_codes_that_are_not_the_nearest_are_kept_by_one_member_all_the_same():
    # Given or random codes need not be the nearest: code 0 at 9 is far from both items, codes 1 and
    # 2 would suit them.
    fitted = quantised([0.0, 1.0], [[0], [0]], [[9, 0, 1]])
    assert nearest_free(fitted, [3]).tolist() == [[1], [0]]


def test_keep_changes_nothing():
    fitted = quantised([0.4, 0.1, 1.0], [[0], [0], [1]], [[0, 1, 5, 9]])
    assert resolve_collisions(fitted, [4], "keep") == ([(0,), (0,), (1,)], [4])


# --------------------------------------------------------------------------------------------------
# Size


def crowd(num_items: int, size: int, width: int) -> Quantised:
    """Residual k-means fitted on a sample, applied to clustered points: about a third collides."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_items // 4, width)).astype(np.float32)
    points = centres[rng.integers(0, len(centres), num_items)] + 0.1 * rng.normal(
        size=(num_items, width)
    ).astype(np.float32)
    sample = fit_rqkmeans(points[:20_000], [size] * 3, 5, 0)
    residual, codes = points.copy(), np.empty((num_items, 3), np.int64)
    for level, book in enumerate(sample.codebooks):
        codes[:, level] = nearest(residual, book)
        residual -= book[codes[:, level]]
    return Quantised(codes, sample.codebooks, points, [0.0] * 3, {})


def test_twenty_thousand_items_take_seconds():
    fitted = crowd(20_000, 64, 8)
    started = time.process_time()
    codes = nearest_free(fitted, [64] * 3)
    assert time.process_time() - started < 20
    assert colliding(fitted.codes).mean() > 0.1 and not colliding(codes).any()


@pytest.mark.slow
def test_a_million_items_take_less_than_two_minutes():
    fitted = crowd(1_000_000, 256, 32)
    started = time.process_time()
    codes = nearest_free(fitted, [256] * 3)
    seconds = time.process_time() - started
    print(
        f"{colliding(fitted.codes).mean():.1%} of 1,000,000 items collided; resolved in {seconds:.1f} s"
    )
    assert seconds < 120 and not colliding(codes).any()
