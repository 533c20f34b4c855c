"""Quantisers: k-means family, balanced transport, checks of inputs.

python -m pytest tests/rqvae/test_quantizers.py
"""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from minionerec.errors import UserError
from rqvae.quantizers import rqkmeans
from rqvae.quantizers.balanced import balanced_assignment, fit_balanced_rqkmeans
from rqvae.quantizers.rqkmeans import (
    check_inputs,
    cluster_means,
    fit_random,
    fit_rqkmeans,
    from_codes,
    nearest,
    relative_error,
    residual_before,
    sample,
)
from rqvae.quantizers.rqvae import code_distances


def cloud(num_items: int = 60, width: int = 6, seed: int = 0) -> np.ndarray:
    """Random points of length 1, float32, all different."""
    points = np.random.default_rng(seed).normal(size=(num_items, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """4 x 3 x 2 items at A_i + B_j + C_k, each level ten times finer than the one above, and their
    (i, j, k).
    """
    rng = np.random.default_rng(seed)
    coarse, middle, fine = np.eye(4, 8) * 100, np.eye(3, 8) * 10, np.eye(2, 8)
    labels = rng.permutation([(i, j, k) for i in range(4) for j in range(3) for k in range(2)])
    return (coarse[labels[:, 0]] + middle[labels[:, 1]] + fine[labels[:, 2]]).astype(
        np.float32
    ), labels


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two labelings group the items alike, whatever the groups are called."""
    pairs = {*zip(first.tolist(), second.tolist(), strict=True)}
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


# --------------------------------------------------------------------------------------------------
# Residual k-means


def test_nearest_is_the_brute_force_argmin(monkeypatch):
    monkeypatch.setattr("rqvae.quantizers.rqkmeans.CHUNK_NUMBERS", 70)  # several blocks of ten rows
    points, codebook = cloud(53, 5, seed=1), cloud(7, 5, seed=2)
    brute = [
        min(
            range(7),
            key=lambda k: sum(
                (float(a) - float(b)) ** 2 for a, b in zip(point, codebook[k], strict=True)
            ),
        )
        for point in points
    ]
    assert nearest(points, codebook).tolist() == brute
    assert (
        code_distances(torch.from_numpy(points), torch.from_numpy(codebook)).argmin(1).tolist()
        == brute
    )


def test_quantising_holds_one_copy_of_the_embeddings_and_a_block(monkeypatch):
    """A million embeddings of 384 numbers are 1.5 GB, and a machine has to hold them twice."""
    monkeypatch.setattr(rqkmeans, "CHUNK_NUMBERS", 2**13)
    points = cloud(20_000, 32)
    tracemalloc.start()
    fit_rqkmeans(points, [4, 4], 2, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * points.nbytes


def test_of_equally_near_codes_the_lowest_is_taken():
    assert nearest(
        np.array([[0.0, 0.0]], np.float32), np.array([[0, 1], [1, 0], [0, -1]], np.float32)
    ).tolist() == [0]


def test_residual_kmeans_finds_planted_levels():
    points, labels = planted()
    fitted = fit_rqkmeans(points, [4, 3, 2], iterations=20, seed=0)
    assert all(same_partition(fitted.codes[:, level], labels[:, level]) for level in range(3))
    assert fitted.errors[2] < 1e-9


def test_codes_and_codebooks_rebuild_the_points_up_to_the_reported_error():
    points = cloud()
    fitted = fit_rqkmeans(points, [8, 5, 3], iterations=20, seed=3)
    rebuilt = np.zeros_like(points)
    for level in range(3):
        rebuilt += fitted.codebooks[level][fitted.codes[:, level]]
        spread = sum(np.linalg.norm(point - points.mean(axis=0)) ** 2 for point in points)
        lost = sum(
            np.linalg.norm(point - other) ** 2 for point, other in zip(points, rebuilt, strict=True)
        )
        assert fitted.errors[level] == pytest.approx(lost / spread, rel=1e-5)
    assert fitted.errors == sorted(fitted.errors, reverse=True)
    np.testing.assert_allclose(
        residual_before(fitted, 3, np.arange(60)), points - rebuilt, atol=1e-6
    )


@pytest.mark.parametrize("sizes", [[60], [7, 11], [2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize(
    "fit",
    [
        lambda points, sizes: fit_rqkmeans(points, sizes, 10, 0),
        lambda points, sizes: fit_balanced_rqkmeans(points, sizes, 10, 0),
        lambda points, sizes: fit_random(points, sizes, 0),
    ],
    ids=["rqkmeans", "balanced_rqkmeans", "random"],
)
def test_any_number_of_levels_with_sizes_of_their_own(fit, sizes):
    points = cloud()
    fitted = fit(points, sizes)
    assert fitted.codes.shape == (60, len(sizes))
    assert (fitted.codes >= 0).all() and (fitted.codes < sizes).all()
    assert [codebook.shape for codebook in fitted.codebooks] == [(size, 6) for size in sizes]
    assert [fitted.tensors[f"codebook.{level}"].shape for level in range(len(sizes))] == [
        (size, 6) for size in sizes
    ]


@pytest.mark.parametrize(
    "fit", [fit_rqkmeans, fit_balanced_rqkmeans], ids=["rqkmeans", "balanced_rqkmeans"]
)
def test_the_seed_decides_every_bit(fit):
    first, again, other = (fit(cloud(200), [16, 16], 20, seed) for seed in (5, 5, 6))
    assert (first.codes == again.codes).all()
    assert all((a == b).all() for a, b in zip(first.codebooks, again.codebooks, strict=True))
    assert (first.codes != other.codes).any()


def test_items_listed_twice_leave_codes_dead_instead_of_failing():
    points = np.repeat(cloud(3), 4, axis=0)
    fitted = fit_rqkmeans(points, [5], 10, 0)
    assert len(np.unique(fitted.codes)) == 3 and fitted.errors[0] == pytest.approx(0, abs=1e-9)
    assert all(len(np.unique(twins)) == 1 for twins in fitted.codes.reshape(3, 4))


def test_codes_without_codebooks_get_the_means_of_what_they_have_to_explain():
    points = np.array([[0, 4], [2, 4], [10, 0], [10, 2]], np.float32)
    fitted = from_codes(points, np.array([[0, 0], [0, 1], [2, 0], [2, 1]]), [3, 2])
    assert fitted.codebooks[0].tolist() == [[1, 4], [0, 0], [10, 1]]  # code 1: nobody has it
    # What is left: (-1,0) (1,0) (0,-1) (0,1); code 0 has the first and third, code 1 the others.
    assert fitted.codebooks[1].tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    assert fitted.errors[0] == pytest.approx(
        4 / (83 + 11)
    )  # squares around the mean (5.5, 2.5): x 83, y 11


def test_relative_error_is_one_when_every_item_is_rebuilt_as_the_mean():
    points = cloud()
    assert relative_error(points, points - points.mean(axis=0)) == pytest.approx(1, rel=1e-6)
    assert relative_error(points, 0 * points) == 0


def test_relative_error_in_blocks_is_that_of_the_whole(monkeypatch):
    """By hand: squares around the mean (1, 2) are 4 + 4, those of the differences 1 + 4."""
    points = np.array([[1, 0], [1, 2], [1, 4]], np.float32)
    difference = np.array([[1, 0], [0, 0], [0, 2]], np.float32)
    monkeypatch.setattr(rqkmeans, "CHUNK_NUMBERS", 4)  # two rows
    assert relative_error(points, difference) == 5 / 8


def test_cluster_means_are_exact_and_zero_for_unused_codes():
    means = cluster_means(np.array([[1, 2], [3, 4], [7, 7]], np.float32), np.array([2, 2, 0]), 4)
    assert means.tolist() == [[7, 7], [0, 0], [2, 3], [0, 0]]


def test_a_large_catalogue_fits_centroids_on_a_sample_and_quantises_every_item(monkeypatch):
    monkeypatch.setattr("rqvae.quantizers.rqkmeans.POINTS_PER_CODE", 4)
    points = cloud(200)
    assert len(sample(points, 8, seed=0)) == 32 and len(sample(points, 50, seed=0)) == 200
    plain, balanced = (
        fit_rqkmeans(points, [8, 6], 10, 0),
        fit_balanced_rqkmeans(points, [8, 6], 10, 0),
    )
    assert (plain.codes[:, 0] == nearest(points, plain.codebooks[0])).all()
    for level, size in enumerate((8, 6)):
        assert set(np.bincount(balanced.codes[:, level], minlength=size)) <= {
            200 // size,
            200 // size + 1,
        }
    np.testing.assert_allclose(
        balanced.codebooks[0], cluster_means(points, balanced.codes[:, 0], 8)
    )


def test_wide_embeddings_start_from_a_projection_and_find_the_same_levels(monkeypatch):
    points, labels = planted()
    narrow = fit_rqkmeans(points, [4, 3, 2], 20, 0)
    monkeypatch.setattr("rqvae.quantizers.rqkmeans.SEED_WIDTH", 6)
    wide = fit_rqkmeans(points, [4, 3, 2], 20, 0)
    assert all(same_partition(wide.codes[:, level], labels[:, level]) for level in range(3))
    assert (
        wide.errors[2] < 1e-9 and (wide.codes != narrow.codes).any()
    )  # another start numbers the codes otherwise


def test_random_codes_are_uniform_and_say_nothing():
    fitted = fit_random(cloud(3000), [4, 3], seed=1)
    assert np.bincount(fitted.codes[:, 0]).tolist() == pytest.approx([750] * 4, rel=0.1)
    assert fitted.errors[1] > 0.98


# --------------------------------------------------------------------------------------------------
# Balanced clusters


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_balanced_assignment_is_the_cheapest_there_is(num_rows, columns, seed, decimals):
    """Against scipy on the matrix with every column repeated; few decimals make ties."""
    columns = min(columns, num_rows)
    cost = np.random.default_rng(seed).random((num_rows, columns)).round(decimals)
    codes, price = balanced_assignment(cost, np.zeros(columns))
    counts = np.bincount(codes, minlength=columns)
    assert set(counts) <= {num_rows // columns, -(-num_rows // columns)}
    repeated = cost[:, np.repeat(np.arange(columns), counts)]
    chosen = cost[np.arange(num_rows), codes]
    assert chosen.sum() == pytest.approx(repeated[linear_sum_assignment(repeated)].sum(), abs=1e-9)
    np.testing.assert_allclose(chosen + price[codes], (cost + price).min(axis=1), atol=1e-9)


def test_the_items_that_are_left_over_go_to_the_codes_that_are_wanted_most():
    """Eight items, three codes: two codes get three. Item by item 1, 2, 2, 2, 2, 2, 1, 1 is
    nearest, and 0 is nobody's.
    """
    nearest_code = np.array([1, 2, 2, 2, 2, 2, 1, 1])
    cost = np.abs(nearest_code[:, None] - np.arange(3)).astype(float)
    codes, _ = balanced_assignment(cost, np.zeros(3))
    assert np.bincount(codes, minlength=3).tolist() == [2, 3, 3]
    mirrored, _ = balanced_assignment(cost[:, ::-1], np.zeros(3))
    assert np.bincount(mirrored, minlength=3).tolist() == [3, 3, 2]


def test_balanced_kmeans_fills_every_code_at_every_level_within_one():
    for num_items, sizes in ((60, [7, 4, 9]), (64, [8, 8]), (61, [60])):
        fitted = fit_balanced_rqkmeans(cloud(num_items), sizes, 20, 0)
        for level, size in enumerate(sizes):
            counts = np.bincount(fitted.codes[:, level], minlength=size)
            assert counts.min() >= num_items // size and counts.max() <= -(-num_items // size)


def test_balanced_kmeans_finds_planted_levels_of_equal_size():
    points, labels = planted()
    fitted = fit_balanced_rqkmeans(points, [4, 3, 2], iterations=20, seed=0)
    assert all(same_partition(fitted.codes[:, level], labels[:, level]) for level in range(3))
    assert fitted.errors[2] < 1e-9


# --------------------------------------------------------------------------------------------------
# Inputs


def broken(row: int, value: float) -> np.ndarray:
    points = cloud(4)
    points[row] = value
    return points


AGAIN = (
    " (so have 1 rows in all); delete the folder and embed again, with another encoder if it stays"
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "embeddings, sizes, message",
    [
        (broken(2, np.nan), [2, 2], "e.npy, row 2, item 'c': NaN or infinite values" + AGAIN),
        (broken(0, np.inf), [2, 2], "e.npy, row 0, item 'a': NaN or infinite values" + AGAIN),
        (broken(3, 0), [2, 2], "e.npy, row 3, item 'd': only zeros" + AGAIN),
        (
            cloud(5),
            [2, 2],
            "e.npy: shape (5, 6), expected one row for each of the 4 ids in item_ids.json; delete the folder and run "
            "`bash rqvae/rqvae.sh` again",
        ),
        (
            cloud(4),
            [5, 2],
            "sids.codebook_sizes: level 1 has 5 codes for only 4 items; use at most 4, better a tenth of that",
        ),
        (
            cloud(4),
            [3],
            "sids.codebook_sizes: [3] makes 3 SIDs for 4 items; add a level or codes, or choose "
            "sids.collision extra_level",
        ),
        (cloud(4), [2] * 7, "sids.codebook_sizes: got 7 levels, expected 1 to 6"),
    ],
)
def test_what_no_quantiser_can_work_with_is_one_line(embeddings, sizes, message):
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        check_inputs(embeddings, list("abcd"), sizes, "e.npy")


def test_an_id_that_occurs_twice_is_named_with_its_rows():
    said = (
        "item_ids: 'b' is in rows 1 and 3 (1 ids occur more than once), expected every id once; give the items ids of their "
        "own and run `bash data/prepare.sh` again"
    )
    with pytest.raises(UserError, match="^" + re.escape(said) + "$"):
        check_inputs(cloud(4), list("abcb"), [2, 2], "e.npy")


def test_several_problems_are_reported_together():
    with pytest.raises(UserError) as caught:
        check_inputs(broken(1, np.nan), list("abcd"), [9, 1], "e.npy")
    assert len(str(caught.value).splitlines()) == 2
