"""Quantisers that turn item embeddings (N, D) into L codes per item, from 0.

K-means family and controls.

Residual quantisation, shared by all: ``r_1 = x``, ``k_l = argmin_k ||r_l - E_l[k]||^2``, ``r_{l+1}
= r_l - E_l[k_l]`` (section 3.2 of TIGER, arXiv:2305.05065, with k-means instead of a learnt
codebook: RQ-KMeans of section 3.1 of OneRec, arXiv:2502.18965). The balanced variant is in
``balanced.py``, the RQ-VAE in ``rqvae.py``.

Shapes: N items, D width of what is quantised, L levels, K codes of a level (may differ between
levels).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from minionerec.errors import UserError

CHUNK_NUMBERS = 2**23  # distances are computed in blocks of about this many numbers (32 MiB)
SEED_WIDTH = 512  # k-means++ looks at no more dimensions than this
POINTS_PER_CODE = 256  # more points do not move a centroid visibly; the same limit as in Faiss


@dataclass(frozen=True)
class Quantised:
    """What every quantiser returns.

    Attributes:
        codes: ``(N, L)`` int64, before collisions are resolved.
        codebooks: per level ``(K, D)`` float32.
        points: ``(N, D)`` float32, the vectors that the codebooks quantise: embeddings, or the
            RQ-VAE's latents.
        errors: per level, what is left of the embeddings' variance when they are rebuilt from the
            codes up to there.
        tensors: what ``quantizer.safetensors`` stores, by name.
        log: rows for ``log.jsonl``.
        facts: what ``quantizer.json`` stores beside method and sizes.
    """

    codes: np.ndarray
    codebooks: list[np.ndarray]
    points: np.ndarray
    errors: list[float]
    tensors: dict[str, np.ndarray]
    log: list[dict] = field(default_factory=list)
    facts: dict = field(default_factory=dict)


def fit_rqkmeans(
    embeddings: np.ndarray,
    sizes: list[int],
    iterations: int,
    seed: int,
) -> Quantised:
    """Residual k-means: one k-means per level on what the levels before it leave over."""

    def fit_level(residual: np.ndarray, size: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        codebook = kmeans(sample(residual, size, seed + level), size, iterations, seed + level)
        return nearest(residual, codebook), codebook

    return fit_levels(embeddings, sizes, fit_level)


def fit_random(embeddings: np.ndarray, sizes: list[int], seed: int) -> Quantised:
    """Control: codes drawn uniformly, so that nothing in a SID tells anything about its item."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, sizes, size=(len(embeddings), len(sizes)))
    return from_codes(embeddings, codes, sizes)


def from_codes(embeddings: np.ndarray, codes: np.ndarray, sizes: list[int]) -> Quantised:
    """Give codes without codebooks (``random``, ``given``) those that fit them best.

    Level by level.

    ``E_l[k]`` is the mean residual of the items with code k at level l; a code that nobody has is
    the zero vector, it corrects nothing. That defines distances for the collision step as for any
    other quantiser.
    """

    def fit_level(residual: np.ndarray, size: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        return codes[:, level], cluster_means(residual, codes[:, level], size)

    return fit_levels(embeddings, sizes, fit_level)


def fit_levels(
    embeddings: np.ndarray,
    sizes: list[int],
    fit_level: Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]],
) -> Quantised:
    """Run ``fit_level(residual (N, D), K, level)`` down the levels.

    It returns codes (N,) and codebook (K, D).
    """
    residual = embeddings.astype(np.float32, copy=True)
    codes = np.empty((len(embeddings), len(sizes)), np.int64)
    codebooks = []
    errors = []
    for level, size in enumerate(sizes):
        codes[:, level], codebook = fit_level(residual, size, level)
        for block in blocks(residual):
            residual[block] -= codebook[codes[block, level]]
        codebooks.append(codebook)
        errors.append(relative_error(embeddings, residual))
    tensors = {f"codebook.{level}": codebook for level, codebook in enumerate(codebooks)}
    return Quantised(codes, codebooks, embeddings, errors, tensors)


