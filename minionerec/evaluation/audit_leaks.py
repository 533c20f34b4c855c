"""Checks for leaks: what training, or a prompt, knows of the answers.

Shapes: N items, B test rows, P pairs of items, D width of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from minionerec.catalogue.compact import SampleList
from minionerec.catalogue.prompts import SEQUENCE_TASKS
from minionerec.catalogue.samples import fixed_subset
from minionerec.evaluation.audit_evidence import Check, Evidence, Prompts, grade

NEAR = 0.95  # cosine above which two items count as the same thing listed twice
NEAR_ROWS = 10_000  # test rows whose targets are compared with all of train
ITEMS_AT_ONCE = 4_096  # whose embeddings are looked at together: bounds memory
PROMPTS = 2_000  # samples per sequence task, and items per item task, whose prompts are rendered


def rows_in_train(evidence: Evidence) -> Check:
    """Held-out rows that training shows word for word."""
    train = evidence.rows("train")
    num_items = len(evidence.samples.items)
    found = {}
    sentences = []
    share = 0.0
    for name in ("valid", "test"):
        rows = evidence.rows(name)
        found[name] = word_for_word(train, rows, num_items)
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


def word_for_word(train: SampleList, rows: SampleList, num_items: int) -> int:
    """How many of some rows a train row has too: user, history and target."""
    in_train = train.users().astype(np.int64) * num_items + train.targets()
    asked = rows.users().astype(np.int64) * num_items + rows.targets()
    # Few rows have a target that their user had in train: only theirs are compared whole
    same_target = np.flatnonzero(np.isin(in_train, asked))
    known = set()
    for row in SampleList(train.log, train.places[same_target]):
        known.add((row.user_id, row.history, row.target))
    likely = np.flatnonzero(np.isin(asked, in_train[same_target]))
    found = 0
    for row in SampleList(rows.log, rows.places[likely]):
        found += (row.user_id, row.history, row.target) in known
    return found


def time_order(evidence: Evidence) -> Check:
    """Train interactions after a held-out one of the same user, by place and by time."""
    rows = evidence.interactions
    held_out = rows["split"].to_numpy() != "train"  # (n,)
    users = rows["user_id"]
    # By place: some interaction of the user so far was held out.
    of_user = rows.assign(held=held_out).groupby("user_id", sort=False, observed=True)
    so_far = of_user["held"].cummax().to_numpy()
    # By time: later than the user's first held-out one, NaN where there is none.
    held_out_times = rows["timestamp"].where(held_out)
    first = held_out_times.groupby(users, observed=True).transform("min").to_numpy()
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
    test = evidence.test.times()
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
    rows = np.array(fixed_subset(range(len(evidence.test)), NEAR_ROWS, seed=0))
    targets = evidence.targets[rows]  # (R,) of the R rows that are looked at
    counts = evidence.train_counts  # (N,)
    histories = evidence.histories.take(rows)
    owners = histories.owners()  # the row of each shown item
    in_history = np.zeros(len(rows), bool)
    in_history[owners[are_near(evidence, histories.flat, targets[owners])]] = True
    distinct, of_row = np.unique(targets, return_inverse=True)
    in_train = have_near_one(evidence, distinct, np.flatnonzero(counts))[of_row]
    cold = counts[targets] == 0
    figures = {
        "rows": len(rows),
        "in_history": float(in_history.mean()),
        "in_train": float(in_train.mean()),
        "cold_rows": int(cold.sum()),
        "cold_with_one_in_train": int((cold & in_train).sum()),
        "by_embedding": evidence.embeddings is not None,
    }
    rule = "same words in the title; no embeddings yet"
    if figures["by_embedding"]:
        rule = f"same words in the title, or a cosine above {NEAR}"
    of_which = "the test targets"
    if len(rows) < len(evidence.test):
        of_which = f"{len(rows):,} test targets drawn"
    return Check(
        name="near-duplicates of the target",
        verdict=grade(figures["in_history"], 0.01, 0.1),
        found=(
            f"{figures['in_history']:.1%} of {of_which} have another item in the history "
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
    keys = evidence.title_keys
    near = keys[a] == keys[b]
    embeddings = evidence.embeddings
    if embeddings is not None:
        for start in range(0, len(a), ITEMS_AT_ONCE):
            block = slice(start, start + ITEMS_AT_ONCE)
            pairs = (unit(embeddings[a[block]]), unit(embeddings[b[block]]))
            cosine = np.einsum("pd,pd->p", *pairs)
            near[block] |= cosine > NEAR
    return near & (a != b)


def have_near_one(evidence: Evidence, items: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of ``items`` has a near-duplicate, itself aside, among ``others``."""
    keys = evidence.title_keys
    with_key = np.bincount(keys[others], minlength=keys.max() + 1)  # of the others
    found = with_key[keys[items]] > np.isin(items, others)
    embeddings = evidence.embeddings
    if embeddings is not None:
        own = unit(embeddings[items])
        for start in range(0, len(others), ITEMS_AT_ONCE):
            block = others[start : start + ITEMS_AT_ONCE]
            close = own @ unit(embeddings[block]).T > NEAR
            close &= items[:, None] != block
            found |= close.any(axis=1)
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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
        places = [evidence.rows(split).places for split in evidence.samples.splits]
        rows = SampleList(evidence.test.log, np.concatenate(places))
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
