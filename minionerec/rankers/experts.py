"""Rankers as probabilities over the catalogue: what a fusion and the teacher of soft labels mix.

A rule's scores are counts of one kind or another, a text's are cosines: they can be added up only
as probabilities.

* popularity, Markov, item-kNN: ``p(item) = score / sum of the scores``, none of them negative;
* text-kNN: ``p(item) = exp(cosine / temperature) / sum``, the cosine being the weighted mean over
  the latest items. Items of the history get nothing: nothing is as alike as an item itself, and
  whether it is taken again is for the counts to say.

How far a rule looks (reach, window, shrinkage, ...) is what ``rules.choose`` finds on validation
rows, as for the baseline of the same name.

An expert can be asked *leave-one-out* about a row of train: what the row's own transition (from
its history to its target) has added to the counts is then taken out of the scores, as if it had
not been seen. Asked about held-out rows it needs no such care, as no held-out row is ever
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from minionerec.catalogue.rows import NO_TARGET
from minionerec.catalogue.samples import Samples, fixed_subset, train_counts
from minionerec.errors import UserError
from minionerec.experiment.files import load_array
from minionerec.experiment.stages import COMMANDS
from minionerec.rankers import item_matrices, rules
from minionerec.rankers.scores import popularity_order

LENGTH = 100  # items of a list, where rankers are mixed
CHOSEN_BY = 5_000  # validation rows, where there are more
# Items of a catalogue whose whole table is made: sums in another order would make other ties at the
# end of a list, and with them other labels than the published ones
SMALL = 16_384
ROUNDING = 1e-9  # of a sum that is taken apart again: what is left below it is nothing


Answer = TypeVar("Answer", np.ndarray, sparse.csr_matrix, covariant=True)


class Asked(Protocol[Answer]):
    """Histories, targets of train rows, their folds -> ``(B, N)``."""

    def __call__(
        self,
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        folds: Sequence[int] | None = None,
        /,
    ) -> Answer:
        """See ``Expert``."""


class Expert(NamedTuple):
    """One ranker of a mix.

    Attributes:
        name: one of ``settings.EXPERTS``.
        num_items: N.
        probabilities: histories, and the targets and folds (``crossfit``) of these train rows or
            None -> ``(B, N)``, rows that add up to 1, or to 0 where the ranker knows nothing.
            With targets it is asked leave-one-out, but for rows of ``NO_TARGET``; only networks
            have folds.
        made_with: the choices it was made with, for people.
        best: as ``best_of`` its probabilities, ``LENGTH`` of them, without a table of all items;
            None: there is no other way for this ranker.
    """

    name: str
    num_items: int
    probabilities: Asked[np.ndarray]
    made_with: dict[str, float]
    best: Asked[sparse.csr_matrix] | None = None


def popularity(counts: np.ndarray) -> Expert:
    """Train interactions per item ``(N,)``; a row's own target counts one less."""

    def probabilities(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        _folds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """``(B, N)``: what follows each history."""
        scores = np.tile(counts.astype(float), (len(histories), 1))
        for row, target in enumerate(targets or ()):
            if target != NO_TARGET:
                scores[row, target] = max(0.0, scores[row, target] - 1.0)
        return normalised(scores)

    return Expert("popularity", len(counts), probabilities, {})


def markov(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    *,
    reach: int,
    backward: float,
    window: int,
) -> Expert:
    """``item_matrices.transition_counts``, looked up by the latest ``window`` items.

    The row's own transition: its target was counted as a follower of the history item m steps
    before it with 1/m, for m up to ``reach``, and that item before the target with ``backward /
    m``. What was counted for an item stands in the score with 1/m' for every place m' of the
    window at which the item is looked up.
    """
    matrix = item_matrices.transition_counts(sequences, num_items, reach, backward)

    def own(history: Sequence[int], target: int) -> dict[int, float]:
        """Item -> what the row's own transition has added to the scores."""
        latest_first = history[::-1]
        followed: dict[int, float] = {}
        for ago, item in enumerate(latest_first[:reach], start=1):
            followed[item] = followed.get(item, 0.0) + 1.0 / ago
        added = {target: 0.0}
        for place, looked_up in enumerate(latest_first[:window], start=1):
            added[target] += followed.get(looked_up, 0.0) / place
            # a target that the history holds too is looked up itself, and finds what came before it
            if looked_up == target:
                for item, count in followed.items():
                    added[item] = added.get(item, 0.0) + backward * count / place
        return added

    made_with = {"reach": reach, "backward": backward, "window": window}
    return _counting("markov", matrix, window, own, made_with)


def item_knn(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    *,
    shrinkage: float,
    window: int,
) -> Expert:
    """``item_matrices.item_cosine``, looked up by the latest ``window`` items.

    The row's own transition: its user is one of those who have both the history item and the
    target. Of a target that the user took several times this is more than the one row has added,
    never less. Norms stay as they are.
    """
    matrix = item_matrices.item_cosine(sequences, num_items, shrinkage)
    holders = np.zeros(num_items)
    for sequence in sequences:
        holders[list(set(sequence))] += 1.0

    def own(history: Sequence[int], target: int) -> dict[int, float]:
        total = 0.0
        for place, item in enumerate(history[: -window - 1 : -1], start=1):
            norm = np.sqrt(holders[item] * holders[target]) + shrinkage
            total += 1.0 / norm / place
        return {target: total}

    return _counting("item_knn", matrix, window, own, {"shrinkage": shrinkage, "window": window})


def text_knn(
    embeddings: np.ndarray,
    *,
    window: int,
    again: bool,
    temperature: float,
) -> Expert:
    """Texts count nothing: nothing is taken out; without ``again`` the history gets no weight."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)  # (N, D)

    def probabilities(
        histories: Sequence[Sequence[int]],
        _targets: Sequence[int] | None = None,
        _folds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """``(B, N)``: what follows each history."""
        latest = item_matrices.latest_items(histories, len(unit), window)  # (B, N) sparse
        total = np.asarray(latest.sum(axis=1)).clip(min=1e-12)  # (B, 1)
        cosine = (latest @ unit) / total @ unit.T  # (B, N)
        # no cosine is above 1, so that nothing overflows
        weights = np.exp((cosine - 1.0) / temperature)
        for row, history in enumerate(histories):
            if not again:
                weights[row, list(history)] = 0.0
            if not history:
                weights[row] = 0.0
        return normalised(weights)

    @cache
    def vectors() -> Tensor:
        """``(N, D)`` float32 on the first GPU if there is one; not before they are asked for."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.from_numpy(unit).float().to(device)

    def best(
        histories: Sequence[Sequence[int]],
        _targets: Sequence[int] | None = None,
        _folds: Sequence[int] | None = None,
    ) -> sparse.csr_matrix:
        """The nearest ``LENGTH``; the others' weights cancel out."""
        latest = item_matrices.latest_items(histories, len(unit), window)  # (B, N) sparse
        total = np.asarray(latest.sum(axis=1)).clip(min=1e-12)  # (B, 1)
        mean = torch.from_numpy((latest @ unit) / total)  # (B, D)
        cosine = mean.to(vectors()) @ vectors().T  # (B, N)
        for row, history in enumerate(histories):
            if not again:
                cosine[row, list(history)] = -torch.inf
            if not history:
                cosine[row] = -torch.inf
        length = min(LENGTH, len(unit))
        least = cosine.topk(length, dim=1).values[:, -1:]  # (B, 1)
        rows, items = torch.nonzero((cosine >= least) & (cosine > -torch.inf), as_tuple=True)
        weights = torch.exp((cosine[rows, items] - 1.0) / temperature)
        ends = np.searchsorted(rows.cpu().numpy(), np.arange(len(histories) + 1))
        table = (weights.cpu().numpy(), items.cpu().numpy(), ends)
        return rows_normalised(sparse.csr_matrix(table, shape=cosine.shape))

    made_with = {"window": window, "again": again, "temperature": temperature}
    return Expert("text_knn", len(unit), probabilities, made_with, best)


def mix(
    experts: Sequence[Expert],
    weights: Sequence[float],
    histories: Sequence[Sequence[int]],
    targets: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
) -> sparse.csr_matrix:
    """``(B, N)`` weighted sum of the experts' probabilities over their best ``LENGTH`` items.

    A rule that gives every item a little would else have hardly anything left for its best.
    """
    num_items = experts[0].num_items
    total = sparse.csr_matrix((len(histories), num_items))
    for expert, weight in zip(experts, weights, strict=True):
        if expert.best and num_items > SMALL:
            found = expert.best(histories, targets, folds)
        else:
            probabilities = expert.probabilities(histories, targets, folds)
            found = sparse.csr_matrix(best_of(probabilities, LENGTH))
        total += weight * found
    return total


def best_of(probabilities: np.ndarray, length: int) -> np.ndarray:
    """``(B, N)`` the ``length`` largest of every row, and what equals the least of them; else 0.

    >>> best_of(np.array([[0.5, 0.25, 0.25, 0.0]]), 1).tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    if length >= probabilities.shape[1]:
        return probabilities
    least = -np.partition(-probabilities, length - 1, axis=1)[:, length - 1 : length]  # (B, 1)
    return normalised(np.where(probabilities >= least, probabilities, 0.0))


def best_scores(scores: sparse.csr_matrix, length: int) -> sparse.csr_matrix:
    """As ``best_of`` the normalised scores, none of which is negative; changes them.

    >>> scores = sparse.csr_matrix([[2.0, 1.0, 1.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    >>> best_scores(scores, 2).toarray().tolist()
    [[0.5, 0.25, 0.25, 0.0], [0.0, 0.75, 0.0, 0.25]]
    """
    scores.eliminate_zeros()
    scores = rows_normalised(
        scores
    )  # first, as ``best_of``: it makes equal what rounding told apart
    sizes = np.diff(scores.indptr)
    for row in np.flatnonzero(sizes > length).tolist():
        values = scores.data[scores.indptr[row] : scores.indptr[row + 1]]
        least = np.partition(values, len(values) - length)[len(values) - length]
        values[values < least] = 0.0
    scores.eliminate_zeros()
    return rows_normalised(scores)


def rows_normalised(scores: sparse.csr_matrix) -> sparse.csr_matrix:
    """As ``normalised``, in place."""
    total = np.asarray(scores.sum(axis=1)).ravel()  # (B,)
    scores.data /= np.repeat(total, np.diff(scores.indptr))
    return scores


def normalised(scores: np.ndarray) -> np.ndarray:
    """Rows of ``(B, N)`` scores, none negative, divided by their sum; rows of 0 stay."""
    total = scores.sum(axis=1, keepdims=True)
    return scores / np.where(total > 0, total, 1.0)


def _counting(
    name: str,
    matrix: sparse.csr_matrix,
    window: int,
    own: Callable[[Sequence[int], int], dict[int, float]],
    made_with: dict[str, float],
) -> Expert:
    """Scores of ``rules.item_to_item``; ``own``: what a transition has added to which items."""
    scores_of = item_matrices.matrix_scores(lambda: matrix, window)

    def counted(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None,
    ) -> sparse.csr_matrix:
        """``(B, N)`` scores, without what the rows themselves have added."""
        scores = scores_of(histories)
        for row, target in enumerate(targets or ()):
            if target == NO_TARGET:
                continue
            entries = slice(scores.indptr[row], scores.indptr[row + 1])
            items = scores.indices[entries]
            values = scores.data[entries]
            for item, added in own(histories[row], target).items():
                left = values[items == item] - added
                values[items == item] = np.where(left > ROUNDING, left, 0.0)
        return scores

    def probabilities(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        _folds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """``(B, N)``: what follows each history."""
        return normalised(counted(histories, targets).toarray())

    def best(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        _folds: Sequence[int] | None = None,
    ) -> sparse.csr_matrix:
        """The ``LENGTH`` that follow each history most."""
        return best_scores(counted(histories, targets), LENGTH)

    return Expert(name, matrix.shape[0], probabilities, made_with, best)


def build(
    names: Sequence[str],
    samples: Samples,
    *,
    embeddings_file: Path,
    temperature: float,
    unwanted: Sequence[Collection[int]] | None = None,
) -> list[Expert]:
    """Experts by name, what they leave open chosen on validation rows as for the baselines.

    Args:
        names: of ``settings.EXPERTS``.
        samples: counted are the train sequences, chosen is on the valid rows.
        embeddings_file: ``(N, D)`` of the items' texts, which ``text_knn`` reads.
        temperature: of ``text_knn``.
        unwanted: per valid row, items that are not ranked.

    Raises:
        UserError: there are no embeddings, or those of other items.
    """
    sequences, num_items = samples.train_sequences, len(samples.items)
    counts = train_counts(sequences, num_items)
    order = popularity_order(counts)

    valid = fixed_subset(samples.splits["valid"], CHOSEN_BY, seed=0)
    if unwanted is not None:
        unwanted = fixed_subset(unwanted, CHOSEN_BY, seed=0)

    def chosen(candidates: Sequence[rules.Rule]) -> dict[str, float]:
        best, _ = rules.choose(candidates, valid, order, unwanted)
        return candidates[best].made_with

    found = []
    for name in names:
        match name:
            case "popularity":
                found.append(popularity(counts))
            case "markov":
                choice = chosen(rules.markov_candidates(sequences, num_items))
                reach, window = int(choice["reach"]), int(choice["window"])
                backward = choice["backward"]
                found.append(
                    markov(sequences, num_items, reach=reach, backward=backward, window=window)
                )
            case "item_knn":
                choice = chosen(rules.knn_candidates(sequences, num_items))
                shrinkage, window = choice["shrinkage"], int(choice["window"])
                found.append(item_knn(sequences, num_items, shrinkage=shrinkage, window=window))
            case "text_knn":
                embeddings = read_embeddings(embeddings_file, num_items)
                candidates = rules.text_candidates(embeddings)
                choice = chosen([rule for rule in candidates if not rule.made_with["again"]])
                window = int(choice["window"])
                found.append(
                    text_knn(embeddings, window=window, again=False, temperature=temperature)
                )
    return found


def at_temperature(
    text: Expert,
    embeddings_file: Path,
    temperature: float,
) -> Expert:
    """A ``text_knn`` of ``build`` with another temperature; nothing is chosen again."""
    embeddings = read_embeddings(embeddings_file, text.num_items)
    window = int(text.made_with["window"])
    return text_knn(embeddings, window=window, again=False, temperature=temperature)


def read_embeddings(file: Path, num_items: int) -> np.ndarray:
    """``(N, D)`` float32.

    Raises:
        UserError: they are missing, or those of another catalogue.
    """
    if not file.is_file():
        raise UserError(
            f"{file} not found, which text_knn reads; run `{COMMANDS['sids']}` with the "
            "same --config first, or give text_knn no weight"
        )
    embeddings = load_array(file).astype(np.float32)
    if len(embeddings) != num_items:
        raise UserError(
            f"{file}: holds {len(embeddings)} rows, expected one for each of {num_items} items"
        )
    return embeddings
