"""Items that share a SID, from a real model's search to the numbers: no stage may lose one of them.

python -m pytest tests/evaluation/test_shared_sids.py
"""

from __future__ import annotations

import random

import pytest
import torch

from minionerec.catalogue.inputs import Catalogue
from minionerec.evaluation import ranking
from minionerec.evaluation.metrics import row_metrics
from minionerec.experiment.commit import committed
from minionerec.experiment.files import remove, write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.model import ranking as model_ranking
from minionerec.model.policy import Policy
from tests.reference import expected_metrics
from tests.worlds import tiny_run

# Of 24 items every three share one of 8 SIDs.
CODES = [(n // 3, n // 3) for n in range(24)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random model over a catalogue whose items share SIDs."""
    torch.set_num_threads(1)
    experiment = tiny_run(tmp_path_factory.mktemp("shared"))
    data, sids = (stage_path(experiment, stage) for stage in ("data", "sids"))
    remove(sids)
    settings = settings_of(experiment, "sids")
    with committed(sids, "sids", settings, [opened(data)]) as staging:
        codes = {f"i{n}": list(sid) for n, sid in enumerate(CODES)}
        made = {"sids": codes, "codebook_sizes": [8, 8], "method": "test"}
        write_json(staging / "sids.json", made)
    policy = Policy.create(Catalogue.open(experiment))
    policy.model.get_output_embeddings().weight.data.normal_(std=0.5)
    policy.model.eval()
    return policy


@pytest.fixture(autouse=True)
def small_forwards(monkeypatch):
    """Four users share a forward, so that batches are not in the order of the rows."""
    monkeypatch.setattr(model_ranking, "USERS_PER_FORWARD", 4)


def rows_of(policy, split="test"):
    return policy.catalogue.samples.splits[split]


def ids_of(policy):
    return policy.catalogue.item_ids


def ranked(policy, rows, num_beams=8, unwanted=None):
    """Records of these rows."""
    leaves, scores = model_ranking.rank(policy.ranker(rows, num_beams, unwanted))
    ids = ids_of(policy)
    return ranking.predictions(rows, leaves, scores, policy.trie, ids, unwanted)


def test_every_item_of_a_shared_sid_is_written_with_the_same_score(policy):
    sid_of = dict(zip(ids_of(policy), CODES, strict=True))
    for record in ranked(policy, rows_of(policy)):
        assert sorted(record["item_ids"]) == sorted(ids_of(policy))
        of_sid: dict = {}
        for item, score in zip(record["item_ids"], record["scores"], strict=True):
            of_sid.setdefault(sid_of[item], []).append(score)
        assert all(len(scores) == 3 and len(set(scores)) == 1 for scores in of_sid.values())
        assert len({scores[0] for scores in of_sid.values()}) == 8


def test_the_metrics_are_the_average_over_every_order_of_the_items_that_share(policy):
    rows = rows_of(policy)[:8]
    records = ranked(policy, rows)
    sid_of = ranking.sid_of(policy.catalogue.sids)
    item_level, sid_level = row_metrics(records, sid_of)
    for number, record in enumerate(records):
        items = record["item_ids"]
        groups = [items[start : start + 3] for start in range(0, 24, 3)][:3]  # 216 orders
        flat = [item for group in groups for item in group]
        expected = expected_metrics(groups, record["target_item_id"], (1, 3, 5))
        for key in ("HR@1", "HR@3", "HR@5", "NDCG@5"):
            assert item_level[key][number] == pytest.approx(expected[key])
        place = items.index(record["target_item_id"]) // 3
        assert sid_level["HR@1"][number] == float(place == 0)
        assert sid_level["HR@3"][number] == float(place < 3)
        assert (record["target_item_id"] in flat) == (place < 3)


def test_excluding_an_item_leaves_those_that_share_its_sid(policy):
    """One of three is excluded, then two, then all: only then does the SID disappear."""
    rows = rows_of(policy)
    rng = random.Random(0)
    unwanted = []
    for _ in rows:
        first, second, third = rng.sample(range(8), 3)
        items = [3 * first, 3 * second, 3 * second + 2]
        unwanted.append(frozenset([*items, 3 * third, 3 * third + 1, 3 * third + 2]))
    for record, left_out in zip(ranked(policy, rows, unwanted=unwanted), unwanted, strict=True):
        expected = {item for n, item in enumerate(ids_of(policy)) if n not in left_out}
        assert sorted(record["item_ids"]) == sorted(expected)
        assert len(record["scores"]) == 24 - 6


def test_an_exclusion_frees_its_beam_for_the_next_sid(policy):
    """Two beams: a SID that is excluded whole does not take up one of them."""
    rows = rows_of(policy)[:6]
    unwanted = []
    for record in ranked(policy, rows):
        best = [ids_of(policy).index(item) for item in record["item_ids"][:3]]
        unwanted.append(frozenset(best))
    for record, left_out in zip(ranked(policy, rows, 2, unwanted), unwanted, strict=True):
        found = {ids_of(policy).index(item) for item in record["item_ids"]}
        assert len(record["item_ids"]) == len(found) == 6
        assert not found & left_out


def test_validation_pairs_every_list_with_its_own_user(policy):
    """Ranked one by one, without batches, the metrics are the same; the model is no other either."""
    rows = rows_of(policy, "valid")[:20]
    assert len({len(row.history) for row in rows}) > 2  # batches are in the order of lengths
    found = ranking.validator(policy, rows, 8, torch.device("cpu"))(policy.model)
    alone = [record for row in rows for record in ranked(policy, [row])]
    level, _ = row_metrics(alone, ranking.sid_of(policy.catalogue.sids))
    for key in ("HR@1", "HR@5", "NDCG@5"):
        assert found[key] == pytest.approx(level[key].mean())
    # Lists of other users would be worth something else.
    crossed = [
        record | {"target_item_id": other["target_item_id"]}
        for record, other in zip(alone, alone[1:] + alone[:1], strict=True)
    ]
    other_level, _ = row_metrics(crossed, ranking.sid_of(policy.catalogue.sids))
    assert other_level["NDCG@5"].mean() != pytest.approx(found["NDCG@5"])
