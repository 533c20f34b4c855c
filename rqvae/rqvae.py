"""RQ-VAE: an autoencoder whose latent is a sum of one code vector per level (section 3.2 of the MiniOneRec report,
arXiv:2510.24431; TIGER, arXiv:2305.05065, section 3.1; Lee et al., arXiv:2203.01941).

    z = encoder(x);  r_1 = z;  k_l = argmin_k ||r_l - E_l[k]||^2;  q_l = E_l[k_l];  r_{l+1} = r_l - sg(q_l)
    loss = MSE(decoder(z + sg(sum_l q_l - z)), x) + mean_l[ MSE(q_l, sg r_l) + beta MSE(r_l, sg q_l) ]

Departures from the reference code (MiniOneRec, which has it from LC-Rec):
1. The residual is taken with the quantised vector *detached*. There it is taken with the straight-through value
   ``r + sg(q - r)``, so that r_{l+1} = r_l - r_l - const has exactly zero gradient and the commitment of levels 2, 3, ...
   never reaches the encoder. Straight-through is used where it belongs, on the way to the decoder.
2. Embeddings are centred and divided by one number, so that their mean square is 1: the balance of reconstruction and
   commitment then does not depend on the scale of the encoder's embeddings, and MSE(x_hat, x) is the share of variance lost.
3. A code that no item chose for ``sids.dead_code_steps`` steps restarts at a random residual of the batch.
4. The epoch kept is the best by reconstruction error plus collision rate over all items, not the last.
5. The items stay on the device as one tensor; a step neither copies nor waits for the device.

Shapes: B items of a batch, D embedding width, W latent width, L levels, K codes of a level.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from minionerec.artifacts import fsync
from minionerec.config import UserError
from minionerec.settings import SidSettings
from rqvae.assign import colliding
from rqvae.quantizers import Quantised, fit_levels, kmeans, nearest, sample

WEIGHT_DECAY = 1e-4            # the reference's rqvae.py
EVALUATIONS = 20               # over the whole training, each a possible best epoch
ENCODE_ROWS = 8192             # items per forward without gradients


class RQVAE(nn.Module):
    """Encoder, one codebook per level, decoder.

    Args:
        width: D.
        hidden_sizes: encoder widths between D and the latent; the decoder has them in reverse.
        latent_size: W.
        codebook_sizes: K per level.
        beta: weight of the commitment term.
    """

    def __init__(self, width: int, hidden_sizes: list[int], latent_size: int, codebook_sizes: list[int], beta: float) -> None:
        super().__init__()
        widths = [width, *hidden_sizes, latent_size]
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(size, latent_size)) for size in codebook_sizes)
        self.beta = beta

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One batch.

        Args:
            x: (B, D).

        Returns:
            The loss and its reconstruction part, the codes (B, L), and what each level had to quantise (L, B, W).
        """
        z = self.encoder(x)                                                         # (B, W)
        codes, quantised, residuals, quantisation_loss = self.quantise(z)
        reconstruction_loss = mse_loss(self.decoder(z + (quantised - z).detach()), x)
        return reconstruction_loss + quantisation_loss, reconstruction_loss, codes, residuals

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual quantisation of latents (B, W): codes (B, L), sum of codes (B, W), residuals (L, B, W), loss."""
        residual, total, codes, residuals, losses = z, torch.zeros_like(z), [], [], []
        for codebook in self.codebooks:
            code = nearest_code(residual.detach(), codebook.detach())               # (B,)
            q = codebook[code]                                                      # (B, W)
            losses.append(mse_loss(q, residual.detach()) + self.beta * mse_loss(residual, q.detach()))
            codes.append(code)
            residuals.append(residual.detach())
            residual, total = residual - q.detach(), total + q
        return torch.stack(codes, 1), total, torch.stack(residuals), torch.stack(losses).mean()


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, Xavier-normal weights and zero biases as in the reference code."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [nn.ReLU(), linear] if i else [linear]
    return nn.Sequential(*layers)


def nearest_code(residual: Tensor, codebook: Tensor) -> Tensor:
    """(B,) nearest code of each row; ``||r||^2`` is the same for all codes and left out."""
    return torch.addmm((codebook**2).sum(1), residual, codebook.T, alpha=-2).argmin(1)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def fit_rqvae(embeddings: np.ndarray, settings: SidSettings, seed: int, device: torch.device, progress: Path) -> Quantised:
    """Train an RQ-VAE and quantise every item with its best epoch.

    Args:
        embeddings: (N, D) float32.
        settings: the YAML's ``sids`` section.
        seed: of weights, initial codebooks, batches and restarts.
        device: where everything happens; bits repeat on a CPU with the same number of threads.
        progress: file that an interrupted training continues from; the caller deletes it when the SIDs are committed.
    """
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")               # TF32 while training; the final codes are float32's
    mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.square(embeddings - mean).mean(dtype=np.float64)).astype(np.float32)
    x = torch.from_numpy((embeddings - mean) / scale).to(device)                    # (N, D)
    model = RQVAE(x.shape[1], settings.hidden_sizes, settings.latent_size, settings.codebook_sizes, settings.beta).to(device)
    run = Run(model, x, settings, seed)
    told = fingerprint(embeddings, settings, seed)
    if not run.resume(progress, told):
        initialise_codebooks(model, x, settings, seed)
    every = max(1, settings.epochs // EVALUATIONS)
    with tqdm(initial=run.epoch, total=settings.epochs, unit=" epochs", desc="RQ-VAE", mininterval=1.0) as bar:
        while run.epoch < settings.epochs:
            loss = run.train_epoch()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if run.epoch % every == 0 or run.epoch == settings.epochs:
                run.evaluate(loss)
                run.save(progress, told)
    model.load_state_dict(run.best)
    return quantise_items(model, x, embeddings, {"mean": mean, "scale": scale.reshape(1)}, run.log)


class Run:
    """The state of a training: everything that an interrupted one needs to continue with the same bits.

    Attributes:
        epoch: finished epochs.
        idle: per level (K,), steps since a code was last chosen.
        best: weights of the best evaluation so far.
        log: a row per evaluation.
    """

    def __init__(self, model: RQVAE, x: Tensor, settings: SidSettings, seed: int) -> None:
        self.model, self.x, self.settings, self.seed = model, x, settings, seed
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        self.idle = [torch.zeros(len(codebook), dtype=torch.long, device=x.device) for codebook in model.codebooks]
        self.epoch, self.best, self.log = 0, {}, []

    def generator(self) -> torch.Generator:
        """The randomness of the present epoch: batches and restarts."""
        return torch.Generator(self.x.device).manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)

    def batches(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Item numbers of every batch of an epoch."""
        return torch.randperm(len(self.x), generator=generator, device=self.x.device).split(self.settings.batch_size)

    def train_epoch(self) -> float:
        """One pass in an order that seed and epoch decide; returns the mean loss of its steps.

        Raises:
            UserError: the loss is no longer finite.
        """
        generator = self.generator()
        batches, losses = self.batches(generator), []
        for i, batch in enumerate(batches):
            share = (self.epoch * len(batches) + i + 0.5) / (self.settings.epochs * len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * learning_rate_factor(share)
            loss, _, codes, residuals = self.model(self.x[batch])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.restart_dead_codes(codes, residuals, generator)
            losses.append(loss.detach())
        self.epoch += 1
        mean = float(torch.stack(losses).mean())                 # the only wait for the device in an epoch
        if not math.isfinite(mean):
            raise UserError(f"rqvae: the loss became {mean} in epoch {self.epoch}; lower sids.learning_rate "
                            f"(now {self.settings.learning_rate}) and run again")
        return mean

    @torch.no_grad()
    def restart_dead_codes(self, codes: Tensor, residuals: Tensor, generator: torch.Generator) -> None:
        """Put every code that has been idle for ``dead_code_steps`` steps on a random residual of this batch."""
        if not self.settings.dead_code_steps:
            return
        for level, codebook in enumerate(self.model.codebooks):
            self.idle[level] += 1
            self.idle[level][codes[:, level]] = 0
            dead = self.idle[level] >= self.settings.dead_code_steps                  # (K,)
            rows = torch.randint(len(codes), (len(codebook),), generator=generator, device=codes.device)
            codebook.copy_(torch.where(dead[:, None], residuals[level][rows], codebook))
            for moment in ("exp_avg", "exp_avg_sq"):                                  # of the code that was there before
                self.optimiser.state[codebook][moment].masked_fill_(dead[:, None], 0)
            self.idle[level].masked_fill_(dead, 0)

    def evaluate(self, loss: float) -> None:
        """Measure all items, log, and keep the weights if reconstruction error plus collision rate is the least so far."""
        codes, error = measure(self.model, self.x)
        row = {"epoch": self.epoch, "loss": loss, "reconstruction_error": error, "collision_rate": float(colliding(codes).mean()),
               "codes_used": [len(np.unique(column)) for column in codes.T]}
        least = min((r["reconstruction_error"] + r["collision_rate"] for r in self.log), default=math.inf)
        if row["reconstruction_error"] + row["collision_rate"] < least:
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.log.append(row)

    def save(self, path: Path, told: str) -> None:
        """Replace the progress file by the present state; it is whole whenever it has its name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"idle.{level}": value for level, value in enumerate(self.idle)}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                                metadata={"made_from": told, "epoch": str(self.epoch), "log": json.dumps(self.log)}))
        fsync(beside)
        os.replace(beside, path)

    def resume(self, path: Path, told: str) -> bool:
        """Continue from a progress file of the same embeddings, settings and seed, if there is one."""
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata()
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}     # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise UserError(f"{path}: is damaged ({error}); delete it to start the training afresh") from error
        if metadata["made_from"] != told:
            print(f"{path}: is of a training with other embeddings, settings or seed; starting afresh")
            return False

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.best, self.epoch, self.log = part("best."), int(metadata["epoch"]), json.loads(metadata["log"])
        self.idle = [tensors[f"idle.{level}"].to(self.x.device) for level in range(len(self.idle))]
        groups = self.optimiser.state_dict()["param_groups"]
        state = {number: part(f"adam.{number}.") for number in groups[0]["params"]}
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        print(f"{path}: training continues after epoch {self.epoch}")
        return True


def fingerprint(embeddings: np.ndarray, settings: SidSettings, seed: int) -> str:
    """What a progress file must agree on to be continued."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(settings), seed, embeddings.shape]).encode())
    digest.update(np.ascontiguousarray(embeddings).data)
    return digest.hexdigest()


def learning_rate_factor(share: float) -> float:
    """Linear warm-up over the first 5 % of the steps, then a half cosine down to 0; ``share`` of the steps is done."""
    return min(share / 0.05, 1.0) if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))


