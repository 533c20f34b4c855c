"""The SID table and its trie."""

import gc
import json
import random

import numpy as np
import pytest
import torch

from minionerec.catalogue.sids import load_sids
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from tests.worlds import random_catalogue, word_tokenizer


def write(path, sids, sizes=(3, 3)):
    path.write_text(json.dumps({"sids": sids, "codebook_sizes": list(sizes), "method": "random"}))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_every_path_in_the_trie_is_the_beginning_of_an_item_and_every_item_is_a_leaf(seed):
    """Against sets of prefixes; some SIDs are shared, some shorter."""
    rng = random.Random(seed)
    sids = random_catalogue(
        seed, rng.choice([1, 7, 90]), rng.randint(1, 4), rng.randint(1, 6), shared=0.1
    )
    if len(sids[0]) > 1:  # make one branch shorter, and keep the set prefix-free
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
        assert bool(trie.has_choice[node]) is False
    assert trie.num_leaves == len(set(sids))
    for prefix in prefixes:
        below = {sid for sid in sids if sid[: len(prefix)] == prefix}
        assert bool(trie.has_choice[trie.find(prefix)]) == (len(below) > 1)


@pytest.mark.parametrize("shorter", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_leaf_holds_every_item_of_its_sid_in_catalogue_order_and_no_other(seed, shorter):
    """Against a dictionary; half of the items share another's SID."""
    sids = random_catalogue(seed, 60, 3, 4, shared=0.5)
    if shorter:
        sids = [sid if sid[0] < 3 else (3,) for sid in sids]  # last by codes, first by depth
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, sid in enumerate(sids):
        groups.setdefault(sid, []).append(item)
    assert max(map(len, groups.values())) > 2
    trie = SidTrie(sids)
    assert trie.num_leaves == len(groups)
    found = {}
    for leaf in range(trie.num_leaves):
        node = int(trie.leaf_node[leaf])
        path = trie.path(torch.tensor(node), trie.num_levels).tolist()
        sid = tuple(int(trie.code[step]) for step in path if step)
        found[sid] = trie.items_of_leaf(leaf)
        assert [int(trie.leaf_of_item[item]) for item in found[sid]] == [leaf] * len(found[sid])
    assert found == groups


def test_a_trie_from_an_array_is_the_same_as_from_lists():
    sids = random_catalogue(4, 60, 3, 5)
    a, b = SidTrie(sids), SidTrie(np.array(sids))
    assert all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("first_child", "code", "parent", "leaf", "leaf_node")
    )


def test_the_tables_of_a_small_trie_worked_by_hand():
    """root -> 0, 3; 0 -> 1, 2; 3 is a whole SID, two items share (0, 2)."""
    trie = SidTrie([(3,), (0, 2), (0, 1), (0, 2)])
    assert trie.depth_start == [0, 1, 3, 5] and trie.fan_out == [2, 2, 0]
    assert trie.code.tolist() == [-1, 0, 3, 1, 2]
    assert trie.parent.tolist() == [-1, 0, 0, 1, 1]
    assert trie.first_child.tolist() == [1, 3, 5, 5, 5, 5]
    assert trie.leaf.tolist() == [-1, -1, 0, 1, 2] and trie.leaf_node.tolist() == [2, 3, 4]
    assert trie.leaf_of_item.tolist() == [0, 2, 1, 2]
    assert [trie.items_of_leaf(leaf) for leaf in range(3)] == [[0], [2], [1, 3]]


def test_codes_too_wide_for_one_sort_key_give_the_same_trie_as_narrow_ones():
    """Spreading the codes of each level keeps their order, so every table but ``code`` stays; 3 x
    30 bits fit no integer.
    """
    for seed in range(5):
        narrow = np.array(random_catalogue(seed, 80, 3, 6, shared=0.2))
        narrow[narrow[:, 0] == 0, 1:] = -1  # one branch of shorter SIDs
        wide = np.where(narrow < 0, -1, narrow * (1 << 27))
        a, b = SidTrie(narrow), SidTrie(wide, level_token_ids=[[0]] * 3)
        assert all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("first_child", "parent", "leaf", "leaf_node")
        )
        assert torch.equal(b.code[1:], a.code[1:] * (1 << 27))
        assert [a.items_of_leaf(i) for i in range(a.num_leaves)] == [
            b.items_of_leaf(i) for i in range(b.num_leaves)
        ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint32])
def test_an_array_of_any_integer_type_is_read(dtype):
    sids = random_catalogue(4, 60, 3, 5)
    assert torch.equal(SidTrie(np.array(sids, dtype=dtype)).code, SidTrie(sids).code)


