"""Training of the RQ-VAE and of RQ-KMeans+ (the network and its loss are in ``rqvae.py``).

The items stay on the device as one tensor and a step neither copies nor waits for the device; of
all epochs the one with the least reconstruction error plus collision rate is kept. An interrupted
training continues to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import one_hot

from minionerec.errors import UserError
from minionerec.experiment.files import fsync
from minionerec.experiment.progress import Progress
from minionerec.experiment.settings import SidSettings
from rqvae.quantizers.balanced import fit_balanced_rqkmeans
from rqvae.quantizers.collisions import colliding
from rqvae.quantizers.rqkmeans import Quantised, kmeans, nearest, sample
from rqvae.quantizers.rqvae import RQVAE, measure, quantise_items

WEIGHT_DECAY = 1e-4  # the reference's rqvae.py
EVALUATIONS = 20  # over the whole training, each a possible best epoch


def fit_rqvae(
    embeddings: np.ndarray,
    settings: SidSettings,
    seed: int,
    device: torch.device,
    progress: Path,
) -> Quantised:
    """Train an RQ-VAE and quantise every item with its best epoch.

    Args:
        embeddings: (N, D) float32.
        settings: the YAML's ``sids`` section.
        seed: of weights, initial codebooks, batches and restarts.
        device: where everything happens; bits repeat on a CPU with the same number of threads.
        progress: file that an interrupted training continues from; the caller deletes it when the
            SIDs are committed.
    """
    torch.manual_seed(seed)
    if device.type == "cuda":
        # TF32 while training; the final codes are float32's
        torch.set_float32_matmul_precision("high")
    mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = np.square(embeddings - mean).mean(dtype=np.float64)
    scale = np.sqrt(variance).astype(np.float32)
    x = torch.from_numpy((embeddings - mean) / scale).to(device)  # (N, D)
    model = build_model(x.shape[1], settings).to(device)
    run = Run(model, x, settings, seed)
    told = fingerprint(embeddings, settings, seed)
    if not run.resume(progress, told):
        if settings.method == "rqvae":
            start_at_principal_components(model, x, seed)
        initialise_codebooks(model, x, settings, seed)
        run.forget()
    every = max(1, settings.epochs // EVALUATIONS)
    with Progress("RQ-VAE", settings.epochs, "epochs", done=run.epoch) as bar:
        while run.epoch < settings.epochs:
            loss = run.train_epoch()
            bar.update(loss=f"{loss:.4f}")
            if run.epoch % every == 0 or run.epoch == settings.epochs:
                run.evaluate(loss)
                run.save(progress, told)
    model.load_state_dict(run.best)
    scaling = {"mean": mean, "scale": scale.reshape(1)}
    return quantise_items(model, x, embeddings, scaling, run.log)


def build_model(width: int, settings: SidSettings) -> RQVAE:
    """The network of ``settings.method`` for embeddings of this width, with fresh weights."""
    residual = settings.method == "rqkmeans_plus"
    return RQVAE(
        width,
        settings.hidden_sizes,
        width if residual else settings.latent_size,
        settings.codebook_sizes,
        settings.beta,
        residual,
        settings.gradient == "rotation",
        settings.sinkhorn_epsilon,
    )


class Run:
    """The state of a training.

    Everything that an interrupted one needs to continue with the same bits.

    Attributes:
        epoch: finished epochs.
        idle: per level (K,), steps since a code was last chosen.
        count, total: per level (K,) and (K, W), moving averages of how many items chose a code and
            of their sum.
        best: weights of the best evaluation so far.
        log: a row per evaluation.
    """

    def __init__(
        self,
        model: RQVAE,
        x: Tensor,
        settings: SidSettings,
        seed: int,
    ) -> None:
        self.model = model
        self.x = x
        self.settings = settings
        self.seed = seed
        model.codebooks.requires_grad_(settings.ema_decay == 0)
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(
            learnt, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.epoch = 0
        self.best: dict[str, Tensor] = {}
        self.log: list[dict[str, Any]] = []
        self.forget()

    def forget(self) -> None:
        """Start the codes' own statistics from the present codebooks.

        Every code was just chosen, by one item.
        """
        device = self.x.device
        self.idle = []
        self.count = []
        self.total = []
        for codebook in self.model.codebooks:
            self.idle.append(torch.zeros(len(codebook), dtype=torch.long, device=device))
            self.count.append(torch.ones(len(codebook), device=device))
            self.total.append(codebook.detach().clone())

    def generator(self) -> torch.Generator:
        """The randomness of the present epoch: batches and restarts."""
        seed = (self.seed * 1_000_003 + self.epoch) % 2**63
        return torch.Generator(self.x.device).manual_seed(seed)

    def batches(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Item numbers of every batch of an epoch."""
        order = torch.randperm(len(self.x), generator=generator, device=self.x.device)
        return order.split(self.settings.batch_size)

    def train_epoch(self) -> float:
        """One pass in an order that seed and epoch decide; returns the mean loss of its steps.

        Raises:
            UserError: the loss is no longer finite.
        """
        generator = self.generator()
        batches = self.batches(generator)
        losses = []
        for i, batch in enumerate(batches):
            done = self.epoch * len(batches) + i + 0.5
            share = done / (self.settings.epochs * len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * learning_rate_factor(share)
            loss, _, codes, residuals = self.model(self.x[batch])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            if self.settings.ema_decay:
                self.average_codes(codes, residuals)
            if self.settings.dead_code_steps:
                self.restart_dead_codes(codes, residuals, generator)
            losses.append(loss.detach())
        self.epoch += 1
        mean = float(torch.stack(losses).mean())  # the only wait for the device in an epoch
        if not math.isfinite(mean):
            raise UserError(
                f"rqvae: the loss became {mean} in epoch {self.epoch}; lower sids.learning_rate "
                f"(now {self.settings.learning_rate}) and run again"
            )
        return mean

    @torch.no_grad()
    def average_codes(self, codes: Tensor, residuals: Tensor) -> None:
        """Codes as moving averages of the residuals that chose them.

        Appendix A.1 of VQ-VAE, arXiv:1711.00937.

        ``N <- d N + (1 - d) n``, ``M <- d M + (1 - d) sum r``, ``E = M / N``; a code that nobody
        chooses stays where it is.
        """
        decay = self.settings.ema_decay
        for level, codebook in enumerate(self.model.codebooks):
            chosen = one_hot(codes[:, level], len(codebook)).to(residuals.dtype)  # (B, K)
            self.count[level].lerp_(chosen.sum(0), 1 - decay)
            self.total[level].lerp_(chosen.T @ residuals[level], 1 - decay)
            share = self.count[level].clamp_min(1e-12)[:, None]  # (K, 1)
            codebook.copy_(self.total[level] / share)

    @torch.no_grad()
    def restart_dead_codes(
        self, codes: Tensor, residuals: Tensor, generator: torch.Generator
    ) -> None:
        """Put codes that were idle for ``dead_code_steps`` steps on random residuals."""
        for level, codebook in enumerate(self.model.codebooks):
            self.idle[level] += 1
            self.idle[level][codes[:, level]] = 0
            dead = self.idle[level] >= self.settings.dead_code_steps  # (K,)
            shape = (len(codebook),)
            rows = torch.randint(len(codes), shape, generator=generator, device=codes.device)
            fresh = residuals[level][rows]  # (K, W)
            codebook.copy_(torch.where(dead[:, None], fresh, codebook))
            self.count[level].masked_fill_(dead, 1)
            total = self.total[level]
            total.copy_(torch.where(dead[:, None], codebook, total))
            if codebook.requires_grad:
                for moment in ("exp_avg", "exp_avg_sq"):  # of the code that was there before
                    self.optimiser.state[codebook][moment].masked_fill_(dead[:, None], 0)
            self.idle[level].masked_fill_(dead, 0)

    def evaluate(self, loss: float) -> None:
        """Measure all items, log, and keep the weights if they are the best so far.

        The best have the least sum of reconstruction error and collision rate.
        """
        codes, error = measure(self.model, self.x)
        row = {
            "epoch": self.epoch,
            "loss": loss,
            "reconstruction_error": error,
            "collision_rate": float(colliding(codes).mean()),
            "codes_used": [len(np.unique(column)) for column in codes.T],
        }
        scores = [r["reconstruction_error"] + r["collision_rate"] for r in [*self.log, row]]
        if scores[-1] < min(scores[:-1], default=math.inf):
            self.best = {}
            for name, value in self.model.state_dict().items():
                self.best[name] = value.detach().cpu().clone()
        self.log.append(row)

    def save(self, path: Path, told: str) -> None:
        """Replace the progress file by the present state; it is whole whenever it has its name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, values in (("idle", self.idle), ("count", self.count), ("total", self.total)):
            tensors |= {f"{name}.{level}": value for level, value in enumerate(values)}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"made_from": told, "epoch": str(self.epoch), "log": json.dumps(self.log)}
        beside.write_bytes(save(on_host, metadata=metadata))
        fsync(beside)
        os.replace(beside, path)

    def resume(self, path: Path, told: str) -> bool:
        """Continue from a progress file of the same embeddings, settings and seed."""
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata()
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise UserError(
                f"{path}: is damaged ({error}); delete it to start the training afresh"
            ) from error
        if metadata["made_from"] != told:
            print(
                f"{path}: is of a training with other embeddings, settings or seed; starting afresh"
            )
            return False

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(part("model."))
        self.best = part("best.")
        self.epoch = int(metadata["epoch"])
        self.log = json.loads(metadata["log"])
        for level in range(len(self.idle)):
            self.idle[level] = tensors[f"idle.{level}"].to(self.x.device)
            self.count[level] = tensors[f"count.{level}"].to(self.x.device)
            self.total[level] = tensors[f"total.{level}"].to(self.x.device)
        groups = self.optimiser.state_dict()["param_groups"]
        state = {number: part(f"adam.{number}.") for number in groups[0]["params"]}
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        print(f"{path}: training continues after epoch {self.epoch}")
        return True


def fingerprint(embeddings: np.ndarray, settings: SidSettings, seed: int) -> str:
    """What a progress file must agree on to be continued."""
    facts = [settings.model_dump(), seed, embeddings.shape]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(np.ascontiguousarray(embeddings).data)
    return digest.hexdigest()


def learning_rate_factor(share: float) -> float:
    """Linear warm-up over the first 5 % of the steps, then a half cosine down to 0.

    ``share`` of the steps is done.
    """
    if share < 0.05:
        return min(share / 0.05, 1.0)
    return 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))


@torch.no_grad()
def start_at_principal_components(model: RQVAE, x: Tensor, seed: int) -> None:
    """Let the first P latent numbers be principal components, the decoder their inverse.

    Through all ReLUs.

    A number a passes ReLUs as the pair ``relu(a), relu(-a)``, so P is at most W and half the
    narrowest layer. Component i goes through units 2i and 2i+1 of every layer, the other units keep
    their random weights and are not read yet by the last layer. The scale ``sqrt(W / D)`` gives
    latents the mean square that they explain, as the embeddings have 1, which keeps quantisation
    and reconstruction loss in balance.
    """
    encoder = model.encoder[::2]  # the linear layers
    decoder = model.decoder[::2]
    latent = encoder[-1].out_features
    width = x.shape[1]
    narrowest = min((layer.out_features // 2 for layer in encoder[:-1]), default=latent)
    count = min(latent, narrowest, *x.shape)
    rows = torch.from_numpy(sample(np.arange(len(x)), latent, seed)).to(x.device)
    some = x[rows]
    rank = min(count + 10, *some.shape)  # 10 more for accuracy
    _, _, components = torch.svd_lowrank(some, q=rank, niter=4)
    axes = components.T[:count]  # (P, D)
    scale = math.sqrt(latent / width)
    signs = torch.tensor([[1.0], [-1.0]], device=x.device)
    pairs = torch.kron(torch.eye(count, device=x.device), signs)  # (2P, P)
    encoder[0].weight[: 2 * count] = pairs @ axes * scale
    for layer in (*encoder[1:-1], *decoder[1:-1]):
        layer.weight[: 2 * count] = torch.eye(2 * count, layer.in_features, device=x.device)
    encoder[-1].weight.zero_()[:count, : 2 * count] = pairs.T
    decoder[0].weight[: 2 * count] = torch.nn.functional.pad(pairs, (0, latent - count))
    decoder[-1].weight.zero_()[:, : 2 * count] = (pairs @ axes / scale).T


@torch.no_grad()
def initialise_codebooks(
    model: RQVAE,
    x: Tensor,
    settings: SidSettings,
    seed: int,
) -> None:
    """First codebooks, level by level: centroids of what the untrained encoder makes of items.

    RQ-KMeans+ starts from balanced residual k-means, which is what its untrained encoder, the
    identity, is best quantised by. ``sids.kmeans_init: false`` is the reference's start: uniform
    numbers in -1/K .. 1/K.
    """
    if not settings.kmeans_init:
        for codebook in model.codebooks:
            codebook.uniform_(-1 / len(codebook), 1 / len(codebook))
        return
    rows = sample(np.arange(len(x)), max(map(len, model.codebooks)), seed)
    residual = model.encoder(x[torch.from_numpy(rows).to(x.device)]).cpu().numpy()
    if settings.method == "rqkmeans_plus":
        sizes = [len(codebook) for codebook in model.codebooks]
        fitted = fit_balanced_rqkmeans(residual, sizes, settings.kmeans_iterations, seed)
        for codebook, start in zip(model.codebooks, fitted.codebooks, strict=True):
            codebook.copy_(torch.from_numpy(start))
        return
    for level, codebook in enumerate(model.codebooks):
        centroids = kmeans(residual, len(codebook), settings.kmeans_iterations, seed + level)
        codebook.copy_(torch.from_numpy(centroids))
        residual = residual - centroids[nearest(residual, centroids)]
