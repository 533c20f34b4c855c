"""Small worlds for tests: random catalogues, tiny random checkpoints of several architectures, a
word-level tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from minionerec.catalogue.split import statistics
from minionerec.experiment.commit import committed
from minionerec.experiment.files import sha256_file, write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.model.tree_attention import enable_trees

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gpt2", "gemma")
WINDOWED = {
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "attn_implementation": "eager"},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


def random_catalogue(
    seed: int, num_items: int, num_levels: int, num_codes: int, shared: float = 0.0
) -> list[tuple[int, ...]]:
    """SIDs of equal length; distinct unless ``shared`` is the share of items that copy another's
    SID.
    """
    rng = random.Random(seed)
    space = num_codes**num_levels
    picked = rng.sample(range(space), min(num_items, space))
    sids = [
        tuple(value // num_codes**level % num_codes for level in range(num_levels))
        for value in picked
    ]
    return [rng.choice(sids) if rng.random() < shared else sid for sid in sids]


def tiny_model(model_type: str, vocab_size: int, seed: int = 0, **changes) -> torch.nn.Module:
    """A random causal language model of a few thousand parameters, with margins between its logits."""
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
    }
    if model_type != "gpt2":
        settings |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **(settings | changes))
    ).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    return enable_trees(model)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per whitespace-separated word; ``<eos>`` is 0, ``<unk>`` is 1."""
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )


def tiny_run(folder: Path, title: str = "thing", **sections) -> Experiment:
    """An experiment whose ``data`` and ``sids`` stages are on disk: 24 items, 40 users, 2 x 8 codes, learnable next items.

    ``title`` begins every item's title; ``sections`` replace settings, e.g. ``sft={"epochs": 3}``.
    """
    defaults = {
        "data": {"max_history": 5},
        "sids": {"codebook_sizes": [8, 8]},
        "model": {
            "template": "compact",
            "text_vocab_size": 300,
            "config": {
                "model_type": "qwen2",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 128,
            },
        },
        "sft": {
            "tasks": {"sid_to_sid": 1.0},
            "epochs": 2,
            "batch_size": 32,
            "micro_batch_size": 16,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "dropout": 0.1,
            "eval_rows": 20,
        },
        "rl": {
            "num_generations": 4,
            "rewards": {"rule": 1.0, "ranking": 1.0},
            "rollout": "beam",
            "beta": 1e-3,
            "kl": "k3",
            "kl_on_flat_groups": False,
            "batch_size": 16,
            "micro_batch_size": 8,
            "epochs": 1.0,
            "evals": 3,
            "eval_rows": 20,
            "learning_rate": 1e-3,
            "eval_beams": 10,
        },
        "evaluate": {"num_beams": 10, "bootstrap_samples": 20},
    }
    experiment = Experiment(
        name="tiny",
        output_dir=str(folder),
        **{name: values | sections.get(name, {}) for name, values in defaults.items()},
    )
    if stage_path(experiment, "sids").exists():
        return experiment
    write_tiny_data(experiment, title)
    write_tiny_sids(experiment)
    return experiment


def write_tiny_data(experiment: Experiment, title: str) -> None:
    """The ``data`` stage of ``tiny_run``: four purchases in five go to the next item."""
    items = pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(24)],
            "title": [f"{title} {n % 6} of kind {n // 6}" for n in range(24)],
            "description": ["" if n % 5 == 0 else f"made for place {n % 6}" for n in range(24)],
            "brand": "",
            "categories": [[] for _ in range(24)],
        }
    )
    rng = random.Random(0)
    rows = []
    for user in range(40):
        item = rng.randrange(24)
        for step in range(rng.randint(4, 8)):
            rows.append((f"u{user}", f"i{item}", user * 100 + step, "train"))
            item = (item + 1) % 24 if rng.random() < 0.8 else rng.randrange(24)
        rows[-2], rows[-1] = (*rows[-2][:3], "valid"), (*rows[-1][:3], "test")
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"]).assign(
        rating=float("nan")
    )
    data = stage_path(experiment, "data")
    with committed(data, "data", settings_of(experiment, "data"), []) as staging:
        items.to_parquet(staging / "items.parquet")
        interactions.to_parquet(staging / "interactions.parquet")
        codes = [pd.factorize(interactions[name])[0] for name in ("user_id", "item_id")]
        write_json(
            staging / "stats.json",
            {
                "source": "tables",
                "split": "leave_one_out",
                **statistics(
                    *codes,
                    interactions["timestamp"].to_numpy(),
                    interactions["split"].to_numpy(object),
                    24,
                    5,
                ),
            },
        )


def write_tiny_sids(experiment: Experiment) -> None:
    """The ``sids`` stage of ``tiny_run``: item n has the codes n % 8 and n // 8."""
    sids = {f"i{n}": [n % 8, n // 8] for n in range(24)}
    sids_dir = stage_path(experiment, "sids")
    with committed(
        sids_dir, "sids", settings_of(experiment, "sids"), [opened(stage_path(experiment, "data"))]
    ) as staging:
        write_json(
            staging / "sids.json", {"sids": sids, "codebook_sizes": [8, 8], "method": "test"}
        )
        write_json(
            staging / "report.json",
            {
                "items": 24,
                "levels": [{"perplexity": 8.0, "size": 8}],
                "reconstruction_error": [0.5],
                "seconds": {"fit": 0.1},
                "collisions": {
                    "before": {"collision_rate": 0.25},
                    "after": {"collision_rate": 0.0, "distinct_sids": 24},
                },
                "verdict": {"line": "Go: every check is good", "checks": [{"state": "good"}]},
            },
        )
        np.save(
            staging / "embeddings.npy",
            np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32),
        )


def weights_digest(folder: Path) -> str:
    """Digest of a checkpoint's weights."""
    return sha256_file(folder / "model.safetensors")


def plain_logps(model: torch.nn.Module, sequence: Sequence[int], start: int) -> list[torch.Tensor]:
    """Independent reference: one forward for one sequence."""
    logps = model(input_ids=torch.tensor([sequence])).logits[0].float().log_softmax(-1)
    return [logps[i - 1, sequence[i]] for i in range(start, len(sequence))]
