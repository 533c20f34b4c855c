"""What can make an offline number say more than the model is worth, check by check.

Leaks, repeats, cold items, rules that cost nothing. Every check is a pure function
``Evidence -> Check``: a verdict (``ok``, ``look``, ``problem``), one sentence with the figures, and
the figures themselves. ``data/audit.py`` reads the evidence and shows the checks. The thresholds
are this project's experience, not a theorem; each check says in ``wanted`` what it is held against.
"""

from __future__ import annotations

from collections.abc import Callable

from minionerec.evaluation.audit_catalogue import concentration, duplicate_listings, ties
from minionerec.evaluation.audit_evidence import Check, Evidence
from minionerec.evaluation.audit_leaks import (
    future_in_train,
    near_duplicates,
    rows_in_train,
    target_in_prompt,
    time_order,
)
from minionerec.evaluation.audit_rows import (
    branching,
    cold_targets,
    histories,
    repeats,
    users_without_train,
    zero_cost,
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


def audit(evidence: Evidence) -> list[Check]:
    """All checks, the leaks first."""
    return [check(evidence) for check in CHECKS]
