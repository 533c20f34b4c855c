"""The trainers that ``sft.py`` and ``rl.py`` share, on ``transformers.Trainer``.

``RankingTrainer`` adds what both need: validation by constrained beam search, checkpoints that are whole or absent,
a stop at the first NaN, a graceful stop on SIGTERM. ``SFTTrainer`` trains on packed prefix trees with logits only where
there is a label. ``GRPOTrainer`` rolls out with the same beam search that evaluates, and scores a group's completions in
one forward over the prompt and their prefix tree; its loss and gradients are those of ``trl.GRPOTrainer`` on the same
rollouts. Devices, DDP, FSDP, DeepSpeed, schedules, clipping and resuming stay the Trainer's job.

However many processes share a step, it trains on the same rows with the same weights: ``GlobalBatches`` cuts every batch
into the same micro-batches, losses are sums over a global count, and noise comes from the seed, the step and the row.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from minionerec.catalogue.prompts import Template
from minionerec.catalogue.rows import Row
from minionerec.catalogue.sids import SIDS_FILE
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment import artifacts
from minionerec.experiment.settings import RLSettings
from minionerec.model import backbone
from minionerec.model.beam_search import Beams, NotFinite, constrained_beam_search
from minionerec.model.decoders import make_decoder
from minionerec.model.output_head import (
    LogitsHead,
    OutputHead,
    children_logps,
    vocab_logps,
)
from minionerec.model.token_trees import TokenTree, base_causal_lm, pack_trees
from minionerec.training.batches import GlobalBatches, GroupedSampler, seed_of
from minionerec.training.callbacks import (
    EpochOrder,
    Narrator,
    QuietProgress,
    StopSignal,
    SyncReference,
)
from minionerec.training.checkpoints import clean_history, first_not_finite, last_checkpoint
from minionerec.training.collate import collate_rl, collate_sft
from minionerec.training.group_logps import GroupBatch, GroupOutput
from minionerec.training.objective import exact_kl, group_advantages, k3_kl

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class CheckpointContents:
    """What makes an intermediate checkpoint as complete as the final one."""

    stage: str
    settings: dict[str, Any]
    parents: list[Path]
    sids_file: Path
    template: Template


class RankingTrainer(Trainer):
    """``transformers.Trainer`` that selects on the ranking of validation rows and commits its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        rows: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        contents: CheckpointContents,
        validate: Validate,
        group_of_row: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            model,
            args,
            train_dataset=rows,
            eval_dataset=rows[:1],
            processing_class=tokenizer,
            **kwargs,
        )
        self.contents, self.validate, self.group_of_row = contents, validate, group_of_row
        self.model_accepts_loss_kwargs = (
            True  # tells the Trainer to count the labels of the whole batch first
        )
        self._copy = copy.deepcopy(model).to(args.device).eval() if self.is_fsdp_enabled else None
        self._batches = self._global_batches()
        self._seeded = (-1, 0)
        self.stop_signal = StopSignal()
        self.add_callback(self.stop_signal)
        self.add_callback(EpochOrder(self._batches))
        self.remove_callback(PrinterCallback)
        self.add_callback(Narrator)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(QuietProgress)
        self._staging: Path | None = None

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Rank the validation rows; every process takes its share inside ``validate``."""
        with (
            backbone.fits_memory(f"{self.contents.stage}.eval_beams"),
            self._named(self.state.global_step),
        ):
            metrics = {
                f"eval_{key}": value for key, value in self.validate(self.whole_model()).items()
            }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward.

        Raises:
            UserError: the loss of any process is not finite, in all of them; the first parameter that is not, and the
                last good checkpoint, are named. Or memory ran out.
        """
        self._seed_micro_batch()
        with self._named(self.state.global_step + 1):
            with backbone.fits_memory(
                f"{self.contents.stage}.micro_batch_size, or set model.gradient_checkpointing: true"
            ):
                loss = super().training_step(*args, **kwargs)
            everywhere = self.accelerator.reduce(loss).item()
            if not math.isfinite(everywhere):
                raise NotFinite(", ".join([f"the loss is {everywhere}", *self._bad_terms()]))
        return loss

    @contextlib.contextmanager
    def _named(self, step: int) -> Iterator[None]:
        """Say of a number that is none in which step it came up, where it is in the weights, and what is left."""
        try:
            yield
        except NotFinite as error:
            reason = str(error).partition(":")[0]
            raise UserError(
                f"step {step}: {reason}; {first_not_finite(self.whole_model())}; {self._last_good()}; "
                "lower the learning rate or check the data"
            ) from error

    def _bad_terms(self) -> list[str]:
        """Parts of the last loss that are not finite; a subclass knows them."""
        return []

    def _seed_micro_batch(self) -> None:
        """Dropout from the seed, the step and the micro-batch's place in it, whichever process has it."""
        step, place = self.state.global_step, self.args.process_index
        if self._seeded[0] == step:
            place = self._seeded[1] + self.args.world_size
        self._seeded = (step, place)
        torch.manual_seed(seed_of(self.args.seed, step, place))

    def whole_model(self) -> nn.Module:
        """The model with all its weights, for what is no training forward; every process must ask at the same time.

        FSDP's own model holds a share of the weights and gathers the others inside a forward that all processes make
        together. Decoding makes another number of forwards in each, so it reads a copy that is brought up to date here.
        """
        if self._copy is None:
            return self.model
        with torch.no_grad():
            for target, source in zip(
                self._copy.parameters(), self.model.parameters(), strict=True
            ):
                target.copy_(source.full_tensor() if isinstance(source, DTensor) else source)
        return self._copy

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the Trainer's formula does not hold for shared prefixes."""
        return 0

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """The Trainer forgets a best checkpoint that is not where it was, as after a folder was moved, and ends with the last one."""
        found = super()._init_training_state(*args)
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._best_checkpoint())
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where a run was interrupted between its last step and its end; the Trainer would go on for a step or more."""
        patience = [
            callback
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in patience
        )
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _best_checkpoint(self) -> Path:
        """The best checkpoint so far, verified: what is handed on in the end."""
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        artifacts.verify(best)
        return best

    def _load_best_model(self) -> None:
        best = self._best_checkpoint()
        if self._copy is None:
            super()._load_best_model()
        else:
            self._spread(best)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self._copy is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._spread(Path(resume_from_checkpoint))

    def _spread(self, checkpoint: Path) -> None:
        """A checkpoint's weights to FSDP's shards, by way of the copy: torch's broadcast of a state hangs where weights are tied."""
        if isinstance(self._copy, PeftModel):
            self._copy.load_adapter(str(checkpoint), self._copy.active_adapter, is_trainable=True)
        else:
            self._copy.load_state_dict(
                type(self._copy).from_pretrained(checkpoint, dtype=self._copy.dtype).state_dict()
            )
        with torch.no_grad():
            for source, target in zip(
                self._copy.parameters(), self.model.parameters(), strict=True
            ):
                whole = source.data
                target.copy_(
                    distribute_tensor(whole, target.device_mesh, target.placements)
                    if isinstance(target, DTensor)
                    else whole
                )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Under FSDP from the gathered copy: the Trainer's own way fails on shards of unequal size where weights are tied."""
        whole = self.whole_model()
        if self._copy is None:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            whole.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of ``GlobalBatches``, dealt to the processes one by one."""
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator
            )
        )

    def _global_batches(self, times: int = 1) -> GlobalBatches:
        order = GroupedSampler(
            self.group_of_row or [str(i) for i in range(len(self.train_dataset))], self.args.seed
        )
        pieces = self.args.gradient_accumulation_steps * self.args.world_size
        return GlobalBatches(order, self.args.per_device_train_batch_size * pieces, pieces, times)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save beside, check that every weight is finite, complete, commit, and only then forget older checkpoints."""
        name, output = f"checkpoint-{self.state.global_step}", Path(self.args.output_dir)
        if (output / name).exists():
            return
        broken = first_not_finite(self.whole_model())
        if broken.startswith("parameter"):
            raise UserError(
                f"step {self.state.global_step}: {broken}; it was not saved; {self._last_good()}; lower the learning rate"
            )
        self._staging = output / ".staging"
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with artifacts.cleared_on_error(output / name, self._staging, self._make_room):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            staged = self._staging / name
            best = self.state.best_global_step
            self.state.best_model_checkpoint = str(output / f"checkpoint-{best}") if best else None
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                self._complete(staged)
                artifacts.commit(
                    staged,
                    output / name,
                    self.contents.stage,
                    self.contents.settings,
                    self.contents.parents,
                )
        self._staging = None
        if self.args.should_save:
            self._forget_older(output, keep={name, f"checkpoint-{best}"})
        self.accelerator.wait_for_everyone()

    def _complete(self, staged: Path) -> None:
        """Add what a subclass must save for an exact resume; SIDs and prompt wording always belong to a checkpoint."""
        shutil.copyfile(self.contents.sids_file, staged / SIDS_FILE)
        backbone.save_template(self.contents.template, staged)
        with open(staged / "log.jsonl", "w", encoding="utf-8") as handle:
            handle.writelines(
                json.dumps(row) + "\n" for row in clean_history(self.state.log_history)
            )

    def _forget_older(self, output: Path, keep: set[str]) -> None:
        for old in sorted(output.glob("checkpoint-*")):
            if old.name not in keep:
                artifacts.remove(old)

    def _last_good(self) -> str:
        last = last_checkpoint(Path(self.args.output_dir))
        return f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"

    def _make_room(self) -> str:
        last = last_checkpoint(Path(self.args.output_dir))
        needed = (
            f"a checkpoint needs about {artifacts.size_of(last) / 1e6:.1f} MB; " if last else ""
        )
        return f"{needed}{self._last_good()}; make room, then run the same command again"


