"""Settings: what is read as what, and the exact line that every kind of mistake gets.

    bash test.sh tests/experiment/test_config.py

A file in ``tests/malformed`` begins with the lines that it must be refused with, as comments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import read_command_line, read_experiment
from minionerec.experiment.describe import describe_settings, settings_page
from minionerec.experiment.settings import (
    RL_PRESETS,
    SECTIONS,
    Experiment,
    RLSettings,
    SFTSettings,
    keys_of,
    schema,
)
from minionerec.experiment.stages import settings_of

MALFORMED = Path(__file__).parent / "malformed"


def write(folder: Path, text: str, name: str = "demo.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def expected_lines(path: Path) -> str:
    comments = []
    for line in path.read_bytes().splitlines():
        if not line.startswith(b"# "):
            break
        comments.append(line[2:].decode())
    return "\n".join(comments)


# (section, key, how it is declared); the section of the top level is ""
KEYS = [
    (section, name, field)
    for section in ["", *SECTIONS]
    for name, field in keys_of(section).items()
]
NUMBERS_AND_BOOLS = [key for key in KEYS if key[2].annotation in (int, float, bool)]


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", sorted(path.name for path in MALFORMED.glob("*.yaml")))
def test_every_malformed_file_is_refused_with_exactly_its_lines(name, monkeypatch):
    monkeypatch.chdir(MALFORMED)
    with pytest.raises(UserError) as caught:
        read_experiment(name)
    assert str(caught.value) == expected_lines(Path(name))


def test_there_are_malformed_files_of_many_kinds():
    assert len(list(MALFORMED.glob("*.yaml"))) >= 78


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--sft.epochs 3",
            "--config is missing; name a YAML file, e.g. --config configs/quickstart.yaml",
        ),
        (
            "--config quikstart.yaml",
            "quikstart.yaml: no such file in {here}; did you mean 'quickstart.yaml'?",
        ),
        ("--config elsewhere/demo.yaml", "elsewhere/demo.yaml: no such file in {here}"),
        ("--config .", ".: no such file in {here}"),
        ("--config /nowhere/demo.yaml", "/nowhere/demo.yaml: no such file"),
    ],
)
def test_a_missing_settings_file_is_refused_with_exactly_its_line(
    words, message, tmp_path, monkeypatch
):
    write(tmp_path, "seed: 1\n", "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_command_line("usage", words.split())
    assert str(caught.value) == message.format(here=tmp_path)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--sft.epochs", "command line: --sft.epochs has no value; write --sft.epochs VALUE"),
        (
            "--rl.scale_rewards --seed 3",
            "command line: --rl.scale_rewards has no value; write --rl.scale_rewards VALUE",
        ),
        ("--dry_run=no", "command line: --dry_run takes no value; write --dry_run"),
        ("--dry_run", "command line: --dry_run: unknown key"),
        ("--seed 3 --seed=4", "command line: --seed is given twice; keep one"),
        (
            "epochs=3",
            "command line: got 'epochs=3', expected flags of the form --section.key value; "
            "write --epochs 3",
        ),
        ("-k 3", "command line: got '-k', expected flags of the form --section.key value"),
        ("-- --trace", "command line: got '--', expected flags of the form --section.key value"),
        ("--noseed 1", "command line: --noseed: unknown key; did you mean 'seed'?"),
        ("--sead 1", "command line: --sead: unknown key; did you mean 'seed'?"),
        ("--sft 3", "command line: --sft: unknown key; it is a section, write sft.KEY"),
        (
            "--rl.normalize trie",
            "command line: --rl.normalize: is now model.normalize; pass --model.normalize",
        ),
        (
            "--stf.epochs 3",
            "command line: --stf.epochs: unknown section 'stf'; did you mean 'sft'?",
        ),
        (
            "--sft.batch-size 3",
            "command line: --sft.batch-size: unknown key; did you mean 'batch_size'?",
        ),
        ("--sft.epochs 3.5", "command line: --sft.epochs: got '3.5', expected a whole number"),
        ("--sft.epochs=", "command line: --sft.epochs: got '', expected a whole number"),
        (
            "--sft.learning_rate -1e-5",
            "command line: --sft.learning_rate: got -1e-05, expected a number > 0",
        ),
        (
            "--rl.scale_rewards no",
            "command line: --rl.scale_rewards: got 'no', expected true or false",
        ),
        (
            "--sids.codebook_sizes 8,,8",
            "command line: --sids.codebook_sizes: got '', expected a whole number",
        ),
        (
            "--rl.tasks.sid_to_sid often",
            "command line: --rl.tasks.sid_to_sid: got 'often', expected a number",
        ),
        (
            "--rl.rewards.rules 1",
            "command line: --rl.rewards.rules: got 'rules', expected one of rule, ranking, semantic, collaborative, prefix; "
            "did you mean 'rule'?",
        ),
        ("--rl.rewards {rule:1}", "command line: --rl.rewards: got '', expected a number"),
        (
            "--sft.epochs.more 3",
            "command line: --sft.epochs.more: got 'name: value' pairs, expected a whole number",
        ),
        (
            "--model.config.rope.theta 3",
            "command line: --model.config.rope.theta: has too many parts; write --model.config.rope '{theta: ...}'",
        ),
        (
            "--evaluate.checkpoint=",
            "quickstart.yaml: evaluate.checkpoint: is empty, expected sft, rl or the "
            "folder of a checkpoint",
        ),
        (
            "--foo 1 --sft.epochs x",
            "command line: --foo: unknown key\n"
            "command line: --sft.epochs: got 'x', expected a whole number",
        ),
    ],
)
def test_every_mistaken_flag_is_refused_with_exactly_its_lines(
    words, message, tmp_path, monkeypatch
):
    write(tmp_path, "seed: 1\n", "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_command_line("usage", ["--config", "quickstart.yaml", *words.split()], own=())
    assert str(caught.value) == message


def test_a_name_given_twice_inside_a_flag_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        read_experiment(write(tmp_path, ""), {"rl.rewards": "{rule: 1, rule: 2}"})
    assert (
        str(caught.value)
        == "command line: --rl.rewards: key 'rule' already set on line 1; keep one"
    )


def test_mistakes_in_the_file_and_in_flags_are_reported_together(tmp_path):
    path = write(tmp_path, "sft:\n  epochs: no\n")
    with pytest.raises(UserError) as caught:
        read_experiment(path, {"rl.beta": "-1"})
    assert str(caught.value).splitlines() == [
        f"{path}:2: sft.epochs: got 'no', expected a whole number",
        "command line: --rl.beta: got -1, expected a number >= 0",
    ]


def test_nesting_without_end_is_refused(tmp_path):
    path = write(tmp_path, "seed: " + "[" * 5000)
    with pytest.raises(UserError) as caught:
        read_experiment(path)
    assert (
        str(caught.value)
        == f"{path}: is nested too deeply; expected sections of 'key: value' lines"
    )


def test_a_mistake_stops_the_real_process_with_code_2_and_no_traceback_within_three_seconds(root):
    """Everything above runs in-process; this is what a user sees."""
    started = time.perf_counter()
    run = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "minionerec.experiment.preflight",
            "sft",
            "--config",
            "several_mistakes.yaml",
        ],
        cwd=MALFORMED,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    assert (run.returncode, run.stdout, run.stderr) == (
        2,
        "",
        expected_lines(MALFORMED / "several_mistakes.yaml") + "\n",
    )
    assert seconds < 3


def test_only_the_first_of_several_processes_prints_the_mistake(monkeypatch, capsys):
    for rank, printed in (("0", "wrong\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            raise UserError("wrong")
        assert (stopped.value.code, capsys.readouterr().err) == (2, printed)


# ----------------------------------------------------------------------------- what is read as what


def test_an_empty_file_gives_the_defaults_and_the_name_of_the_file(tmp_path):
    assert read_experiment(write(tmp_path, "# nothing\n", "shop-1.yaml")) == Experiment(
        name="shop-1"
    )


def test_1e_5_is_a_number(tmp_path):
    """PyYAML alone reads it as text, because YAML 1.1 wants 1.0e-5."""
    text = "sft: {learning_rate: 1e-5}\nmodel:\n  config: {model_type: qwen2, eps: 1e-6}\n"
    experiment = read_experiment(write(tmp_path, text))
    assert experiment.sft.learning_rate == 0.00001
    assert experiment.model.config["eps"] == 0.000001


def test_no_and_012_are_text_where_text_is_expected(tmp_path):
    """YAML 1.1 would make them False and 10; null is the empty text."""
    experiment = read_experiment(
        write(tmp_path, "name: 012\ndata:\n  path: null\nsft:\n  report_to: no\n")
    )
    assert (experiment.name, experiment.data.path, experiment.sft.report_to) == ("012", "", "no")


def test_a_free_form_mapping_keeps_words_and_types(tmp_path):
    text = "model:\n  config: {model_type: qwen2, a: no, b: 012, c: 2020-01-01, d: true, e: null, f: [1, 2.5], g: {h: 1:30}}\n"
    assert read_experiment(write(tmp_path, text)).model.config == {
        "model_type": "qwen2",
        "a": "no",
        "b": "012",
        "c": "2020-01-01",
        "d": True,
        "e": None,
        "f": [1, 2.5],
        "g": {"h": "1:30"},
    }


@pytest.mark.parametrize("encoding, newline", [("utf-8-sig", "\n"), ("utf-8", "\r\n")])
def test_files_saved_on_windows_are_read(tmp_path, encoding, newline):
    path = tmp_path / "demo.yaml"
    path.write_bytes("seed: 7\nsft:\n  epochs: 3\n".replace("\n", newline).encode(encoding))
    experiment = read_experiment(path)
    assert (experiment.seed, experiment.sft.epochs) == (7, 3)


def test_flags_win_over_the_file(tmp_path):
    path = write(
        tmp_path, "seed: 1\nsft:\n  epochs: 3\n  tasks: {sid_to_sid: 1, sid_to_title: 1}\n"
    )
    experiment, own = read_command_line(
        "usage",
        [
            "--config",
            str(path),
            "--seed=5",
            "--name",
            "other",
            "--sft.epochs",
            "9",
            "--sids.codebook_sizes",
            "8,8",
            "--data.path",
            "C: x",
            "--sft.tasks.sid_to_title",
            "0",
            "--rl.rewards",
            "{rule: 2}",
            "--baselines.methods",
            "[markov]",
            "--history",
            "-3,B0",
        ],
    )
    assert (experiment.seed, experiment.name, experiment.sft.epochs, experiment.data.path) == (
        5,
        "other",
        9,
        "C: x",
    )
    assert experiment.sids.codebook_sizes == [8, 8]
    assert experiment.sft.tasks == {"sid_to_sid": 1.0, "sid_to_title": 0.0}
    assert (experiment.rl.rewards, experiment.baselines.methods) == ({"rule": 2.0}, ["markov"])
    assert own == {"history": "-3,B0"}


def test_flags_of_the_script_are_kept_apart_from_settings(tmp_path):
    argv = ["--config", str(write(tmp_path, "")), "--history", "a,b", "--k", "3", "--seed", "7"]
    experiment, own = read_command_line("usage", argv, own=("history", "k"))
    assert (experiment.seed, own) == (7, {"history": "a,b", "k": "3"})


def test_a_preset_gives_defaults_and_written_keys_win(tmp_path):
    paper = read_experiment(write(tmp_path, "rl:\n  preset: paper\n  num_generations: 8\n")).rl
    assert (paper.sync_ref_steps, paper.num_generations) == (512, 8)
    assert paper.tasks == {"sid_to_sid": 1.0, "title_to_sid": 1.0, "titles_to_sid": 0.3}


def test_a_preset_that_is_named_later_fills_in_all_that_was_not_written(tmp_path):
    """By a notebook's ``changed`` as by the flag; back again, nothing of it stays."""
    file = write(tmp_path, "rl:\n  num_generations: 8\n")
    by_flag = read_experiment(file, {"rl.preset": "paper", "rl.beta": "0.5"})
    changed = read_experiment(file).changed({"rl.preset": "paper", "rl.beta": 0.5})
    assert changed == by_flag
    assert (changed.rl.num_generations, changed.rl.beta, changed.rl.sync_ref_steps) == (8, 0.5, 512)
    back = read_experiment(file, {"rl.preset": "paper"}).changed({"rl.preset": "default"})
    assert back == read_experiment(file)
    assert changed.changed({"rl.epochs": 1.0}).rl.sync_ref_steps == 512


