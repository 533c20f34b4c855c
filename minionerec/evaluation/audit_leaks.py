"""Checks for leaks: what training, or a prompt, knows of the answers.

Shapes: N items, B test rows, P pairs of items, D width of an embedding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from minionerec.catalogue.samples import Sample, fixed_subset
from minionerec.evaluation.audit_evidence import ROWS_AT_ONCE, Check, Evidence, Prompts, grade

SEQUENCE_TASKS = ("sid_to_sid", "sids_to_title", "titles_to_sid")
NEAR = 0.95  # cosine above which two items count as the same thing listed twice
PROMPTS = 2_000  # samples per sequence task, and items per item task, whose prompts are rendered


def rows_in_train(evidence: Evidence) -> Check:
    """Held-out rows that training shows word for word."""
    known = {(row.user_id, row.history, row.target) for row in evidence.samples.splits["train"]}
    found = {}
    sentences = []
    share = 0.0
    for name in ("valid", "test"):
        rows = evidence.samples.splits[name]
        found[name] = sum((row.user_id, row.history, row.target) in known for row in rows)
        sentences.append(f"{found[name]:,} of {len(rows):,} {name} rows")
        share = max(share, found[name] / max(len(rows), 1))
    return Check(
        name="held-out rows in train",
        verdict=grade(share, 0.0, 0.01),
        found=(
            f"{' and '.join(sentences)} are a train row of the same user, with the same history "
            "and target"
        ),
        wanted="if none, a problem above 1 %",
        advice=(
            "Such rows test memory: a user who takes the same items over and over makes some, more "
            "are a leak of the split."
        ),
        figures=found,
    )


def time_order(evidence: Evidence) -> Check:
    """Train interactions after a held-out one of the same user, by place and by time."""
    rows = evidence.interactions
    held_out = rows["split"].to_numpy() != "train"  # (n,)
    users = rows["user_id"]
    # By place: some interaction of the user so far was held out.
    so_far = rows.assign(held=held_out).groupby("user_id", sort=False)["held"].cummax().to_numpy()
    # By time: later than the user's first held-out one, NaN where there is none.
    first = rows["timestamp"].where(held_out).groupby(users).transform("min").to_numpy()
    later = rows["timestamp"].to_numpy() > first
    figures = {
        "by_place": int((so_far & ~held_out).sum()),
        "by_time": int((later & ~held_out).sum()),
    }
    return Check(
        name="order within users",
        verdict="ok" if not sum(figures.values()) else "problem",
        found=(
            f"{figures['by_place']:,} train interactions come after a held-out one of the same "
            f"user in their sequence, {figures['by_time']:,} by their time"
        ),
        wanted="if none",
        advice="The model learns from what a user did after the target; split again.",
        figures=figures,
    )


def future_in_train(evidence: Evidence) -> Check:
    """What training knows of the time after the first test target."""
    rows = evidence.interactions
    train = rows.loc[rows["split"] == "train", "timestamp"].to_numpy()
    test = np.array([sample.timestamp for sample in evidence.test])
    later = float((train > test.min()).mean())
    earlier = float((test < train.max()).mean())
    verdict = "ok"
    advice = (
        "Training knows trends of the time it is tested on, which a served model would not: quote "
        "such numbers with their split, or use data.split global_time."
    )
    if later:
        verdict = "look"
    if evidence.split_rule == "global_time":
        advice = "A split by time must have none; split again."
        if later:
            verdict = "problem"
    return Check(
        name="train after the first test target",
        verdict=verdict,
        found=(
            f"{later:.1%} of the train interactions are later than the first test target, and "
            f"{earlier:.1%} of the test targets are earlier than the last train interaction "
            f"(split: {evidence.split_rule})"
        ),
        wanted="if none",
        advice=advice,
        figures={"train_later": later, "test_earlier": earlier},
    )


# -------------------------------------------------------------------------------------------------
# Near-duplicates


def near_duplicates(evidence: Evidence) -> Check:
    """Test targets that stand in the history, or in train, as another listing of the same thing."""
    targets = evidence.targets  # (B,)
    counts = evidence.train_counts  # (N,)
    lengths = [len(sample.history) for sample in evidence.test]
    rows = np.repeat(np.arange(len(targets)), lengths)  # the row of each shown item
    shown = np.array([item for sample in evidence.test for item in sample.history])
    in_history = np.zeros(len(targets), bool)
    in_history[rows[are_near(evidence, shown, targets[rows])]] = True
    distinct, of_row = np.unique(targets, return_inverse=True)
    in_train = have_near_one(evidence, distinct, np.flatnonzero(counts))[of_row]
    cold = counts[targets] == 0
    figures = {
        "in_history": float(in_history.mean()),
        "in_train": float(in_train.mean()),
        "cold_rows": int(cold.sum()),
        "cold_with_one_in_train": int((cold & in_train).sum()),
        "by_embedding": evidence.embeddings is not None,
    }
    rule = "same words in the title; no embeddings yet"
    if figures["by_embedding"]:
        rule = f"same words in the title, or a cosine above {NEAR}"
    return Check(
        name="near-duplicates of the target",
        verdict=grade(figures["in_history"], 0.01, 0.1),
        found=(
            f"{figures['in_history']:.1%} of the test targets have another item in the history "
            f"that is nearly the same ({rule}), {figures['in_train']:.1%} have one in train "
            f"({figures['cold_with_one_in_train']:,} of the {figures['cold_rows']:,} cold ones)"
        ),
        wanted="up to 1 % in the history, a problem above 10 %",
        advice=(
            "Variants of one product count too: what copies the text of the history scores without "
            "knowing the user; merge them, or say so."
        ),
        figures=figures,
    )


def are_near(evidence: Evidence, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) whether the items of each pair are near-duplicates.

    Different items, with the same title words or with embeddings closer than ``NEAR``.
    """
    keys = title_keys(evidence)
    near = keys[a] == keys[b]
    embeddings = evidence.embeddings
    if embeddings is not None:
        step = 8 * ROWS_AT_ONCE
        for start in range(0, len(a), step):
            block = slice(start, start + step)
            cosine = np.einsum("pd,pd->p", embeddings[a[block]], embeddings[b[block]])
            near[block] |= cosine > NEAR
    return near & (a != b)


