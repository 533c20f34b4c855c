"""RQ-VAE and RQ-KMeans+: loss, gradients, training, and what each of their options does.

python -m pytest tests/rqvae/test_rqvae.py
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from minionerec.errors import UserError
from minionerec.experiment.settings import SidSettings
from rqvae.quantizers.balanced import fit_balanced_rqkmeans
from rqvae.quantizers.rqkmeans import relative_error
from rqvae.quantizers.rqvae import RQVAE, balanced_codes, code_distances, rotated
from rqvae.quantizers.rqvae_training import (
    Run,
    build_model,
    fit_rqvae,
    initialise_codebooks,
    learning_rate_factor,
    start_at_principal_components,
)

CPU = torch.device("cpu")


def cloud(num_items: int = 60, width: int = 6, seed: int = 0) -> np.ndarray:
    """Random points of length 1, float32, all different."""
    points = np.random.default_rng(seed).normal(size=(num_items, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def small_rqvae(seed: int = 0, levels: int = 3) -> RQVAE:
    torch.manual_seed(seed)
    model = RQVAE(
        width=6, hidden_sizes=[12, 8], latent_size=4, codebook_sizes=[5, 7, 3][:levels], beta=0.25
    )
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
            torch.testing.assert_close(
                residuals[level, item].double(), z[item] - rebuilt[item], atol=1e-6, rtol=0
            )
            squares += distances[best]
            rebuilt[item] += book[best]
        terms.append(squares / (9 * 4) * 1.25)  # MSE(q, sg r) + 0.25 MSE(r, sg q)
    expected = float(((model.decoder(rebuilt.float()) - x) ** 2).mean().detach())
    assert reconstruction.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected + sum(terms) / 3, rel=1e-5)


def test_commitment_of_every_level_pulls_the_encoder():
    """d/dz of mean_l beta MSE(r_l, sg q_l) is 2 beta / (L B W) sum_l (r_l - q_l).

    With the straight-through residual of the reference code the levels after the first would add
    nothing.
    """
    model = small_rqvae()
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    codes, _, residuals, loss = model.quantise(z)
    gradient = torch.autograd.grad(loss, z)[0]
    per_level = [
        residuals[level] - codebook[codes[:, level]].detach()
        for level, codebook in enumerate(model.codebooks)
    ]
    torch.testing.assert_close(gradient, 2 * 0.25 / (3 * 9 * 4) * sum(per_level))
    first_level_alone = 2 * 0.25 / (3 * 9 * 4) * per_level[0]
    assert (gradient - first_level_alone).norm() > 0.3 * first_level_alone.norm()


def test_commitment_of_later_levels_reaches_the_encoder_weights():
    model, x = small_rqvae(), torch.from_numpy(cloud(9))
    _, _, residuals, _ = model.quantise(model.encoder(x))
    residual = model.encoder(x) - (residuals[0] - residuals[1])  # r_2 with its graph
    q = model.codebooks[1][
        code_distances(residual.detach(), model.codebooks[1].detach()).argmin(1)
    ].detach()
    expected = torch.autograd.grad(
        0.25 * torch.nn.functional.mse_loss(residual, q), model.encoder[0].weight
    )[0]
    assert expected.abs().max() > 0
    two, one = (small_rqvae(levels=levels) for levels in (2, 1))
    same_encoder = small_rqvae().state_dict()
    for m in (two, one):
        m.load_state_dict({k: v for k, v in same_encoder.items() if k in m.state_dict()})
    grads = [
        torch.autograd.grad(m.quantise(m.encoder(x))[3] * len(m.codebooks), m.encoder[0].weight)[0]
        for m in (two, one)
    ]
    torch.testing.assert_close(grads[0] - grads[1], expected)


def test_reconstruction_reaches_the_encoder_straight_through_and_not_the_codebooks():
    model, x = small_rqvae(), torch.from_numpy(cloud(9))
    _, reconstruction, codes, _ = model(x)
    gradients = torch.autograd.grad(
        reconstruction, [model.encoder[0].weight, *model.codebooks], allow_unused=True
    )
    quantised = (
        sum(book[codes[:, level]] for level, book in enumerate(model.codebooks))
        .detach()
        .requires_grad_()
    )
    at_decoder = torch.autograd.grad(
        torch.nn.functional.mse_loss(model.decoder(quantised), x), quantised
    )[0]
    through = torch.autograd.grad(
        model.encoder(x), model.encoder[0].weight, grad_outputs=at_decoder
    )[0]
    torch.testing.assert_close(gradients[0], through)
    assert all(gradient is None for gradient in gradients[1:])


def tiny_settings(**changes) -> SidSettings:
    small = SidSettings(
        method="rqvae",
        codebook_sizes=[8, 8],
        hidden_sizes=[16, 8],
        latent_size=4,
        epochs=20,
        batch_size=32,
        learning_rate=1e-2,
        kmeans_iterations=10,
        dead_code_steps=20,
    )
    return small.changed(changes)


def test_training_lowers_the_reconstruction_error_and_keeps_the_best_epoch(tmp_path):
    """A curved surface in six dimensions and a latent of two: principal components, the start,
    cannot follow it.
    """
    a, b = np.random.default_rng(0).uniform(-1.5, 1.5, size=(2, 200))
    surface = np.stack(
        [np.cos(2 * a), np.sin(2 * a), np.cos(2 * b), np.sin(2 * b), a * b, a + b], axis=1
    ).astype(np.float32)
    fitted = fit_rqvae(
        surface,
        tiny_settings(latent_size=2, codebook_sizes=[16, 16], epochs=40),
        0,
        CPU,
        tmp_path / "progress",
    )
    scores = [row["reconstruction_error"] + row["collision_rate"] for row in fitted.log]
    best = fitted.log[scores.index(min(scores))]
    assert best["reconstruction_error"] < 0.85 * fitted.log[0]["reconstruction_error"]
    assert fitted.errors[-1] == pytest.approx(best["reconstruction_error"], rel=1e-4)
    assert fitted.log[-1]["epoch"] == 40


def test_saved_weights_alone_give_the_same_codes(tmp_path):
    points = cloud(120)
    fitted = fit_rqvae(points, tiny_settings(), 0, CPU, tmp_path / "progress")
    model = RQVAE(6, [16, 8], 4, [8, 8], beta=0.25)
    stored = {
        name.replace("codebook.", "codebooks."): torch.from_numpy(value)
        for name, value in fitted.tensors.items()
    }
    mean, scale = stored.pop("mean"), stored.pop("scale")
    model.load_state_dict(stored)
    with torch.no_grad():
        codes = model.quantise(model.encoder((torch.from_numpy(points) - mean) / scale))[0]
    assert codes.tolist() == fitted.codes.tolist()


def test_scale_and_offset_of_the_embeddings_do_not_matter(tmp_path):
    points = cloud(120)
    plain, moved = (
        fit_rqvae(p, tiny_settings(epochs=5), 0, CPU, tmp_path / "none")
        for p in (points, points * 64 + 3)
    )
    np.testing.assert_allclose(plain.errors, moved.errors, rtol=1e-2)


def test_the_same_seed_trains_the_same_bits(tmp_path):
    first, again, other = (
        fit_rqvae(cloud(), tiny_settings(epochs=4), seed, CPU, tmp_path / str(seed) / str(turn))
        for turn, seed in enumerate((1, 1, 2))
    )
    assert all((first.tensors[name] == again.tensors[name]).all() for name in first.tensors)
    assert (first.tensors["encoder.0.weight"] != other.tensors["encoder.0.weight"]).any()


class Killed(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize(
    "killed_in, changes",
    [(1, {}), (4, {}), (7, {}), (4, {"ema_decay": 0.9, "method": "rqkmeans_plus"})],
)
def test_a_killed_training_continues_to_the_same_bits(tmp_path, monkeypatch, killed_in, changes):
    settings, plain_epoch = tiny_settings(epochs=8, dead_code_steps=3, **changes), Run.train_epoch
    whole = fit_rqvae(cloud(), settings, 0, CPU, tmp_path / "whole")

    def dying_epoch(run):
        if run.epoch == killed_in:
            raise Killed
        return plain_epoch(run)

    monkeypatch.setattr(Run, "train_epoch", dying_epoch)
    with pytest.raises(Killed):
        fit_rqvae(cloud(), settings, 0, CPU, tmp_path / "cut")
    monkeypatch.setattr(Run, "train_epoch", plain_epoch)
    torch.rand(5)  # another process's random state
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
    with pytest.raises(
        UserError,
        match=re.escape(f"{path}: is damaged (") + ".*delete it to start the training afresh",
    ):
        fit_rqvae(cloud(), tiny_settings(epochs=2), 0, CPU, path)


def test_a_code_that_stays_unused_restarts_at_a_residual_of_the_batch():
    x = torch.from_numpy(cloud(32))
    run = Run(
        small_rqvae(),
        x,
        tiny_settings(dead_code_steps=3, batch_size=32, learning_rate=1e-9),
        seed=0,
    )
    with torch.no_grad():
        run.model.codebooks[1][4] = 1000.0  # nobody will choose it
    for _ in range(3):
        assert float(run.model.codebooks[1][4, 0].detach()) == pytest.approx(1000, abs=1)
        residuals = run.model.quantise(run.model.encoder(x))[2]
        run.train_epoch()
    gap = (residuals[1] - run.model.codebooks[1][4].detach()).abs().amax(dim=1).min()
    assert float(gap) < 1e-4
    assert (
        int(run.idle[1][4]) == 0
        and float(run.optimiser.state[run.model.codebooks[1]]["exp_avg_sq"][4].max()) == 0
    )


def test_dead_codes_stay_where_they_are_when_restarts_are_off():
    run = Run(
        small_rqvae(),
        torch.from_numpy(cloud(32)),
        tiny_settings(dead_code_steps=0, learning_rate=1e-9),
        seed=0,
    )
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


# --------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient": "rotation"},
        {"ema_decay": 0.9},
        {"sinkhorn_epsilon": 0.05},
        {"kmeans_init": False},
        {"dead_code_steps": 1},
        {"method": "rqkmeans_plus"},
        {"beta": 0.5},
    ],
)
def test_every_option_changes_the_codes(tmp_path, changes):
    points = cloud(120)
    plain = fit_rqvae(points, tiny_settings(epochs=5), 0, CPU, tmp_path / "plain")
    other = fit_rqvae(points, tiny_settings(epochs=5, **changes), 0, CPU, tmp_path / "other")
    assert (plain.codes != other.codes).any()


def test_the_rotation_carries_z_onto_its_codes_and_the_gradient_with_it():
    """Against the rotation matrix written out: the smallest rotation, in the plane of the two
    vectors.
    """
    generator = torch.Generator().manual_seed(0)
    z, q, weight = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    z.requires_grad_()
    carried = rotated(z, q)
    torch.testing.assert_close(carried, q)
    gradient = torch.autograd.grad((carried * weight).sum(), z)[0]
    for row in range(5):
        a, b = z[row].detach() / z[row].norm().detach(), q[row] / q[row].norm()
        cosine, across = a @ b, torch.outer(b, a) - torch.outer(a, b)
        turn = (
            torch.eye(4, dtype=torch.float64) + across + across @ across / (1 + cosine)
        )  # Rodrigues' formula
        torch.testing.assert_close(turn @ a, b)
        torch.testing.assert_close(
            gradient[row], q[row].norm() / z[row].norm().detach() * turn.T @ weight[row]
        )


def reference_sinkhorn(distances: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The reference's ``center_distance_for_constraint`` and ``sinkhorn_algorithm``, as it writes
    them.
    """
    high, low = distances.max(), distances.min()
    middle = (high + low) / 2
    plan = torch.exp(-(distances - middle) / (high - middle) / epsilon)
    plan = plan / plan.sum()
    for _ in range(50):
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return plan.argmax(1)


