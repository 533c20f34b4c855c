"""What the benchmarks share.

Real prompts, random models of two shapes, timing in turns, memory peaks, this machine's GEMM peak.

Prompts, tasks and SIDs are those of Amazon Industrial_and_Scientific where its folder is given
(``--data FOLDER`` with items.csv, interactions.csv and index.json, or
``$MINIONEREC_REAL_DATA/amazon_industrial``), else those of the embedded catalogue with random SIDs.
Weights are random: speed and exactness do not depend on what a model knows.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Samples, build_samples
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.sources import embedded
from minionerec.catalogue.templates import TEMPLATES
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.model.tree_attention import enable_trees


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model's sizes.

    ``body`` and ``head`` are the weights that a token or a row of logits multiplies with.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    dtype: torch.dtype

    @property
    def body(self) -> int:
        """Weights of all layers, the embedding left out (P in docs/PERFORMANCE.md)."""
        width = self.hidden // self.heads * self.kv_heads
        return self.layers * (
            2 * self.hidden**2 + 2 * self.hidden * width + 3 * self.hidden * self.mlp
        )

    @property
    def head(self) -> int:
        """Weights of the output head (HV)."""
        return self.hidden * self.vocabulary


SHAPES = {
    "tiny": Shape(256, 4, 4, 4, 704, 30_768, torch.float32),
    "smollm2": Shape(576, 10, 9, 3, 1536, 49_920, torch.float32),  # the first third of 30 blocks
    "qwen0.5b": Shape(896, 24, 14, 2, 4864, 152_704, torch.bfloat16),
    "qwen1.5b": Shape(1536, 28, 12, 2, 8960, 152_704, torch.bfloat16),
}


@dataclass(frozen=True)
class Workload:
    """A catalogue with its samples, tokens and prompts."""

    name: str
    samples: Samples
    sids: SidTable
    tokenizer: PreTrainedTokenizerFast
    renderer: Renderer
    trie: SidTrie


def shape_of(name: str) -> Shape:
    """The shape of this name.

    Raises:
        UserError: there is none.
    """
    if name not in SHAPES:
        raise UserError(f"--shape: got '{name}', expected one of {', '.join(SHAPES)}")
    return SHAPES[name]


def build_model(
    shape: Shape, dtype: torch.dtype | None = None, device: str = "cpu", seed: int = 0
) -> torch.nn.Module:
    """A random Qwen2.

    Its head is scaled up so that beams have margins as those of a trained model have.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3.0)
    return enable_trees(model.to(device=device, dtype=dtype or shape.dtype).eval())


def load_workload(
    data: str, template: str = "alpaca", vocabulary: int = 30_000, max_tokens: int = 512
) -> Workload:
    """Read the catalogue, train a BPE with Qwen's pre-tokenisation on its texts.

    Add the SID tokens, render with ``template``.
    """
    items, interactions, codes = read_amazon(data) if data else _embedded()
    index = {item: i for i, item in enumerate(items["item_id"])}
    splits, sequences = build_samples(interactions, index, max_history=10)
    sids = SidTable(items["item_id"].tolist(), codes, [256, 256, 256], sha256="")
    tokenizer = qwen_like_tokenizer(
        [f"{t}\n{d}" for t, d in zip(items["title"], items["description"], strict=True)], vocabulary
    )
    tokenizer.add_tokens(sids.tokens(), special_tokens=True)
    renderer = Renderer(
        tokenizer, TEMPLATES[template], sids.token_ids(tokenizer), items, max_tokens
    )
    trie = SidTrie(codes, sids.level_token_ids(tokenizer))
    return Workload(
        Path(data).name or "embedded catalogue",
        Samples(items, splits, sequences),
        sids,
        tokenizer,
        renderer,
        trie,
    )


def data_folder(named: str) -> str:
    """The folder of the flag or of the environment; empty for the embedded catalogue.

    Raises:
        UserError: a folder is named that lacks the files.
    """
    folder = named or (
        os.environ.get("MINIONEREC_REAL_DATA", "")
        and f"{os.environ['MINIONEREC_REAL_DATA']}/amazon_industrial"
    )
    missing = [
        name
        for name in ("items.csv", "interactions.csv", "index.json")
        if folder and not (Path(folder) / name).is_file()
    ]
    if missing:
        raise UserError(
            f"--data: {folder} lacks {', '.join(missing)}; leave --data out for the embedded "
            "catalogue"
        )
    return folder


def read_amazon(folder: str) -> tuple[pd.DataFrame, pd.DataFrame, list[tuple[int, ...]]]:
    """Items, each user's interactions in order, and the codes of every item."""
    items = pd.read_csv(Path(folder) / "items.csv", dtype=str, keep_default_na=False)
    interactions = pd.read_csv(
        Path(folder) / "interactions.csv", dtype={"user_id": str, "item_id": str}
    )
    interactions = interactions.sort_values(["user_id", "pos"], kind="stable")
    index = json.loads((Path(folder) / "index.json").read_text())
    codes = [tuple(int(token[3:-1]) for token in index[item]) for item in items["item_id"]]
    return items, interactions, codes


def _embedded() -> tuple[pd.DataFrame, pd.DataFrame, list[tuple[int, ...]]]:
    source = embedded.load(seed=42)
    interactions = source.interactions.sort_values(["user_id", "timestamp"], kind="stable")
    place = interactions.groupby("user_id").cumcount(ascending=False)
    interactions = interactions.assign(
        split=np.select([place == 0, place == 1], ["test", "valid"], "train")
    )
    rng = np.random.default_rng(0)
    codes = [
        tuple(int(v) // 256**level % 256 for level in range(3))
        for v in rng.choice(256**3, len(source.items), replace=False)
    ]
    return source.items, interactions, codes


def qwen_like_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that normalises and splits text as Qwen2's tokenizer does.

    ``<|endoftext|>`` is token 0.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def preamble(work: Workload, length: int) -> list[int]:
    """So many tokens of wording to put in front of every prompt.

    Ours are short, other frameworks' are not.

    The reference's next-item prompt has 69 fixed tokens, ours 30; ``--preamble 39`` compares at its
    length.
    """
    words = (
        "Below is an instruction that describes a task, paired with an input that gives its "
        "context. Write a response to it. " * 8
    )
    return work.tokenizer.encode(words, add_special_tokens=False)[:length]


# ---------------------------------------------------------------------------------------- measuring


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each side, run turn by turn in this process, after one untimed round."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            synchronise(device)
            started = time.perf_counter()
            side()
            synchronise(device)
            if turn or repeats == 0:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak_memory(side: Callable[[], Any], device: str) -> int:
    """Bytes that a call needs at its peak beyond what was in use before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # freed memory back to the system, so that it is not mistaken for room
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = _status("VmRSS")
    side()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def gemm_peak(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """FLOP/s of the best of a few square matrix products."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def gradient_gap(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of the model's gradients from the expected ones.

    As a share of each tensor's largest value.
    """
    gaps = [
        (p.grad - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-12)
        for name, p in model.named_parameters()
    ]
    return max(gap.item() for gap in gaps)
