"""The tokenised SFT set: one tokenizer call per row against ``mixture`` with its pieces.

    python benchmarks/rows.py --data FOLDER        # a folder with items.csv, interactions.csv and, if there is one, index.json

FOLDER defaults to ``amazon_industrial`` under $MINIONEREC_REAL_DATA; without either a catalogue is made up. The rows are
the five tasks of configs/amazon_industrial.yaml on the train samples. The tokenizer is a BPE with Qwen2's pre-tokenisation,
31,000 entries at most, trained on the item text. The usual way renders each prompt and each completion as text and calls
the tokenizer on it; ours starts from a new ``Renderer``, with nothing tokenised yet. Both run turn by turn in one process
and the medians are compared. Parity: the prompts and completions of every row are identical.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import fire
import pandas as pd
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minionerec.dataset import Sample, build_samples, mixture  # noqa: E402
from minionerec.prompts import TEMPLATES, Renderer  # noqa: E402

TASKS = {"sid_to_sid": 1.0, "sid_to_title": 1.0, "title_to_sid": 1.0, "sids_to_title": 1.0, "titles_to_sid": 1.0}
MAX_HISTORY, MAX_TOKENS, LEVELS, CODES = 10, 512, 3, 256
ITEM_TASKS = ("sid_to_title", "title_to_sid")
# transformers/models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def qwen_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A BPE trained on the texts that normalises and splits as Qwen2's tokenizer does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
                                   clean_up_tokenization_spaces=False)


def load(data: str | None) -> tuple[pd.DataFrame, list[Sample], list[list[int]]]:
    """Items, train samples and the codes of every item; made up where there is no data."""
    real = os.environ.get("MINIONEREC_REAL_DATA")
    folder = Path(data) if data else Path(real) / "amazon_industrial" if real else None
    if folder is None:
        return made_up()
    items = pd.read_csv(folder / "items.csv", dtype=str, keep_default_na=False)
    interactions = pd.read_csv(folder / "interactions.csv", dtype={"user_id": str, "item_id": str})
    splits, _ = build_samples(interactions, {item: i for i, item in enumerate(items["item_id"])}, MAX_HISTORY)
    if not (folder / "index.json").is_file():
        return items, splits["train"], random_codes(len(items))
    index = json.loads((folder / "index.json").read_text())
    return items, splits["train"], [[int(token.rpartition("_")[2].rstrip(">")) for token in index[item]] for item in items["item_id"]]


def made_up(num_items: int = 3686, num_samples: int = 36000) -> tuple[pd.DataFrame, list[Sample], list[list[int]]]:
    """Random titles of 5 to 20 words and random histories, in the numbers of the Industrial_and_Scientific category."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(8000)]
    titles = [" ".join(rng.choices(words, k=rng.randint(5, 20))) for _ in range(num_items)]
    samples = [Sample(f"u{n}", tuple(rng.choices(range(num_items), k=rng.randint(1, MAX_HISTORY))), rng.randrange(num_items), n)
               for n in range(num_samples)]
    return pd.DataFrame({"title": titles, "description": titles}), samples, random_codes(num_items)


def random_codes(num_items: int) -> list[list[int]]:
    """A distinct SID for each item."""
    values = random.Random(1).sample(range(CODES**LEVELS), num_items)
    return [[value // CODES**level % CODES for level in range(LEVELS)] for value in values]


def one_call_per_row(tokenizer: PreTrainedTokenizerBase, renderer: Renderer, items: pd.DataFrame, samples: list[Sample],
                     sids: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every row, each from a tokenizer call on its text; too long ones lose their oldest item."""
    titles, names = items["title"].tolist(), ["".join(tokenizer.convert_ids_to_tokens(sid)) for sid in sids]
    longest = {True: 1 + max(len(ids) for ids in tokenizer(titles)["input_ids"]), False: 1 + LEVELS}
    rows = []
    for task in TASKS:
        to_title = task.endswith("title")
        pairs = [((i,), i) for i in range(len(items))] if task in ITEM_TASKS else [(s.history, s.target) for s in samples]
        for shown, target in pairs:
            prompt = tokenizer(renderer.text(task, shown))["input_ids"]
            while len(prompt) > MAX_TOKENS - longest[to_title] and len(shown) > 1:
                shown = shown[1:]
                prompt = tokenizer(renderer.text(task, shown))["input_ids"]
            completion = tokenizer(titles[target] if to_title else names[target])["input_ids"]
            rows.append((prompt, completion + [tokenizer.eos_token_id]))
    return rows


def timed(build: Callable[[], list]) -> tuple[list, tuple[float, float]]:
    """What a build gives, and its seconds on the wall clock and of CPU time (which other programs disturb less)."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = build()
    return rows, (time.perf_counter() - wall, time.process_time() - cpu)


def main(data: str | None = None, repeats: int = 5, template: str = "alpaca") -> None:
    """Build the set ``repeats`` times each way in turns; print seconds, their ratio and whether all rows are identical."""
    items, samples, codes = load(data)
    tokenizer = qwen_tokenizer([f"{t}\n{d}" for t, d in zip(items["title"], items["description"], strict=True)], 31000)
    tokenizer.add_tokens([f"<{'abcdefgh'[level]}_{code}>" for level in range(len(codes[0])) for code in range(CODES)], special_tokens=True)
    sids = [tokenizer.convert_tokens_to_ids([f"<{'abcdefgh'[level]}_{code}>" for level, code in enumerate(sid)]) for sid in codes]
    new = lambda: Renderer(tokenizer, TEMPLATES[template], sids, items, MAX_TOKENS)  # noqa: E731
    stock, ours = [], []
    for _ in range(repeats):
        plain, seconds = timed(lambda: one_call_per_row(tokenizer, new(), items, samples, sids))
        stock.append(seconds)
        rows, seconds = timed(lambda: mixture(TASKS, samples, new(), len(items), seed=0))
        ours.append(seconds)
    same = plain == [(row.prompt, row.completion) for row in rows]
    (slow, slow_cpu), (fast, fast_cpu) = ([statistics.median(values) for values in zip(*taken, strict=True)] for taken in (stock, ours))
    print(f"{len(rows):,} rows, {sum(len(row.prompt) + len(row.completion) for row in rows):,} tokens, vocabulary {len(tokenizer):,}")
    print(f"one call per row {slow:.2f} s, in pieces {fast:.3f} s")
    print(f"CPU time {slow_cpu:.2f} and {fast_cpu:.3f} s, {slow_cpu / fast_cpu:.2f} x")
    print(f"ratio: {slow / fast:.2f}  parity: {'ok' if same else 'FAILED'}")
    sys.exit(not same)


if __name__ == "__main__":
    fire.Fire(main)