def test_the_paper_preset_goes_on_in_the_distribution_of_the_model(tmp_path):
    """Scores of another distribution than the one a model was trained in rank worse, whatever a
    preset says.
    """
    trie = read_experiment(write(tmp_path, "model: {normalize: trie}\nrl: {preset: paper}\n"))
    assert trie.model.normalize == "trie"
    assert read_experiment(write(tmp_path, "rl: {preset: paper}\n")).model.normalize == "vocab"
    assert not any("normalize" in values for values in RL_PRESETS.values())


def test_one_task_changed_by_a_flag_leaves_the_presets_other_tasks(tmp_path):
    """Also when the preset is named after the task on the command line."""
    rl = read_experiment(
        write(tmp_path, ""), {"rl.tasks.titles_to_sid": "0.5", "rl.preset": "paper"}
    ).rl
    assert rl.tasks == {"sid_to_sid": 1.0, "title_to_sid": 1.0, "titles_to_sid": 0.5}


@pytest.mark.parametrize("preset", RL_PRESETS)
def test_every_preset_is_valid(tmp_path, preset):
    path = write(tmp_path, yaml.safe_dump({"rl": {"preset": preset, **RL_PRESETS[preset]}}))
    assert read_experiment(path).rl == read_experiment(path, {"rl.preset": preset}).rl


