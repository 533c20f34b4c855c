"""Checks of the catalogue and its log: listings, concentration, ties of time."""

from __future__ import annotations

import numpy as np

from minionerec.evaluation.audit_evidence import Check, Evidence, grade
from minionerec.evaluation.exposure import gini


def duplicate_listings(evidence: Evidence) -> Check:
    """Items with the very same text."""
    items = evidence.samples.items
    texts = (items["title"] + " " + items["description"]).str.strip()
    twins = texts[texts.duplicated(keep=False)]
    share = len(twins) / len(items)
    return Check(
        name="duplicate listings",
        verdict=grade(share, 0.01, 0.05),
        found=(
            f"{len(twins):,} of {len(items):,} items ({share:.1%}) in {twins.nunique():,} groups "
            "have the same text as another"
        ),
        wanted="up to 1 %, a problem above 5 %",
        advice=(
            "No text model can tell them apart; merge them, or give them descriptions that differ."
        ),
        figures={"items": len(twins), "groups": int(twins.nunique())},
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
        name="concentration",
        verdict=grade(figures["gini_items"], 0.75, 0.9),
        found=(
            f"Gini of train interactions over items {figures['gini_items']:.2f}, of all "
            f"interactions over users {figures['gini_users']:.2f}; the most popular 1 % of the "
            f"items have {figures['top_1_percent_items']:.1%} of train"
        ),
        wanted="up to a Gini over items of 0.75, a problem above 0.9",
        advice=(
            "Averages are about a few items; look at the slices of head, mid and tail targets."
        ),
        figures=figures,
    )


def ties(evidence: Evidence) -> Check:
    """Targets whose place after the history is an accident of the file: the time is the same."""
    rows = evidence.interactions
    before = rows.groupby("user_id", sort=False, observed=True)["timestamp"].shift()
    tied = (rows["timestamp"] == before).to_numpy()
    later = before.notna().to_numpy()  # not the user's first interaction
    test = later & (rows["split"] == "test").to_numpy()
    figures = {"all": float(tied[later].mean()), "test": float(tied[test].mean())}
    return Check(
        name="ties of time",
        verdict=grade(figures["test"], 0.1, 0.5),
        found=(
            f"{figures['test']:.1%} of the test targets have the same time as the interaction "
            f"before them, {figures['all']:.1%} of all"
        ),
        wanted="up to 10 %, a problem above 50 %",
        advice=(
            "The order inside a tie is that of the source's file: next-item numbers are about that "
            "order too."
        ),
        figures=figures,
    )
