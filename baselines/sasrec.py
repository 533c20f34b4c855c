"""SASRec (Kang and McAuley, arXiv:1808.09781): a small causal transformer over item indexes.

Departures from the paper, each because it ranks better or is simpler:

1. Softmax cross-entropy over the whole catalogue at every position instead of one sampled negative with a binary loss
   (Klenitskiy and Vasilev, arXiv:2309.07602, show that this is where most of its successors' gain comes from).
2. ``torch.nn`` layers with the norm before each block (Xiong et al., arXiv:2002.04745), GELU, a bias per item.
3. The windows of a long sequence begin at a random item each epoch, so that every item is seen at every position.

Early stopping and the choice of the epoch look at validation NDCG@10 only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minionerec.config import UserError
from minionerec.dataset import Sample, Samples
from minionerec.settings import BaselineSettings

IGNORED = -100  # target of a padded position, torch's ignore_index


class SASRec(nn.Module):
    """Item indexes in, scores of every next item out; the output layer is the item embedding.

    Args:
        num_items: N.
        max_history: T, longest history in items.
        hidden_size: D.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide D.
        dropout: on embeddings, attention and both halves of each block.
    """

    def __init__(
        self, num_items: int, max_history: int, hidden_size: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.config = {"num_items": num_items, "max_history": max_history, "hidden_size": hidden_size,
                       "num_layers": num_layers, "num_heads": num_heads, "dropout": dropout}
        self.items = nn.Embedding(num_items, hidden_size)
        self.positions = nn.Embedding(max_history, hidden_size)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(hidden_size, num_heads, 4 * hidden_size, dropout, activation="gelu",
                                           batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, num_layers, norm=nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def hidden(self, items: Tensor) -> Tensor:
        """``(B, T)`` item indexes, padded on the right with any index, to ``(B, T, D)``.

        Attention is causal, so what stands after a position cannot change it and padding needs no mask.
        """
        steps = torch.arange(items.shape[1], device=items.device)
        causal = steps[None, :] > steps[:, None]                                          # (T, T), True is hidden
        x = self.items(items) * math.sqrt(self.config["hidden_size"]) + self.positions(steps)   # section 3.1 of the paper
        return self.blocks(self.dropout(x), mask=causal)

    def logits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., N)``."""
        return hidden @ self.items.weight.T + self.bias