@pytest.mark.parametrize("seed", range(20))
def test_expand_gives_the_children_of_every_node_and_none_of_a_leaf(seed):
    """Against ``children``, node by node, at the level of the node's depth; some SIDs are shared,
    some shorter.
    """
    rng = random.Random(seed)
    sids = random_catalogue(
        seed, rng.choice([1, 7, 90]), rng.randint(1, 4), rng.randint(1, 6), shared=0.1
    )
    if len(sids[0]) > 1 and seed % 2:
        sids = [s for s in sids if s[0] != 0] + [(0,)]
    trie = SidTrie(sids)
    for level in range(trie.num_levels):
        nodes = torch.arange(trie.depth_start[level], trie.depth_start[level + 1])
        if trie.has_short_sids:  # a beam that has ended waits at its leaf
            nodes = torch.cat([nodes, trie.leaf_node])
        child, legal, codes = trie.expand(nodes.view(1, -1), level)
        assert (
            child.shape
            == legal.shape
            == codes.shape
            == (1, len(nodes), max(1, trie.fan_out[level]))
        )
        for node, row_child, row_legal, row_codes in zip(
            nodes.tolist(), child[0], legal[0], codes[0], strict=True
        ):
            assert row_codes[row_legal].tolist() == trie.children(node)
            first = int(trie.first_child[node])
            assert row_child[row_legal].tolist() == list(
                range(first, first + len(trie.children(node)))
            )
        assert ((child >= 0) & (child < len(trie.code))).all()  # also where there is no child
        assert ((codes >= 0) & (codes < len(trie.level_tokens[level]))).all()


def test_expand_accepts_any_node_at_any_level():
    """A beam that does not exist stays at the root, or drifts on: indices stay valid."""
    trie = SidTrie([(0, 5, 2), (0, 6, 2), (1, 0, 0), (1, 0, 7), (1, 0, 8), (2, 2, 2)])
    for level in range(3):
        child, _, codes = trie.expand(torch.arange(len(trie.code), dtype=torch.int32), level)
        assert ((child >= 0) & (child < len(trie.code))).all()
        assert ((codes >= 0) & (codes < len(trie.level_tokens[level]))).all()


def test_moving_a_trie_moves_everything_that_expand_reads():
    trie = SidTrie([(0, 1), (0, 2), (3, 1)]).to("meta")
    assert all(
        t.device.type == "meta"
        for t in trie.expand(torch.zeros(2, 3, dtype=torch.long, device="meta"), 1)
    )
    assert {
        getattr(trie, name).device.type
        for name in ("first_child", "code", "parent", "leaf", "leaf_node")
    } == {"meta"}


def test_a_hundred_thousand_items_take_less_than_seven_megabytes():
    """About ten int32 per node, so 10,000,000 items stay below half a gigabyte."""
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 3))
    assert SidTrie(codes).nbytes < 7e6


def test_tokens_cover_every_level_and_code_whether_used_or_not(tmp_path):
    table = load_sids(write(tmp_path / "sids.json", {"x": [0, 2], "y": [1, 0]}, (2, 3)))
    assert table.tokens() == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>"]
    assert table.token_ids(word_tokenizer(table.tokens())) == [(2, 6), (3, 4)]


@pytest.mark.parametrize(
    "sids, message",
    [
        ({"x": [0, 3]}, "item 'x', level 1: got 3, expected a whole number from 0 to 2"),
        ({"x": [0, -1]}, "item 'x', level 1: got -1, expected a whole number from 0 to 2"),
        ({"x": [0, 1.0]}, "item 'x', level 1: got 1.0, expected a whole number from 0 to 2"),
        ({"x": [0, True]}, "item 'x', level 1: got True, expected a whole number from 0 to 2"),
        ({"x": []}, "item 'x': got [], expected a list of 1 to 2 codes"),
        ({"x": [0, 1, 2]}, "item 'x': got [0, 1, 2], expected a list of 1 to 2 codes"),
        ({"x": "<a_0>"}, "item 'x': got '<a_0>', expected a list of 1 to 2 codes"),
        (
            {"x": [0], "y": [0, 1]},
            "the SID of item 'x' [0] is the beginning of item 'y' [0, 1]; give both the same number of levels",
        ),
    ],
)
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


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"sids": 3, "codebook_sizes": ["x"]}', '{"codebook_sizes": [2]}']
)
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


@pytest.mark.parametrize(
    "sizes", ["[Infinity]", "[1e400]", "[NaN]", "[1000000000000]", "[0]", "[-3]", "[]", "null", "7"]
)
def test_codebook_sizes_that_no_catalogue_has_are_one_line(tmp_path, sizes):
    """The tokens of 10**12 codes would fill the memory before anything is said."""
    path = tmp_path / "sids.json"
    path.write_text(f'{{"sids": {{"a": [0]}}, "codebook_sizes": {sizes}}}')
    with pytest.raises(UserError, match=f"^{path}: ") as caught:
        load_sids(path)
    assert "\n" not in str(caught.value)


