"""Quantisers: k-means family, balanced transport, RQ-VAE.

    python -m pytest tests/test_quantizers.py
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from minionerec.config import UserError
from minionerec.settings import SidSettings
from rqvae.balanced import balanced_assignment, fit_balanced_rqkmeans
from rqvae.quantizers import (
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
from rqvae.rqvae import RQVAE, code_distances
from rqvae.training import Run, fit_rqvae, learning_rate_factor

CPU = torch.device("cpu")


def cloud(num_items: int = 60, width: int = 6, seed: int = 0) -> np.ndarray:
    """Random points of length 1, float32, all different."""
    points = np.random.default_rng(seed).normal(size=(num_items, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """4 x 3 x 2 items at A_i + B_j + C_k, each level ten times finer than the one above, and their (i, j, k)."""
    rng = np.random.default_rng(seed)
    coarse, middle, fine = np.eye(4, 8) * 100, np.eye(3, 8) * 10, np.eye(2, 8)
    labels = rng.permutation([(i, j, k) for i in range(4) for j in range(3) for k in range(2)])
    return (coarse[labels[:, 0]] + middle[labels[:, 1]] + fine[labels[:, 2]]).astype(np.float32), labels


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two labelings group the items alike, whatever the groups are called."""
    pairs = {*zip(first.tolist(), second.tolist(), strict=True)}
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# Residual k-means


def test_nearest_is_the_brute_force_argmin(monkeypatch):
    monkeypatch.setattr("rqvae.quantizers.CHUNK_NUMBERS", 70)           # several blocks of ten rows
    points, codebook = cloud(53, 5, seed=1), cloud(7, 5, seed=2)
    brute = [min(range(7), key=lambda k: sum((float(a) - float(b)) ** 2 for a, b in zip(point, codebook[k], strict=True)))
             for point in points]
    assert nearest(points, codebook).tolist() == brute
    assert code_distances(torch.from_numpy(points), torch.from_numpy(codebook)).argmin(1).tolist() == brute


def test_of_equally_near_codes_the_lowest_is_taken():
    assert nearest(np.array([[0.0, 0.0]], np.float32), np.array([[0, 1], [1, 0], [0, -1]], np.float32)).tolist() == [0]


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
        lost = sum(np.linalg.norm(point - other) ** 2 for point, other in zip(points, rebuilt, strict=True))
        assert fitted.errors[level] == pytest.approx(lost / spread, rel=1e-5)
    assert fitted.errors == sorted(fitted.errors, reverse=True)
    np.testing.assert_allclose(residual_before(fitted, 3, np.arange(60)), points - rebuilt, atol=1e-6)


