"""RQ-VAE: an autoencoder whose latent is a sum of one code vector per level.

Section 3.2 of the MiniOneRec report, arXiv:2510.24431; TIGER, arXiv:2305.05065, section 3.1; Lee et
al., arXiv:2203.01941.

    z = encoder(x);  r_1 = z;  k_l = argmin_k ||r_l - E_l[k]||^2;  q_l = E_l[k_l]
    r_{l+1} = r_l - sg(q_l)
    loss = MSE(decoder(z + sg(sum_l q_l - z)), x)
           + mean_l[ MSE(q_l, sg r_l) + beta MSE(r_l, sg q_l) ]

RQ-KMeans+ is the same with encoder and decoder ``x + mlp(x)``, zero at first, in the width of the
embeddings, and with codebooks that start from balanced residual k-means: training begins at its
reconstruction and improves on it (GPR, arXiv:2511.10138, section on RQ-Kmeans+; there the decoder
is a plain one).

Departures from the reference code (MiniOneRec, which has it from LC-Rec): 1. The residual is taken
with the quantised vector *detached*. There it is taken with the straight-through value
   ``r + sg(q - r)``, so that r_{l+1} = r_l - r_l - const has exactly zero gradient and the
   commitment of levels 2, 3, ... never reaches the encoder. Straight-through is used where it
   belongs, on the way to the decoder.
2. Embeddings are centred and divided by one number, so that their mean square is 1: the balance of
reconstruction and
   commitment then does not depend on the scale of the encoder's embeddings, and MSE(x_hat, x) is
   the share of variance lost.
3. The network starts as principal component analysis instead of at random weights, and the
codebooks at k-means on that:
   the paper's eleven ReLUs from 2560 to 32 and back otherwise take hundreds of epochs to learn as
   much.
4. Training is in ``training.py``: dead codes restart, the best epoch is kept, nothing waits for the
device.

Shapes: B items of a batch, D embedding width, W latent width, L levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from minionerec.errors import UserError
from rqvae.quantizers.rqkmeans import Quantised, fit_levels, nearest

ENCODE_ROWS = 8192  # items per forward without gradients
SINKHORN_ROUNDS = 50  # the reference's


class RQVAE(nn.Module):
    """Encoder, one codebook per level, decoder.

    Args:
        width: D.
        hidden_sizes: encoder widths between D and the latent; the decoder has them in reverse.
        latent_size: W.
        codebook_sizes: K per level.
        beta: weight of the commitment term.
        residual: encoder and decoder are ``x + mlp(x)`` (W must be D), at first the identity
            (RQ-KMeans+).
        rotation: the decoder's gradient reaches z through the rotation trick instead of unchanged.
        sinkhorn_epsilon: 0, or the entropy of the balanced assignment of training batches.
    """

    def __init__(
        self,
        width: int,
        hidden_sizes: list[int],
        latent_size: int,
        codebook_sizes: list[int],
        beta: float,
        residual: bool = False,
        rotation: bool = False,
        sinkhorn_epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [width, *hidden_sizes, latent_size]
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])
        if residual:
            self.encoder, self.decoder = Residual(self.encoder), Residual(self.decoder)
        self.rotation, self.sinkhorn_epsilon = rotation, sinkhorn_epsilon
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.zeros(size, latent_size)) for size in codebook_sizes
        )
        self.beta = beta

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One batch.

        Args:
            x: (B, D).

        Returns:
            The loss and its reconstruction part, the codes (B, L), and what each level had to
            quantise (L, B, W).
        """
        z = self.encoder(x)  # (B, W)
        codes, quantised, residuals, quantisation_loss = self.quantise(z, self.sinkhorn_epsilon)
        carried = z + (quantised - z).detach()
        if self.rotation:
            carried = rotated(z, quantised)
        reconstruction_loss = mse_loss(self.decoder(carried), x)
        return reconstruction_loss + quantisation_loss, reconstruction_loss, codes, residuals

    def quantise(
        self, z: Tensor, sinkhorn_epsilon: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual quantisation of latents (B, W).

        Codes (B, L), sum of codes (B, W), residuals (L, B, W), loss.

        With ``sinkhorn_epsilon`` the batch is spread evenly over the codes of every level;
        otherwise the nearest code.
        """
        residual = z
        total = torch.zeros_like(z)
        codes = []
        residuals = []
        losses = []
        for codebook in self.codebooks:
            distances = code_distances(residual.detach(), codebook.detach())  # (B, K)
            code = (
                balanced_codes(distances, sinkhorn_epsilon)
                if sinkhorn_epsilon
                else distances.argmin(1)
            )
            q = codebook[code]  # (B, W)
            losses.append(
                mse_loss(q, residual.detach()) + self.beta * mse_loss(residual, q.detach())
            )
            codes.append(code)
            residuals.append(residual.detach())
            residual, total = residual - q.detach(), total + q
        return torch.stack(codes, 1), total, torch.stack(residuals), torch.stack(losses).mean()


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, initialised as in the reference code.

    Xavier-normal weights and zero biases.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [nn.ReLU(), linear] if i else [linear]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """``x + mlp(x)`` with the mlp's last layer at zero.

    The identity, until training finds something better.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        nn.init.zeros_(layers[-1].weight)
        self.mlp = layers

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return x + self.mlp(x)


def code_distances(residual: Tensor, codebook: Tensor) -> Tensor:
    """(B, K) squared distances less ``||r||^2``, which is the same for all codes of a row."""
    return torch.addmm((codebook**2).sum(1), residual, codebook.T, alpha=-2)


def rotated(z: Tensor, quantised: Tensor) -> Tensor:
    """``quantised`` as a function of z.

    Z turned and stretched onto it (rotation trick, arXiv:2410.06424, section 4).

    ``lambda R z``, where R = I - 2 r r^T + 2 q^ z^^T turns z^ = z / ||z|| into q^ = q / ||q||, r =
    (z^ + q^) / ||z^ + q^||, and lambda = ||q|| / ||z||; R and lambda are constants of the backward
    pass, so the gradient is turned along with the vector. The paper quantises once; here z and the
    sum of its codes of all levels are turned as one, at the place of straight-through.
    """
    with torch.no_grad():
        start, end = normalize(z, dim=1), normalize(quantised, dim=1)
        between = normalize(start + end, dim=1)
        length = z.norm(dim=1, keepdim=True).clamp_min(1e-12)
        stretch = quantised.norm(dim=1, keepdim=True) / length
    turned = (
        z
        - 2 * (z * between).sum(1, keepdim=True) * between
        + 2 * (z * start).sum(1, keepdim=True) * end
    )
    return stretch * turned


def balanced_codes(distances: Tensor, epsilon: float) -> Tensor:
    """(B,) codes of a batch spread evenly over the codes.

    The largest entry of each row of the transport plan.

    The plan has rows 1/B, columns 1/K and the form diag(u) exp(-d / epsilon) diag(v), found by
    Sinkhorn's alternating scaling (SwAV, arXiv:2006.09882, section 3.1; ``sinkhorn_algorithm`` of
    the reference, which also scales distances to -1..1 first).

    Args:
        distances: (B, K), up to a constant per row.
    """
    distances = distances.double()
    distances = (
        (distances - distances.amin(1, keepdim=True))
        / (distances.amax() - distances.amin()).clamp_min(1e-12)
        * 2
    )
    kernel = torch.exp(-distances / epsilon).clamp_min(1e-300)  # (B, K)
    u = torch.full((len(kernel),), 1 / len(kernel), dtype=kernel.dtype, device=kernel.device)
    for _ in range(SINKHORN_ROUNDS):
        v = 1 / (kernel.shape[1] * (u @ kernel))
        u = 1 / (len(kernel) * (kernel @ v))
    return (kernel * v).argmax(1)


# ------------------------------------------------------------------------------------------------
# Quantising all items


@torch.no_grad()
def measure(model: RQVAE, x: Tensor) -> tuple[np.ndarray, float]:
    """Codes (N, L) of all items, and the share of their variance that the reconstruction loses."""
    codes = []
    lost = torch.zeros((), dtype=torch.float64, device=x.device)
    for block in x.split(ENCODE_ROWS):
        code, quantised, _, _ = model.quantise(model.encoder(block))
        codes.append(code)
        lost += (model.decoder(quantised) - block).square().sum(dtype=torch.float64)
    return torch.cat(codes).cpu().numpy(), float(lost) / x.numel()


@torch.no_grad()
def quantise_items(
    model: RQVAE,
    x: Tensor,
    embeddings: np.ndarray,
    scaling: dict[str, np.ndarray],
    log: list[dict],
) -> Quantised:
    """Latents, codes and reconstruction errors of all items.

    Equal embeddings get equal latents to the bit.
    """
    latents = encode_items(model, x, embeddings)
    fitted = fit_levels(
        latents,
        [len(codebook) for codebook in model.codebooks],
        lambda residual, _, level: codes_of(residual, model.codebooks[level]),
    )
    errors, total = [], torch.zeros(latents.shape)
    for level, codebook in enumerate(fitted.codebooks):
        total += torch.from_numpy(codebook[fitted.codes[:, level]])
        lost = sum(
            float((model.decoder(block.to(x.device)) - target).square().sum(dtype=torch.float64))
            for block, target in zip(total.split(ENCODE_ROWS), x.split(ENCODE_ROWS), strict=True)
        )
        errors.append(lost / x.numel())
    weights = {
        name.replace("codebooks.", "codebook."): value.cpu().numpy()
        for name, value in model.state_dict().items()
    }
    layers = model.encoder.mlp if isinstance(model.encoder, Residual) else model.encoder
    facts = {
        "hidden_sizes": [layer.out_features for layer in layers[:-1:2]],
        "latent_size": latents.shape[1],
    }
    return Quantised(
        fitted.codes, fitted.codebooks, latents, errors, {**weights, **scaling}, log, facts
    )


@torch.no_grad()
def encode_items(model: RQVAE, x: Tensor, embeddings: np.ndarray) -> np.ndarray:
    """Latents (N, W) of the scaled items ``x``.

    Equal ``embeddings`` get equal latents to the bit.
    """
    _, first, kind = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    distinct = x[torch.from_numpy(first).to(x.device)]
    return torch.cat([model.encoder(block).cpu() for block in distinct.split(ENCODE_ROWS)]).numpy()[
        kind
    ]


def stored_encoder(
    facts: dict, tensors: dict[str, np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Embeddings (N, D) to latents (N, W) by the weights of ``quantizer.safetensors``, on the CPU.

    Raises:
        UserError: the weights are not those of the network that ``facts`` describes.
    """
    weights = {
        name.replace("codebook.", "codebooks."): torch.from_numpy(value)
        for name, value in tensors.items()
    }
    try:
        mean, scale = weights.pop("mean"), weights.pop("scale")
        model = RQVAE(
            facts["embedding_width"],
            facts["hidden_sizes"],
            facts["latent_size"],
            facts["codebook_sizes"],
            beta=0.0,
            residual=facts["method"] == "rqkmeans_plus",
        )
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            "quantizer.safetensors: its weights do not fit the network of quantizer.json "
            f"({str(error).splitlines()[0]}); run `bash rqvae/rqvae.sh` again"
        ) from None
    return lambda embeddings: encode_items(
        model, (torch.from_numpy(embeddings) - mean) / scale, embeddings
    )


def codes_of(residual: np.ndarray, codebook: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``(N,)`` nearest codes and the codebook itself, as ``fit_levels`` wants them."""
    centroids = codebook.detach().cpu().numpy()
    return nearest(residual, centroids), centroids