class SFTTrainer(RankingTrainer):
    """Next-token loss on the completions of packed prefix trees.

    With a ``trie`` the tokens of a SID are normalised over the legal children of their prefix instead of the vocabulary:
    the model need not learn which codes exist, and is scored the same way when it decodes with ``normalize: trie``.
    ``teacher_weight`` says how much the teacher of rows with soft labels weighs, by the share of all steps that is done.
    """

    def __init__(
        self,
        *args: Any,
        trie: SidTrie | None = None,
        teacher_weight: Callable[[float], float] = lambda _: 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.teacher_weight = teacher_weight
        share = base_causal_lm(self.model).takes_trees
        paths = [trie.item_path(item) for item in range(trie.num_items)] if trie else None
        self.data_collator = lambda rows: collate_sft(rows, share, trie, paths)

    def first_batches(self, number: int) -> list[list[int]]:
        """Row numbers of the first micro-batches of the run, for a look at what they cost."""
        return list(itertools.islice(self._batches, number))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ):
        """Mean negative log-likelihood per completion token of the global batch."""
        if not len(inputs["shift_labels"]):
            return zero_loss(model, inputs["tree"])
        weight = self.teacher_weight(self.state.global_step / self.state.max_steps)
        return (
            -sft_logp(model, inputs, weight) / num_items_in_batch * self.accelerator.num_processes
        )  # gradients are averaged over processes


