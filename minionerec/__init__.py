"""What two or more stages of MiniOneRec share. Nothing here imports a stage.

    from minionerec import Recommender

This name is looked up when it is asked for: a module of this package is imported within a
millisecond, and only who recommends waits for torch.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    """``Recommender``, imported at its first use.

    Raises:
        AttributeError: any other name.
    """
    if name != "Recommender":
        raise AttributeError(f"module 'minionerec' has no attribute '{name}'")
    from minionerec.serving.recommender import Recommender

    return Recommender
