"""The SID table and its trie."""

import json
import random

import numpy as np
import pytest
import torch

from minionerec.config import UserError
from minionerec.sids import SidTrie, load_sids
from tests.worlds import random_catalogue, word_tokenizer


def write(path, sids, sizes=(3, 3)):
    path.write_text(json.dumps({"sids": sids, "codebook_sizes": list(sizes), "method": "random"}))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_every_path_in_the_trie_is_the_beginning_of_an_item_and_every_item_is_a_leaf(seed):
    """Against sets of prefixes; some SIDs are shared, some shorter."""
    rng = random.Random(seed)
    sids = random_catalogue(seed, rng.choice([1, 7, 90]), rng.randint(1, 4), rng.randint(1, 6), shared=0.1)
    if len(sids[0]) > 1:                                   # make one branch shorter, and keep the set prefix-free
        sids = [s for s in sids if s[0] != 0] + [(0,)]
    trie = SidTrie(sids)
    prefixes = {s[:i] for s in sids for i in range(len(s) + 1)}
    stack, seen = [(0, ())], set()
    while stack:
        node, path = stack.pop()
        seen.add(path)
        start = int(trie.first_child[node])
        stack += [(start + i, (*path, code)) for i, code in enumerate(trie.children(node))]
        assert (int(trie.leaf[node]) >= 0) == (path in set(sids))
    assert seen == prefixes
    for item, sid in enumerate(sids):
        assert item in trie.items_of_leaf(int(trie.leaf_of_item[item]))
        assert {sids[i] for i in trie.items_of_leaf(int(trie.leaf_of_item[item]))} == {sid}
        node = trie.find(sid)
        path = [n for n in trie.path(torch.tensor(node), trie.num_levels).tolist() if n]
        assert [int(trie.code[n]) for n in path] == list(sid)
    assert trie.num_leaves == len(set(sids))


def test_a_trie_from_an_array_is_the_same_as_from_lists():
    sids = random_catalogue(4, 60, 3, 5)
    a, b = SidTrie(sids), SidTrie(np.array(sids))
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("first_child", "code", "parent", "leaf", "leaf_node"))


def test_tokens_cover_every_level_and_code_whether_used_or_not(tmp_path):
    table = load_sids(write(tmp_path / "sids.json", {"x": [0, 2], "y": [1, 0]}, (2, 3)))
    assert table.tokens() == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>"]
    assert table.token_ids(word_tokenizer(table.tokens())) == [[2, 6], [3, 4]]


@pytest.mark.parametrize("sids, message", [
    ({"x": [0, 3]}, "item 'x', level 1: got 3, expected a whole number from 0 to 2"),
    ({"x": [0, -1]}, "item 'x', level 1: got -1, expected a whole number from 0 to 2"),
    ({"x": [0, 1.0]}, "item 'x', level 1: got 1.0, expected a whole number from 0 to 2"),
    ({"x": [0, True]}, "item 'x', level 1: got True, expected a whole number from 0 to 2"),
    ({"x": []}, "item 'x': got [], expected a list of 1 to 2 codes"),
    ({"x": [0, 1, 2]}, "item 'x': got [0, 1, 2], expected a list of 1 to 2 codes"),
    ({"x": "<a_0>"}, "item 'x': got '<a_0>', expected a list of 1 to 2 codes"),
    ({"x": [0], "y": [0, 1]}, "the SID of item 'x' [0] is the beginning of item 'y' [0, 1]; give both the same number of levels"),
])
def test_a_bad_sid_is_named_with_its_item_and_value(tmp_path, sids, message):
    path = write(tmp_path / "sids.json", sids)
    with pytest.raises(UserError) as error:
        load_sids(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_catalogue_that_does_not_match_is_refused(tmp_path):
    path = write(tmp_path / "sids.json", {"x": [0, 1], "y": [1, 1]})
    with pytest.raises(UserError, match="item 'z' of the catalogue has no SID"):
        load_sids(path, ["x", "y", "z"])
    with pytest.raises(UserError, match=r"item 'y' is not in the catalogue \(2 SIDs, 1 items\)"):
        load_sids(path, ["x"])
    assert load_sids(path, ["y", "x"]).codes == [(1, 1), (0, 1)]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sids": 3, "codebook_sizes": ["x"]}', '{"codebook_sizes": [2]}'])
def test_a_file_that_is_no_sid_file_is_one_line(tmp_path, text):
    path = tmp_path / "sids.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a SID file") as error:
        load_sids(path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_catalogue_is_refused(tmp_path):
    table = load_sids(write(tmp_path / "sids.json", {"x": [0, 2]}))
    with pytest.raises(UserError, match=r"the tokenizer lacks 6 SID tokens \(<a_0>, ...\)"):
        table.token_ids(word_tokenizer(["drill"]))