def sft_logp(model: nn.Module, inputs: dict[str, Any], teacher_weight: float = 0.0) -> Tensor:
    """Weighted log-likelihood of all completion tokens of a collated batch, ``()``."""
    rows, tokens, sid_pairs = (inputs[key] for key in ("pair_rows", "pair_tokens", "sid_pairs"))
    weights = (1.0 - teacher_weight) * inputs["own"] + teacher_weight * inputs["teacher"]  # (J,)

    def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> Tensor:
        if not len(sid_pairs):
            return (vocab_logps(hidden, head, rows, tokens) * weights).sum()
        legal = children_logps(hidden, head, inputs["child_rows"], inputs["children"])  # (C, F)
        logps = legal[inputs["child_of_pair"], inputs["place"]]  # (S,)
        total = (logps * weights[sid_pairs]).sum()
        text = torch.ones_like(rows, dtype=torch.bool)
        text[sid_pairs] = False
        if text.any():
            logps = vocab_logps(hidden, head, rows[text], tokens[text])
            total = total + (logps * weights[text]).sum()
        return total

    return model(tree=inputs["tree"], slots=inputs["slots"], readout=readout)


def zero_loss(model: nn.Module, tree: TokenTree) -> Tensor:
    """0 that depends on every weight, for a process without rows: the others wait for its gradients all the same."""
    nothing = torch.empty(0, dtype=torch.long, device=tree.input_ids.device)
    return model(
        tree=tree,
        slots=nothing,
        readout=lambda hidden, head: head.columns(hidden, nothing.new_zeros(1)).sum(),
    )


