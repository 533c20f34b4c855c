"""What can make an offline number say more than the model is worth: leaks, repeats, cold items, rules that cost nothing.

Every check is a pure function ``Evidence -> Check``: a verdict (``ok``, ``look``, ``problem``), one sentence with the figures, and
the figures themselves. ``audit.py`` reads the evidence and shows the checks. The thresholds are this project's experience, not a
theorem; each check says in ``wanted`` what it is held against.

Shapes: N items, n interactions in global order, B test rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sparse

from minionerec.catalogue.prompts import Template
from minionerec.catalogue.samples import Sample, Samples, fixed_subset, train_counts
from minionerec.catalogue.split import quantiles
from minionerec.evaluation.exposure import gini
from minionerec.rankers.rules import repeat_last, transition_counts
from minionerec.rankers.scores import popularity_order, top_k

SEQUENCE_TASKS = ("sid_to_sid", "sids_to_title", "titles_to_sid")
NEAR = 0.95  # cosine above which two items count as the same thing listed twice
ROWS_AT_ONCE = 512  # of dense (rows, N) blocks: bounds memory
PROMPTS = 2_000  # samples per sequence task, and items per item task, whose prompts are rendered


@dataclass(frozen=True)
class Prompts:
    """What a trained checkpoint reads."""

    tasks: Sequence[str]  # those that the experiment trains
    template: Template
    sids: Sequence[str]  # (N,) the SID of each item as a prompt writes it
    render: Callable[
        [str, Sequence[int]], str
    ]  # task, shown items -> the prompt's token ids as text


@dataclass(frozen=True)
class Evidence:
    """What the checks look at."""

    samples: Samples  # histories as prompts show them
    interactions: pd.DataFrame  # user_id, item_id, timestamp, split; (n,) rows in global order
    split_rule: str  # data.split: global_time, leave_one_out, own
    embeddings: np.ndarray | None  # (N, D), rows of length 1
    prompts: Prompts | None  # None until a checkpoint brings a tokenizer

    @property
    def test(self) -> list[Sample]:
        """The rows that the numbers will be about."""
        return self.samples.splits["test"]

    @property
    def targets(self) -> np.ndarray:
        """(B,) item indexes of the test targets."""
        return np.array([sample.target for sample in self.test])

    @property
    def train_counts(self) -> np.ndarray:
        """(N,) train interactions of each item."""
        return train_counts(self.samples.train_sequences, len(self.samples.items))


class Check(NamedTuple):
    """One answer: ``found`` is a sentence, ``wanted`` the threshold of ``ok``, ``advice`` what to make of another verdict."""

    name: str
    verdict: str
    found: str
    wanted: str
    advice: str
    figures: dict[str, Any]


def audit(evidence: Evidence) -> list[Check]:
    """All checks, the leaks first."""
    return [check(evidence) for check in CHECKS]


def grade(value: float, ok: float, problem: float) -> str:
    """``ok`` up to the first bound, ``problem`` above the second, ``look`` between.

    >>> grade(0.1, 0.1, 0.5), grade(0.2, 0.1, 0.5), grade(0.6, 0.1, 0.5)
    ('ok', 'look', 'problem')
    """
    return "ok" if value <= ok else "problem" if value > problem else "look"


# ---------------------------------------------------------------------------------------------------------------------
# Leaks


def rows_in_train(evidence: Evidence) -> Check:
    """Held-out rows that training shows word for word."""
    known = {(row.user_id, row.history, row.target) for row in evidence.samples.splits["train"]}
    held_out = {name: evidence.samples.splits[name] for name in ("valid", "test")}
    found = {
        name: sum((row.user_id, row.history, row.target) in known for row in rows)
        for name, rows in held_out.items()
    }
    share = max(found[name] / max(len(rows), 1) for name, rows in held_out.items())
    return Check(
        "held-out rows in train",
        grade(share, 0.0, 0.01),
        " and ".join(
            f"{found[name]:,} of {len(rows):,} {name} rows" for name, rows in held_out.items()
        )
        + " are a train row of the same user, with the same history and target",
        "if none, a problem above 1 %",
        "Such rows test memory: a user who takes the same items over and over makes some, more are a leak of the split.",
        found,
    )


def time_order(evidence: Evidence) -> Check:
    """Train interactions after a held-out one of the same user, by their place and by their time."""
    rows = evidence.interactions
    held_out = rows["split"].to_numpy() != "train"
    after_by_place = (
        rows.assign(h=held_out).groupby("user_id", sort=False)["h"].cummax().to_numpy() & ~held_out
    )
    first = rows["timestamp"].where(held_out).groupby(rows["user_id"]).transform("min").to_numpy()
    after_by_time = ~held_out & (rows["timestamp"].to_numpy() > first)
    figures = {"by_place": int(after_by_place.sum()), "by_time": int(after_by_time.sum())}
    return Check(
        "order within users",
        "ok" if not sum(figures.values()) else "problem",
        f"{figures['by_place']:,} train interactions come after a held-out one of the same user in their sequence, "
        f"{figures['by_time']:,} by their time",
        "if none",
        "The model learns from what a user did after the target; split again.",
        figures,
    )


def future_in_train(evidence: Evidence) -> Check:
    """What training knows of the time after the first test target."""
    train = evidence.interactions[evidence.interactions["split"] == "train"]["timestamp"].to_numpy()
    test = np.array([sample.timestamp for sample in evidence.test])
    later, earlier = float((train > test.min()).mean()), float((test < train.max()).mean())
    by_time = evidence.split_rule == "global_time"
    return Check(
        "train after the first test target",
        "ok" if not later else "problem" if by_time else "look",
        f"{later:.1%} of the train interactions are later than the first test target, and {earlier:.1%} of the test targets are "
        f"earlier than the last train interaction (split: {evidence.split_rule})",
        "if none",
        "A split by time must have none; split again."
        if by_time
        else "Training knows trends of the time it is tested on, which a served model would not: quote such numbers with their split, "
        "or use data.split global_time.",
        {"train_later": later, "test_earlier": earlier},
    )


def near_duplicates(evidence: Evidence) -> Check:
    """Test targets that stand in the history, or in train, as another listing of the same thing."""
    targets, counts = evidence.targets, evidence.train_counts
    rows = np.repeat(np.arange(len(targets)), [len(sample.history) for sample in evidence.test])
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
    rule = f"same words in the title{f', or a cosine above {NEAR}' if figures['by_embedding'] else '; no embeddings yet'}"
    return Check(
        "near-duplicates of the target",
        grade(figures["in_history"], 0.01, 0.1),
        f"{figures['in_history']:.1%} of the test targets have another item in the history that is nearly the same ({rule}), "
        f"{figures['in_train']:.1%} have one in train ({figures['cold_with_one_in_train']:,} of the {figures['cold_rows']:,} cold ones)",
        "up to 1 % in the history, a problem above 10 %",
        "Variants of one product count too: what copies the text of the history scores without knowing the user; merge them, or say so.",
        figures,
    )


def are_near(evidence: Evidence, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) whether the items of each pair are different ones with the same title words, or with embeddings closer than ``NEAR``."""
    keys = pd.factorize(evidence.samples.items["title"].map(title_key))[0]
    near = keys[a] == keys[b]
    if evidence.embeddings is not None:
        for start in range(0, len(a), 8 * ROWS_AT_ONCE):
            block = slice(start, start + 8 * ROWS_AT_ONCE)
            near[block] |= (
                np.einsum("pd,pd->p", evidence.embeddings[a[block]], evidence.embeddings[b[block]])
                > NEAR
            )
    return near & (a != b)