@torch.no_grad()
def initialise_codebooks(model: RQVAE, x: Tensor, settings: SidSettings, seed: int) -> None:
    """k-means per level on what the untrained encoder makes of the items, or of a sample of them."""
    rows = sample(np.arange(len(x)), max(map(len, model.codebooks)), seed)
    residual = model.encoder(x[torch.from_numpy(rows).to(x.device)]).cpu().numpy()
    for level, codebook in enumerate(model.codebooks):
        centroids = kmeans(residual, len(codebook), settings.kmeans_iterations, seed + level)
        codebook.copy_(torch.from_numpy(centroids))
        residual = residual - centroids[nearest(residual, centroids)]


# ---------------------------------------------------------------------------------------------------------------------
# Quantising all items


@torch.no_grad()
def measure(model: RQVAE, x: Tensor) -> tuple[np.ndarray, float]:
    """Codes (N, L) of all items, and the share of their variance that the reconstruction loses."""
    codes, lost = [], torch.zeros((), dtype=torch.float64, device=x.device)
    for block in x.split(ENCODE_ROWS):
        code, quantised, _, _ = model.quantise(model.encoder(block))
        codes.append(code)
        lost += (model.decoder(quantised) - block).square().sum(dtype=torch.float64)
    return torch.cat(codes).cpu().numpy(), float(lost) / x.numel()


