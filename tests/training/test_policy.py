"""Groups of completions: same log-probabilities as one plain forward per completion."""

import numpy as np
import pytest
import torch

from minionerec.catalogue.trie import SidTrie
from minionerec.model.output_head import children_logps, vocab_logps
from minionerec.training.group_logps import GroupBatch
from tests.worlds import plain_logps, random_catalogue, tiny_model


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
def test_group_log_probabilities_equal_one_forward_per_completion(normalize):
    sids = [*random_catalogue(1, 30, 3, 4), (4, 0), (4, 1)]  # two SIDs are shorter
    tokens = [list(range(10, 15)), list(range(15, 19)), list(range(19, 23))]
    trie, model = SidTrie(sids, tokens), tiny_model("qwen2", 40)
    prompts, rng = [[1, 2, 3], [1, 2, 4, 5, 6]], np.random.default_rng(0)
    items = [[*rng.permutation(30)[:5], 30], [*rng.permutation(30)[:5], 31]]
    nodes = trie.leaf_node[torch.from_numpy(trie.leaf_of_item[np.array(items)])].long()
    alive = torch.ones_like(nodes, dtype=torch.bool)
    alive[0, 4] = False
    batch = GroupBatch.make(prompts, nodes, alive, trie)
    output = batch.forward(model, normalize, with_children=True)
    for b, prompt in enumerate(prompts):
        for g, item in enumerate(items[b]):
            path = [tokens[level][code] for level, code in enumerate(sids[item])]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + path])).logits[0].float()
            expected = []
            for level, token in enumerate(path):
                row = logits[len(prompt) - 1 + level]
                if normalize == "trie":
                    legal = {
                        tokens[level][s[level]]
                        for s in sids
                        if len(s) > level and s[:level] == sids[item][:level]
                    }
                    expected.append((row[token] - row[sorted(legal)].logsumexp(0)).item())
                else:
                    expected.append(row.log_softmax(-1)[token].item())
            expected += [0.0] * (3 - len(path))
            assert output.logps[b, g].tolist() == pytest.approx(
                expected if alive[b, g] else [0.0] * 3, abs=2e-5
            )
    assert batch.mask.sum().item() == 9 * 3 + 2 * 2
    torch.testing.assert_close(output.children.exp().sum(-1), torch.ones(len(output.children)))


def test_a_loss_over_the_legal_children_equals_one_forward_per_row():
    """SID rows are normalised over the trie, without their end token; text rows over the
    vocabulary, with it.
    """
    from minionerec.catalogue.rows import Row
    from minionerec.training.collate import collate_sft

    sids = [*random_catalogue(1, 16, 2, 4), (4,)]
    tokens = [list(range(10, 15)), list(range(15, 19))]
    trie, model = SidTrie(sids, tokens), tiny_model("qwen2", 40)
    rows = [
        Row(
            "sid_to_sid",
            "u",
            [1, 2],
            [tokens[level][c] for level, c in enumerate(sids[i])] + [0],
            i,
        )
        for i in (3, 16, 7)
    ]
    rows.insert(1, Row("sid_to_title", "", [1, 2, 3], [30, 31, 0], 5))
    batch = collate_sft(rows, trie=trie, paths=trie.item_paths())
    pairs = batch["sid_pairs"]

    def readout(hidden, head):
        legal = children_logps(hidden, head, batch["child_rows"], batch["children"])
        of_sids = legal[batch["child_of_pair"], batch["place"]]
        everything = vocab_logps(hidden, head, batch["pair_rows"], batch["pair_tokens"])
        return of_sids, everything

    with torch.no_grad():
        found, everything = model(tree=batch["tree"], slots=batch["slots"], readout=readout)
    expected = []
    for row in (rows[0], rows[2], rows[3]):
        sid = sids[row.target_item]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0]
        for level, code in enumerate(sid):
            legal = sorted({s[level] for s in sids if s[:level] == sid[:level] and len(s) > level})
            children = logits[len(row.prompt) - 1 + level, [tokens[level][c] for c in legal]]
            expected.append(children.log_softmax(-1)[legal.index(code)].item())
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    text = [i for i in range(len(everything)) if i not in set(pairs.tolist())]
    with torch.no_grad():
        plain = [
            value.item() for value in plain_logps(model, rows[1].prompt + rows[1].completion, 3)
        ]
    assert sorted(everything[text].tolist()) == pytest.approx(sorted(plain), abs=2e-5)