def test_a_sid_file_nested_too_deeply_is_one_line(tmp_path):
    (tmp_path / "sids.json").write_text("[" * 50_000)
    with pytest.raises(UserError, match="is not a SID file"):
        load_sids(tmp_path / "sids.json")


def plain_and_odd_texts(seed):
    """A random table as several JSON texts: other white space, other orders of keys, escapes."""
    rng = random.Random(seed)
    sids = random_catalogue(seed, rng.choice([1, 5, 40]), rng.randint(1, 4), 6, shared=0.1)
    if len(sids[0]) > 1:
        sids = [sid for sid in sids if sid[0] != 0] + [(0,)]
    names = [rng.choice(["item", "Ärger ", "a,b]", "{", "x: [1, 2]", "", "'"]) for _ in sids]
    named = enumerate(zip(names, sids, strict=True))
    table = {f"{name}{number}": list(sid) for number, (name, sid) in named}
    rest = {"codebook_sizes": [6] * len(sids[0]), "method": "random"}
    last_first = {"method": "random", "codebook_sizes": rest["codebook_sizes"], "sids": table}
    texts = [json.dumps({"sids": table, **rest}, ensure_ascii=False)]
    texts += [json.dumps({"sids": table, **rest}, indent=2), json.dumps(last_first)]
    texts.append(json.dumps(last_first, separators=(",", ":"), ensure_ascii=False))
    return table, texts


@pytest.mark.parametrize("seed", range(20))
def test_a_file_of_sids_is_read_as_any_json_reader_reads_it(seed, tmp_path):
    table, texts = plain_and_odd_texts(seed)
    backwards = list(reversed(table))
    for text in texts:
        path = tmp_path / "sids.json"
        path.write_text(text, encoding="utf-8")
        assert json.loads(text)["sids"] == table
        found = load_sids(path)
        assert found.item_ids == list(table)
        assert list(found.codes) == [tuple(codes) for codes in table.values()]
        again = load_sids(path, backwards)
        assert again.item_ids == backwards
        assert list(again.codes) == [tuple(table[item_id]) for item_id in backwards]


@pytest.mark.parametrize(
    "inside",
    [
        b'"x": [0 1], "y": [1, 1]',
        b'"x": [0, 01], "y": [1, 1]',
        b'"x": [0, 1], "y": [1, 1],',
        b', "x": [0, 1]',
        b'"x": [0, 1] "y": [1, 1]',
        b'"x": [0, "y" 1], "z": [1, 1]',
        b'"x": [0], :[1 "y" ,2], "z": [1, 1]',
        b'"x": [0, 1], "x": [1, 1]',
        b'"x": [0, 1], "y": []',
        b'"x": [0, 1], "y": [1, 1.0]',
        b'"x": [0, 1], "y": [1, -1]',
        b'"x": [0, 1], "y": [1, 3]',
        b'"x": [0, 1], "y": [1, 99999999999]',
        b'"x": [0, 1], "y": [0, 1, 1]',
        b'"x": [0, 1], "y": [0]',
        b'"x": [0, 1],\x0b "y": [1, 1]',
        b'"x\n": [0, 1], "y": [1, 1]',
        b'"x\xff": [0, 1], "y": [1, 1]',
        b'"x": [0, 1], "y": [1, 1]}, "sids": {"x": [1, 1]',
    ],
)
def test_what_is_no_table_of_sids_is_refused_however_near_it_comes(inside, tmp_path):
    path = tmp_path / "sids.json"
    path.write_bytes(b'{"sids": {' + inside + b'}, "codebook_sizes": [3, 3]}')
    with pytest.raises(UserError, match="sids.json"):
        load_sids(path)


@pytest.mark.parametrize(
    "text",
    ['{"x": {"sids": {"x": [0]}}, "sids": 0, "codebook_sizes": [1]}', '[{"sids": {"x": [0]}}]'],
)
def test_only_the_key_of_the_file_itself_is_its_table(text, tmp_path):
    path = tmp_path / "sids.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a SID file"):
        load_sids(path)


def test_a_large_catalogue_is_no_object_per_item(tmp_path):
    """A million lists and tuples are seconds of a start, and half a gigabyte."""
    number = 20_000
    sids = {f"item{place}": [place // 256, place % 256] for place in range(number)}
    path = write(tmp_path / "sids.json", sids, (256, 256))
    del sids
    gc.collect()
    before = len(gc.get_objects())
    found = load_sids(path)
    assert len(gc.get_objects()) - before < number / 10
    assert found.codes[number - 1] == ((number - 1) // 256, (number - 1) % 256)