def have_near_one(evidence: Evidence, items: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of ``items`` has a near-duplicate, itself aside, among ``others``."""
    keys = pd.factorize(evidence.samples.items["title"].map(title_key))[0]
    found = np.bincount(keys[others], minlength=keys.max() + 1)[keys[items]] > np.isin(
        items, others
    )
    for start in range(0, len(items) if evidence.embeddings is not None else 0, ROWS_AT_ONCE):
        block = items[start : start + ROWS_AT_ONCE]
        close = evidence.embeddings[block] @ evidence.embeddings[others].T > NEAR
        close &= block[:, None] != others
        found[start : start + ROWS_AT_ONCE] |= close.any(axis=1)
    return found


def title_key(title: str) -> str:
    """A title's words, without case and punctuation.

    >>> title_key('Bolt, M3 (10-pack)') == title_key('bolt m3 10 PACK')
    True
    """
    return " ".join(re.findall(r"\w+", title.casefold()))


def target_in_prompt(evidence: Evidence) -> Check:
    """Prompts of every task that hold their answer although neither the wording nor an item that they may show does."""
    name, wanted, prompts = "target in prompt", "if none", evidence.prompts
    if prompts is None:
        return Check(
            name,
            "look",
            "no prompt was rendered: there is no checkpoint whose tokenizer could",
            wanted,
            "Run this again when `bash sft.sh` has made one.",
            {"prompts": 0},
        )
    titles, descriptions = (
        list(map(squeeze, evidence.samples.items[name])) for name in ("title", "description")
    )
    sids = list(map(squeeze, prompts.sids))
    rows = fixed_subset(
        [row for split in evidence.samples.splits.values() for row in split], PROMPTS, seed=0
    )
    singles = [((item,), item) for item in range(0, len(titles), max(1, len(titles) // PROMPTS))]
    leaks: Counter[str] = Counter()
    rendered = 0
    for task in prompts.tasks:
        answers = titles if task.endswith("title") else sids
        shows = (
            sids
            if task.startswith("sid")
            else descriptions
            if task.startswith("description")
            else titles
        )
        wording = squeeze(prompts.template.before[task] + prompts.template.after[task])
        for shown, target in (
            [(row.history, row.target) for row in rows] if task in SEQUENCE_TASKS else singles
        ):
            rendered += 1
            innocent = any(
                answers[target] in text for text in (wording, *(shows[item] for item in shown))
            )
            leaks[task] += not innocent and answers[target] in squeeze(prompts.render(task, shown))
    where = "".join(f", {count:,} {task}" for task, count in leaks.items() if count)
    return Check(
        name,
        "ok" if not leaks.total() else "problem",
        f"{leaks.total():,} of {rendered:,} rendered prompts of the tasks {', '.join(prompts.tasks)} hold their answer where nothing that "
        f"they may show does{where}",
        wanted,
        "The renderer gives the answer away: every number of this checkpoint is worthless.",
        {"prompts": rendered, "leaks": dict(leaks)},
    )


def squeeze(text: str) -> str:
    """A text without white space, which tokenizers may add or drop."""
    return "".join(text.split())


# ---------------------------------------------------------------------------------------------------------------------
# What the test rows ask for


def repeats(evidence: Evidence) -> Check:
    """Targets that the user had before."""
    test = evidence.test
    shown = np.mean([sample.target in sample.history for sample in test])
    last = np.mean([sample.history[-1] == sample.target for sample in test])
    anew = ~evidence.interactions.duplicated(["user_id", "item_id"]).to_numpy()
    later = evidence.interactions.duplicated("user_id").to_numpy()
    figures = {
        "repeat_rate": float(1 - anew[later].mean()),
        "target_in_history": float(shown),
        "repeats_last": float(last),
    }
    return Check(
        "repeats",
        grade(figures["target_in_history"], 0.1, 0.5),
        f"{shown:.1%} of the test targets are in the history that the prompt shows, {last:.1%} are its last item; over all splits "
        f"{figures['repeat_rate']:.1%} of the interactions repeat an earlier one of the user",
        "up to 10 %, a problem above 50 %",
        "Report the slice target_in_history beside the whole, and compare with the baseline that repeats.",
        figures,
    )


def cold_targets(evidence: Evidence) -> Check:
    """Targets that training never shows."""
    cold = evidence.train_counts[evidence.targets] == 0
    elsewhere = evidence.interactions[evidence.interactions["split"] != "test"]["item_id"]
    unseen = ~np.isin(np.array(evidence.samples.item_ids)[evidence.targets], elsewhere.unique())
    return Check(
        "cold targets",
        grade(float(cold.mean()), 0.01, 0.1),
        f"{cold.sum():,} of {len(cold):,} test targets ({cold.mean():.1%}) are never in train, {unseen.sum():,} of them in no other "
        "split either",
        "up to 1 %, a problem above 10 %",
        "Rules that count and models that know items by id cannot find these; look at the slice of cold targets.",
        {
            "rows": len(cold),
            "never_in_train": int(cold.sum()),
            "in_no_other_split": int(unseen.sum()),
        },
    )


def users_without_train(evidence: Evidence) -> Check:
    """Test users of whom training has nothing."""
    rows = evidence.interactions
    users = {sample.user_id for sample in evidence.test}
    without = len(users - set(rows.loc[rows["split"] == "train", "user_id"]))
    return Check(
        "test users without train",
        grade(without / len(users), 0.1, 0.9),
        f"{without:,} of {len(users):,} test users ({without / len(users):.1%}) have no train interaction",
        "up to 10 %, a problem above 90 %",
        "Methods with a vector per user know nothing of them; models that read the history do.",
        {"users": len(users), "without": without},
    )


def histories(evidence: Evidence) -> Check:
    """How much a test prompt tells."""
    lengths = np.array([len(sample.history) for sample in evidence.test])
    single = float((lengths == 1).mean())
    spread = quantiles(lengths)
    return Check(
        "history lengths",
        grade(single, 0.25, 0.5),
        f"a test prompt shows {spread['50%']:.0f} items in the median (quartiles {spread['25%']:.0f} and {spread['75%']:.0f}, at most "
        f"{spread['100%']:.0f}); {single:.1%} show a single one",
        "up to 25 % with a single item, a problem above 50 %",
        "With one item there is no sequence to model: expect little over a first-order rule.",
        {"single": single, "quantiles": spread},
    )


# ---------------------------------------------------------------------------------------------------------------------
# How hard the rows are


def branching(evidence: Evidence) -> Check:
    """The graph of who follows whom in train, and what a rule that only knows the last item could reach."""
    graph = transitions(evidence)
    totals, successors = np.asarray(graph.sum(axis=1)).ravel(), np.diff(graph.indptr)
    used = totals > 0
    share = graph.data / np.repeat(totals, successors)
    bits = float(-(graph.data * np.log2(share)).sum() / totals.sum()) if used.any() else 0.0
    last = np.array([sample.history[-1] for sample in evidence.test])
    known = float(np.asarray(graph[last, evidence.targets] > 0).mean())
    figures = {
        "items_with_successor": int(used.sum()),
        "successors": float(successors[used].mean()) if used.any() else 0.0,
        "entropy_bits": bits,
        "test_edges_in_train": known,
    }
    return Check(
        "branching of transitions",
        grade(1 - known, 0.95, 0.99),
        f"an item has {figures['successors']:.1f} distinct successors in train, {bits:.2f} bits of entropy (as {2**bits:.1f} equally "
        f"likely ones); {known:.1%} of the test transitions have an edge in train, the most that a first-order rule can reach",
        "if at least 5 % of the test transitions are known, a problem below 1 %",
        "What follows what in test is new: only content or longer patterns can help.",
        figures,
    )


def zero_cost(evidence: Evidence) -> Check:
    """Test rows that a rule without training solves."""
    counts, graph, num_items = (
        evidence.train_counts,
        transitions(evidence),
        len(evidence.samples.items),
    )
    rules: dict[str, Callable[[list[Sample]], np.ndarray]] = {
        "popularity": lambda rows: np.zeros((len(rows), num_items)),  # ties go by popularity
        "repeat": lambda rows: repeat_last(num_items).scores([row.history for row in rows]),
        "Markov": lambda rows: graph[[row.history[-1] for row in rows]].toarray(),
    }
    hits: dict[str, list[np.ndarray]] = {name: [] for name in rules}
    for start in range(0, len(evidence.test), ROWS_AT_ONCE):
        rows = evidence.test[start : start + ROWS_AT_ONCE]
        targets = np.array([row.target for row in rows])[:, None]
        for name, scores in rules.items():
            hits[name].append(
                top_k(scores(rows), popularity_order(counts), 10) == targets
            )  # (rows, 10)
    found = {name: np.concatenate(blocks) for name, blocks in hits.items()}
    any_of = np.any([hit.any(axis=1) for hit in found.values()], axis=0)
    shares = {
        name: {"at_1": float(hit[:, 0].mean()), "at_10": float(hit.any(axis=1).mean())}
        for name, hit in found.items()
    }
    return Check(
        "rows that cost nothing",
        grade(float(any_of.mean()), 0.25, 0.5),
        f"{any_of.mean():.1%} of the test rows have their target in the first ten of some rule without training; at rank 1 and 10: "
        + ", ".join(
            f"{name} {share['at_1']:.1%} and {share['at_10']:.1%}" for name, share in shares.items()
        ),
        "up to 25 %, a problem above 50 %",
        "Count a model only by what it has over these rules, row by row.",
        {"any_at_10": float(any_of.mean()), **shares},
    )


def transitions(evidence: Evidence) -> sparse.csr_matrix:
    """(N, N) how often an item came directly after another in train."""
    return transition_counts(
        evidence.samples.train_sequences, len(evidence.samples.items), reach=1, backward=0.0
    )


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue and its log


def duplicate_listings(evidence: Evidence) -> Check:
    """Items with the very same text."""
    items = evidence.samples.items
    texts = (items["title"] + " " + items["description"]).str.strip()
    twins = texts[texts.duplicated(keep=False)]
    share = len(twins) / len(items)
    return Check(
        "duplicate listings",
        grade(share, 0.01, 0.05),
        f"{len(twins):,} of {len(items):,} items ({share:.1%}) in {twins.nunique():,} groups have the same text as another",
        "up to 1 %, a problem above 5 %",
        "No text model can tell them apart; merge them, or give them descriptions that differ.",
        {"items": len(twins), "groups": int(twins.nunique())},
    )


def concentration(evidence: Evidence) -> Check:
    """Whether few items or few users make most of the data."""
    counts = np.sort(evidence.train_counts)[::-1]
    head = max(1, len(counts) // 100)
    users = evidence.interactions["user_id"].value_counts().to_numpy()
    figures = {
        "gini_items": gini(counts),
        "gini_users": gini(users),
        "top_1_percent_items": float(counts[:head].sum() / counts.sum()),
    }
    return Check(
        "concentration",
        grade(figures["gini_items"], 0.75, 0.9),
        f"Gini of train interactions over items {figures['gini_items']:.2f}, of all interactions over users {figures['gini_users']:.2f}; "
        f"the most popular 1 % of the items have {figures['top_1_percent_items']:.1%} of train",
        "up to a Gini over items of 0.75, a problem above 0.9",
        "Averages are about a few items; look at the slices of head, mid and tail targets.",
        figures,
    )


def ties(evidence: Evidence) -> Check:
    """Targets whose place after the history is an accident of the file, because the time is the same."""
    rows = evidence.interactions
    before = rows.groupby("user_id", sort=False)["timestamp"].shift()
    tied, later = (rows["timestamp"] == before).to_numpy(), before.notna().to_numpy()
    test = later & (rows["split"] == "test").to_numpy()
    figures = {"all": float(tied[later].mean()), "test": float(tied[test].mean())}
    return Check(
        "ties of time",
        grade(figures["test"], 0.1, 0.5),
        f"{figures['test']:.1%} of the test targets have the same time as the interaction before them, {figures['all']:.1%} of all",
        "up to 10 %, a problem above 50 %",
        "The order inside a tie is that of the source's file: next-item numbers are about that order too.",
        figures,
    )


CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    rows_in_train,
    time_order,
    future_in_train,
    target_in_prompt,
    near_duplicates,
    repeats,
    cold_targets,
    users_without_train,
    branching,
    zero_cost,
    duplicate_listings,
    histories,
    concentration,
    ties,
)