def test_the_defaults_written_out_are_valid_and_equal_to_the_defaults(tmp_path):
    """So every default lies in its own range and has its declared type."""
    path = write(tmp_path, yaml.safe_dump({**Experiment().model_dump(), "name": "demo"}))
    assert read_experiment(path) == Experiment(name="demo")


def test_every_shipped_experiment_is_valid(root):
    names = {path.name: read_experiment(path).name for path in root.glob("configs/*.yaml")}
    assert names["quickstart.yaml"] == "quickstart"


def test_help_shows_the_usage_and_every_key_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_command_line("the script's usage", ["--sft.epochs", "3", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert shown.startswith("the script's usage\n")
    lines = shown.splitlines()
    for section, name, field in KEYS:
        dotted = f"{section}.{name}" if section else name
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {dotted} = "))
        assert field.description
        assert lines[place + 1].strip().startswith(field.description)
    assert describe_settings() in shown


def test_the_page_of_settings_is_current(root):
    page = (root / "docs" / "SETTINGS.md").read_text(encoding="utf-8")
    assert page == settings_page(), "python -m minionerec.experiment.describe > docs/SETTINGS.md"


# ---------------------------------------------------------------- settings in Python and in editors


def test_settings_made_in_python_are_checked_as_those_of_a_file():
    for wrong in ({"epochs": 0}, {"epoch": 3}, {"dropout": float("nan")}, {"tasks": {}}):
        with pytest.raises(ValidationError):
            SFTSettings(**wrong)
    assert RLSettings(preset="paper").sync_ref_steps == 512


def test_a_copy_with_other_values_is_checked_and_leaves_the_original_as_it_was():
    experiment = Experiment(name="demo")
    other = experiment.changed({"seed": 7, "sft.epochs": 3})
    assert (other.seed, other.sft.epochs, other.name) == (7, 3, "demo")
    assert experiment == Experiment(name="demo")
    with pytest.raises(ValidationError):
        experiment.seed = 8
    with pytest.raises(UserError) as caught:
        experiment.changed({"sft.epochs": 0, "sids.method": "given", "rl.kl": "k2"})
    assert str(caught.value) == (
        "sft.epochs: got 0, expected a number >= 1\nrl.kl: got 'k2', expected one of k3, exact"
    )
    with pytest.raises(UserError) as caught:
        experiment.changed({"sids.method": "given"})
    assert str(caught.value) == "sids.method: given needs data.source minionerec, got embedded"


def test_the_schema_for_editors_is_current_and_every_shipped_file_names_it(root):
    """``python -m minionerec.experiment.settings --schema > configs/schema.json`` renews it."""
    folder = root / "configs"
    assert (folder / "schema.json").read_text(encoding="utf-8") == schema()
    for path in folder.glob("*.yaml"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=schema.json", path


def test_the_schema_knows_words_ranges_and_meanings():
    sections = json.loads(schema())["$defs"]
    method = sections["SidSettings"]["properties"]["method"]
    assert "balanced_rqkmeans" in method["enum"] and "quantiser" in method["description"]
    epochs = sections["SFTSettings"]["properties"]["epochs"]
    assert (epochs["minimum"], epochs["type"], epochs["default"]) == (1, "integer", 10)
    assert all(section["additionalProperties"] is False for section in sections.values())


# --------------------------------------------------------------------------------------- properties


def numbers_in_range(field: FieldInfo) -> st.SearchStrategy:
    """Values that a number's declared range allows."""
    declared = TypeAdapter(Annotated[field.annotation, field]).json_schema()
    low, high, above = map(declared.get, ("minimum", "maximum", "exclusiveMinimum"))
    if field.annotation is int:
        return st.integers(
            low if low is not None else -(10**18), high if high is not None else 10**18
        )
    return st.floats(
        low if low is not None else above,
        high,
        exclude_min=low is None and above is not None,
        allow_nan=False,
        allow_infinity=False,
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_number_and_bool_survives_the_file_and_the_command_line(tmp_path_factory, data):
    section, name, field = data.draw(st.sampled_from(NUMBERS_AND_BOOLS))
    kind = field.annotation
    value = data.draw(st.booleans() if kind is bool else numbers_in_range(field))
    folder = tmp_path_factory.getbasetemp()
    # model.layers has no effect on other backbones, rl.hint_weight none without hints, and nobody
    # judges open histories without a teacher
    teacher = {"rewards": {"collaborative": 1.0}, "teacher": {"markov": 1.0}}
    rl = {"hint_weight": {"hints": True}, "open_histories": teacher}.get(name, {})
    beside = {"model": {"backbone": "a/pretrained-one"}, "rl": rl}
    written = {section: {**beside.get(section, {}), name: value}} if section else {name: value}
    dotted = f"{section}.{name}" if section else name
    from_file = read_experiment(write(folder, yaml.safe_dump({**beside, **written})))
    from_flag = read_experiment(write(folder, yaml.safe_dump(beside)), {dotted: repr(value)})
    for experiment in (from_file, from_flag):
        found = getattr(getattr(experiment, section) if section else experiment, name)
        assert found == value and type(found) is kind


WORDS = st.sampled_from(
    [
        "seed",
        "sft",
        "rl",
        "epochs",
        "tasks",
        "sid_to_sid",
        "null",
        "1e-5",
        "0x1",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\t",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "'",
        '"',
        "|",
        ">",
        "&a",
        "*a",
        "!!int",
        "!x",
        "? ",
        "---",
        "...",
        "%YAML",
        "#",
        "<<",
        "@",
        "`",
        "\x85",
    ]
)


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(), st.lists(WORDS).map("".join)))
def test_any_text_is_read_or_refused_in_words(tmp_path_factory, text):
    """No input reaches the user as a traceback."""
    path = tmp_path_factory.getbasetemp() / "demo.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert read_experiment(path).name
    except UserError as error:
        assert str(error).startswith(str(path))


@settings(deadline=None, max_examples=200)
@given(
    key=st.sampled_from([f"{section}.{name}" for section, name, _ in KEYS if section]),
    text=st.text() | st.lists(WORDS).map("".join),
)
def test_any_flag_value_is_read_or_refused_in_words(tmp_path_factory, key, text):
    path = tmp_path_factory.getbasetemp() / "demo.yaml"
    path.write_text("")
    try:
        assert read_experiment(path, {key: text}).name == "demo"
    except UserError as error:
        assert key in str(error)


@pytest.mark.parametrize("name", ["amazon_industrial_smollm2", "amazon_industrial_smollm2_cpu"])
def test_configs_on_the_same_data_share_its_prepared_stages(root, name):
    """Embeddings and SIDs are made once, and copied or linked from one experiment to the next."""
    small = read_experiment(root / "configs/amazon_industrial_small.yaml")
    other = read_experiment(root / f"configs/{name}.yaml")
    for stage in ("data", "embeddings", "sids"):
        assert settings_of(other, stage) == settings_of(small, stage)


def test_the_help_of_the_prefix_reward_says_that_it_was_measured_as_harmful(capsys):
    with pytest.raises(SystemExit):
        read_command_line("", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    said = "prefix: share of right codes, which three groups independently measured as harmful"
    assert said in shown