@torch.no_grad()
def quantise_items(model: RQVAE, x: Tensor, embeddings: np.ndarray, scaling: dict[str, np.ndarray], log: list[dict]) -> Quantised:
    """Latents, codes and reconstruction errors of all items; equal embeddings get equal latents to the bit."""
    latents = encode_items(model, x, embeddings)
    fitted = fit_levels(latents, [len(codebook) for codebook in model.codebooks],
                        lambda residual, _, level: codes_of(residual, model.codebooks[level]))
    errors, total = [], torch.zeros(latents.shape)
    for level, codebook in enumerate(fitted.codebooks):
        total += torch.from_numpy(codebook[fitted.codes[:, level]])
        lost = sum(float((model.decoder(block.to(x.device)) - target).square().sum(dtype=torch.float64))
                   for block, target in zip(total.split(ENCODE_ROWS), x.split(ENCODE_ROWS), strict=True))
        errors.append(lost / x.numel())
    weights = {name.replace("codebooks.", "codebook."): value.cpu().numpy() for name, value in model.state_dict().items()}
    facts = {"hidden_sizes": [layer.out_features for layer in model.encoder[:-1:2]], "latent_size": latents.shape[1]}
    return Quantised(fitted.codes, fitted.codebooks, latents, errors, {**weights, **scaling}, log, facts)


@torch.no_grad()
def encode_items(model: RQVAE, x: Tensor, embeddings: np.ndarray) -> np.ndarray:
    """Latents (N, W) of the scaled items ``x``; equal ``embeddings`` get equal latents to the bit."""
    _, first, kind = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    distinct = x[torch.from_numpy(first).to(x.device)]
    return torch.cat([model.encoder(block).cpu() for block in distinct.split(ENCODE_ROWS)]).numpy()[kind]


def stored_encoder(facts: dict, tensors: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Embeddings (N, D) to latents (N, W) by the weights of ``quantizer.safetensors``, on the CPU.

    Raises:
        UserError: the weights are not those of the network that ``facts`` describes.
    """
    weights = {name.replace("codebook.", "codebooks."): torch.from_numpy(value) for name, value in tensors.items()}
    try:
        mean, scale = weights.pop("mean"), weights.pop("scale")
        model = RQVAE(facts["embedding_width"], facts["hidden_sizes"], facts["latent_size"], facts["codebook_sizes"], beta=0.0)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"quantizer.safetensors: its weights do not fit the network of quantizer.json ({str(error).splitlines()[0]}); "
                        "run `bash rqvae/rqvae.sh` again") from None
    return lambda embeddings: encode_items(model, (torch.from_numpy(embeddings) - mean) / scale, embeddings)


def codes_of(residual: np.ndarray, codebook: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``(N,)`` nearest codes and the codebook itself, as ``fit_levels`` wants them."""
    centroids = codebook.detach().cpu().numpy()
    return nearest(residual, centroids), centroids
