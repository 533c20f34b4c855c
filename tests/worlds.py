"""Small worlds for tests: random catalogues, tiny random checkpoints of several architectures, a word-level tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from minionerec.policy import enable_trees
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gpt2", "gemma")


def random_catalogue(seed: int, num_items: int, num_levels: int, num_codes: int, shared: float = 0.0) -> list[tuple[int, ...]]:
    """SIDs of equal length; distinct unless ``shared`` is the share of items that copy another's SID."""
    rng = random.Random(seed)
    space = num_codes**num_levels
    picked = rng.sample(range(space), min(num_items, space))
    sids = [tuple(value // num_codes**level % num_codes for level in range(num_levels)) for value in picked]
    return [rng.choice(sids) if rng.random() < shared else sid for sid in sids]


def tiny_model(model_type: str, vocab_size: int, seed: int = 0, **changes) -> torch.nn.Module:
    """A random causal language model of a few thousand parameters, with margins between its logits."""
    settings = dict(vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
                    bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False)
    if model_type != "gpt2":
        settings |= dict(num_key_value_heads=2, intermediate_size=64, head_dim=8)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(settings | changes))).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    return enable_trees(model)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per whitespace-separated word; ``<eos>`` is 0, ``<unk>`` is 1."""
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>")