def train_sasrec(
    samples: Samples, seed: int, max_history: int = 10, settings: BaselineSettings | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> SASRec:
    """Train on the train sequences until validation NDCG@10 stops rising; returns the weights of its best epoch.

    The caller's random state is left as it was. Runs on the first GPU if there is one.

    Args:
        samples: ``train_sequences`` and ``splits["valid"]`` are used, nothing else.
        seed: of initialisation, shuffling and dropout.
        max_history: T, longest history in items.
        settings: the ``sasrec_*`` keys; None: their defaults.
        log: called once per epoch with ``{"step", "epoch", "loss", "valid_NDCG@10"}``.

    Raises:
        UserError: no sequence has two items, the heads do not divide the width, or the loss is no longer a number.
    """
    settings = settings or BaselineSettings()
    if settings.sasrec_hidden_size % settings.sasrec_heads:
        raise UserError(f"baselines.sasrec_heads: got {settings.sasrec_heads}, expected a divisor of "
                        f"baselines.sasrec_hidden_size {settings.sasrec_hidden_size}")
    if not any(len(sequence) > 1 for sequence in samples.train_sequences):
        raise UserError("sasrec: no user has two train interactions, so there is nothing to learn from; check data.split")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SASRec(len(samples.items), max_history, settings.sasrec_hidden_size, settings.sasrec_layers,
                       settings.sasrec_heads, settings.sasrec_dropout).to(device)
        fit(model, samples.train_sequences, samples.splits["valid"], settings, np.random.default_rng(seed), log)
    return model.eval()


def fit(
    model: SASRec, sequences: Sequence[Sequence[int]], valid: Sequence[Sample], settings: BaselineSettings,
    rng: np.random.Generator, log: Callable[[dict[str, Any]], None] | None,
) -> None:
    """The training loop; leaves the best epoch's weights (the last's, without validation samples) in the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.sasrec_learning_rate,
                                  weight_decay=settings.sasrec_weight_decay)
    best, best_weights, waited, step = -1.0, {}, 0, 0
    for epoch in range(1, settings.sasrec_epochs + 1):
        rows = windows(sequences, model.config["max_history"], rng)
        losses = []
        for start in range(0, len(rows), settings.sasrec_batch_size):
            losses.append(train_step(model, optimizer, rows[start : start + settings.sasrec_batch_size]))
            step += 1
        row = {"step": step, "epoch": epoch, "loss": float(np.mean(losses))}
        if not math.isfinite(row["loss"]):
            raise UserError(f"sasrec: the loss is {row['loss']} in epoch {epoch}; lower baselines.sasrec_learning_rate")
        if valid:
            row["valid_NDCG@10"] = mean_ndcg_at_10(model, valid)
        if log:
            log(row)
        if not valid:
            continue
        waited += 1
        if row["valid_NDCG@10"] > best:
            best, waited = row["valid_NDCG@10"], 0
            best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if waited == settings.sasrec_patience:
            break
    if best_weights:
        model.load_state_dict(best_weights)


def train_step(model: SASRec, optimizer: torch.optim.Optimizer, rows: Sequence[Sequence[int]]) -> float:
    """One optimiser step on windows of items; every item after a window's first is a target. Returns the loss."""
    model.train()
    items, targets = batch(rows, model.bias.device)                                       # (B, T), (B, T)
    known = targets != IGNORED
    loss = F.cross_entropy(model.logits(model.hidden(items)[known]), targets[known])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def windows(sequences: Sequence[Sequence[int]], max_history: int, rng: np.random.Generator) -> list[Sequence[int]]:
    """Cut every sequence into windows of at most ``max_history + 1`` items, in random order.

    Neighbours share one item, so each item but a sequence's first is a target exactly once. The first cut of a sequence
    that is too long for one window is random.

        >>> sorted(windows([[1, 2, 3, 4, 5]], 4, np.random.default_rng(0)))
        [[1, 2, 3, 4, 5]]
        >>> sorted(windows([[1, 2, 3, 4, 5]], 2, np.random.default_rng(0)))
        [[1, 2, 3], [3, 4, 5]]
    """
    cut = []
    for sequence in sequences:
        first = max_history if len(sequence) <= max_history + 1 else int(rng.integers(1, max_history + 1))
        ends = range(first, len(sequence) - 1 + max_history, max_history)
        cut += [sequence[max(0, end - max_history) : end + 1] for end in ends]
    return [cut[i] for i in rng.permutation(len(cut)) if len(cut[i]) > 1]


def batch(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs ``(B, T)`` and next items ``(B, T)`` of windows, padded on the right (inputs 0, targets ``IGNORED``)."""
    longest = max(len(row) for row in rows) - 1
    items, targets = np.zeros((len(rows), longest), dtype=np.int64), np.full((len(rows), longest), IGNORED)
    for place, row in enumerate(rows):
        items[place, : len(row) - 1], targets[place, : len(row) - 1] = row[:-1], row[1:]
    return torch.from_numpy(items).to(device), torch.from_numpy(targets).to(device)


@torch.no_grad()
def score(model: SASRec, histories: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of the next item, ``(B, N)`` float32 on the model's device.

    Args:
        model: as trained; evaluated without dropout, whatever mode it is in.
        histories: item indexes, oldest first, at least one; only the latest ``max_history`` are read.
    """
    was_training = model.training
    model.eval()
    recent = [list(history[-model.config["max_history"] :]) for history in histories]
    items = torch.zeros((len(recent), max(map(len, recent))), dtype=torch.long)
    for row, history in enumerate(recent):
        items[row, : len(history)] = torch.tensor(history)
    last = torch.tensor([len(history) - 1 for history in recent])
    hidden = model.hidden(items.to(model.bias.device))                                    # (B, T, D)
    scores = F.log_softmax(model.logits(hidden[torch.arange(len(recent)), last]), dim=-1)
    model.train(was_training)
    return scores


def mean_ndcg_at_10(model: SASRec, samples: Sequence[Sample], rows_at_once: int = 512) -> float:
    """NDCG@10 of the samples' targets over the full catalogue, as ``minionerec/metrics.py`` defines it."""
    total = 0.0
    for start in range(0, len(samples), rows_at_once):
        rows = samples[start : start + rows_at_once]
        scores = score(model, [sample.history for sample in rows])
        targets = torch.tensor([sample.target for sample in rows], device=scores.device)
        ranks = (scores > scores.gather(1, targets[:, None])).sum(dim=1).double()         # (B,) from 0
        total += torch.where(ranks < 10, 1.0 / torch.log2(ranks + 2.0), 0.0).sum().item()
    return total / len(samples)


def save(model: SASRec, directory: Path) -> None:
    """Write ``sasrec.safetensors`` (weights) and ``sasrec.json`` (shape)."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / "sasrec.safetensors")
    (directory / "sasrec.json").write_text(json.dumps(model.config, indent=1) + "\n")


def load(directory: Path) -> SASRec:
    """The model that ``save`` wrote, on the CPU, ready to score.

    Raises:
        UserError: the directory does not hold one.
    """
    for name in ("sasrec.json", "sasrec.safetensors"):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} not found; expected a SASRec model as baselines/run.py writes it")
    model = SASRec(**json.loads((directory / "sasrec.json").read_text()))
    model.load_state_dict(load_file(directory / "sasrec.safetensors"))
    return model.eval()