@pytest.mark.parametrize("sizes", [[60], [7, 11], [2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("fit", [
    lambda points, sizes: fit_rqkmeans(points, sizes, 10, 0),
    lambda points, sizes: fit_balanced_rqkmeans(points, sizes, 10, 0),
    lambda points, sizes: fit_random(points, sizes, 0),
], ids=["rqkmeans", "balanced_rqkmeans", "random"])
def test_any_number_of_levels_with_sizes_of_their_own(fit, sizes):
    points = cloud()
    fitted = fit(points, sizes)
    assert fitted.codes.shape == (60, len(sizes))
    assert (fitted.codes >= 0).all() and (fitted.codes < sizes).all()
    assert [codebook.shape for codebook in fitted.codebooks] == [(size, 6) for size in sizes]
    assert [fitted.tensors[f"codebook.{level}"].shape for level in range(len(sizes))] == [(size, 6) for size in sizes]


@pytest.mark.parametrize("fit", [fit_rqkmeans, fit_balanced_rqkmeans], ids=["rqkmeans", "balanced_rqkmeans"])
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
    assert fitted.codebooks[0].tolist() == [[1, 4], [0, 0], [10, 1]]      # code 1: nobody has it
    # What is left: (-1,0) (1,0) (0,-1) (0,1); code 0 has the first and third, code 1 the others.
    assert fitted.codebooks[1].tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    assert fitted.errors[0] == pytest.approx(4 / (83 + 11))               # squares around the mean (5.5, 2.5): x 83, y 11


def test_relative_error_is_one_when_every_item_is_rebuilt_as_the_mean():
    points = cloud()
    assert relative_error(points, points - points.mean(axis=0)) == pytest.approx(1, rel=1e-6)
    assert relative_error(points, 0 * points) == 0


def test_cluster_means_are_exact_and_zero_for_unused_codes():
    means = cluster_means(np.array([[1, 2], [3, 4], [7, 7]], np.float32), np.array([2, 2, 0]), 4)
    assert means.tolist() == [[7, 7], [0, 0], [2, 3], [0, 0]]


def test_a_large_catalogue_fits_centroids_on_a_sample_and_quantises_every_item(monkeypatch):
    monkeypatch.setattr("rqvae.quantizers.POINTS_PER_CODE", 4)
    points = cloud(200)
    assert len(sample(points, 8, seed=0)) == 32 and len(sample(points, 50, seed=0)) == 200
    plain, balanced = fit_rqkmeans(points, [8, 6], 10, 0), fit_balanced_rqkmeans(points, [8, 6], 10, 0)
    assert (plain.codes[:, 0] == nearest(points, plain.codebooks[0])).all()
    for level, size in enumerate((8, 6)):
        assert set(np.bincount(balanced.codes[:, level], minlength=size)) <= {200 // size, 200 // size + 1}
    np.testing.assert_allclose(balanced.codebooks[0], cluster_means(points, balanced.codes[:, 0], 8))


def test_random_codes_are_uniform_and_say_nothing():
    fitted = fit_random(cloud(3000), [4, 3], seed=1)
    assert np.bincount(fitted.codes[:, 0]).tolist() == pytest.approx([750] * 4, rel=0.1)
    assert fitted.errors[1] > 0.98


# ---------------------------------------------------------------------------------------------------------------------
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


# ---------------------------------------------------------------------------------------------------------------------
# RQ-VAE


def small_rqvae(seed: int = 0, levels: int = 3) -> RQVAE:
    torch.manual_seed(seed)
    model = RQVAE(width=6, hidden_sizes=[12, 8], latent_size=4, codebook_sizes=[5, 7, 3][:levels], beta=0.25)
    for codebook in model.codebooks:
        torch.nn.init.normal_(codebook, std=0.3)
    return model


def test_loss_equals_the_formula_written_out_item_by_item():
    model, x = small_rqvae(), torch.from_numpy(cloud(9))
    loss, reconstruction, codes, residuals = model(x)
    z = model.encoder(x).detach().double()
    rebuilt, terms = torch.zeros_like(z), []
    for level, codebook in enumerate(model.codebooks):
        book = codebook.detach().double()
        squares = 0.0
        for item in range(9):
            distances = [float(((z[item] - rebuilt[item] - code) ** 2).sum()) for code in book]
            best = distances.index(min(distances))
            assert codes[item, level] == best
            torch.testing.assert_close(residuals[level, item].double(), z[item] - rebuilt[item], atol=1e-6, rtol=0)
            squares += distances[best]
            rebuilt[item] += book[best]
        terms.append(squares / (9 * 4) * 1.25)                  # MSE(q, sg r) + 0.25 MSE(r, sg q)
    expected = float(((model.decoder(rebuilt.float()) - x) ** 2).mean().detach())
    assert reconstruction.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected + sum(terms) / 3, rel=1e-5)


def test_commitment_of_every_level_pulls_the_encoder():
    """d/dz of mean_l beta MSE(r_l, sg q_l) is 2 beta / (L B W) sum_l (r_l - q_l): with the straight-through residual of
    the reference code the levels after the first would add nothing."""
    model = small_rqvae()
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    codes, _, residuals, loss = model.quantise(z)
    gradient = torch.autograd.grad(loss, z)[0]
    per_level = [residuals[level] - codebook[codes[:, level]].detach() for level, codebook in enumerate(model.codebooks)]
    torch.testing.assert_close(gradient, 2 * 0.25 / (3 * 9 * 4) * sum(per_level))
    first_level_alone = 2 * 0.25 / (3 * 9 * 4) * per_level[0]
    assert (gradient - first_level_alone).norm() > 0.3 * first_level_alone.norm()


def test_commitment_of_later_levels_reaches_the_encoder_weights():
    model, x = small_rqvae(), torch.from_numpy(cloud(9))
    _, _, residuals, _ = model.quantise(model.encoder(x))
    residual = model.encoder(x) - (residuals[0] - residuals[1])      # r_2 with its graph
    q = model.codebooks[1][code_distances(residual.detach(), model.codebooks[1].detach()).argmin(1)].detach()
    expected = torch.autograd.grad(0.25 * torch.nn.functional.mse_loss(residual, q), model.encoder[0].weight)[0]
    assert expected.abs().max() > 0
    two, one = (small_rqvae(levels=levels) for levels in (2, 1))
    same_encoder = small_rqvae().state_dict()
    for m in (two, one):
        m.load_state_dict({k: v for k, v in same_encoder.items() if k in m.state_dict()})
    grads = [torch.autograd.grad(m.quantise(m.encoder(x))[3] * len(m.codebooks), m.encoder[0].weight)[0] for m in (two, one)]
    torch.testing.assert_close(grads[0] - grads[1], expected)


def test_reconstruction_reaches_the_encoder_straight_through_and_not_the_codebooks():
    model, x = small_rqvae(), torch.from_numpy(cloud(9))
    _, reconstruction, codes, _ = model(x)
    gradients = torch.autograd.grad(reconstruction, [model.encoder[0].weight, *model.codebooks], allow_unused=True)
    quantised = sum(book[codes[:, level]] for level, book in enumerate(model.codebooks)).detach().requires_grad_()
    at_decoder = torch.autograd.grad(torch.nn.functional.mse_loss(model.decoder(quantised), x), quantised)[0]
    through = torch.autograd.grad(model.encoder(x), model.encoder[0].weight, grad_outputs=at_decoder)[0]
    torch.testing.assert_close(gradients[0], through)
    assert all(gradient is None for gradient in gradients[1:])


def tiny_settings(**changes) -> SidSettings:
    small = SidSettings(method="rqvae", codebook_sizes=[8, 8], hidden_sizes=[16, 8], latent_size=4, epochs=20, batch_size=32,
                        learning_rate=1e-2, kmeans_iterations=10, dead_code_steps=20)
    return dataclasses.replace(small, **changes)


def test_training_lowers_the_reconstruction_error_and_keeps_the_best_epoch(tmp_path):
    fitted = fit_rqvae(cloud(120), tiny_settings(), 0, CPU, tmp_path / "progress")
    scores = [row["reconstruction_error"] + row["collision_rate"] for row in fitted.log]
    best = fitted.log[scores.index(min(scores))]
    assert best["reconstruction_error"] < 0.85 * fitted.log[0]["reconstruction_error"]
    assert fitted.errors[-1] == pytest.approx(best["reconstruction_error"], rel=1e-4)
    assert fitted.log[-1]["epoch"] == 20


def test_saved_weights_alone_give_the_same_codes(tmp_path):
    points = cloud(120)
    fitted = fit_rqvae(points, tiny_settings(), 0, CPU, tmp_path / "progress")
    model = RQVAE(6, [16, 8], 4, [8, 8], beta=0.25)
    stored = {name.replace("codebook.", "codebooks."): torch.from_numpy(value) for name, value in fitted.tensors.items()}
    mean, scale = stored.pop("mean"), stored.pop("scale")
    model.load_state_dict(stored)
    with torch.no_grad():
        codes = model.quantise(model.encoder((torch.from_numpy(points) - mean) / scale))[0]
    assert codes.tolist() == fitted.codes.tolist()


def test_scale_and_offset_of_the_embeddings_do_not_matter(tmp_path):
    points = cloud(120)
    plain, moved = (fit_rqvae(p, tiny_settings(epochs=5), 0, CPU, tmp_path / "none") for p in (points, points * 64 + 3))
    np.testing.assert_allclose(plain.errors, moved.errors, rtol=1e-2)


def test_the_same_seed_trains_the_same_bits(tmp_path):
    first, again, other = (fit_rqvae(cloud(), tiny_settings(epochs=4), seed, CPU, tmp_path / str(seed) / str(turn))
                           for turn, seed in enumerate((1, 1, 2)))
    assert all((first.tensors[name] == again.tensors[name]).all() for name in first.tensors)
    assert (first.tensors["encoder.0.weight"] != other.tensors["encoder.0.weight"]).any()


class Killed(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize("killed_in", [1, 4, 7])
def test_a_killed_training_continues_to_the_same_bits(tmp_path, monkeypatch, killed_in):
    settings, plain_epoch = tiny_settings(epochs=8, dead_code_steps=3), Run.train_epoch
    whole = fit_rqvae(cloud(), settings, 0, CPU, tmp_path / "whole")

    def dying_epoch(run):
        if run.epoch == killed_in:
            raise Killed
        return plain_epoch(run)

    monkeypatch.setattr(Run, "train_epoch", dying_epoch)
    with pytest.raises(Killed):
        fit_rqvae(cloud(), settings, 0, CPU, tmp_path / "cut")
    monkeypatch.setattr(Run, "train_epoch", plain_epoch)
    torch.rand(5)                                                 # another process's random state
    resumed = fit_rqvae(cloud(), settings, 0, CPU, tmp_path / "cut")
    assert resumed.log == whole.log
    assert all((resumed.tensors[name] == whole.tensors[name]).all() for name in whole.tensors)


def test_progress_of_other_settings_is_not_continued(tmp_path, capsys):
    fit_rqvae(cloud(), tiny_settings(epochs=2), 0, CPU, tmp_path / "progress")
    fitted = fit_rqvae(cloud(), tiny_settings(epochs=3), 0, CPU, tmp_path / "progress")
    assert "starting afresh" in capsys.readouterr().out
    assert [row["epoch"] for row in fitted.log] == [1, 2, 3]


def test_damaged_progress_says_what_to_delete(tmp_path):
    path = tmp_path / "progress"
    fit_rqvae(cloud(), tiny_settings(epochs=2), 0, CPU, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=re.escape(f"{path}: is damaged (") + ".*delete it to start the training afresh"):
        fit_rqvae(cloud(), tiny_settings(epochs=2), 0, CPU, path)


def test_a_code_that_stays_unused_restarts_at_a_residual_of_the_batch():
    x = torch.from_numpy(cloud(32))
    run = Run(small_rqvae(), x, tiny_settings(dead_code_steps=3, batch_size=32, learning_rate=1e-9), seed=0)
    with torch.no_grad():
        run.model.codebooks[1][4] = 1000.0                        # nobody will choose it
    for _ in range(3):
        assert float(run.model.codebooks[1][4, 0].detach()) == pytest.approx(1000, abs=1)
        residuals = run.model.quantise(run.model.encoder(x))[2]
        run.train_epoch()
    gap = (residuals[1] - run.model.codebooks[1][4].detach()).abs().amax(dim=1).min()
    assert float(gap) < 1e-4
    assert int(run.idle[1][4]) == 0 and float(run.optimiser.state[run.model.codebooks[1]]["exp_avg_sq"][4].max()) == 0


def test_dead_codes_stay_where_they_are_when_restarts_are_off():
    run = Run(small_rqvae(), torch.from_numpy(cloud(32)), tiny_settings(dead_code_steps=0, learning_rate=1e-9), seed=0)
    with torch.no_grad():
        run.model.codebooks[1][4] = 1000.0
    for _ in range(5):
        run.train_epoch()
    assert float(run.model.codebooks[1][4, 0].detach()) == pytest.approx(1000, abs=1)


def test_items_with_equal_embeddings_get_equal_codes(tmp_path):
    points = cloud(50)
    points[40:] = points[:10]
    fitted = fit_rqvae(points, tiny_settings(epochs=3), 0, CPU, tmp_path / "progress")
    assert (fitted.codes[40:] == fitted.codes[:10]).all()
    assert (fitted.points[40:] == fitted.points[:10]).all()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    said = r"rqvae: the loss became (nan|inf) in epoch \d+; lower sids.learning_rate \(now 1e\+30\)"
    with pytest.raises(UserError, match=said):
        fit_rqvae(cloud(), tiny_settings(learning_rate=1e30), 0, CPU, tmp_path / "progress")


def test_learning_rate_warms_up_then_falls_to_zero():
    assert learning_rate_factor(0.025) == pytest.approx(0.5)
    assert learning_rate_factor(0.05) == pytest.approx(1)
    assert learning_rate_factor(0.525) == pytest.approx(0.5)
    assert learning_rate_factor(1) == pytest.approx(0)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def broken(row: int, value: float) -> np.ndarray:
    points = cloud(4)
    points[row] = value
    return points


AGAIN = " (so have 1 rows in all); delete the folder and embed again, with another encoder if it stays"


@pytest.mark.parametrize("embeddings, sizes, message", [
    (broken(2, np.nan), [2, 2], "e.npy, row 2, item 'c': NaN or infinite values" + AGAIN),
    (broken(0, np.inf), [2, 2], "e.npy, row 0, item 'a': NaN or infinite values" + AGAIN),
    (broken(3, 0), [2, 2], "e.npy, row 3, item 'd': only zeros" + AGAIN),
    (cloud(5), [2, 2],
     "e.npy: shape (5, 6), expected one row for each of the 4 ids in item_ids.json; delete the folder and run "
     "`bash rqvae/rqvae.sh` again"),
    (cloud(4), [5, 2], "sids.codebook_sizes: level 1 has 5 codes for only 4 items; use at most 4, better a tenth of that"),
    (cloud(4), [3], "sids.codebook_sizes: [3] makes 3 SIDs for 4 items; add a level or codes, or choose "
     "sids.collision extra_level"),
    (cloud(4), [2] * 7, "sids.codebook_sizes: got 7 levels, expected 1 to 6"),
])
def test_what_no_quantiser_can_work_with_is_one_line(embeddings, sizes, message):
    with pytest.raises(UserError, match="^" + re.escape(message) + "$"):
        check_inputs(embeddings, list("abcd"), sizes, "e.npy")


def test_several_problems_are_reported_together():
    with pytest.raises(UserError) as caught:
        check_inputs(broken(1, np.nan), list("abcd"), [9, 1], "e.npy")
    assert len(str(caught.value).splitlines()) == 2
