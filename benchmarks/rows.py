"""The tokenised SFT set: one tokenizer call per row against ``mixture`` with its pieces.

    python benchmarks/rows.py --data FOLDER        # as in benchmarks/workload.py; without one the
    embedded catalogue

The rows are the five tasks on the train samples. The usual way renders each prompt and each
completion as text and calls the tokenizer on it; ours starts from a new ``Renderer``, with nothing
tokenised yet. Both run turn by turn in one process and the medians are compared. Parity: the
prompts and completions of every row are identical.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import fire
import pandas as pd
from transformers import PreTrainedTokenizerBase

from benchmarks import workload as w
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import mixture
from minionerec.catalogue.samples import Sample
from minionerec.catalogue.templates import TEMPLATES
from minionerec.errors import one_line_errors
from minionerec.experiment.settings import SFTSettings

MAX_TOKENS, LEVELS = 512, 3
ITEM_TASKS = ("sid_to_title", "title_to_sid")


def one_call_per_row(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    items: pd.DataFrame,
    samples: Sequence[Sample],
    sids: list[list[int]],
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every row, each from a tokenizer call on its text.

    Too long ones lose their oldest item.
    """
    titles = items["title"].tolist()
    names = []
    for sid in sids:
        tokens = tokenizer.convert_ids_to_tokens(sid)
        names.append("".join(tokens))
    longest_title = max(map(len, tokenizer(titles)["input_ids"]))
    rows = []
    for task in SFTSettings().tasks:
        answers = names
        room = MAX_TOKENS - LEVELS - 1
        if task.endswith("title"):
            answers = titles
            room = MAX_TOKENS - longest_title - 1
        pairs: list[tuple[tuple[int, ...], int]] = []
        if task in ITEM_TASKS:
            for item in range(len(items)):
                pairs.append(((item,), item))
        else:
            for sample in samples:
                pairs.append((sample.history, sample.target))
        for shown, target in pairs:
            prompt = tokenizer(renderer.text(task, shown))["input_ids"]
            while len(prompt) > room and len(shown) > 1:
                shown = shown[1:]
                prompt = tokenizer(renderer.text(task, shown))["input_ids"]
            completion = tokenizer(answers[target])["input_ids"]
            rows.append((prompt, completion + [tokenizer.eos_token_id]))
    return rows


def timed(build: Callable[[], list]) -> tuple[list, tuple[float, float]]:
    """What a build gives.

    And its seconds on the wall clock and of CPU time (which other programs disturb less).
    """
    wall, cpu = time.perf_counter(), time.process_time()
    rows = build()
    return rows, (time.perf_counter() - wall, time.process_time() - cpu)


def main(data: str = "", repeats: int = 5, template: str = "alpaca") -> None:
    """Build the set ``repeats`` times each way in turns.

    Print seconds, their ratio and whether all rows are identical.
    """
    work = w.load_workload(w.data_folder(data), vocabulary=31_000)
    items, samples, tokenizer = work.samples.items, work.samples.splits["train"], work.tokenizer
    sids = [list(sid) for sid in work.sids.token_ids(tokenizer)]

    def new() -> Renderer:
        return Renderer(tokenizer, TEMPLATES[template], sids, items, MAX_TOKENS)

    stock, ours = [], []
    for _ in range(repeats):
        plain, seconds = timed(lambda: one_call_per_row(tokenizer, new(), items, samples, sids))
        stock.append(seconds)
        rows, seconds = timed(
            lambda: list(mixture(SFTSettings().tasks, samples, new(), len(items), seed=0))
        )
        ours.append(seconds)
    same = plain == [(row.prompt, row.completion) for row in rows]
    (slow, slow_cpu), (fast, fast_cpu) = (
        [statistics.median(values) for values in zip(*taken, strict=True)]
        for taken in (stock, ours)
    )
    tokens = sum(len(row.prompt) + len(row.completion) for row in rows)
    print(f"{work.name}: {len(rows):,} rows, {tokens:,} tokens, vocabulary {len(tokenizer):,}")
    print(f"one call per row {slow:.2f} s, in pieces {fast:.3f} s")
    print(f"CPU time {slow_cpu:.2f} and {fast_cpu:.3f} s, {slow_cpu / fast_cpu:.2f} x")
    print(f"ratio: {slow / fast:.2f}  parity: {'ok' if same else 'FAILED'}")
    sys.exit(not same)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
