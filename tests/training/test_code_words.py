"""Rows that tie codes to words: worked by hand, and switchable."""

from __future__ import annotations

import re

import pytest

import sft
from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import UserError
from minionerec.experiment.stages import stage_path
from minionerec.model.policy import Policy
from minionerec.training.code_words import code_rows
from tests.worlds import tiny_run


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    catalogue = Catalogue.open(tiny_run(tmp_path_factory.mktemp("codes")))
    return catalogue, Policy.create(catalogue, 0.0)


def shown(rows, policy) -> list[tuple[str, str]]:
    return [tuple(policy.tokenizer.decode(ids) for ids in (r.prompt, r.completion)) for r in rows]


def rows_of(opened, shares):
    catalogue, policy = opened
    return code_rows(shares, catalogue, policy.tokenizer, policy.renderer)


def test_every_code_that_an_item_has_gets_a_row_with_its_words_each_way(opened):
    catalogue, policy = opened
    used = {(level, code) for sid in catalogue.sids.codes for level, code in enumerate(sid)}
    there = shown(rows_of(opened, {"words_to_code": 1.0}), policy)
    back = shown(rows_of(opened, {"code_to_words": 1.0}), policy)
    assert len(there) == len(back) == len(used)
    for (asked, code), (of_code, words) in zip(there, back, strict=True):
        found = re.fullmatch(r".*words: (.+) code:", asked)
        token = re.fullmatch(r"(<[ab]_\d>)<.*>", code)
        assert found and token
        # The same pair the other way round, in front of the end of the sequence
        assert of_code.endswith(f"code:{token[1]} words:")
        assert words.startswith(f" {found[1]}")
        assert 1 <= len(found[1].split(", ")) <= 8


def test_the_words_are_those_of_the_codes_own_items(opened):
    catalogue, policy = opened
    texts = list(catalogue.texts())
    for prompt, completion in shown(rows_of(opened, {"words_to_code": 1.0}), policy):
        level, code = re.match(r"<([ab])_(\d)>", completion).groups()
        own = [
            text
            for text, sid in zip(texts, catalogue.sids.codes, strict=True)
            if sid["ab".index(level)] == int(code)
        ]
        for word in re.search(r"words: (.+) code:", prompt)[1].split(", "):
            assert any(word in text.lower() for text in own)


def test_shares_count_rows_and_tasks_of_items_are_passed_over(opened):
    whole = rows_of(opened, {"code_to_words": 1.0})
    assert rows_of(opened, {"sid_to_sid": 1.0, "code_to_words": 0.0}) == []
    assert rows_of(opened, {"code_to_words": 2.0}) == whole * 2
    half = rows_of(opened, {"code_to_words": 0.5, "sid_to_sid": 1.0})
    assert len(half) == round(len(whole) / 2) and all(row in whole for row in half)


def test_sft_takes_code_tasks_beside_those_of_items_and_rl_refuses_them(tmp_path, capsys):
    tasks = {"sid_to_sid": 1.0, "words_to_code": 1.0, "code_to_words": 1.0}
    experiment = tiny_run(tmp_path, model={"normalize": "trie"}, sft={"tasks": tasks, "epochs": 1})
    sft.train(experiment, stage_path(experiment, "sft"))
    assert " rows of 3 tasks" in capsys.readouterr().out
    with pytest.raises(UserError, match="words_to_code"):
        experiment.changed({"rl.tasks": {"words_to_code": 1.0}})
