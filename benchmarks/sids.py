"""RQ-VAE training against the reference recipe.

Time of an epoch on equal terms, then both recipes for as many steps.

    python benchmarks/sids.py                      # item count, widths and batch of an Amazon
    category with MiniLM python benchmarks/sids.py --embeddings runs/NAME/embeddings/embeddings.npy
    python benchmarks/sids.py --width 2560 --hidden 2048,1024,512,256,128,64 --learning_rate 1e-3
    # the paper's network

1. Equal terms: both sides train the same model from the same weights on the same batches, turn by
   turn; the medians are compared. Parity: in float64, where rounding cannot send an item to another
   code, mean losses agree to 1e-9.
2. Recipes: ours as ``rqvae/quantizers/rqvae_training.py`` has it, and the reference's (raw
   embeddings, all items in one batch, constant 1e-3, the residual through the straight-through
   value, no dead-code restarts), for the same number of optimiser steps; seconds, loss, share of
   variance lost, collision rate. The losses are on different scales (ours is of embeddings with
   mean square 1), the shares are not.

The loop is the reference code's on both counts: one ``__getitem__`` per item, four workers,
``cdist``, AdamW without fusion, ``.item()`` on both losses of every step.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fire
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from minionerec.experiment.settings import SidSettings
from rqvae.quantizers.collisions import colliding
from rqvae.quantizers.rqkmeans import kmeans
from rqvae.quantizers.rqvae import RQVAE, measure
from rqvae.quantizers.rqvae_training import (
    WEIGHT_DECAY,
    Run,
    build_model,
    fit_rqvae,
    initialise_codebooks,
    learning_rate_factor,
)


class Rows(Dataset):
    """Embeddings as a map-style dataset, an item at a time."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Tensor:
        return self.x[row]


class StockRun:
    """The usual training loop around the same loss."""

    def __init__(
        self, model: RQVAE, x: Tensor, settings: SidSettings, device: torch.device, workers: int
    ) -> None:
        self.model = model
        self.x = x
        self.settings = settings
        self.device = device
        self.workers = workers
        self.epoch = 0
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
        )

    def train_epoch(self, order: list[list[int]]) -> list[float]:
        """One epoch over the given batches; the loss of every step."""
        losses = []
        for i, batch in enumerate(
            DataLoader(Rows(self.x), batch_sampler=order, num_workers=self.workers)
        ):
            share = (self.epoch * len(order) + i + 0.5) / (self.settings.epochs * len(order))
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * learning_rate_factor(share)
            x = batch.to(self.device)
            self.optimiser.zero_grad()
            reconstruction, quantisation = self.losses(x)
            loss = reconstruction + quantisation
            loss.backward()
            self.optimiser.step()
            reconstruction.item()
            losses.append(loss.item())
        self.epoch += 1
        return losses

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and quantisation loss, written the usual way."""
        z = self.model.encoder(x)
        residual, total, terms = z, 0, []
        for codebook in self.model.codebooks:
            codes = torch.cdist(residual.detach(), codebook.detach()).argmin(dim=-1)
            q = torch.nn.functional.embedding(codes, codebook)
            terms.append(
                mse_loss(q, residual.detach()) + self.model.beta * mse_loss(residual, q.detach())
            )
            residual, total = residual - q.detach(), total + q
        return mse_loss(self.model.decoder(z + (total - z).detach()), x), torch.stack(terms).mean()


class ReferenceRQVAE(RQVAE):
    """The reference's forward.

    Residuals through the straight-through value, codebooks from its first batch.
    """

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and quantisation loss of a batch (B, D)."""
        residual = self.encoder(x)
        total, terms = torch.zeros_like(residual), []
        for codebook in self.codebooks:
            if not codebook.any():
                codebook.data.copy_(
                    torch.from_numpy(kmeans(residual.detach().cpu().numpy(), len(codebook), 10, 0))
                )
            q = torch.nn.functional.embedding(
                torch.cdist(residual.detach(), codebook.detach()).argmin(dim=-1), codebook
            )
            terms.append(
                mse_loss(q, residual.detach()) + self.beta * mse_loss(residual, q.detach())
            )
            through = residual + (q - residual).detach()
            residual, total = residual - through, total + through
        return mse_loss(self.decoder(total), x), torch.stack(terms).mean()


