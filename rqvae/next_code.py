"""What an item's first code says about the next item's, in bits.

A language model writes the next item's first code after reading those of the history, so this is
what it can learn there from one item. To begin with the same code is only one way to be told:
after a tent people may take a sleeping bag and never another tent.

The mutual information of two codes counted from few pairs is too high: ``I(X; Y) = H(X) + H(Y) -
H(X, Y)``, and rare pairs of codes all look like rules. So the same counts are made of the pairs
with their second items shuffled, which tell nothing; H(X) and H(Y) stay as they are, and what is
left is ``mean H(shuffled) - H(X, Y)``. Even SIDs dealt to the items at random tell something then:
a code is a list of items, of which some are taken after some. Hence the control.

Shapes: N items, P pairs.
"""

from __future__ import annotations

import numpy as np

SHUFFLES = 8
DEALS = 3  # controls, of which the mean counts
MOST_PAIRS = 1_000_000  # of more a random sample is counted


def next_code(codes: np.ndarray, pairs: np.ndarray, seed: int) -> dict[str, float] | None:
    """Bits that first codes tell of the next ones, and the same of SIDs dealt at random.

    Args:
        codes: ``(N,)`` first code per item.
        pairs: ``(P, 2)`` items taken one after the other.

    Returns:
        ``bits``, ``control``, and ``chance``: the standard deviation over shuffles, below which
        nothing can be seen in so few pairs. None without pairs.
    """
    if not len(pairs):
        return None
    rng = np.random.default_rng(seed)
    if len(pairs) > MOST_PAIRS:
        pairs = pairs[rng.choice(len(pairs), MOST_PAIRS, replace=False)]
    bits, chance = told(codes[pairs[:, 0]], codes[pairs[:, 1]], rng)
    controls = []
    for _ in range(DEALS):
        dealt = rng.permutation(codes)
        controls.append(told(dealt[pairs[:, 0]], dealt[pairs[:, 1]], rng)[0])
    return {
        "bits": round(bits, 6),
        "control": round(float(np.mean(controls)), 6),
        "chance": round(chance, 6),
    }


def told(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Bits that ``first`` tells of ``second`` beyond chance, and the deviation of chance.

    Args:
        first: ``(P,)`` codes.
        second: ``(P,)`` codes.
    """
    size = int(second.max()) + 1
    left = first.astype(np.int64) * size  # (P,) with a code of second added: the number of a cell
    shuffled = [entropy(left + rng.permutation(second)) for _ in range(SHUFFLES)]
    bits = np.mean(shuffled) - entropy(left + second)
    return float(bits), float(np.std(shuffled))


def entropy(cells: np.ndarray) -> float:
    """Entropy in bits of what is counted.

    >>> entropy(np.array([5, 5, 7, 9]))
    1.5
    """
    counts = np.unique(cells, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())