def have_near_one(evidence: Evidence, items: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of ``items`` has a near-duplicate, itself aside, among ``others``."""
    keys = title_keys(evidence)
    with_key = np.bincount(keys[others], minlength=keys.max() + 1)  # of the others
    found = with_key[keys[items]] > np.isin(items, others)
    embeddings = evidence.embeddings
    if embeddings is not None:
        for start in range(0, len(items), ROWS_AT_ONCE):
            block = items[start : start + ROWS_AT_ONCE]
            close = embeddings[block] @ embeddings[others].T > NEAR
            close &= block[:, None] != others
            found[start : start + ROWS_AT_ONCE] |= close.any(axis=1)
    return found


def title_keys(evidence: Evidence) -> np.ndarray:
    """(N,) a number per item; items whose titles have the same words have the same."""
    return pd.factorize(evidence.samples.items["title"].map(title_key))[0]


def title_key(title: str) -> str:
    """A title's words, without case and punctuation.

    >>> title_key('Bolt, M3 (10-pack)') == title_key('bolt m3 10 PACK')
    True
    """
    return " ".join(re.findall(r"\w+", title.casefold()))


# -------------------------------------------------------------------------------------------------
# Prompts


def target_in_prompt(evidence: Evidence) -> Check:
    """Prompts that hold their answer although nothing that they may show does."""
    if evidence.prompts is None:
        return Check(
            name="target in prompt",
            verdict="look",
            found="no prompt was rendered: there is no checkpoint whose tokenizer could",
            wanted="if none",
            advice="Run this again when `bash sft.sh` has made one.",
            figures={"prompts": 0},
        )
    leaks: Counter[str] = Counter()
    rendered = 0
    for task in evidence.prompts.tasks:
        found, asked = leaks_of_task(evidence, evidence.prompts, task)
        leaks[task] += found
        rendered += asked
    where = "".join(f", {count:,} {task}" for task, count in leaks.items() if count)
    return Check(
        name="target in prompt",
        verdict="ok" if not leaks.total() else "problem",
        found=(
            f"{leaks.total():,} of {rendered:,} rendered prompts of the tasks "
            f"{', '.join(evidence.prompts.tasks)} hold their answer where nothing that they may "
            f"show does{where}"
        ),
        wanted="if none",
        advice="The renderer gives the answer away: every number of this checkpoint is worthless.",
        figures={"prompts": rendered, "leaks": dict(leaks)},
    )


def leaks_of_task(evidence: Evidence, prompts: Prompts, task: str) -> tuple[int, int]:
    """How many prompts of a task give their answer away, and how many were rendered."""
    titles = squeezed(evidence.samples.items["title"])
    sids = squeezed(prompts.sids)
    answers = titles if task.endswith("title") else sids
    shows = titles
    if task.startswith("sid"):
        shows = sids
    elif task.startswith("description"):
        shows = squeezed(evidence.samples.items["description"])
    wording = squeeze(prompts.template.before[task] + prompts.template.after[task])
    leaks = 0
    rendered = 0
    for shown, target in questions(evidence, task):
        rendered += 1
        answer = answers[target]
        # The user may have had the target before, or its title may be a word of another's.
        innocent = answer in wording or any(answer in shows[item] for item in shown)
        if not innocent and answer in squeeze(prompts.render(task, shown)):
            leaks += 1
    return leaks, rendered


def questions(evidence: Evidence, task: str) -> Iterator[tuple[Sequence[int], int]]:
    """What a task's prompts show, and the item that they ask for; ``PROMPTS`` of them."""
    if task in SEQUENCE_TASKS:
        rows: list[Sample] = []
        for split in evidence.samples.splits.values():
            rows += split
        for row in fixed_subset(rows, PROMPTS, seed=0):
            yield row.history, row.target
    else:
        num_items = len(evidence.samples.items)
        for item in range(0, num_items, max(1, num_items // PROMPTS)):
            yield (item,), item


def squeezed(texts: Sequence[str] | pd.Series) -> list[str]:
    """Texts without white space."""
    return [squeeze(text) for text in texts]


def squeeze(text: str) -> str:
    """A text without white space, which tokenizers may add or drop."""
    return "".join(text.split())
