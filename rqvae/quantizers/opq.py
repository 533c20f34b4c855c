"""Optimised product quantisation.

A rotation, then one k-means per part of the vector (OPQ, Ge et al., CVPR 2013; PQ, Jegou
et al., TPAMI 2011). Levels are independent of each other instead of residual.

The rotation is Faiss's ``OPQMatrix``, which alternates product quantisation and an orthogonal
Procrustes problem. Level l gets the l-th of L equal parts of the rotated vector. Its codebook is
written as (K, W) vectors that are zero outside that part: then the nearest code of the residual is
the nearest code of the part, and everything that works on residual codebooks works here.

Departures: codebooks have any size, each its own, and are fitted by scikit-learn after the rotation
(Faiss needs the same power of two everywhere). Embeddings wider than ``MOST_WIDTH`` are also cut to
their best ``MOST_WIDTH`` dimensions by the same matrix, because its training costs the cube of the
width; what that loses counts as reconstruction error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from minionerec.experiment.preflight import require_faiss
from rqvae.quantizers.rqkmeans import Quantised, fit_levels, kmeans, nearest, relative_error, sample

MOST_WIDTH = 384


def fit_opq(
    embeddings: np.ndarray,
    sizes: list[int],
    iterations: int,
    seed: int,
) -> Quantised:
    """Rotate (N, D) embeddings to (N, W), W a multiple of L, and quantise each part by k-means."""
    part = -(-min(embeddings.shape[1], MOST_WIDTH) // len(sizes))
    mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    rotation = fit_rotation(
        sample(embeddings - mean, max(sizes), seed), len(sizes), part, max(sizes), seed
    )
    rotated = rotate(embeddings, mean, rotation)

    def fit_level(
        residual: np.ndarray,
        size: int,
        level: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        own = slice(level * part, (level + 1) * part)
        codebook = np.zeros((size, residual.shape[1]), np.float32)
        codebook[:, own] = kmeans(
            sample(residual[:, own], size, seed + level), size, iterations, seed + level
        )
        return nearest(residual, codebook), codebook

    fitted = fit_levels(rotated, sizes, fit_level)
    cut_off = relative_error(embeddings, embeddings - mean - rotated @ rotation)
    kept = float(
        np.square(rotated - rotated.mean(axis=0)).sum() / np.square(embeddings - mean).sum()
    )
    return replace(
        fitted,
        errors=[error * kept + cut_off for error in fitted.errors],
        tensors={**fitted.tensors, "mean": mean, "rotation": rotation},
    )


def fit_rotation(
    points: np.ndarray,
    parts: int,
    part: int,
    size: int,
    seed: int,
) -> np.ndarray:
    """``(parts * part, D)`` matrix with orthonormal rows for centred points.

    Its columns are orthonormal if there are more rows than columns.

    One thread, because Faiss adds partial sums in the order in which its threads finish.
    """
    require_faiss()
    import faiss  # here, because the other methods do without it

    bits = max(1, min(8, round(np.log2(size)), int(np.log2(len(points)))))
    with threadpool_limits(limits=1):
        matrix = faiss.OPQMatrix(points.shape[1], parts, parts * part)
        inner = faiss.ProductQuantizer(parts * part, parts, bits)
        inner.cp.seed, inner.cp.min_points_per_centroid = (
            seed % 2**31,
            1,
        )  # 1: no warning about few points
        matrix.pq = inner
        matrix.train(np.ascontiguousarray(points, np.float32))
        return (
            faiss.vector_to_array(matrix.A)
            .reshape(parts * part, points.shape[1])
            .astype(np.float32)
        )


def rotate(
    embeddings: np.ndarray,
    mean: np.ndarray,
    rotation: np.ndarray,
) -> np.ndarray:
    """``(N, W)`` rotated embeddings."""
    return (embeddings - mean) @ rotation.T