class Rollouts(NamedTuple):
    """One micro-batch of groups: what was generated and how good it was. ``alive`` is False for places without an item."""

    prompts: list[list[int]]
    nodes: Tensor  # (B, G) leaf nodes of the trie
    alive: Tensor  # (B, G)
    old_logps: Tensor  # (B, G, L)
    advantages: Tensor  # (B, G)
    targets: list[int]  # item index of each prompt's target
    metrics: dict[str, float]


Reward = Callable[[Tensor, Tensor, Tensor, Sequence[Sequence[int]]], dict[str, Tensor]]


class GRPOTrainer(RankingTrainer):
    """Group-relative policy optimisation over the catalogue.

    Args:
        trie: the catalogue, on the model's device.
        settings: the ``rl`` section.
        normalize: the distribution of rollouts, loss and KL, ``vocab`` or ``trie`` (``model.normalize``).
        reward: (items ``(B, G)``, targets ``(B,)``, alive ``(B, G)``, B histories) -> each weighted part ``(B, G)``; they add up.
        ref_model: frozen copy for the KL; None when beta is 0, or when the model without its adapters is the reference.
    """

    def __init__(
        self,
        *args: Any,
        trie: SidTrie,
        settings: RLSettings,
        normalize: str,
        reward: Reward,
        ref_model: nn.Module | None,
        **kwargs: Any,
    ):
        self.settings = settings
        self.normalize = normalize
        super().__init__(*args, **kwargs)
        self.trie, self.reward, self.stop_signal.every = (
            trie.to(self.args.device),
            reward,
            settings.num_iterations,
        )
        self.ref_model = ref_model.to(self.args.device).eval() if ref_model is not None else None
        self.train_dataset = list(enumerate(self.train_dataset))
        self.data_collator = collate_rl
        self.share = base_causal_lm(self.model).takes_trees
        first_item = [trie.items_of_leaf(leaf)[0] for leaf in range(trie.num_leaves)]
        self.item_of_leaf = torch.tensor(first_item, device=self.args.device)
        self._buffer: list[Rollouts] = []
        self._logged: list[tuple[int, dict[str, float]]] = []
        if self.ref_model is not None and settings.sync_ref_steps:
            self.add_callback(SyncReference(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ):
        """Clipped policy loss plus KL of one micro-batch of groups: its share of the mean over the groups of the global batch."""
        rollouts = self._rollouts_for(inputs)
        kept = self._kept_groups(rollouts)
        metrics: dict[str, float] = {}
        if kept:
            loss, metrics = self._loss(model, rollouts, kept, num_items_in_batch)
        else:
            loss = zero_loss(model, pack_trees([[0]], share=self.share).to(self.args.device))
        self._logged += [(len(rollouts.prompts), rollouts.metrics), (len(kept), metrics)]
        return loss * self.accelerator.num_processes  # gradients are averaged over processes

    def _bad_terms(self) -> list[str]:
        return [
            f"{name} is {value}"
            for _, metrics in self._logged[-2:]
            for name, value in metrics.items()
            if not math.isfinite(value)
        ]

    def _global_batches(self, times: int = 1) -> GlobalBatches:
        return super()._global_batches(self.settings.num_iterations)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the rollout metrics since the last log, over the groups of all processes."""
        if "loss" in logs:
            sums: dict[str, list[float]] = {}
            for weight, metrics in gather_object(self._logged):
                for key, value in metrics.items():
                    total = sums.setdefault(key, [0.0, 0])
                    total[0], total[1] = total[0] + weight * value, total[1] + weight
            logs |= {key: sums[key][0] / sums[key][1] for key in sorted(sums)}
            self._logged = []
        super().log(logs, *args, **kwargs)

    def _rollouts_for(self, inputs: dict[str, Any]) -> Rollouts:
        """New rollouts, or with ``num_iterations`` > 1 those made for these rows on the first of its passes."""
        if self.settings.num_iterations == 1:
            return self.roll_out(**inputs["prompts"])
        accumulation = self.args.gradient_accumulation_steps
        if (
            self.state.global_step % self.settings.num_iterations == 0
            and len(self._buffer) >= accumulation
        ):
            self._buffer = []
        if (
            len(self._buffer) < accumulation
            and self.state.global_step % self.settings.num_iterations == 0
        ):
            self._buffer.append(self.roll_out(**inputs["prompts"]))
            return self._buffer[-1]
        self._buffer.append(self._buffer.pop(0))
        return self._buffer[-1]

    @torch.no_grad()
    def roll_out(self, rows: Sequence[Row], numbers: Sequence[int] | None = None) -> Rollouts:
        """Generate G completions per prompt with the current policy and reward them.

        Args:
            rows: at least one, but for a process without rows in a step, which must take part.
            numbers: of the rows in the data set; they seed the noise of ``gumbel`` and ``sample``.
        """
        s, device = self.settings, self.args.device
        model = self.whole_model()
        if not rows:
            return Rollouts([], *([torch.empty(0, device=device)] * 4), [], {})
        was_training = model.training
        model.eval()
        prompts = [row.prompt for row in rows]
        seeds = [
            seed_of(self.args.seed, self.state.global_step, number)
            for number in numbers or range(len(rows))
        ]
        generators = (
            [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
            if s.rollout != "beam"
            else None
        )
        beams: Beams = constrained_beam_search(
            make_decoder(model),
            prompts,
            self.trie,
            s.num_generations,
            normalize=self.normalize,
            rollout=s.rollout,
            temperature=s.temperature,
            generator=generators,
        )
        model.train(was_training)
        alive = beams.leaves >= 0
        targets = torch.tensor([row.target_item for row in rows], device=device)
        items = torch.where(alive, self.item_of_leaf[beams.leaves.clamp(min=0)], -1)
        target_leaves = torch.from_numpy(self.trie.leaf_of_item)[targets.cpu()].to(device)
        items = torch.where(
            beams.leaves == target_leaves[:, None], targets[:, None], items
        )  # a shared SID names the target too
        parts = self.reward(items, targets, alive, [row.history for row in rows])
        rewards = torch.stack(list(parts.values())).sum(0)
        advantages = group_advantages(rewards, alive, scale=s.scale_rewards)
        hit = ((items == targets[:, None]) & alive).any(1)
        metrics = {
            "reward": rewards[alive].mean().item(),
            "groups_with_hit": hit.float().mean().item(),
            "groups_with_signal": (advantages != 0).any(1).float().mean().item(),
            "rollout_coverage": items[alive].unique().numel() / self.trie.num_items,
            "entropy_bound": -torch.where(alive, beams.scores, 0).sum().item()
            / max(1, int(alive.sum())),
            **{f"reward/{name}": part[alive].mean().item() for name, part in parts.items()},
        }
        return Rollouts(
            prompts, beams.nodes, alive, beams.token_logps, advantages, targets.tolist(), metrics
        )

    def _kept_groups(self, rollouts: Rollouts) -> list[int]:
        """Groups whose rewards differ; all of them where another term is to act on every group."""
        everything = list(range(len(rollouts.prompts)))
        if self.settings.sft_weight or (self.settings.beta and self.settings.kl_on_flat_groups):
            return everything
        return [b for b in everything if bool((rollouts.advantages[b] != 0).any())]

    def _loss(
        self, model: nn.Module, rollouts: Rollouts, kept: list[int], groups: Any = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The kept groups' share of the mean over ``groups`` (those of the rollouts unless said), each the mean of its completions.

        Every group has as many live completions (all G, or the whole catalogue), so this is TRL's mean over completions;
        as a sum over a count that is known beforehand it does not depend on how a batch is cut into micro-batches.
        """
        s, groups = self.settings, groups or len(rollouts.prompts)
        prompts, targets = (
            [rollouts.prompts[b] for b in kept],
            [rollouts.targets[b] for b in kept] if s.sft_weight else None,
        )
        batch = GroupBatch.make(
            prompts, rollouts.nodes[kept], rollouts.alive[kept], self.trie, self.share, targets
        )
        output = batch.forward(model, self.normalize, s.kl == "exact" and s.beta > 0)
        mask = batch.mask
        ratio = torch.exp(
            output.logps - rollouts.old_logps[kept]
            if s.num_iterations > 1
            else output.logps - output.logps.detach()
        )
        advantages = rollouts.advantages[kept][..., None]
        per_token = -torch.min(
            ratio * advantages, ratio.clamp(1 - s.epsilon, 1 + s.epsilon) * advantages
        )
        metrics = {
            "clip_ratio": (((ratio - 1).abs() > s.epsilon) & mask).sum().item()
            / max(1, int(mask.sum()))
        }
        if s.beta > 0:
            reference = self._reference(model, batch)
            kl = (
                exact_kl(output.children, reference.children.clone())
                if s.kl == "exact"
                else k3_kl(output.logps, reference.logps.clone())
            )
            kl = batch.spread(kl) if s.kl == "exact" else kl
            per_token = per_token + s.beta * kl
            metrics["kl"] = (kl.detach() * mask).sum().item() / max(1, int(mask.sum()))
        lengths = mask.sum(-1).clamp(min=1)
        per_completion = (per_token * mask).sum(-1) / lengths  # (B, G)
        loss = (per_completion.sum(-1) / rollouts.alive[kept].sum(-1)).sum() / groups
        if s.sft_weight:
            likelihood = output.target_logps.mean(-1)  # (B,)
            loss = loss - s.sft_weight * likelihood.sum() / groups
            metrics["target_logp"] = likelihood.mean().item()
        return loss, metrics

    @torch.inference_mode()
    def _reference(self, model: nn.Module, batch: GroupBatch) -> GroupOutput:
        """The same log-probabilities from the frozen copy, or from the policy with its adapters off."""
        with_children = self.settings.kl == "exact"
        if self.ref_model is not None:
            return batch.forward(self.ref_model, self.normalize, with_children)
        policy: PeftModel = self.accelerator.unwrap_model(model)
        was_training = policy.training
        with policy.eval().disable_adapter():
            output = batch.forward(policy, self.normalize, with_children)
        policy.train(was_training)
        return output

    def _complete(self, staged: Path) -> None:
        super()._complete(staged)
        if self.ref_model is not None and self.settings.sync_ref_steps:
            base_causal_lm(self.ref_model).save_pretrained(staged / "ref_model")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.ref_model is not None and self.settings.sync_ref_steps:
            saved = type(base_causal_lm(self.ref_model)).from_pretrained(
                Path(resume_from_checkpoint) / "ref_model"
            )
            base_causal_lm(self.ref_model).load_state_dict(saved.state_dict())
