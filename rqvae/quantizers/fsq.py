"""Finite scalar quantisation as the last level.

Codes are the cells of a fixed grid, nothing can collapse.

``z = tanh(0.8 (r - m) V / s)``; per dimension ``n_i`` cells of equal width on (-1, 1); the code is
the cell's number in mixed radix (FSQ, arXiv:2309.15505, section 3.1). Each code's vector is ``[1,
cell centres] W`` with W from least squares on the residuals r, so that distances, reconstruction
and the collision step work as for any codebook. As the last level after residual k-means this is
Res-KmeansFSQ of QARM V2 (arXiv:2602.08559).

Departures: the projections are not trained but closed forms, V the first principal directions with
the finest grid on the widest, W the least squares solution, which is what a linear autoencoder
would learn around the rounding; and the cells are those of equal width, also for even ``n_i``,
where the paper rounds to integers around a shifted origin (the same cells, numbered from 0).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from rqvae.quantizers.rqkmeans import Quantised, relative_error

CELLS = 6  # cells per dimension aimed at; the paper recommends at least 5
# tanh(0.8 x) is nearly the normal distribution function: all cells get about as many items
EVEN = 0.8


def grid(size: int) -> list[int]:
    """Cells per dimension, finest first.

    About 6 each, the product the largest that ``size`` codes have room for.

    >>> grid(256), grid(1000), grid(64), grid(7)
    ([8, 8, 4], [8, 5, 5, 5], [8, 8], [7])
    """
    dims = max(1, round(math.log(size, CELLS))) if size > 1 else 1
    if dims == 1:
        return [size]
    highest = math.ceil(size ** (1 / dims)) + 2
    counts = range(min(highest, size), 0, -1)
    best = (1,) * dims
    for choice in itertools.combinations_with_replacement(counts, dims):
        product = math.prod(choice)
        # the largest product, then the fewest cells in sum, then the first
        if product <= size and (product, -sum(choice)) > (math.prod(best), -sum(best)):
            best = choice
    return list(best)


def add_fsq_level(first: Quantised, embeddings: np.ndarray, size: int) -> Quantised:
    """Quantise what the levels of ``first`` leave over by a grid of at most ``size`` cells."""
    residual = first.points.astype(np.float32, copy=True)
    for level, codebook in enumerate(first.codebooks):
        residual -= codebook[first.codes[:, level]]
    tensors = fit_grid(residual, grid(size))
    codes = grid_codes(residual, tensors)
    codebook = fit_codebook(residual, codes, tensors["fsq.cells"], size)
    last = len(first.codebooks)
    return Quantised(
        np.concatenate([first.codes, codes[:, None]], axis=1),
        [*first.codebooks, codebook],
        first.points,
        [*first.errors, relative_error(embeddings, residual - codebook[codes])],
        {**first.tensors, **tensors, f"codebook.{last}": codebook},
        first.log,
        first.facts,
    )


def fit_grid(residual: np.ndarray, cells: list[int]) -> dict[str, np.ndarray]:
    """Mean, scaled directions and cells per dimension of ``(N, D)`` residuals.

    Directions are divided by the spread along them.
    """
    mean = residual.mean(axis=0, dtype=np.float64)
    centred = residual - mean
    spread, directions = np.linalg.eigh(centred.T @ centred / len(residual))  # ascending
    dims = min(len(cells), len(spread))
    directions = directions[:, ::-1][:, :dims]
    # eigh may give either sign
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(dims)])
    widths = np.maximum(spread[::-1][:dims], 1e-12)
    directions = directions / np.sqrt(widths)
    return {
        "fsq.mean": mean.astype(np.float32),
        "fsq.directions": directions.astype(np.float32),
        "fsq.cells": np.array(cells[:dims], np.int64),
    }


def grid_codes(residual: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """``(N,)`` number of the cell of each residual."""
    cells = tensors["fsq.cells"]
    centred = residual - tensors["fsq.mean"]
    z = np.tanh(EVEN * centred @ tensors["fsq.directions"])  # (N, dims) in (-1, 1)
    place = np.minimum((z + 1) / 2 * cells, cells - 1)
    return np.ravel_multi_index(tuple(place.astype(np.int64).T), tuple(cells))


def fit_codebook(
    residual: np.ndarray,
    codes: np.ndarray,
    cells: np.ndarray,
    size: int,
) -> np.ndarray:
    """``(size, D)``: the vector of each cell, by least squares from its centre.

    Zero for codes that the grid does not reach.
    """
    numbers = np.arange(math.prod(cells.tolist()))
    place = np.stack(np.unravel_index(numbers, tuple(cells)), axis=1)  # (cells, dims)
    centres = (place + 0.5) / cells * 2 - 1
    centres = np.concatenate([np.ones((len(place), 1)), centres], axis=1)  # (cells, 1 + dims)
    weights, *_ = np.linalg.lstsq(centres[codes], residual.astype(np.float64), rcond=None)
    codebook = np.zeros((size, residual.shape[1]), np.float32)
    codebook[: len(place)] = centres @ weights
    return codebook
