"""Prompts: one wording for every stage, no target in any of them, the oldest items dropped first."""

import dataclasses
import itertools
import json
import random
from functools import cache

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.workload import qwen_like_tokenizer, read_amazon
from minionerec.catalogue import rows as rows_of_tasks
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import mixture
from minionerec.catalogue.samples import Sample, build_samples
from minionerec.catalogue.templates import TEMPLATES, Template, load_template, save_template
from minionerec.errors import UserError
from minionerec.experiment.choices import TASKS
from minionerec.model.vocabulary import train_tokenizer

TITLES = ["red drill", "blue saw", "green lamp", "grey vise"]
DESCRIPTIONS = ["drills holes", "", "gives light", "holds things"]
SIDS = [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"], ["<a_1>", "<b_1>"]]


def scratch_tokenizer(texts):
    return train_tokenizer(texts, 400)


def qwen2_tokenizer(texts):
    return qwen_like_tokenizer(texts, 400)


def llama2_tokenizer(texts, across_words=False):
    """No pre-tokenisation: a space is a character, the text's first word gets one in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first", split=not across_words
    )
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def merging_tokenizer(texts):
    """One that joins words, as no place in a text stops it."""
    return llama2_tokenizer(texts, across_words=True)


@cache
def trained(make, texts, sid_tokens):
    tokenizer = make(texts)
    tokenizer.add_tokens(list(sid_tokens), special_tokens=True)
    return tokenizer


def world(
    template="alpaca",
    max_tokens=512,
    titles=TITLES,
    descriptions=DESCRIPTIONS,
    make=scratch_tokenizer,
):
    wording = [part for t in TEMPLATES.values() for part in (*t.before.values(), *t.after.values())]
    sids = (
        [[f"<a_{i // 4}>", f"<b_{i % 4}>"] for i in range(len(titles))]
        if titles is not TITLES
        else SIDS
    )
    tokenizer = trained(make, (*titles, *descriptions, *wording), tuple(sorted(set(sum(sids, [])))))
    items = pd.DataFrame({"title": titles, "description": descriptions})
    return tokenizer, Renderer(
        tokenizer,
        TEMPLATES[template],
        [tokenizer.convert_tokens_to_ids(s) for s in sids],
        items,
        max_tokens,
    )


SAMPLES = [Sample("u", (0, 1), 2, 5), Sample("u", (0, 1, 2), 3, 6), Sample("v", (0, 1), 3, 7)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("task", TASKS)
def test_no_prompt_contains_its_target(task, template):
    """The reference appends the answer to its title -> SID prompts."""
    tokenizer, renderer = world(template)
    for row in mixture({task: 1.0}, SAMPLES, renderer, 4, 0):
        prompt = tokenizer.decode(row.prompt)
        sid = "".join(SIDS[row.target_item])
        shown = set(row.history) or {row.target_item}
        if row.history:
            assert row.target_item not in shown
            assert TITLES[row.target_item] not in prompt and sid not in prompt
        elif task == "sid_to_title":
            assert TITLES[row.target_item] not in prompt
        else:
            assert sid not in prompt and not set(row.completion[:-1]) & set(row.prompt)
        assert row.completion[-1] == tokenizer.eos_token_id and len(row.completion) > 1


def test_equal_histories_with_different_targets_keep_their_own_target():
    """The reference looks targets up by prompt text, so one of the two users is trained on the
    other's.
    """
    _, renderer = world()
    rows = mixture({"sid_to_sid": 1.0}, SAMPLES, renderer, 4, 0)
    assert rows[0].prompt == rows[2].prompt
    assert (rows[0].target_item, rows[2].target_item) == (2, 3)
    assert rows[0].completion != rows[2].completion


def test_a_compact_history_prompt_is_a_prefix_of_the_users_next_one():
    _, renderer = world("compact")
    shorter, longer = (
        renderer.prompt("sid_to_sid", (0, 1)),
        renderer.prompt("sid_to_sid", (0, 1, 2)),
    )
    assert longer[: len(shorter)] == shorter
    assert longer[len(shorter) :] == renderer.completion("sid_to_sid", 2)[:-1]


def test_rows_that_are_too_long_lose_their_oldest_items():
    tokenizer, renderer = world(
        "compact", max_tokens=9
    )  # start token, two SIDs of 2, and room for a SID and the end
    tokens = tokenizer.convert_ids_to_tokens(renderer.prompt("sid_to_sid", (0, 1, 2, 3)))
    assert tokens == ["<|endoftext|>", *SIDS[2], *SIDS[3]]


@pytest.mark.parametrize("make", [scratch_tokenizer, merging_tokenizer])
@pytest.mark.parametrize("task", ["titles_to_sid", "sids_to_title"])
def test_a_row_keeps_as_many_of_its_latest_items_as_fit_and_no_more(make, task):
    """Each limit around the length of 2, 3 and 4 items, for pieces and for whole texts alike."""
    _, roomy = world(make=make)
    completion, shown = max(len(roomy.completion(task, i)) for i in range(4)), (0, 1, 2, 3)
    prompts = [roomy.prompt(task, shown[first:]) for first in range(4)]
    for limit in (len(prompts[i]) + change for i in range(3) for change in (0, -1)):
        _, tight = world(make=make, max_tokens=limit + completion)
        assert tight.prompt(task, shown) == next(
            prompt for prompt in prompts if len(prompt) <= limit
        )


def test_a_limit_that_holds_not_even_one_item_names_the_setting():
    _, renderer = world("alpaca", max_tokens=16)
    with pytest.raises(
        UserError,
        match=r"^model.max_tokens: a 'sid_to_sid' prompt needs \d+ tokens, the limit is 16; raise it$",
    ):
        renderer.prompt("sid_to_sid", (0,))


def test_items_without_a_description_have_no_description_row():
    _, renderer = world()
    assert [
        row.target_item for row in mixture({"description_to_sid": 1.0}, SAMPLES, renderer, 4, 0)
    ] == [
        0,
        2,
        3,
    ]


def test_shares_take_a_fixed_part_or_a_multiple_of_a_tasks_rows():
    _, renderer = world()
    rows = mixture(
        {"sid_to_sid": 2.0, "title_to_sid": 0.5, "sid_to_title": 0.0}, SAMPLES, renderer, 4, seed=1
    )
    assert [row.task for row in rows] == ["sid_to_sid"] * 6 + ["title_to_sid"] * 2
    assert rows == mixture(
        {"sid_to_sid": 2.0, "title_to_sid": 0.5, "sid_to_title": 0.0}, SAMPLES, renderer, 4, seed=1
    )


def test_the_template_travels_with_the_checkpoint(tmp_path):
    save_template(TEMPLATES["compact"], tmp_path)
    assert load_template(tmp_path, "alpaca") == TEMPLATES["compact"]
    (tmp_path / "foreign").mkdir()
    assert load_template(tmp_path / "foreign", "alpaca") == TEMPLATES["alpaca"]
    assert json.loads((tmp_path / "prompt_template.json").read_text())["name"] == "compact"


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"name": "x"}', '{"name": "x", "before": {}, "after": {}, "style": 1}']
)
def test_a_text_that_is_no_template_is_one_line(tmp_path, text):
    (tmp_path / "prompt_template.json").write_text(text)
    with pytest.raises(UserError, match="is not a prompt template") as error:
        load_template(tmp_path, "alpaca")
    assert "\n" not in str(error.value)


AWKWARD = [
    "Foo (Pack of 2)",
    "(5) bolts",
    "5 mm",
    "12",
    "don't",
    "'s",
    "a  b   c",
    "Größe é",
    "日本語 ネジ",
    '1/4"',
    "x\n\ny",
    "ends.",
    "-1",
    "  white space around ",
    "bolt 🔩",
    "…",
    "a; b",
    "title: item:",
    "<a_0>",
    "́accent",
    "C++/C#",
    "100% (new)\t",
    "A",
    "##",
]
AWKWARD_TEXTS = ["; ".join(AWKWARD[i:] + AWKWARD[:i]) * 3 for i in range(len(AWKWARD) - 1)] + [""]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "make", [scratch_tokenizer, qwen2_tokenizer, llama2_tokenizer, merging_tokenizer]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_has_the_ids_of_one_tokenizer_call_on_its_text(task, make, template):
    """Every ordered pair of awkward titles, and histories of up to ten.

    A special token in a title is text; only SIDs are tokens of their own.
    """
    tokenizer, renderer = world(template, 4096, AWKWARD, AWKWARD_TEXTS, make)
    count, rng = len(AWKWARD), random.Random(0)
    start = (
        [tokenizer.bos_token_id]
        if tokenizer.bos_token_id is not None
        else [tokenizer.eos_token_id] * (template == "compact")
    )
    shown = [(i,) for i in range(count)]
    if task in ("sid_to_sid", "sids_to_title", "titles_to_sid"):
        shown += [
            (),
            *itertools.permutations(range(count), 2),
            *(tuple(rng.choices(range(count), k=10)) for _ in range(20)),
        ]
    for items in shown:
        expected = tokenizer.encode(
            renderer.text(task, items),
            add_special_tokens=False,
            split_special_tokens=not task.startswith("sid"),
        )
        assert renderer.prompt(task, items) == start + expected
    if make is not merging_tokenizer:  # one that joins words is tokenised whole
        assert renderer._pieces_are_exact(task)


def test_the_text_of_a_prompt_is_its_template_filled_in():
    assert world("alpaca")[1].text("titles_to_sid", (0, 1)) == (
        "### Instruction:\nA user has interacted with items of these titles in order. Predict the next item.\n\n"
        "### Input:\nTitles: red drill; blue saw\n\n### Response:\n"
    )
    compact = world("compact")[1]
    assert compact.text("titles_to_sid", (0, 1)) == "titles: red drill; blue saw item:"
    assert compact.text("sids_to_title", (0, 1)) == "history:<a_0><b_0><a_0><b_1> title:"
    assert compact.text("sid_to_sid", (2, 1)) == "<a_1><b_0><a_0><b_1>"
    assert compact.text("description_to_sid", (0,)) == "text: drills holes item:"


def test_a_template_without_a_place_to_cut_is_tokenised_whole():
    """The compact wording of older checkpoints: no space in front of a title."""
    tokenizer, _ = world()
    old = Template(
        "compact",
        {**TEMPLATES["compact"].before, "titles_to_sid": "titles:"},
        TEMPLATES["compact"].after,
        "",
        ";",
    )
    sids = [tokenizer.convert_tokens_to_ids(sid) for sid in SIDS]
    renderer = Renderer(
        tokenizer, old, sids, pd.DataFrame({"title": TITLES, "description": DESCRIPTIONS}), 512
    )
    assert renderer.text("titles_to_sid", (0, 1)) == "titles:red drill;blue saw item:"
    assert renderer.prompt("titles_to_sid", (0, 1))[1:] == tokenizer.encode(
        "titles:red drill;blue saw item:"
    )


def test_a_long_description_is_cut_to_its_first_128_tokens():
    """At most that many, and no more than a word fewer; no white space is left at the cut."""
    words = [f"word{i}" for i in range(200)]
    tokenizer, renderer = world(descriptions=[" ".join(words), "short", "無" * 500, ""])
    before, after = (
        TEMPLATES["alpaca"].before["description_to_sid"],
        TEMPLATES["alpaca"].after["description_to_sid"],
    )
    for item, whole in enumerate(renderer._descriptions[:3]):
        shown = (
            renderer.text("description_to_sid", (item,)).removeprefix(before).removesuffix(after)
        )
        assert whole.startswith(shown) and shown == shown.strip()
        count = len(tokenizer.encode(shown))
        assert count <= 128 and (shown == whole or count > 120)


@pytest.mark.parametrize("fast", [False, True])
def test_no_piece_is_tokenised_twice(fast):
    """Rows of a second epoch, of other shares and of more samples ask the tokenizer nothing.

    And a tokenizer without a fast backend gives the same rows.
    """
    tokenizer, own = world()
    asked = []

    class Watched:
        is_fast = fast

        @property
        def backend_tokenizer(self):
            asked.append(None)
            return tokenizer.backend_tokenizer

        def __call__(self, texts, **settings):
            asked.append(texts)
            return tokenizer(texts, **settings)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    sids = [tokenizer.convert_tokens_to_ids(sid) for sid in SIDS]
    renderer = Renderer(
        Watched(),
        TEMPLATES["alpaca"],
        sids,
        pd.DataFrame({"title": TITLES, "description": DESCRIPTIONS}),
        512,
    )
    rows = mixture(dict.fromkeys(TASKS, 1.0), SAMPLES, renderer, 4, seed=0)
    assert rows == mixture(dict.fromkeys(TASKS, 1.0), SAMPLES, own, 4, seed=0)
    calls = len(asked)
    mixture(dict.fromkeys(TASKS, 2.0), SAMPLES * 50, renderer, 4, seed=0)
    assert calls and len(asked) == calls


@pytest.mark.parametrize(
    "shares", [{"sid_to_sid": 1.0}, dict(zip(TASKS, (1, 0.5, 2.5, 0, 1.3, 3), strict=False))]
)
def test_many_rows_are_rendered_when_they_are_read_and_are_the_same(monkeypatch, shares):
    """Whole, one by one and in parts; items without a description have no row also then."""
    _, renderer = world()
    samples = SAMPLES * 3
    kept = mixture(shares, samples, renderer, 4, seed=3)
    monkeypatch.setattr(rows_of_tasks, "FEW", 0)
    read = mixture(shares, samples, renderer, 4, seed=3)
    assert isinstance(kept, list) and isinstance(read, rows_of_tasks.Rows)
    assert list(read) == kept and [read[n] for n in range(len(read))] == kept
    assert read[1:5] == kept[1:5] and read[-1] == kept[-1]
    more = read + kept[:2]
    assert list(more) == kept + kept[:2] and more[-1] == kept[1] and len(more) == len(kept) + 2


def test_a_row_that_cannot_fit_is_refused_before_training_also_among_many(monkeypatch):
    monkeypatch.setattr(rows_of_tasks, "FEW", 0)
    _, renderer = world(max_tokens=16)
    with pytest.raises(UserError, match="^model.max_tokens: a 'sid_to_sid' prompt needs"):
        mixture({"sid_to_sid": 1.0}, SAMPLES, renderer, 4, seed=0)


@pytest.mark.parametrize("make", [train_tokenizer, qwen_like_tokenizer])
def test_rows_of_a_real_catalogue_have_the_ids_of_tokenizer_calls(real_data, make):
    """Every item of the item tasks, and histories from all over the train split, without what is
    cut for length.
    """
    items, interactions, codes = read_amazon(str(real_data / "amazon_industrial"))
    samples = build_samples(interactions, {item: i for i, item in enumerate(items["item_id"])}, 10)[
        0
    ]["train"]
    tokenizer = make(items["title"].tolist() + items["description"].tolist(), 4000)
    tokens = [[f"<{'abc'[level]}_{code}>" for level, code in enumerate(sid)] for sid in codes]
    tokenizer.add_tokens(sorted(set(sum(tokens, []))), special_tokens=True)
    sids = [tokenizer.convert_tokens_to_ids(sid) for sid in tokens]
    for template in TEMPLATES.values():
        renderer = Renderer(tokenizer, template, sids, items, 2048)
        start = [tokenizer.eos_token_id] * (template.name == "compact")
        for task in TASKS:
            rows = mixture({task: 1.0}, samples[::200], renderer, len(items), 0)
            texts = [renderer.text(task, row.history or (row.target_item,)) for row in rows]
            assert [row.prompt for row in rows] == [
                start + ids for ids in tokenizer(texts)["input_ids"]
            ]
            assert renderer._pieces_are_exact(task)


@pytest.mark.parametrize("template", ["alpaca", "compact"])
@pytest.mark.parametrize("make", [scratch_tokenizer, qwen2_tokenizer])
def test_a_special_token_written_out_in_a_title_is_text(make, template):
    """Else a title would end its own sequence, or recommend an item."""
    titles = ["how to use <|endoftext|> in prompts", "a book on <a_1><b_1>", "lamp", "vise"]
    known = make(tuple(TITLES))
    tokenizer = trained(make, tuple(TITLES), tuple(itertools.chain(*SIDS)))
    items = pd.DataFrame({"title": titles, "description": [f"about {t}" for t in titles]})
    sid_ids = [tokenizer.convert_tokens_to_ids(sid) for sid in SIDS]
    renderer = Renderer(tokenizer, TEMPLATES[template], sid_ids, items, 512)
    special = {*range(len(known), len(tokenizer)), tokenizer.eos_token_id}
    starts = 1 if tokenizer.bos_token_id is not None or template == "compact" else 0
    for task, shown in (
        ("title_to_sid", [0]),
        ("title_to_sid", [1]),
        ("titles_to_sid", [0, 1, 2]),
        ("description_to_sid", [1]),
    ):
        prompt = renderer.prompt(task, shown)[starts:]
        assert not special & set(prompt), task
        assert all(titles[item] in tokenizer.decode(prompt) for item in shown)
    for item in (0, 1):
        completion = renderer.completion("sid_to_title", item)
        assert not special & set(completion[:-1])
        assert completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(completion[:-1]) == titles[item]
    in_prompt = [token for token in renderer.prompt("sid_to_title", [1]) if token in special]
    assert in_prompt[-2:] == sid_ids[1]  # SIDs that are shown are still tokens


WHOLE = dataclasses.asdict(TEMPLATES["compact"])
BAD_TEMPLATES = {
    "a task is missing": {**WHOLE, "before": {"sid_to_sid": ""}},
    "a number for a text": {**WHOLE, "after": {**WHOLE["after"], "sid_to_sid": 3}},
    "null": {**WHOLE, "sid_separator": None},
    "a list": {**WHOLE, "before": [1]},
    "half a character": {**WHOLE, "title_separator": "\ud83d"},
    "a key too many": {**WHOLE, "prompt": "x"},
    "no object": [WHOLE],
    "null alone": None,
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_a_template_of_another_shape_is_one_line(tmp_path, case):
    (tmp_path / "prompt_template.json").write_text(json.dumps(BAD_TEMPLATES[case]))
    with pytest.raises(UserError) as caught:
        load_template(tmp_path, "compact")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/prompt_template.json: is not a prompt template (")
    assert "\n" not in said and len(said) < 500
    said.encode()  # what is shown can be shown


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 50_000])
def test_a_template_that_cannot_be_parsed_is_one_line(tmp_path, content):
    (tmp_path / "prompt_template.json").write_bytes(content)
    with pytest.raises(UserError, match=r"prompt_template.json: is not a prompt template \("):
        load_template(tmp_path, "compact")


def test_a_saved_template_is_read_as_it_was(tmp_path):
    for name, template in TEMPLATES.items():
        save_template(template, tmp_path)
        assert load_template(tmp_path, name) == template
