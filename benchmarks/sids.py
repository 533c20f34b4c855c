"""RQ-VAE training: an epoch of ours against the usual recipe (DataLoader, a wait for the device at every step).

    python benchmarks/sids.py                      # item count, widths and batch of an Amazon category with MiniLM
    python benchmarks/sids.py --items 3686 --width 2560 --hidden 2048,1024,512,256,128,64 --batch 2048

Both sides train the same model from the same weights on the same batches, turn by turn in one process; the medians are
compared. Parity: in float64, where rounding cannot send an item to another code, the epochs' mean losses agree to 1e-9.
The recipe is the reference code's: one ``__getitem__`` per item, four
workers, ``cdist``, AdamW without fusion, ``.item()`` on both losses of every step.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fire
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minionerec.settings import SidSettings  # noqa: E402
from rqvae.rqvae import RQVAE  # noqa: E402
from rqvae.training import WEIGHT_DECAY, Run, initialise_codebooks, learning_rate_factor  # noqa: E402

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

    def __init__(self, model: RQVAE, x: Tensor, settings: SidSettings, device: torch.device, workers: int) -> None:
        self.model, self.x, self.settings, self.device, self.workers, self.epoch = model, x, settings, device, workers, 0
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)

    def train_epoch(self, order: list[list[int]]) -> list[float]:
        """One epoch over the given batches; the loss of every step."""
        losses = []
        for i, batch in enumerate(DataLoader(Rows(self.x), batch_sampler=order, num_workers=self.workers)):
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
            terms.append(mse_loss(q, residual.detach()) + self.model.beta * mse_loss(residual, q.detach()))
            residual, total = residual - q.detach(), total + q
        return mse_loss(self.model.decoder(z + (total - z).detach()), x), torch.stack(terms).mean()


def main(items: int = 3686, width: int = 384, hidden: tuple[int, ...] = (512, 256, 128), batch: int = 256,
         epochs: int = 7) -> None:
    """Train both for ``epochs`` epochs in turns and print seconds per epoch, their ratio and whether the losses agree."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = SidSettings(hidden_sizes=list(hidden), batch_size=batch, epochs=100, dead_code_steps=0)
    torch.manual_seed(0)
    centres = torch.randn(items // 8 + 1, width)
    x = centres[torch.randint(len(centres), (items,))] + 0.5 * torch.randn(items, width)      # near-duplicates, as in a shop
    x = x / x.square().mean().sqrt()
    model = RQVAE(width, settings.hidden_sizes, settings.latent_size, settings.codebook_sizes, settings.beta).to(device)
    initialise_codebooks(model, x.to(device), settings, seed=0)
    worst = parity(copy.deepcopy(model).double(), x.double(), settings, device)
    run = Run(copy.deepcopy(model), x.to(device), settings, seed=0)
    stock = {workers: StockRun(copy.deepcopy(model), x, settings, device, workers) for workers in (4, 0)}
    seconds: dict[str, list[float]] = {"ours": [], "4 workers": [], "0 workers": []}
    for _ in range(epochs):
        order = [rows.tolist() for rows in run.batches(run.generator())]
        seconds["ours"].append(timed(run.train_epoch))
        for workers, other in stock.items():
            seconds[f"{workers} workers"].append(timed(partial(other.train_epoch, order)))
    median = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}          # the first one warms up
    for name, value in median.items():
        print(f"{name:>10}: {value:.3f} s per epoch of {items} items, {value / median['ours']:.2f} x ours")
    print(f"largest relative difference between mean losses of an epoch in float64: {worst:.1e}")
    print(f"ratio: {median['4 workers'] / median['ours']:.2f}  parity: {'ok' if worst < 1e-9 else 'FAILED'}")
    sys.exit(worst >= 1e-9)


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
