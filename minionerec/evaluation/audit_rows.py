"""Checks of the test rows: what they ask for, and how hard they are.

Shapes: N items, B test rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sparse

from minionerec.catalogue.compact import IntLists
from minionerec.catalogue.split import quantiles
from minionerec.evaluation.audit_evidence import Check, Evidence, grade
from minionerec.rankers.item_matrices import matrix_head, matrix_scores, transition_counts
from minionerec.rankers.rules import HEAD_OF_TEN, repeat_scores
from minionerec.rankers.scores import popularity_order
from minionerec.rankers.sparse_scores import places_of, target_ranks

# -------------------------------------------------------------------------------------------------
# What they ask for


def repeats(evidence: Evidence) -> Check:
    """Targets that the user had before."""
    owners = evidence.histories.owners()  # the row of each shown item
    again = evidence.histories.flat == evidence.targets[owners]
    shown = (np.bincount(owners[again], minlength=len(evidence.targets)) > 0).mean()
    last = (evidence.last == evidence.targets).mean()
    rows = evidence.interactions
    anew = ~rows.duplicated(["user_id", "item_id"]).to_numpy()  # the user's first of this item
    later = rows.duplicated("user_id").to_numpy()  # not the user's first interaction
    figures = {
        "repeat_rate": float(1 - anew[later].mean()),
        "target_in_history": float(shown),
        "repeats_last": float(last),
    }
    return Check(
        name="repeats",
        verdict=grade(figures["target_in_history"], 0.1, 0.5),
        found=(
            f"{shown:.1%} of the test targets are in the history that the prompt shows, "
            f"{last:.1%} are its last item; over all splits {figures['repeat_rate']:.1%} of the "
            "interactions repeat an earlier one of the user"
        ),
        wanted="up to 10 %, a problem above 50 %",
        advice=(
            "Report the slice target_in_history beside the whole, and compare with the baseline "
            "that repeats."
        ),
        figures=figures,
    )


def cold_targets(evidence: Evidence) -> Check:
    """Targets that training never shows."""
    cold = evidence.train_counts[evidence.targets] == 0  # (B,)
    rows = evidence.interactions
    elsewhere = rows.loc[rows["split"] != "test", "item_id"].unique()
    target_ids = evidence.samples.items["item_id"].iloc[evidence.targets]
    unseen = ~target_ids.isin(elsewhere).to_numpy()  # (B,)
    return Check(
        name="cold targets",
        verdict=grade(float(cold.mean()), 0.01, 0.1),
        found=(
            f"{cold.sum():,} of {len(cold):,} test targets ({cold.mean():.1%}) are never in train, "
            f"{unseen.sum():,} of them in no other split either"
        ),
        wanted="up to 1 %, a problem above 10 %",
        advice=(
            "Rules that count and models that know items by id cannot find these; look at the "
            "slice of cold targets."
        ),
        figures={
            "rows": len(cold),
            "never_in_train": int(cold.sum()),
            "in_no_other_split": int(unseen.sum()),
        },
    )


def users_without_train(evidence: Evidence) -> Check:
    """Test users of whom training has nothing."""
    rows = evidence.interactions
    tested = np.unique(evidence.test.users()).tolist()
    users = pd.Index([evidence.test.log.user_ids[user] for user in tested])
    known = rows.loc[rows["split"] == "train", "user_id"].unique()
    without = int((~users.isin(known)).sum())
    share = without / len(users)
    return Check(
        name="test users without train",
        verdict=grade(share, 0.1, 0.9),
        found=f"{without:,} of {len(users):,} test users ({share:.1%}) have no train interaction",
        wanted="up to 10 %, a problem above 90 %",
        advice=(
            "Methods with a vector per user know nothing of them; models that read the history do."
        ),
        figures={"users": len(users), "without": without},
    )


def histories(evidence: Evidence) -> Check:
    """How much a test prompt tells."""
    lengths = np.diff(evidence.histories.starts)
    single = float((lengths == 1).mean())
    spread = quantiles(lengths)
    return Check(
        name="history lengths",
        verdict=grade(single, 0.25, 0.5),
        found=(
            f"a test prompt shows {spread['50%']:.0f} items in the median (quartiles "
            f"{spread['25%']:.0f} and {spread['75%']:.0f}, at most {spread['100%']:.0f}); "
            f"{single:.1%} show a single one"
        ),
        wanted="up to 25 % with a single item, a problem above 50 %",
        advice=(
            "With one item there is no sequence to model: expect little over a first-order rule."
        ),
        figures={"single": single, "quantiles": spread},
    )


# -------------------------------------------------------------------------------------------------
# How hard they are


def branching(evidence: Evidence) -> Check:
    """The graph of who follows whom in train, and what knowing the last item alone could reach."""
    graph = transitions(evidence)
    totals = np.asarray(graph.sum(axis=1)).ravel()  # (N,) transitions from each item
    successors = np.diff(graph.indptr)  # (N,) distinct ones
    used = totals > 0
    share = graph.data / np.repeat(totals, successors)  # of each edge among its item's
    bits = 0.0
    mean_successors = 0.0
    if used.any():
        bits = float(-(graph.data * np.log2(share)).sum() / totals.sum())
        mean_successors = float(successors[used].mean())
    known = float(np.asarray(graph[evidence.last, evidence.targets] > 0).mean())
    return Check(
        name="branching of transitions",
        verdict=grade(1 - known, 0.95, 0.99),
        found=(
            f"an item has {mean_successors:.1f} distinct successors in train, {bits:.2f} bits of "
            f"entropy (as {2**bits:.1f} equally likely ones); {known:.1%} of the test transitions "
            "have an edge in train, the most that a first-order rule can reach"
        ),
        wanted="if at least 5 % of the test transitions are known, a problem below 1 %",
        advice="What follows what in test is new: only content or longer patterns can help.",
        figures={
            "items_with_successor": int(used.sum()),
            "successors": mean_successors,
            "entropy_bits": bits,
            "test_edges_in_train": known,
        },
    )


def zero_cost(evidence: Evidence) -> Check:
    """Test rows that a rule without training solves."""
    any_of = np.zeros(len(evidence.test), bool)  # (B,)
    shares = {}
    sentences = []
    for name, ranks in rule_ranks(evidence).items():
        in_ten = ranks < 10
        any_of |= in_ten
        share = {"at_1": float((ranks == 0).mean()), "at_10": float(in_ten.mean())}
        shares[name] = share
        sentences.append(f"{name} {share['at_1']:.1%} and {share['at_10']:.1%}")
    return Check(
        name="rows that cost nothing",
        verdict=grade(float(any_of.mean()), 0.25, 0.5),
        found=(
            f"{any_of.mean():.1%} of the test rows have their target in the first ten of some rule "
            f"without training; at rank 1 and 10: {', '.join(sentences)}"
        ),
        wanted="up to 25 %, a problem above 50 %",
        advice="Count a model only by what it has over these rules, row by row.",
        figures={"any_at_10": float(any_of.mean()), **shares},
    )


def rule_ranks(evidence: Evidence) -> dict[str, np.ndarray]:
    """Rules that cost nothing: name -> ``(B,)`` how many items each puts before the target.

    A rank of ten and more may be any other such number.
    """
    order = popularity_order(evidence.train_counts)
    graph = transitions(evidence)
    last = IntLists(evidence.last, np.arange(len(evidence.last) + 1))
    repeat = repeat_scores(len(order))
    markov = matrix_scores(lambda: graph, window=1)
    head = matrix_head(lambda: graph, window=1, items=order[:HEAD_OF_TEN])
    targets = evidence.targets
    return {
        "popularity": places_of(order)[targets],
        "repeat": target_ranks(repeat, evidence.histories, targets, order),
        "Markov": target_ranks(markov, last, targets, order, head),
    }


def transitions(evidence: Evidence) -> sparse.csr_matrix:
    """(N, N) how often an item came directly after another in train."""
    num_items = len(evidence.samples.items)
    return transition_counts(evidence.samples.train_sequences, num_items, reach=1, backward=0.0)