@pytest.mark.parametrize("epsilon", [0.003, 0.05, 1.0])
def test_balanced_codes_are_the_reference_s(epsilon):
    distances = torch.rand(64, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances -= distances.amin(
        1, keepdim=True
    )  # a constant per row: does not matter to a balanced plan
    assert (
        balanced_codes(distances, epsilon) == reference_sinkhorn(distances, epsilon)
    ).float().mean() > 0.95


def test_balanced_codes_spread_a_batch_that_all_wants_one_code():
    near_first = torch.tensor([0.0, 1.0, 1.1, 1.2]) + 0.01 * torch.rand(
        64, 4, generator=torch.Generator().manual_seed(0)
    )
    assert near_first.argmin(1).unique().tolist() == [0]
    counts = balanced_codes(near_first, 0.003).bincount(minlength=4)
    assert counts.min() >= 12 and counts.max() <= 20
    assert balanced_codes(near_first * 0, 0.003).shape == (
        64,
    )  # all equal: nothing to decide, nothing to divide by


def test_moving_averages_are_worked_by_hand_and_no_gradient_reaches_the_codes():
    run = Run(
        small_rqvae(levels=1), torch.from_numpy(cloud(32)), tiny_settings(ema_decay=0.75), seed=0
    )
    before = run.model.codebooks[0].detach().clone()
    residuals = torch.tensor([[[1.0, 0, 0, 0], [3.0, 0, 0, 0], [0, 8.0, 0, 0]]])
    run.average_codes(torch.tensor([[2], [2], [4]]), residuals)
    after = run.model.codebooks[0].detach()
    # N = .75 * 1 + .25 * 2, M = .75 * E + .25 * (4, 0, 0, 0); one item: N = 1; none: N = .75, M =
    # .75 E
    torch.testing.assert_close(after[2], (0.75 * before[2] + torch.tensor([1.0, 0, 0, 0])) / 1.25)
    torch.testing.assert_close(after[4], 0.75 * before[4] + torch.tensor([0, 2.0, 0, 0]))
    torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]])
    assert not run.model.codebooks[0].requires_grad


