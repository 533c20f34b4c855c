"""The trainers: TRL's loss and gradients, exact resume, no silent NaN, no checkpoint without its
meaning.
"""

import itertools
import json
import math

import pytest
import torch
from transformers import TrainingArguments

import minionerec_trainer
import rl
import sft
from minionerec.catalogue import inputs
from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.settings import RL_PRESETS, RLSettings
from minionerec.experiment.stages import stage_path
from minionerec.model import backbone
from minionerec.pages import plots
from minionerec.training import rl_rows
from minionerec.training.batches import GlobalBatches, GroupedSampler
from minionerec.training.collate import collate_sft
from minionerec.training.group_logps import GroupBatch
from minionerec.training.likelihood import sft_logp
from minionerec.training.objective import exact_kl, k3_kl
from minionerec_trainer import GRPOTrainer
from tests.worlds import random_catalogue, tiny_model, tiny_run, weights_digest

LEVELS = [list(range(10, 15)), list(range(15, 20)), list(range(20, 25))]


def grpo_trainer(folder, settings, model, ref_model=None, reward=None, normalize="vocab"):
    """A trainer on a random catalogue, without any stage on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        max_steps=1,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trie = SidTrie(random_catalogue(2, 60, 3, 5), LEVELS)
    reward = reward or (
        lambda items, targets, alive, _: {
            "rule": (items == targets[:, None]).float(),
            "noise": (items % 7) / 7.0,
        }
    )
    rows = [Row("sid_to_sid", f"u{i}", [1, 2, 3 + i, 4][: 3 + i % 2], [], i) for i in range(4)]
    trainer = GRPOTrainer(
        model,
        arguments,
        rows,
        None,
        None,
        lambda _: {},
        trie=trie,
        settings=settings,
        normalize=normalize,
        reward=reward,
        ref_model=ref_model,
    )
    return trainer, rows, trie


@pytest.mark.parametrize("num_iterations, objective", [(1, "grpo"), (2, "grpo"), (2, "dr_grpo")])
def test_loss_and_gradients_equal_trl_on_the_same_rollouts_in_the_paper_preset(
    tmp_path, num_iterations, objective
):
    """TRL scores every completion with its prompt in a row of its own; ours reads one tree per
    group.
    """
    from trl import GRPOConfig
    from trl import GRPOTrainer as TRLTrainer

    settings = RLSettings(
        preset="paper",
        **{
            **RL_PRESETS["paper"],
            "num_generations": 8,
            "beta": 0.1,
            "num_iterations": num_iterations,
            "objective": objective,
        },
    )
    model, reference = tiny_model("qwen2", 40, seed=1), tiny_model("qwen2", 40, seed=2)
    trainer, rows, trie = grpo_trainer(tmp_path / "ours", settings, model, reference)
    rollouts = trainer.roll_out(rows)
    if num_iterations > 1:  # the policy has moved since: ratios on both sides of the clipping
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    loss, parts = trainer.loss_of(trainer.model, rollouts, list(range(4)))
    assert (parts["clip_ratio"] > 0.1) == (num_iterations > 1)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    paths = trie.path(rollouts.nodes, 3)  # (B, G, L)
    completions = torch.stack(
        [trie.level_tokens[level][trie.code[paths[..., level]].long()] for level in range(3)], -1
    ).view(32, 3)
    prompts = torch.zeros(32, 4, dtype=torch.long)
    prompt_mask = torch.zeros_like(prompts)
    for i in range(32):
        prompt = rows[i // 8].prompt
        prompts[i, 4 - len(prompt) :], prompt_mask[i, 4 - len(prompt) :] = torch.tensor(prompt), 1
    config = GRPOConfig(
        output_dir=str(tmp_path / "trl"),
        beta=0.0,
        loss_type=objective,
        max_completion_length=3,
        num_generations=8,
        per_device_train_batch_size=32,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_dropout=True,
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
    )
    from datasets import Dataset

    from tests.worlds import word_tokenizer

    stock = TRLTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 32),
        processing_class=word_tokenizer(["x"]),
    )
    stock.beta, stock.current_gradient_accumulation_steps = (
        0.1,
        1,
    )  # set late: TRL would load its reference from a hub
    ones = torch.ones_like(completions)
    reference_logps = torch.empty(32, 3)
    for i in range(32):
        sequence = rows[i // 8].prompt + completions[i].tolist()
        with torch.no_grad():
            logps = reference(input_ids=torch.tensor([sequence])).logits[0].log_softmax(-1)
        reference_logps[i] = logps[len(sequence) - 4 : -1].gather(1, completions[i][:, None])[:, 0]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": ones,
        "advantages": rollouts.advantages.flatten(),
        "ref_per_token_logps": reference_logps,
        "num_items_in_batch": torch.tensor(96),
    }
    if num_iterations > 1:
        inputs["old_per_token_logps"] = rollouts.old_logps.view(32, 3)
    expected = stock._compute_loss(model, inputs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-6)
        assert ((ours[name] - parameter.grad).abs().max() / scale).item() < 2e-5, name


def test_groups_without_variance_are_left_out_without_changing_the_gradient(tmp_path):
    def reward(items, targets, alive, _):
        return {
            "rule": torch.where(
                torch.tensor([[True], [False], [True], [False]]), (items % 3).float(), 1.0
            )
        }

    model = tiny_model("qwen2", 40, seed=1)
    trainer, rows, _ = grpo_trainer(
        tmp_path, RLSettings(beta=0.0, num_generations=6), model, reward=reward
    )
    rollouts = trainer.roll_out(rows)
    assert trainer.groups_to_score(rollouts) == [0, 2]
    gradients = []
    for kept in ([0, 2], [0, 1, 2, 3]):
        model.zero_grad()
        trainer.loss_of(trainer.model, rollouts, kept)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"kl": "exact"},
        {"scale_rewards": False},
        {"normalize": "trie"},
        {"beta": 0.5},
        {"sft_weight": 0.3},
        {"num_generations": 5},
        {"objective": "dr_grpo"},
        {"objective": "sdpo"},
        {"objective": "list"},
        {"sibling_alpha": 0.5},
    ],
)
def test_every_switch_of_the_objective_changes_the_gradient(tmp_path, changed):
    """The reference offers gspo and dapo flags that change nothing."""
    found = []
    for settings in ({}, changed):
        model, reference = tiny_model("qwen2", 40, seed=1), tiny_model("qwen2", 40, seed=2)
        chosen = {"beta": 0.1, "kl": "k3", "num_generations": 6, **settings}
        normalize = chosen.pop("normalize", "vocab")
        trainer, rows, _ = grpo_trainer(
            tmp_path, RLSettings(**chosen), model, reference, normalize=normalize
        )
        rollouts = trainer.roll_out(rows)
        trainer.loss_of(trainer.model, rollouts, [0, 1, 2, 3])[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).abs().max() > 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("objective, asks", [("grpo", True), ("sdpo", False), ("list", False)])
def test_the_children_of_every_prefix_are_read_only_for_a_kl_over_them(
    tmp_path, monkeypatch, objective, asks
):
    """Lists that are compared have no KL, so ``rl.kl: exact`` must cost them nothing."""
    asked = []
    forward = GroupBatch.forward

    def watched(batch, model, normalize, with_children):
        asked.append(with_children)
        return forward(batch, model, normalize, with_children)

    monkeypatch.setattr(GroupBatch, "forward", watched)
    model, reference = tiny_model("qwen2", 40, seed=1), tiny_model("qwen2", 40, seed=2)
    settings = RLSettings(objective=objective, beta=0.1, kl="exact", num_generations=4)
    trainer, rows, _ = grpo_trainer(tmp_path, settings, model, reference)
    trainer.loss_of(model, trainer.roll_out(rows), [0, 1, 2, 3])
    assert set(asked) == {asks}


def test_the_catalogue_smaller_than_a_group_masks_the_surplus(tmp_path):
    model = tiny_model("qwen2", 40, seed=1)
    trainer, rows, _ = grpo_trainer(tmp_path, RLSettings(beta=0.0, num_generations=80), model)
    rollouts = trainer.roll_out(rows)
    assert rollouts.alive.sum(1).tolist() == [60] * 4
    loss, _ = trainer.loss_of(trainer.model, rollouts, [0, 1, 2, 3])
    assert torch.isfinite(loss) and (rollouts.advantages[~rollouts.alive] == 0).all()


def test_kl_estimates_are_zero_at_equality_and_positive_elsewhere():
    p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    assert exact_kl(p[None], p[None]).item() == 0 and k3_kl(p, p).abs().max().item() == 0
    assert exact_kl(p[None], q[None]).item() == pytest.approx(
        0.5 * 0.9163 + 0.3 * 0.4055 - 0.2 * 1.0986, abs=1e-4
    )
    assert (k3_kl(p, q) > 0).all()
    padded = (
        torch.cat([p, torch.tensor([-torch.inf])])[None],
        torch.cat([q, torch.tensor([-torch.inf])])[None],
    )
    assert exact_kl(*padded).item() == pytest.approx(exact_kl(p[None], q[None]).item())


def train(stage, experiment):
    torch.set_num_threads(1)
    path = stage_path(experiment, stage.__name__)
    stage.train(experiment, path)
    return path


def test_the_best_step_is_handed_on_and_not_the_last_one(tmp_path, monkeypatch):
    """At a high learning rate the ranking of the validation rows gets worse again."""
    digests = {}

    def save(trainer, model, trial=None):
        original(trainer, model, trial)
        step = trainer.state.global_step
        digests[step] = weights_digest(trainer.checkpoints.path(step))

    original = minionerec_trainer.RankingTrainer.save_checkpoint
    monkeypatch.setattr(minionerec_trainer.RankingTrainer, "save_checkpoint", save)
    settings = {"epochs": 3, "evals_per_epoch": 4, "learning_rate": 3e-2, "eval_rows": 10}
    path = train(sft, tiny_run(tmp_path, sft={"batch_size": 32, "patience": 0, **settings}))
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    ranking = {row["step"]: row["eval_NDCG@10"] for row in log if "eval_NDCG@10" in row}
    best = max(ranking, key=ranking.get)
    assert best < max(ranking) == max(digests)
    assert weights_digest(path) == digests[best]
    assert len(set(digests.values())) == len(digests)


def test_resuming_with_other_settings_is_refused_and_lists_them(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(sft, tiny_run(tmp_path))
    with pytest.raises(
        UserError,
        match=r"holds an interrupted run with other settings \(sft.learning_rate: 0.01 -> 0.02\)",
    ):
        train(
            sft,
            tiny_run(
                tmp_path,
                sft={
                    "tasks": {"sid_to_sid": 1.0},
                    "epochs": 2,
                    "batch_size": 32,
                    "micro_batch_size": 16,
                    "learning_rate": 2e-2,
                    "warmup_steps": 2,
                    "dropout": 0.1,
                    "eval_rows": 20,
                },
            ),
        )


def test_rl_that_never_helps_hands_on_the_sft_weights_and_says_so(tmp_path, monkeypatch, capsys):
    experiment = tiny_run(
        tmp_path,
        sft={
            "tasks": {"sid_to_sid": 1.0},
            "epochs": 12,
            "batch_size": 32,
            "learning_rate": 1e-2,
            "patience": 0,
        },
        rl={
            "num_generations": 8,
            "batch_size": 16,
            "epochs": 1.0,
            "evals": 2,
            "learning_rate": 1e-2,
            "beta": 0.0,
            "rewards": {"rule": -1.0},
        },
    )  # punishes the target: no step can help
    before = train(sft, experiment)
    path = train(rl, experiment)
    assert weights_digest(path) == weights_digest(before)
    assert json.loads((path / "MANIFEST.json").read_text())["improved_on_sft"] is False
    assert "no step beat it: the SFT weights are handed on" in capsys.readouterr().out


def test_the_best_step_that_keeps_the_hits_is_handed_on(tmp_path, monkeypatch, capsys):
    """The second step ranks best of all, but has lost hits at the end of its lists."""
    quick = {"num_generations": 4, "batch_size": 32, "epochs": 1.0, "evals": 3, "beta": 0.0}
    experiment = tiny_run(
        tmp_path,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 64, "eval_rows": 5},
        rl={**quick, "learning_rate": 1e-3},
    )
    train(sft, experiment)
    script = itertools.chain(
        [(0.1, 0.5), (0.2, 0.5), (0.3, 0.49)], itertools.repeat((0.15, 0.5))
    )  # SFT, step by step, all further steps
    digests = {}

    def validate(_model, most=None):
        if most is not None:  # only to see how long it takes
            return {"HR@50": 0.0, "NDCG@10": 0.0}
        ndcg, hits = next(script)
        return {"HR@1": 0.1, "HR@10": 0.3, "HR@50": hits, "NDCG@10": ndcg}

    def save(trainer, model, trial=None):
        original(trainer, model, trial)
        step = trainer.state.global_step
        digests[step] = weights_digest(trainer.checkpoints.path(step))

    original = minionerec_trainer.RankingTrainer.save_checkpoint
    monkeypatch.setattr(minionerec_trainer.RankingTrainer, "save_checkpoint", save)
    monkeypatch.setattr(rl, "stage_validator", lambda *_: (validate, 20))
    path = train(rl, experiment)
    steps = sorted(digests)
    assert len(set(digests.values())) == len(steps) >= 3
    assert weights_digest(path) == digests[steps[0]]
    said = capsys.readouterr().out
    assert f"SFT 0.1000, best of RL 0.2000; at step {steps[0]} of {steps[-1]}" in said
    assert said.count("guard refuses") == 1 and said.count("guard passes") == len(steps) - 1
    assert "groups with signal" in said and "loss 0.0" not in said.partition("SFT model")[2]


def test_rl_trains_on_the_latest_targets_that_sft_left_to_it(tmp_path, monkeypatch):
    experiment = tiny_run(
        tmp_path,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 64, "holdout_for_rl": 0.25},
        rl={"num_generations": 4, "batch_size": 64, "epochs": 0.5, "evals": 1, "eval_rows": 5},
    )
    shown = {}

    def noting(stage, owner):
        original = owner.mixture

        def mixture(tasks, targets, *rest):
            shown[stage.__name__] = targets
            return original(tasks, targets, *rest)

        monkeypatch.setattr(owner, "mixture", mixture)

    for stage, owner in ((sft, sft), (rl, rl_rows)):
        noting(stage, owner)
        train(stage, experiment)
    samples = inputs.Catalogue.open(experiment).samples.splits["train"]
    assert len(shown["sft"]) + len(shown["rl"]) == len(samples)
    assert max(s.timestamp for s in shown["sft"]) < min(s.timestamp for s in shown["rl"])
    assert len(shown["rl"]) == pytest.approx(0.25 * len(samples), abs=3)
    # another share is another stage
    other = experiment.changed({"sft.holdout_for_rl": 0.5})
    with pytest.raises(UserError, match=r"sft.holdout_for_rl: 0.25 -> 0.5"):
        inputs.Catalogue.open(other)
        train(rl, other)


@pytest.mark.parametrize("tune", ["lora", "new_tokens"])
def test_adapters_train_what_they_should_and_are_merged_into_a_plain_checkpoint(tmp_path, tune):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    experiment = tiny_run(
        tmp_path,
        model={
            "tune": tune,
            "template": "compact",
            "text_vocab_size": 300,
            "lora_rank": 2,
            "config": {
                "model_type": "qwen2",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 128,
                "tie_word_embeddings": False,
            },
        },
        sft={
            "tasks": {"sid_to_sid": 1.0},
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 1e-2,
            "eval_rows": 10,
        },
    )
    path = train(sft, experiment)
    assert not (path / "adapter_config.json").exists()
    after, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    samples, sids = inputs.load_catalogue(
        experiment,
        stage_path(experiment, "data"),
        stage_path(experiment, "sids"),
    )
    before, _ = backbone.build(experiment.model, sids, inputs.texts(samples.items), experiment.seed)
    new = set(tokenizer.convert_tokens_to_ids(sids.tokens()))
    old = [i for i in range(len(tokenizer)) if i not in new]
    for side in ("get_input_embeddings", "get_output_embeddings"):
        a, b = getattr(before, side)().weight, getattr(after, side)().weight
        assert torch.equal(a[old], b[old]) and not torch.equal(a[sorted(new)], b[sorted(new)])
    body_changed = not torch.equal(
        before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight
    )
    assert body_changed == (tune == "lora")


def test_the_sampler_keeps_groups_together_and_depends_on_seed_and_epoch_alone():
    groups = ["u", "v", "u", "", "v", ""]
    sampler = GroupedSampler(groups, seed=3)
    first = list(sampler)
    assert (
        sorted(first) == list(range(6))
        and abs(first.index(0) - first.index(2)) == 1
        and abs(first.index(1) - first.index(4)) == 1
    )
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert second != first


def test_every_row_is_in_one_step_of_an_epoch_and_steps_are_cut_evenly_between_processes():
    """Accelerate's own sharding repeats rows of the epoch's beginning until its last step is
    full.
    """
    from accelerate.data_loader import BatchSamplerShard

    for count, size, pieces in ((23, 8, 4), (24, 8, 4), (3, 8, 4), (9, 8, 4)):
        whole = list(GlobalBatches(GroupedSampler([""] * count, seed=0), size, pieces))
        assert sorted(row for piece in whole for row in piece) == list(range(count))
        steps = [whole[start : start + pieces] for start in range(0, len(whole), pieces)]
        assert [sum(map(len, step)) for step in steps[:-1]] == [size] * (len(steps) - 1)
        assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in steps)
        for processes in (1, 2, 4):
            shards = [
                list(
                    BatchSamplerShard(
                        GlobalBatches(GroupedSampler([""] * count, seed=0), size, pieces),
                        processes,
                        rank,
                    )
                )
                for rank in range(processes)
            ]
            assert [piece for together in zip(*shards, strict=True) for piece in together] == whole


def test_reused_rollouts_repeat_whole_steps():
    batches = GlobalBatches(GroupedSampler([""] * 7, seed=0), 3, pieces=1, times=2)
    pieces = list(batches)
    assert len(pieces) == len(batches) == 6
    assert pieces[::2] == pieces[1::2] and sorted(sum(pieces[::2], [])) == list(range(7))


def test_the_reference_of_an_adapter_is_the_policy_with_the_adapter_off(tmp_path):
    """Equal to a frozen copy, and the adapter is on again afterwards."""
    import copy

    from peft import LoraConfig, get_peft_model

    base = tiny_model("qwen2", 40, seed=1)
    frozen = copy.deepcopy(base)
    policy = get_peft_model(
        base,
        LoraConfig(
            r=2,
            target_modules="all-linear",
            trainable_token_indices={"embed_tokens": [12], "lm_head": [12]},
        ),
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    losses = []
    for reference in (None, frozen):
        trainer, rows, _ = grpo_trainer(
            tmp_path, RLSettings(beta=0.5, num_generations=4), policy, reference
        )
        rollouts = trainer.roll_out(rows)
        loss, metrics = trainer.loss_of(trainer.model, rollouts, [0, 1, 2, 3])
        assert metrics["kl"] > 1e-3 and policy.training == trainer.model.training
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_flat_groups_are_pulled_towards_the_reference_only_where_that_is_asked_for(tmp_path):
    model, reference = tiny_model("qwen2", 40, seed=1), tiny_model("qwen2", 40, seed=2)
    kept = {}
    for everywhere in (True, False):
        settings = RLSettings(beta=0.1, num_generations=6, kl_on_flat_groups=everywhere)
        trainer, rows, _ = grpo_trainer(
            tmp_path,
            settings,
            model,
            reference,
            reward=lambda items, targets, alive, _: {
                "rule": torch.where(
                    torch.tensor([[True], [False], [True], [False]]), (items % 3).float(), 1.0
                )
            },
        )
        kept[everywhere] = trainer.groups_to_score(trainer.roll_out(rows))
    assert kept == {True: [0, 1, 2, 3], False: [0, 2]}


def test_gradient_checkpointing_changes_no_gradient():
    """Layers run a second time in the backward pass, when the forward's choice of attention is
    over.
    """
    from minionerec.catalogue.rows import Row
    from minionerec.model.token_trees import pack_trees

    model = tiny_model("qwen2", 40).train()
    rows = [Row("sid_to_title", "", [1, 2, 3], [4, 5, 6 + i], 0) for i in range(4)]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        (-sft_logp(model, collate_sft(rows))).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    plain = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    tree = pack_trees([[1, 2, 3]])
    found = model(
        tree=tree,
        slots=torch.arange(3),
        readout=lambda hidden, head: head.columns(hidden, torch.arange(40)),
    )
    torch.testing.assert_close(found, plain[0], atol=1e-5, rtol=0)


def test_memory_that_runs_out_is_one_line_with_the_setting_to_lower():
    with (
        pytest.raises(
            UserError,
            match=r"^out of memory: CUDA out of memory. Tried to allocate 2 GiB; "
            r"lower sft.micro_batch_size$",
        ),
        backbone.fits_memory("sft.micro_batch_size"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    expected = r"out of memory: .*DefaultCPUAllocator.*; lower rl.micro_batch_size"
    with pytest.raises(UserError, match=expected), backbone.fits_memory("rl.micro_batch_size"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), backbone.fits_memory("sft.micro_batch_size"):
        torch.zeros(2).view(3)


def test_rows_longer_than_the_context_are_refused_before_training(tmp_path):
    config = {
        "model_type": "qwen2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 8,
    }
    with pytest.raises(
        UserError,
        match=r"model.max_tokens: the longest of \d+ rows has 1\d tokens, "
        r"the model's context is 8; lower it",
    ):
        train(
            sft,
            tiny_run(
                tmp_path, model={"template": "compact", "text_vocab_size": 300, "config": config}
            ),
        )


def test_a_model_without_attention_runs_both_stages_the_slow_way_and_says_so(tmp_path, capsys):
    """Mamba has nothing that a tree could be told to: rows stay separate and beams are read in
    full.
    """
    config = {
        "model_type": "mamba",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 4,
        "expand": 2,
        "conv_kernel": 2,
    }
    model = {"template": "compact", "text_vocab_size": 300, "config": config}
    experiment = tiny_run(
        tmp_path,
        model=model,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 32, "dropout": 0.0},
        rl={"num_generations": 4, "batch_size": 16, "epochs": 0.3, "evals": 1, "beta": 0.1},
    )
    train(sft, experiment)
    assert (
        "warning: MambaForCausalLM takes no token trees; using the exact but slow way"
        in capsys.readouterr().out
    )
    path = train(rl, experiment)
    losses = [
        row["loss"]
        for row in map(json.loads, (path / "log.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    assert losses and all(math.isfinite(loss) for loss in losses)
