"""Every quantiser behind one interface: fit, save, load, assign.

    quantised = fit_quantizer(embeddings, settings, seed, progress)      # codes (N, L), codebooks,
    what to store save_quantizer(folder, quantised, settings.method, sizes, width)
    load_quantizer(folder).assign(new_embeddings)                        # codes of items that were
    not there yet

On disk a quantiser is ``quantizer.safetensors`` (codebooks and weights) and ``quantizer.json``
(method, sizes, the digest of the weights): no code is ever read from a file. All methods quantise
by residuals (``quantizers.py``) and differ in how the codebooks come about and in what is
quantised: the embeddings, a network's latents (RQ-VAE, RQ-KMeans+), or rotated embeddings (OPQ,
whose codebooks are zero outside their own part of the vector).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from minionerec.errors import UserError
from minionerec.experiment.choices import QUANTIZERS
from minionerec.experiment.files import write_json
from minionerec.experiment.settings import SidSettings
from rqvae.quantizers.balanced import fit_balanced_rqkmeans
from rqvae.quantizers.fsq import add_fsq_level, grid_codes
from rqvae.quantizers.opq import fit_opq, rotate
from rqvae.quantizers.rqkmeans import Quantised, fit_random, fit_rqkmeans, nearest

WEIGHTS, FACTS = "quantizer.safetensors", "quantizer.json"
METHODS = QUANTIZERS
NETWORKS = ("rqvae", "rqkmeans_plus")


def fit_quantizer(
    embeddings: np.ndarray,
    settings: SidSettings,
    seed: int,
    progress: Path,
) -> Quantised:
    """Fit ``settings.method`` (any but ``given``) on ``(N, D)`` float32 embeddings.

    Args:
        progress: file that an interrupted training of a network continues from; the caller deletes
            it in the end.
    """
    sizes, rounds = list(settings.codebook_sizes), settings.kmeans_iterations
    if settings.last_level == "fsq":
        fit = fit_balanced_rqkmeans if settings.method == "balanced_rqkmeans" else fit_rqkmeans
        return add_fsq_level(fit(embeddings, sizes[:-1], rounds, seed), embeddings, sizes[-1])
    match settings.method:
        case "random":
            return fit_random(embeddings, sizes, seed)
        case "rqkmeans":
            return fit_rqkmeans(embeddings, sizes, rounds, seed)
        case "balanced_rqkmeans":
            return fit_balanced_rqkmeans(embeddings, sizes, rounds, seed)
        case "opq":
            return fit_opq(embeddings, sizes, rounds, seed)
        case "rqvae" | "rqkmeans_plus":
            import torch  # here, because the other methods start two seconds sooner without it

            from rqvae.quantizers.rqvae_training import fit_rqvae

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return fit_rqvae(embeddings, settings, seed, device, progress)
    raise ValueError(f"no quantiser is fitted for sids.method {settings.method}")


def save_quantizer(
    folder: Path,
    quantised: Quantised,
    method: str,
    sizes: list[int],
    width: int,
) -> None:
    """Write ``quantizer.safetensors`` and ``quantizer.json``; ``width`` is D of the embeddings."""
    weights = save(quantised.tensors)
    (folder / WEIGHTS).write_bytes(weights)
    write_json(
        folder / FACTS,
        {
            "method": method,
            "codebook_sizes": sizes,
            "embedding_width": width,
            "codebook_width": int(quantised.codebooks[0].shape[1]),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            **quantised.facts,
        },
    )


# ------------------------------------------------------------------------------------------------
# Assigning


@dataclass(frozen=True)
class Quantizer:
    """A fitted quantiser, read from disk.

    Attributes:
        method: the ``sids.method`` that made it.
        sizes: K per level.
        width: D, of the embeddings that it takes.
        codebooks: per level ``(K, W)``.
        tensors: all that is stored.
        encode: ``(N, D)`` embeddings to the ``(N, W)`` vectors that the codebooks quantise.
    """

    method: str
    sizes: list[int]
    width: int
    codebooks: list[np.ndarray]
    tensors: dict[str, np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]

    def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """``(N, L)`` int64 codes of ``(N, D)`` embeddings.

        Collisions are left to ``assign.nearest_free``.
        """
        return self.quantise(embeddings).codes

    def quantise(self, embeddings: np.ndarray) -> Quantised:
        """As ``assign``, with the vectors and codebooks that the collision step needs.

        ``errors`` is left empty.

        Raises:
            UserError: the embeddings are not ``(N, D)`` finite numbers.
        """
        if (
            embeddings.ndim != 2
            or embeddings.shape[1] != self.width
            or not np.isfinite(embeddings).all()
        ):
            raise UserError(
                f"embeddings: shape {embeddings.shape}, expected finite numbers (N, {self.width}) "
                f"from the encoder that this {self.method} quantiser was fitted with"
            )
        points = self.encode(embeddings.astype(np.float32, copy=False))
        residual, codes = points.copy(), np.empty((len(points), len(self.sizes)), np.int64)
        for level, codebook in enumerate(self.codebooks):
            on_grid = "fsq.cells" in self.tensors and level == len(self.sizes) - 1
            codes[:, level] = (
                grid_codes(residual, self.tensors)
                if on_grid
                else nearest(residual, codebook, self.tensors.get(f"price.{level}"))
            )
            residual -= codebook[codes[:, level]]
        return Quantised(codes, self.codebooks, points, [], self.tensors)


def load_quantizer(folder: Path) -> Quantizer:
    """Read what ``save_quantizer`` wrote.

    Raises:
        UserError: a file is missing, damaged, or not a quantiser of this project.
    """
    facts, weights = read_facts(folder / FACTS), _read(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != facts["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS}: is damaged or of another quantiser (its sha256 is not the one "
            f"in {FACTS}); delete {folder} and run `bash rqvae/rqvae.sh` again"
        )
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS}: is not a safetensors file ({error}); delete {folder} and run "
            "`bash rqvae/rqvae.sh` again"
        ) from None
    sizes = facts["codebook_sizes"]
    codebooks = [
        named(tensors, f"codebook.{level}", (size, facts["codebook_width"]))
        for level, size in enumerate(sizes)
    ]
    return Quantizer(
        facts["method"],
        sizes,
        facts["embedding_width"],
        codebooks,
        tensors,
        encoder_of(facts, tensors),
    )


def named(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name.

    Raises:
        UserError: there is none, it has another shape, or not all its numbers are finite.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape or not np.isfinite(tensor).all():
        found = "nothing" if tensor is None else f"shape {tensor.shape}"
        raise UserError(
            f"{WEIGHTS}: {name}: got {found}, expected finite numbers of shape {shape} as {FACTS} "
            "says; run `bash rqvae/rqvae.sh` again"
        )
    return tensor


def encoder_of(facts: dict, tensors: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """From embeddings to what the codebooks quantise, by the stored method."""
    if facts["method"] in NETWORKS:
        from rqvae.quantizers.rqvae import stored_encoder

        return stored_encoder(facts, tensors)
    if facts["method"] == "opq":
        mean, rotation = (
            named(tensors, name, shape)
            for name, shape in (
                ("mean", (facts["embedding_width"],)),
                ("rotation", (facts["codebook_width"], facts["embedding_width"])),
            )
        )
        return lambda embeddings: rotate(embeddings, mean, rotation)
    return np.copy


def read_facts(path: Path) -> dict:
    """``quantizer.json``.

    Raises:
        UserError: it is missing, damaged, or says something else than a quantiser's facts.
    """
    expected = {
        "method": str,
        "codebook_sizes": list,
        "embedding_width": int,
        "codebook_width": int,
        "weights_sha256": str,
    }
    try:
        facts = json.loads(_read(path))
        wrong = [key for key, kind in expected.items() if type(facts[key]) is not kind]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not a quantiser's facts ({type(error).__name__}: {error}); delete "
            f"{path.parent} and run `bash rqvae/rqvae.sh` again"
        ) from None
    if not wrong and facts["method"] not in METHODS:
        raise UserError(
            f"{path}: method is {facts['method']!r}, expected one of {', '.join(METHODS)}; delete "
            f"{path.parent} and run `bash rqvae/rqvae.sh` again"
        )
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]} is {facts[wrong[0]]!r}, expected {expected[wrong[0]].__name__}; "
            f"delete {path.parent} and run `bash rqvae/rqvae.sh` again"
        )
    return facts


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run `bash rqvae/rqvae.sh` with the same "
            "--config first"
        ) from None