@pytest.mark.parametrize("hidden, latent, kept", [([16, 8], 4, 4), ([16, 6], 4, 3), ([40], 9, 6)])
def test_the_untrained_network_is_principal_component_analysis(hidden, latent, kept):
    """As many components as the latent, half the narrowest layer and the embeddings have room for."""
    x = torch.from_numpy(cloud(200) * np.arange(1, 7, dtype=np.float32))
    x -= x.mean(0)
    model = build_model(6, tiny_settings(hidden_sizes=hidden, latent_size=latent))
    start_at_principal_components(model, x, seed=0)
    axes = torch.linalg.svd(x, full_matrices=False)[2][:kept]
    with torch.no_grad():
        z = model.encoder(x)
        z[:, kept:] = 0  # what is left has random weights
        rebuilt = model.decoder(z)
    torch.testing.assert_close(rebuilt, x @ axes.T @ axes, atol=2e-3, rtol=0)
    explained = float((x @ axes.T).square().sum() / x.square().sum())
    assert float(z.square().sum() / latent / len(x)) == pytest.approx(
        explained * float(x.square().mean()), rel=1e-3
    )


def test_without_kmeans_the_codebooks_start_tiny():
    settings = tiny_settings(kmeans_init=False)
    model = build_model(6, settings)
    initialise_codebooks(model, torch.from_numpy(cloud()), settings, 0)
    assert all(0 < float(codebook.detach().abs().max()) <= 1 / 8 for codebook in model.codebooks)


def test_kmeans_plus_starts_at_the_reconstruction_of_balanced_kmeans_and_improves_on_it(tmp_path):
    points = cloud(120)
    scaled = (points - points.mean(axis=0)) / np.sqrt(
        np.square(points - points.mean(axis=0)).mean()
    )
    start = fit_balanced_rqkmeans(scaled.astype(np.float32), [8, 8], 10, 0)
    settings = tiny_settings(method="rqkmeans_plus", learning_rate=1e-9, epochs=1)
    still = fit_rqvae(points, settings, 0, CPU, tmp_path / "still")
    nearest_codes = (
        scaled - start.codebooks[0][((scaled[:, None] - start.codebooks[0]) ** 2).sum(2).argmin(1)]
    )
    assert still.errors[0] == pytest.approx(relative_error(scaled, nearest_codes), rel=1e-3)
    np.testing.assert_allclose(still.points, scaled, atol=1e-5)  # the encoder is the identity
    trained = fit_rqvae(
        points,
        settings.changed({"learning_rate": 3e-3, "epochs": 40}),
        0,
        CPU,
        tmp_path / "trained",
    )
    assert trained.errors[-1] < 0.99 * still.errors[-1]
