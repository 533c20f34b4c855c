"""Prompts: one wording for every stage, no target in any of them, the oldest items dropped first."""

import json

import pandas as pd
import pytest

from minionerec.config import UserError
from minionerec.dataset import Sample, mixture, task_rows
from minionerec.prompts import TEMPLATES, Renderer, load_template, save_template
from minionerec.settings import TASKS
from tests.worlds import word_tokenizer

TITLES = ["red drill", "blue saw", "green lamp", "grey vise"]
DESCRIPTIONS = ["drills holes", "", "gives light", "holds things"]
SIDS = [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"], ["<a_1>", "<b_1>"]]


def world(template="alpaca", max_tokens=512):
    words = [w for t in TEMPLATES.values() for part in (*t.before.values(), *t.after.values(), ", ", "; ", ";") for w in part.split()]
    tokenizer = word_tokenizer([*words, *" ".join([*TITLES, *DESCRIPTIONS]).split(), *sum(SIDS, [])])
    items = pd.DataFrame({"title": TITLES, "description": DESCRIPTIONS})
    return tokenizer, Renderer(tokenizer, TEMPLATES[template], [tokenizer.convert_tokens_to_ids(s) for s in SIDS], items, max_tokens)


SAMPLES = [Sample("u", (0, 1), 2, 5), Sample("u", (0, 1, 2), 3, 6), Sample("v", (0, 1), 3, 7)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("task", TASKS)
def test_no_prompt_contains_its_target(task, template):
    """The reference appends the answer to its title -> SID prompts."""
    tokenizer, renderer = world(template)
    for row in task_rows(task, SAMPLES, renderer, 4):
        prompt = tokenizer.decode(row.prompt)
        shown = set(row.history) or {row.target_item}
        if row.history:
            assert row.target_item not in shown
            assert TITLES[row.target_item] not in prompt and " ".join(SIDS[row.target_item]) not in prompt
        elif task == "sid_to_title":
            assert TITLES[row.target_item] not in prompt
        else:
            assert not set(SIDS[row.target_item]) & set(prompt.split())
        assert row.completion[-1] == tokenizer.eos_token_id and len(row.completion) > 1


def test_equal_histories_with_different_targets_keep_their_own_target():
    """The reference looks targets up by prompt text, so one of the two users is trained on the other's."""
    _, renderer = world()
    rows = task_rows("sid_to_sid", SAMPLES, renderer, 4)
    assert rows[0].prompt == rows[2].prompt
    assert (rows[0].target_item, rows[2].target_item) == (2, 3)
    assert rows[0].completion != rows[2].completion


def test_a_compact_history_prompt_is_a_prefix_of_the_users_next_one():
    _, renderer = world("compact")
    shorter, longer = renderer.prompt("sid_to_sid", (0, 1)), renderer.prompt("sid_to_sid", (0, 1, 2))
    assert longer[: len(shorter)] == shorter
    assert longer[len(shorter):] == renderer.completion("sid_to_sid", 2)[:-1]


def test_rows_that_are_too_long_lose_their_oldest_items():
    tokenizer, renderer = world("compact", max_tokens=9)      # start token, two SIDs of 2, and room for a SID and the end
    assert tokenizer.decode(renderer.prompt("sid_to_sid", (0, 1, 2, 3))).split() == ["<eos>", *SIDS[2], *SIDS[3]]


def test_a_limit_that_holds_not_even_one_item_names_the_setting():
    _, renderer = world("alpaca", max_tokens=16)
    with pytest.raises(UserError, match=r"^sft.max_tokens: a 'sid_to_sid' prompt needs \d+ tokens, the limit is 16; raise it$"):
        renderer.prompt("sid_to_sid", (0,))


def test_items_without_a_description_have_no_description_row():
    _, renderer = world()
    assert [row.target_item for row in task_rows("description_to_sid", SAMPLES, renderer, 4)] == [0, 2, 3]


def test_shares_take_a_fixed_part_or_a_multiple_of_a_tasks_rows():
    _, renderer = world()
    rows = mixture({"sid_to_sid": 2.0, "title_to_sid": 0.5, "sid_to_title": 0.0}, SAMPLES, renderer, 4, seed=1)
    assert [row.task for row in rows] == ["sid_to_sid"] * 6 + ["title_to_sid"] * 2
    assert rows == mixture({"sid_to_sid": 2.0, "title_to_sid": 0.5, "sid_to_title": 0.0}, SAMPLES, renderer, 4, seed=1)


def test_the_template_travels_with_the_checkpoint(tmp_path):
    save_template(TEMPLATES["compact"], tmp_path)
    assert load_template(tmp_path, "alpaca") == TEMPLATES["compact"]
    (tmp_path / "foreign").mkdir()
    assert load_template(tmp_path / "foreign", "alpaca") == TEMPLATES["alpaca"]
    assert json.loads((tmp_path / "prompt_template.json").read_text())["name"] == "compact"
