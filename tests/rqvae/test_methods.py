"""Every quantiser through its one interface, OPQ and FSQ, and files that are damaged or foreign.

python -m pytest tests/rqvae/test_methods.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minionerec.errors import UserError
from minionerec.experiment.settings import SidSettings
from rqvae.quantizers import opq
from rqvae.quantizers.balanced import fit_balanced_rqkmeans
from rqvae.quantizers.fsq import add_fsq_level, grid
from rqvae.quantizers.methods import fit_quantizer, load_quantizer, save_quantizer
from rqvae.quantizers.opq import fit_opq
from rqvae.quantizers.rqkmeans import (
    Quantised,
    fit_rqkmeans,
    identical_listings,
    nearest,
    relative_error,
    residual_before,
)

METHODS = ["rqkmeans", "balanced_rqkmeans", "rqkmeans_plus", "rqvae", "opq", "random"]


def cloud(num_items: int = 80, width: int = 6, seed: int = 0) -> np.ndarray:
    """Random points of length 1, float32, all different."""
    points = np.random.default_rng(seed).normal(size=(num_items, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def settings_of(method: str, sizes: list[int], **changes) -> SidSettings:
    small = SidSettings(
        method=method,
        codebook_sizes=sizes,
        hidden_sizes=[16],
        latent_size=4,
        epochs=3,
        batch_size=32,
        kmeans_iterations=10,
    )
    return small.changed(changes)


def fit_and_save(
    folder: Path, method: str, sizes: list[int], points: np.ndarray, seed: int = 0, **changes
) -> Quantised:
    fitted = fit_quantizer(points, settings_of(method, sizes, **changes), seed, folder / "progress")
    save_quantizer(folder, fitted, method, sizes, points.shape[1])
    return fitted


# --------------------------------------------------------------------------------------------------
# One interface


@pytest.mark.parametrize(
    "sizes", [[80], [7, 11], [5, 4, 3], [3, 5, 2, 7], [2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_stored_quantiser_gives_the_codes_of_its_fit(tmp_path, method, sizes):
    """One to six levels, each with a size of its own. ``random`` has no rule to repeat; balanced
    codes have ties.
    """
    points = cloud()
    fitted = fit_and_save(tmp_path, method, sizes, points)
    quantizer = load_quantizer(tmp_path)
    codes = quantizer.assign(points)
    assert fitted.codes.shape == codes.shape == (80, len(sizes)) and (codes < sizes).all()
    assert [
        len(codebook) for codebook in quantizer.codebooks
    ] == quantizer.sizes == sizes and quantizer.width == 6
    assert (quantizer.method, codes.dtype) == (method, np.int64)
    if method == "balanced_rqkmeans":
        assert (codes[:, 0] == fitted.codes[:, 0]).mean() > 0.8
    elif method != "random":
        assert (codes == fitted.codes).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_every_code(tmp_path, method):
    first, again, other = (
        fit_quantizer(cloud(), settings_of(method, [8, 8]), seed, tmp_path / f"{seed}{turn}").codes
        for turn, seed in enumerate((1, 1, 2))
    )
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("method", ["rqkmeans", "rqkmeans_plus", "rqvae", "opq"])
def test_a_new_item_gets_the_codes_of_the_item_that_it_nearly_is(tmp_path, method):
    points = cloud()
    fitted = fit_and_save(tmp_path, method, [8, 4], points)
    close = load_quantizer(tmp_path).quantise(points[::-1] + np.float32(1e-6))
    assert (close.codes[::-1] == fitted.codes).mean() > 0.98
    np.testing.assert_allclose(close.points[::-1], fitted.points, atol=1e-3)


def test_new_items_join_balanced_codes_at_the_prices_of_the_fit(tmp_path):
    """Without them, new items would crowd into the codes that the balance kept old ones out of."""
    rng = np.random.default_rng(0)
    old, new = (
        np.concatenate([rng.normal(0, 0.1, (300, 4)), rng.normal(3, 0.1, (100, 4))]).astype(
            np.float32
        )
        for _ in range(2)
    )
    fit_and_save(tmp_path, "balanced_rqkmeans", [2], old)
    quantizer = load_quantizer(tmp_path)
    assert sorted(np.bincount(quantizer.assign(new)[:, 0])) == pytest.approx([200, 200], abs=25)
    assert sorted(np.bincount(nearest(new, quantizer.codebooks[0]))) == pytest.approx(
        [100, 300], abs=25
    )


def test_embeddings_of_another_width_are_refused(tmp_path):
    fit_and_save(tmp_path, "rqkmeans", [8], cloud())
    with pytest.raises(
        UserError,
        match=re.escape(
            "embeddings: shape (3, 5), expected finite numbers (N, 6) from the encoder that this "
            "rqkmeans quantiser was fitted with"
        ),
    ):
        load_quantizer(tmp_path).assign(np.ones((3, 5), np.float32))


def test_identical_listings_are_groups_in_catalogue_order():
    points = cloud(6)
    points[[2, 5]], points[4] = points[0], points[1]
    assert identical_listings(points, list("abcdef")) == [["a", "c", "f"], ["b", "e"]]
    assert identical_listings(cloud(6), list("abcdef")) == []


# --------------------------------------------------------------------------------------------------
# OPQ


def correlated(num_items: int = 400) -> np.ndarray:
    """All of the variance in the first two of eight dimensions, so that plain parts have nothing to
    share out.
    """
    return (
        np.random.default_rng(0).normal(size=(num_items, 8)) * [5, 4, 3, 2, 0.1, 0.1, 0.1, 0.1]
    ).astype(np.float32)


def test_each_level_of_opq_is_the_nearest_code_in_its_own_part_of_the_rotated_vector():
    points = correlated()
    fitted = fit_opq(points, [16, 9], 20, 0)
    rotation, mean = fitted.tensors["rotation"], fitted.tensors["mean"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-4)
    for level in range(2):
        part = ((points - mean) @ rotation.T)[:, 4 * level : 4 * level + 4]
        book = fitted.codebooks[level][:, 4 * level : 4 * level + 4]
        assert (
            fitted.codes[:, level] == ((part[:, None] - book) ** 2).sum(2).argmin(1)
        ).mean() > 0.99
        assert (
            np.abs(
                np.delete(fitted.codebooks[level], range(4 * level, 4 * level + 4), axis=1)
            ).max()
            == 0
        )


def test_opq_without_faiss_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError) as caught:
        fit_opq(cloud(), [16, 9], 20, 0)
    message = "sids.method: opq needs the package faiss-cpu; run `pip install -e '.[faiss]'`"
    assert str(caught.value) == message


def test_opq_reports_the_error_of_what_can_be_rebuilt(monkeypatch):
    """Also when embeddings are wider than the rotation keeps."""
    points = correlated()
    for width in (384, 4):
        monkeypatch.setattr(opq, "MOST_WIDTH", width)
        fitted = fit_opq(points, [16, 9], 20, 0)
        rebuilt = sum(book[fitted.codes[:, level]] for level, book in enumerate(fitted.codebooks))
        back = rebuilt @ fitted.tensors["rotation"] + fitted.tensors["mean"]
        assert fitted.points.shape[1] == min(8, width)
        assert fitted.errors[-1] == pytest.approx(relative_error(points, points - back), rel=1e-3)


def test_the_rotation_shares_the_variance_out_among_the_levels():
    points = correlated()
    plain = sum(
        relative_error(
            points, np.where(np.arange(8) // 4 == part, points - book[nearest(points, book)], 0)
        )
        for part in range(2)
        for book in [
            np.where(
                np.arange(8) // 4 == part,
                fit_rqkmeans(
                    np.where(np.arange(8) // 4 == part, points, 0).astype(np.float32), [16], 20, 0
                ).codebooks[0],
                0,
            )
        ]
    )
    assert fit_opq(points, [16, 16], 20, 0).errors[-1] < 0.8 * plain


# --------------------------------------------------------------------------------------------------
# FSQ


@pytest.mark.parametrize(
    "size, cells", [(256, [8, 8, 4]), (300, [7, 7, 6]), (13, [13]), (2, [2]), (1, [1])]
)
def test_the_grid_fills_the_codes_as_far_as_whole_numbers_go(size, cells):
    assert grid(size) == cells


def test_a_cell_is_where_the_squashed_projections_fall():
    """Standardised along the principal axes, tanh(.8 x), 4 x 2 cells of equal width: by hand for
    every item.
    """
    points = (np.random.default_rng(0).normal(size=(500, 2)) * [3, 1]).astype(np.float32)
    fitted = add_fsq_level(fit_rqkmeans(points, [], 1, 0), points, 8)
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    z = np.tanh(0.8 * (centred @ axes.T) / (centred @ axes.T).std(axis=0))
    by_hand = [min(int((a + 1) / 2 * 8), 7) for a in z[:, 0]] if grid(8) == [8] else None
    assert by_hand is not None and (fitted.codes[:, 0] == by_hand).mean() > 0.99


def test_an_fsq_level_spreads_items_and_rebuilds_from_its_own_vectors(tmp_path):
    points = cloud(500, 8)
    fitted = fit_and_save(tmp_path, "rqkmeans", [4, 64], points, last_level="fsq")
    plain = fit_rqkmeans(points, [4, 64], 10, 0)
    assert (fitted.codes[:, 0] == plain.codes[:, 0]).all() and (
        fitted.codes[:, 1] != plain.codes[:, 1]
    ).any()
    assert len(np.unique(fitted.codes[:, 1])) > 60
    assert fitted.errors[1] < fitted.errors[0]
    assert fitted.errors[1] == pytest.approx(
        relative_error(points, residual_before(fitted, 2, np.arange(500))), rel=1e-4
    )
    assert (load_quantizer(tmp_path).assign(points) == fitted.codes).all()


def test_codes_beyond_the_grid_stay_unused_and_far_items_stay_inside():
    points = cloud(300, 8)
    points[0] *= 1000
    fitted = add_fsq_level(fit_balanced_rqkmeans(points, [3], 10, 0), points, 300)
    assert fitted.codebooks[1].shape == (300, 8) and not fitted.codebooks[1][294:].any()
    assert fitted.codes[:, 1].max() < 294


# --------------------------------------------------------------------------------------------------
# Damaged and foreign files


def rewrite(folder: Path, **facts) -> None:
    """Change ``quantizer.json``; the digest follows the weights as they are."""
    path = folder / "quantizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def foreign(folder: Path) -> None:
    """Weights of something else, with a digest that fits."""
    import hashlib

    save_file({"layer.weight": np.ones((2, 2), np.float32)}, folder / "quantizer.safetensors")
    rewrite(
        folder,
        weights_sha256=hashlib.sha256((folder / "quantizer.safetensors").read_bytes()).hexdigest(),
    )


def not_finite(folder: Path) -> None:
    import hashlib

    tensors = load_file(folder / "quantizer.safetensors")
    tensors["codebook.0"][0, 0] = np.nan
    save_file(tensors, folder / "quantizer.safetensors")
    rewrite(
        folder,
        weights_sha256=hashlib.sha256((folder / "quantizer.safetensors").read_bytes()).hexdigest(),
    )


def pickled(folder: Path) -> None:
    import hashlib

    (folder / "quantizer.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    rewrite(
        folder,
        weights_sha256=hashlib.sha256((folder / "quantizer.safetensors").read_bytes()).hexdigest(),
    )


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda f: (f / "quantizer.json").unlink(),
            "{f}/quantizer.json: cannot be read (No such file or directory); run `bash "
            "rqvae/rqvae.sh` with the same --config first",
        ),
        (
            lambda f: (f / "quantizer.safetensors").unlink(),
            "{f}/quantizer.safetensors: cannot be read (No such file or directory); run "
            "`bash rqvae/rqvae.sh` with the same --config first",
        ),
        (
            lambda f: flip(f / "quantizer.safetensors"),
            "{f}/quantizer.safetensors: is damaged or of another quantiser (its sha256 is not "
            "the one in quantizer.json); delete {f} and run `bash rqvae/rqvae.sh` again",
        ),
        (
            lambda f: (f / "quantizer.json").write_text("{"),
            "{f}/quantizer.json: is not a quantiser's facts (JSONDecodeError: ",
        ),
        (
            lambda f: (f / "quantizer.json").write_text("[1]"),
            "{f}/quantizer.json: is not a quantiser's facts (TypeError: ",
        ),
        (
            lambda f: (f / "quantizer.json").write_text('{"model_type": "qwen2"}'),
            "{f}/quantizer.json: is not a quantiser's facts "
            "(KeyError: 'method'); delete {f} and run `bash rqvae/rqvae.sh` again",
        ),
        (
            lambda f: rewrite(f, codebook_sizes="8"),
            "{f}/quantizer.json: codebook_sizes is '8', expected list; delete {f} and run "
            "`bash rqvae/rqvae.sh` again",
        ),
        (
            foreign,
            "quantizer.safetensors: codebook.0: got nothing, expected finite numbers of shape (8, 4) as quantizer.json says; "
            "run `bash rqvae/rqvae.sh` again",
        ),
        (
            not_finite,
            "quantizer.safetensors: codebook.0: got shape (8, 4), expected finite numbers of shape (8, 4) as ",
        ),
        (pickled, "{f}/quantizer.safetensors: is not a safetensors file ("),
        (
            lambda f: rewrite(f, hidden_sizes=[12]),
            "quantizer.safetensors: its weights do not fit the network of quantizer.json (",
        ),
        (
            lambda f: rewrite(f, method="rqkmeanz"),
            "{f}/quantizer.json: method is 'rqkmeanz', expected one of rqvae, rqkmeans, ",
        ),
    ],
)
def test_a_damaged_or_foreign_quantiser_is_one_line(tmp_path, damage, message):
    fit_and_save(tmp_path, "rqvae", [8, 4], cloud())
    damage(tmp_path)
    with pytest.raises(UserError, match="^" + re.escape(message.format(f=tmp_path))) as caught:
        load_quantizer(tmp_path)
    assert "\n" not in str(caught.value)