def kmeans(points: np.ndarray, size: int, iterations: int, seed: int) -> np.ndarray:
    """``(size, D)`` float32 centroids: scikit-learn's Lloyd from one k-means++ start.

    The start of wide points is drawn from their random projection onto ``SEED_WIDTH`` dimensions,
    which keeps distances within a few per cent (Johnson and Lindenstrauss) and takes a fraction of
    the time; Lloyd sees the points as they are. One thread, because scikit-learn adds the threads'
    partial sums in the order in which they finish, which changes the last bits from run to run.
    """
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer distinct points than codes: the surplus codes stay dead, and report.json counts
        # them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start: str | np.ndarray = "k-means++"
        if points.shape[1] > SEED_WIDTH:
            onto = (
                np.random.default_rng(seed)
                .normal(size=(points.shape[1], SEED_WIDTH))
                .astype(np.float32)
            )
            start = points[kmeans_plusplus(points @ onto, size, random_state=seed % 2**32)[1]]
        fitted = KMeans(
            size, init=start, n_init=1, max_iter=iterations, random_state=seed % 2**32
        ).fit(points)
    return fitted.cluster_centers_.astype(np.float32)


def sample(points: np.ndarray, size: int, seed: int) -> np.ndarray:
    """All points, or ``POINTS_PER_CODE`` random ones for each of the ``size`` codes."""
    limit = POINTS_PER_CODE * size
    if len(points) <= limit:
        return points
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(points), limit, replace=False)
    return points[np.sort(chosen)]


