"""Go or no-go: what the figures of ``report.json`` mean for the stages behind.

The thresholds that they are held against are this project's experience, not a theorem: a no-go says
that a language model trained on these SIDs starts with a handicap that is cheaper to mend here.
Each check is ``good``, ``caution`` or ``bad``; one ``bad`` is a no-go.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

# name -> (good up to / from here, bad beyond here); which way is said in each check.
FIRST_LEVEL = (0.85, 0.5)  # perplexity / K: 1 is an evenly used codebook
# Lower is a caution only: plain residual k-means is uneven there and still works.
DEEPER_LEVELS = 0.5
DEAD_CODES = (0.05, 0.5)  # share of a level's codes that no item has
MOVED = (0.1, 0.5)  # share of items whose SID is not the one the quantiser gave
ERROR = (0.6, 0.9)  # share of the embeddings' variance that the codes lose
NEXT_CODE = (3.0, 1.5)  # times the bits of the same SIDs dealt at random
UNKNOWN = (0.05, 0.5)  # share of the tokens of the item texts
ONE_CATEGORY = 0.99  # purity of SIDs dealt at random: all items are alike, which judges nothing
LEAST_PAIRS = 200  # fewer pairs of consecutive items judge nothing
PURITY = (0.2, 0.05)  # of the way from the random control's purity to 1
SHARED_INTERACTIONS = 0.01  # collision keep: share of interactions with items that share their SID
IDENTICAL = 0.01  # share of items that are listed more than once


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """``go``, a ``line``, and ``checks`` with name, found, wanted, state and advice."""
    asked = [
        known_words(report),
        shared(report),
        first_level(report),
        deeper_levels(report),
        dead_codes(report),
        moved(report),
        error(report),
        told(report),
        purity(report),
        identical(report),
    ]
    checks = [check for check in asked if check]
    bad = [check["name"] for check in checks if check["state"] == "bad"]
    caution = [check["name"] for check in checks if check["state"] == "caution"]
    if bad:
        line = f"No-go: {', '.join(bad)}"
    elif caution:
        line = f"Go, but look at: {', '.join(caution)}"
    else:
        line = "Go: every check is good"
    return {"go": not bad, "line": line, "checks": checks}


def known_words(report: dict[str, Any]) -> dict[str, str] | None:
    """The encoder knows the language of the texts."""
    share = report.get("unknown_tokens")
    if share is None:
        return None
    return row(
        "tokens unknown to the encoder",
        f"{share:.1%}",
        f"up to {UNKNOWN[0]:.0%} (bad above {UNKNOWN[1]:.0%})",
        at_most(share, UNKNOWN),
        "the encoder was made for another language: set sids.encoder to a multilingual one",
    )


def shared(report: dict[str, Any]) -> dict[str, str]:
    """No two items with one SID, unless that is the policy."""
    after = report["collisions"]["after"]
    rate, by_interactions = after["collision_rate"], after["collision_rate_by_interactions"]
    wanted = "0 items"
    state = "good" if rate == 0 else "bad"
    if report["collision"] == "keep":
        wanted = f"0 items (bad above {SHARED_INTERACTIONS:.0%} of interactions)"
        state = state if rate == 0 or by_interactions > SHARED_INTERACTIONS else "caution"
    return row(
        "items that share a SID",
        f"{rate:.2%} of items, {by_interactions:.2%} of interactions",
        wanted,
        state,
        "set sids.collision to nearest_free, or add a level",
    )


def first_level(report: dict[str, Any]) -> dict[str, str]:
    """The first code divides the catalogue evenly."""
    share = report["levels"][0]["perplexity"] / report["levels"][0]["size"]
    return row(
        "perplexity of level 1",
        f"{share:.2f} K",
        f"from {FIRST_LEVEL[0]} K (bad below {FIRST_LEVEL[1]})",
        at_least(share, FIRST_LEVEL),
        "a balanced method (balanced_rqkmeans) or fewer codes on level 1 spread the items",
    )


def deeper_levels(report: dict[str, Any]) -> dict[str, str] | None:
    """The levels behind the first still tell items apart."""
    levels = report["levels"][1 : len(report["reconstruction_error"])]
    if not levels:
        return None
    share = min(level["perplexity"] / level["size"] for level in levels)
    return row(
        "perplexity of the deeper levels",
        f"{share:.2f} K at least",
        f"from {DEEPER_LEVELS} K",
        "good" if share >= DEEPER_LEVELS else "caution",
        "a crowded deeper level wastes codes: try balanced_rqkmeans or rqvae",
    )


def dead_codes(report: dict[str, Any]) -> dict[str, str]:
    """Codes that no item has still cost a token each."""
    levels = report["levels"][: len(report["reconstruction_error"])]
    share = max(level["dead"] / level["size"] for level in levels)
    return row(
        "dead codes",
        f"{share:.1%} of a level at most",
        f"up to {DEAD_CODES[0]:.0%} (bad above {DEAD_CODES[1]:.0%})",
        at_most(share, DEAD_CODES),
        "use fewer codes per level, or a method that restarts or balances them",
    )


def moved(report: dict[str, Any]) -> dict[str, str]:
    """A code given by the collision step says less about the item than one by the quantiser."""
    share = report["collisions"]["items_with_another_sid_than_quantised"] / report["items"]
    return row(
        "items with a re-assigned code",
        f"{share:.1%}",
        f"up to {MOVED[0]:.0%} (bad above {MOVED[1]:.0%})",
        at_most(share, MOVED),
        "add codes or a level, or choose a method with fewer collisions",
    )


def error(report: dict[str, Any]) -> dict[str, str]:
    """What the codes lose, and whether every level helps."""
    errors = report["reconstruction_error"]
    state = at_most(errors[-1], ERROR)
    found = f"{errors[-1]:.2f}"
    for level, (before, after) in enumerate(pairwise(errors), start=2):
        if after > 0.99 * before:
            found += f", level {level} adds nothing"
            state = "caution" if state == "good" else state
            break
    return row(
        "reconstruction error",
        found,
        f"up to {ERROR[0]} (bad above {ERROR[1]}), less after every level",
        state,
        "more codes or levels, or more training for rqvae",
    )


def told(report: dict[str, Any]) -> dict[str, str] | None:
    """The first code says more about the next item's than any dealing of the same SIDs would.

    Not whether both are the same: where people take what goes together, and not what is alike, they
    never are, and yet the next code is well told (``next_code.py``).
    """
    if report["prefixes"][0]["next_item_pairs"] < LEAST_PAIRS:
        return None
    bits, control, chance = (report["next_code"][key] for key in ("bits", "control", "chance"))
    lift = bits / max(control, chance, 1e-9)
    state = at_least(lift, NEXT_CODE)
    if state == "bad" and control < 2 * chance:
        return None  # too few pairs for so many codes: what is not seen may be there
    return row(
        "what the first code says of the next item",
        f"{bits:.3f} bits, {min(max(lift, 0), 9999):.1f} x random",
        f"from {NEXT_CODE[0]:g} x random (bad below {NEXT_CODE[1]:g} x)",
        state,
        "put more into sids.text, try another encoder or fewer codes on level 1: a code of few "
        "items says little more than the item itself",
    )


def purity(report: dict[str, Any]) -> dict[str, str] | None:
    """Items under one first code tend to be of one category."""
    first = report["prefixes"][0]
    if first["category_purity"] is None:
        return None
    control = first["category_purity_control"]
    if control > ONE_CATEGORY:
        return None
    gain = (first["category_purity"] - control) / (1 - control)
    return row(
        "category purity of the first code",
        f"{first['category_purity']:.3f}, random {control:.3f} (gain {gain:.2f})",
        f"gain from {PURITY[0]} (bad below {PURITY[1]})",
        at_least(gain, PURITY),
        "the SIDs do not follow the categories: look at the item texts, or try another encoder",
    )


def identical(report: dict[str, Any]) -> dict[str, str]:
    """Listings with the same text cannot be told apart by meaning."""
    share = report["duplicate_listings"]["items"] / report["items"]
    return row(
        "identical listings",
        f"{report['duplicate_listings']['items']} items ({share:.1%})",
        f"up to {IDENTICAL:.0%}",
        "good" if share <= IDENTICAL else "caution",
        "merge them in the data, or give them texts that differ",
    )


def row(name: str, found: str, wanted: str, state: str, advice: str) -> dict[str, str]:
    """One check; the advice is only kept where there is something to do."""
    return {
        "name": name,
        "found": found,
        "wanted": wanted,
        "state": state,
        "advice": "" if state == "good" else advice,
    }


def at_least(value: float, limits: tuple[float, float]) -> str:
    """``good`` from the first limit, ``bad`` below the second."""
    return "good" if value >= limits[0] else "bad" if value < limits[1] else "caution"


def at_most(value: float, limits: tuple[float, float]) -> str:
    """``good`` up to the first limit, ``bad`` above the second."""
    return "good" if value <= limits[0] else "bad" if value > limits[1] else "caution"