def main(
    items: int = 3686,
    width: int = 384,
    hidden: tuple[int, ...] = (512, 256, 128),
    batch: int = 256,
    epochs: int = 7,
    recipe_epochs: int = 20,
    embeddings: str = "",
    workers: int = 4,
    learning_rate: float = 3e-3,
) -> None:
    """Run both comparisons and print them.

    Args:
        items, width: of synthetic embeddings, N and D; with ``embeddings``, real ones are turned
            into ``width`` dimensions.
        hidden: encoder widths.
        batch: our items per step.
        epochs: turns of the first comparison.
        recipe_epochs: our epochs of the second; the reference does as many steps. 0: leave it out.
        embeddings: a ``.npy`` of (N, D).
        workers: of the reference recipe's DataLoader; 0 is kinder to it where cores are few.
        learning_rate: ours; 1e-3 for the paper's network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = SidSettings(
        method="rqvae",
        hidden_sizes=list(hidden),
        batch_size=batch,
        epochs=100,
        learning_rate=learning_rate,
        dead_code_steps=0,
    )
    raw = real(Path(embeddings), width) if embeddings else synthetic(items, width)  # (N, D)
    worst = equal_terms(raw / raw.square().mean().sqrt(), settings, device, epochs)
    if recipe_epochs:
        recipes(
            raw,
            settings.changed({"epochs": recipe_epochs, "dead_code_steps": 50}),
            device,
            workers,
        )
    sys.exit(worst >= 1e-9)


def synthetic(items: int, width: int) -> Tensor:
    """Near-duplicates around an eighth as many centres, as in a shop."""
    torch.manual_seed(0)
    centres = torch.randn(items // 8 + 1, width)
    return centres[torch.randint(len(centres), (items,))] + 0.5 * torch.randn(items, width)


def real(path: Path, width: int) -> Tensor:
    """Embeddings of a file.

    Turned by a random orthonormal map if ``width`` is more than theirs: same distances, more
    columns.
    """
    found = torch.from_numpy(np.load(path, allow_pickle=False))
    if width <= found.shape[1]:
        return found
    turn = torch.linalg.qr(
        torch.randn(width, found.shape[1], generator=torch.Generator().manual_seed(0))
    )[0]
    return found @ turn.T


def equal_terms(x: Tensor, settings: SidSettings, device: torch.device, epochs: int) -> float:
    """Seconds per epoch of the same training, ours and the stock loop.

    Returns the largest difference of mean losses.
    """
    torch.manual_seed(0)
    model = build_model(x.shape[1], settings).to(device)
    initialise_codebooks(model, x.to(device), settings, seed=0)
    worst = parity(copy.deepcopy(model).double(), x.double(), settings, device)
    run = Run(copy.deepcopy(model), x.to(device), settings, seed=0)
    stock = {
        workers: StockRun(copy.deepcopy(model), x, settings, device, workers) for workers in (4, 0)
    }
    seconds: dict[str, list[float]] = {"ours": [], "4 workers": [], "0 workers": []}
    for _ in range(epochs):
        order = [rows.tolist() for rows in run.batches(run.generator())]
        seconds["ours"].append(timed(run.train_epoch))
        for workers, other in stock.items():
            seconds[f"{workers} workers"].append(timed(partial(other.train_epoch, order)))
    # The first turn warms up
    median = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    for name, value in median.items():
        print(
            f"{name:>10}: {value:.3f} s per epoch of {len(x)} items, {value / median['ours']:.2f} "
            "x ours"
        )
    print(f"largest relative difference between mean losses of an epoch in float64: {worst:.1e}")
    print(
        f"ratio: {median['4 workers'] / median['ours']:.2f}  parity: "
        f"{'ok' if worst < 1e-9 else 'FAILED'}",
        flush=True,
    )
    return worst


def recipes(raw: Tensor, settings: SidSettings, device: torch.device, workers: int) -> None:
    """Both recipes for the same number of optimiser steps: what they take and where they get."""
    steps = settings.epochs * -(-len(raw) // settings.batch_size)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_rqvae(raw.numpy(), settings, 0, device, Path(folder) / "progress")
    rows = {
        "ours": (
            time.perf_counter() - started,
            fitted.log[-1]["loss"],
            fitted.errors[-1],
            fitted.codes,
        )
    }
    rows["reference"] = reference_recipe(raw, settings, device, steps, workers)
    for name, (seconds, loss, error, codes) in rows.items():
        print(
            f"{name:>10}: {seconds:.1f} s for {steps} steps, loss {loss:.4g}, variance lost "
            f"{error:.4f}, "
            f"{colliding(codes).mean():.2%} of items collide, codes used "
            f"{[len(np.unique(column)) for column in codes.T]}"
        )
    print(f"recipe ratio: {rows['reference'][0] / rows['ours'][0]:.2f}")


def reference_recipe(
    raw: Tensor, settings: SidSettings, device: torch.device, steps: int, workers: int
) -> tuple[float, float, float, np.ndarray]:
    """Train with all items and measure.

    Returns:
        Seconds, last loss, share of variance lost and codes ``(N, L)`` after so many steps.
    """
    torch.manual_seed(0)
    started = time.perf_counter()
    model = ReferenceRQVAE(
        raw.shape[1],
        settings.hidden_sizes,
        settings.latent_size,
        settings.codebook_sizes,
        settings.beta,
    ).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY)
    loss = torch.zeros(())
    for _ in range(steps):
        for batch in DataLoader(Rows(raw), batch_size=20480, shuffle=True, num_workers=workers):
            optimiser.zero_grad()
            reconstruction, quantisation = model.losses(batch.to(device))
            loss = reconstruction + quantisation
            loss.backward()
            optimiser.step()
            reconstruction.item(), loss.item()
    seconds = time.perf_counter() - started
    codes, error = measure(model, raw.to(device))
    spread = float((raw - raw.mean(0)).square().mean())
    return seconds, loss.item(), error / spread, codes


def parity(model: RQVAE, x: Tensor, settings: SidSettings, device: torch.device) -> float:
    """Largest relative difference between both sides' mean losses over three epochs."""
    run = Run(copy.deepcopy(model), x.to(device), settings, seed=0)
    stock, worst = StockRun(model, x, settings, device, workers=0), 0.0
    for _ in range(3):
        order = [rows.tolist() for rows in run.batches(run.generator())]
        worst = max(worst, abs(statistics.fmean(stock.train_epoch(order)) / run.train_epoch() - 1))
    return worst


def timed(step: Callable[[], object]) -> float:
    """Seconds of a step; both kinds of epoch end with a wait for the device."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    fire.Fire(main)