def nearest(
    points: np.ndarray,
    codebook: np.ndarray,
    price: np.ndarray | None = None,
) -> np.ndarray:
    """``(N,)`` number of each point's nearest code, the lowest of equally near ones.

    ``price`` (K,) is added to the distances.
    """
    codes = np.empty(len(points), np.int64)
    rows = max(1, CHUNK_NUMBERS // len(codebook))
    for start in range(0, len(points), rows):
        distances = squared_distances(points[start : start + rows], codebook)
        codes[start : start + rows] = (distances if price is None else distances + price).argmin(
            axis=1
        )
    return codes


def squared_distances(points: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """``||p||^2 - 2 p.c + ||c||^2``, shape (N, K); rounding may leave it a hair below 0."""
    distances = points @ codebook.T  # (N, K)
    # In place: of many points each further table is as large as a level's work itself
    distances *= -2
    for block in blocks(points):
        distances[block] += (points[block] ** 2).sum(axis=1)[:, None]
    distances += (codebook**2).sum(axis=1)
    return distances


def cluster_means(points: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """``(size, D)`` float32 mean of the points of each code, summed in float64 in item order.

    Zero for an unused code.
    """
    order = np.argsort(codes, kind="stable")
    used, starts = np.unique(codes[order], return_index=True)
    means = np.zeros((size, points.shape[1]), np.float32)
    for code, members in zip(used, np.split(order, starts[1:]), strict=True):
        means[code] = points[members].mean(axis=0, dtype=np.float64)
    return means


def residual_before(quantised: Quantised, level: int, items: np.ndarray) -> np.ndarray:
    """``(len(items), D)`` what level ``level`` of these items has to quantise.

    The point less the codes before it.
    """
    residual = quantised.points[items].astype(np.float32, copy=True)
    for earlier in range(level):
        residual -= quantised.codebooks[earlier][quantised.codes[items, earlier]]
    return residual


def blocks(points: np.ndarray) -> Iterator[slice]:
    """Rows of ``(N, D)`` a part at a time: one more copy of a million embeddings is gigabytes."""
    rows = max(1, CHUNK_NUMBERS // max(1, points.shape[1]))
    for start in range(0, len(points), rows):
        yield slice(start, start + rows)


def relative_error(embeddings: np.ndarray, difference: np.ndarray) -> float:
    """``sum ||x - x_hat||^2 / sum ||x - mean(x)||^2``.

    0 exact, 1 as bad as one vector for all items.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    spread = error = 0.0
    for block in blocks(embeddings):
        spread += np.square(embeddings[block] - mean).sum(dtype=np.float64)
        error += np.square(difference[block]).sum(dtype=np.float64)
    return float(error / max(spread, np.finfo(np.float64).tiny))


def identical_listings(embeddings: np.ndarray, item_ids: list[str]) -> list[list[str]]:
    """Items that no code can tell apart: groups of ids with bit-equal embeddings, i.e.

    The same text, in catalogue order.

    >>> identical_listings(np.array([[1, 0], [0, 1], [1, 0], [0, 2]]), list("abcd"))
    [['a', 'c']]
    """
    _, first, kind = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    groups: dict[int, list[str]] = {}
    for row in np.flatnonzero(np.bincount(kind)[kind] > 1):
        groups.setdefault(int(first[kind[row]]), []).append(item_ids[row])
    return list(groups.values())


def all_the_same(embeddings: np.ndarray) -> bool:
    """Whether every row is the first one but for rounding."""
    first = embeddings[0]
    near = 1e-6 * np.abs(first).max()
    return all(
        np.allclose(embeddings[block], first, rtol=0, atol=near) for block in blocks(embeddings)
    )


def check_inputs(
    embeddings: np.ndarray,
    item_ids: list[str],
    sizes: list[int],
    where: str,
    fitted: bool = True,
    distinct: bool = True,
) -> None:
    """Refuse what no quantiser can work with.

    Args:
        where: the embeddings' file, for the message.
        fitted: codebooks are to be fitted, so that every code needs an item.
        distinct: every item is to have a SID of its own, of these sizes.

    Raises:
        UserError: ids and rows differ in number, an id occurs twice, NaN, infinite or all-zero rows
            (the first is named),
            rows that are all the same, fewer items than codes of a level, or more items than SIDs.
    """
    problems = []
    repeated = [item_id for item_id, times in Counter(item_ids).items() if times > 1]
    if repeated:
        rows = [row for row, item_id in enumerate(item_ids) if item_id == repeated[0]]
        problems.append(
            f"item_ids: '{repeated[0]}' is in rows {rows[0]} and {rows[1]} ({len(repeated)} ids "
            "occur more than once), expected every id once; give the items ids of their own and "
            "run `bash data/prepare.sh` again"
        )
    if embeddings.ndim != 2 or len(embeddings) != len(item_ids):
        raise UserError(
            f"{where}: shape {embeddings.shape}, expected one row for each of the {len(item_ids)} "
            "ids in item_ids.json; delete the folder and run `bash rqvae/rqvae.sh` again"
        )
    not_finite = np.empty(len(embeddings), bool)
    for block in blocks(embeddings):
        not_finite[block] = ~np.isfinite(embeddings[block]).all(axis=1)
    zero = ~embeddings.any(axis=1)
    for name, bad in (("NaN or infinite values", not_finite), ("only zeros", zero)):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            problems.append(
                f"{where}, row {row}, item '{item_ids[row]}': {name} (so have {int(bad.sum())} "
                "rows in all); delete the folder and embed again, with another encoder if it "
                "stays"
            )
    comparable = len(embeddings) > 1 and not not_finite.any()
    if fitted and comparable and all_the_same(embeddings):
        problems.append(
            f"{where}: all {len(embeddings)} rows are the same, so that nothing tells the items "
            "apart; look at the titles and use an encoder that knows their language"
        )
    for level, size in enumerate(sizes):
        if fitted and size > len(embeddings):
            problems.append(
                f"sids.codebook_sizes: level {level + 1} has {size} codes for only "
                f"{len(embeddings)} items; use at most {len(embeddings)}, better a tenth of that"
            )
    space = int(np.prod(np.array(sizes, dtype=object)))
    if not 1 <= len(sizes) <= 6:
        problems.append(f"sids.codebook_sizes: got {len(sizes)} levels, expected 1 to 6")
    if distinct and space < len(embeddings):
        problems.append(
            f"sids.codebook_sizes: {sizes} makes {space} SIDs for {len(embeddings)} items; add a "
            "level or codes, or choose sids.collision extra_level"
        )
    if problems:
        raise UserError("\n".join(problems))
