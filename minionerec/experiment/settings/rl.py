"""Settings of stage 3, GRPO over constrained beam search, and what its presets fill in."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from minionerec.experiment.choices import ExpertName, RewardName, RLTask, Schedule
from minionerec.experiment.settings.section import Settings, Share

# What a preset fills in where a key of ``rl`` is not written. No preset names the distribution of
# the SID tokens: it belongs to the model (``model.normalize``; the paper's is ``vocab``).
RL_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "objective": "grpo",
        "tasks": {"sid_to_sid": 1.0, "title_to_sid": 1.0, "titles_to_sid": 0.3},
        "rollout": "beam",
        "num_generations": 16,
        "beta": 1e-3,
        "kl": "k3",
        "kl_on_flat_groups": True,
        "sync_ref_steps": 512,
        "sync_ref_alpha": 0.6,
        "learning_rate": 1e-5,
        "schedule": "cosine",
        "epochs": 2.0,
        "scale_rewards": True,
        "rewards": {"rule": 1.0, "ranking": 1.0},
        "teacher": {},
        "sibling_alpha": 0.0,
        "hints": False,
        "hint_weight": 0.0,
        "sft_weight": 0.0,
        "anchor": "target",
        "open_histories": False,
        "dropout": 0.0,
    },
}


class RLSettings(Settings):
    """Stage 3: GRPO over constrained beam search. ``preset`` fills in the keys that it names."""

    preset: Literal["default", "paper"] = Field(
        "default",
        description=(
            "default or paper; keys written out win over the preset. The distribution belongs to "
            "the model, so no preset names it: the paper's is model.normalize vocab"
        ),
    )
    objective: Literal["grpo", "dr_grpo", "sdpo", "list", "sft"] = Field(
        "grpo",
        description=(
            "grpo: group-relative advantages (paper); dr_grpo: without the deviation and with one "
            "divisor for all lengths (arXiv:2503.20783); sdpo: softmax over the target and the "
            "beams' own misses against the reference (arXiv:2406.09215); rewards are then shares "
            "of what is wanted; list: the same without a reference (ListNet); sft: no rollouts and "
            "no rewards, sft_weight's likelihood alone: SFT continued on the same prompts for as "
            "many steps, the control that a gain of RL has to beat"
        ),
    )
    tasks: dict[RLTask, Share] = Field(
        {"sid_to_sid": 1.0},
        description=(
            "task -> share of its rows used per epoch (paper: sid_to_sid 1, title_to_sid 1, "
            "titles_to_sid .3)"
        ),
    )
    rewards: dict[RewardName, float] = Field(
        {"rule": 1.0},
        description=(
            "reward -> weight; they add up (paper: rule and ranking). rule: 1 for the target; "
            "ranking: penalty for confident misses; semantic: text cosine with the target; "
            "collaborative: what rl.teacher holds of the item; prefix: share of right codes, which "
            "three groups independently measured as harmful (NDCG@10 .1003 -> .0932, .1150 -> "
            ".1099, .0960 -> .0862)"
        ),
    )
    teacher: dict[ExpertName, Share] = Field(
        {},
        description=(
            "collaborative only: ranker -> weight in the mix of their probabilities, asked without "
            "the row's own transition; {}: a SASRec trained on the same split"
        ),
    )
    sibling_alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description=(
            "share of advantages relative to siblings in the trie beside those relative to the "
            "group (V-STAR: 0.5); 0: off (paper)"
        ),
    )
    open_histories: bool = Field(
        False,
        description=(
            "the train sequences as they end are prompts too; they have no known target, so that "
            "rl.teacher alone rewards what is found for them"
        ),
    )
    hints: bool = Field(
        False,
        description=(
            "prompts whose group would miss the target get the least number of its codes that "
            "brings it in; false (paper)"
        ),
    )
    hint_weight: float = Field(
        0.0,
        ge=0,
        description="hints only: weight of the log-likelihood of the hints' codes; 0: off",
    )
    num_generations: int = Field(
        32,
        ge=2,
        description=(
            "G, completions per prompt (paper: 16); a list shorter than the one that is judged "
            "loses hits at its end"
        ),
    )
    rollout: Literal["beam", "gumbel", "sample"] = Field(
        "gumbel",
        description=(
            "beam: constrained beam search (paper); gumbel: stochastic beams without replacement;"
            " sample: independent samples in the trie"
        ),
    )
    temperature: float = Field(
        1.0, gt=0, description="gumbel and sample only: softmax temperature of the rollouts"
    )
    epochs: float = Field(2.0, gt=0, description="passes over the rows (paper)")
    batch_size: int = Field(64, ge=1, description="prompts per optimiser step over all processes")
    micro_batch_size: int = Field(
        32, ge=1, description="prompts per forward and process; lower it when memory runs out"
    )
    learning_rate: float = Field(1e-5, gt=0, description="AdamW peak step size (paper)")
    schedule: Schedule = Field("cosine", description="shape after warm-up (paper)")
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    dropout: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description=(
            "on embeddings, attention and MLP outputs, in the loss alone: rollouts, reference and "
            "validation have none"
        ),
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    num_iterations: int = Field(1, ge=1, description="optimiser passes over the same rollouts")
    epsilon: float = Field(
        0.2, gt=0, le=1, description="importance ratios are clipped to 1 -+ epsilon"
    )
    beta: float = Field(
        0.1,
        ge=0,
        description="weight of the KL to the reference (paper: 1e-3); 0: no reference is kept",
    )
    kl: Literal["k3", "exact"] = Field(
        "exact",
        description=(
            "k3: TRL's estimate on the sampled tokens (paper); exact: full sum over each step's "
            "legal children"
        ),
    )
    kl_on_flat_groups: bool = Field(
        True,
        description=(
            "also pull groups whose completions all earn the same, and so teach nothing, towards "
            "the reference (paper); false saves their forwards, most of a step early on"
        ),
    )
    sync_ref_steps: int = Field(
        0,
        ge=0,
        description=(
            "pull the reference towards the policy every so many steps (paper: 512); 0: never"
        ),
    )
    sync_ref_alpha: float = Field(
        0.6, gt=0, le=1, description="share of the policy in a synchronised reference (paper)"
    )
    scale_rewards: bool = Field(
        True,
        description=(
            "divide advantages by their group's standard deviation (paper); false: Dr. GRPO"
        ),
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description=(
            "weight of the log-likelihood of right answers beside the RL loss; 0: off (paper)"
        ),
    )
    anchor: Literal["target", "labels"] = Field(
        "target",
        description=(
            "sft_weight only: which answers are right. target: a row's own; labels: those of "
            "sft.soft_labels too, with their weights at the end of SFT, by rl.teacher, or without "
            "one by sft.teacher"
        ),
    )
    sdpo_beta: float = Field(
        1.0, gt=0, description="sdpo only: weight of a shift away from the reference (its paper: 1)"
    )
    guard: float = Field(
        0.005,
        ge=0,
        le=1,
        description=(
            "share of the SFT model's HR@50 that a checkpoint may lose: the best NDCG@10 among "
            "those that keep it is handed on, SFT's weights if there is none; 1: no guard"
        ),
    )
    evals: int = Field(
        10,
        ge=1,
        description="validations over the whole run; the best one is the checkpoint handed on",
    )
    eval_rows: int = Field(
        1000,
        ge=0,
        description="validation rows decoded per validation, a fixed random sample; 0: all",
    )
    eval_beams: int = Field(50, ge=10, description="beams per validation row")
    report_to: str = Field("none", description="none, tensorboard, wandb, or several with commas")

    @property
    def has_reference(self) -> bool:
        """Whether the objective compares the policy with the model that it began from."""
        return self.has_kl or self.objective == "sdpo"

    @property
    def has_kl(self) -> bool:
        """Whether the loss has a KL term; lists that are compared have none."""
        return self.objective in ("grpo", "dr_grpo") and self.beta > 0

    @property
    def completions(self) -> int:
        """How many completions are generated for a prompt."""
        return self.num_generations if self.rolls_out else 0

    @property
    def rolls_out(self) -> bool:
        """Whether the policy's own lists are what it learns from."""
        return self.objective != "sft"

    @property
    def compares_lists(self) -> bool:
        """Whether the target competes with the other completions of its group."""
        return self.objective in ("sdpo", "list")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, written: Any) -> Any:
        """Keys that are not written take the preset's value."""
        if not isinstance(written, dict):
            return written
        return {**RL_PRESETS.get(written.get("preset", "default"), {}), **written}

    def kept(self, changes: dict[str, Any]) -> dict[str, Any]:
        """With another preset only what was written out stays: the preset fills in the rest."""
        if changes.get("preset", self.preset) == self.preset:
            return super().kept(changes)
        filled_in = RL_PRESETS.get(self.preset, {})
        kept = {}
        for key in self.model_fields_set:
            value = getattr(self, key)
            if key not in filled_in or value != filled_in[key]:
                kept[key] = value
        return kept

    @field_validator("tasks")
    @classmethod
    def _are_not_all_off(cls, tasks: dict[str, float]) -> dict[str, float]:
        if not any(tasks.values()):
            raise ValueError("every task is off; give one a positive share")
        return tasks

    @field_validator("rewards")
    @classmethod
    def _are_not_all_zero(cls, rewards: dict[str, float]) -> dict[str, float]:
        if not any(rewards.values()):
            raise ValueError("every weight is 0; give one a weight")
        return rewards

    @field_validator("sync_ref_steps")
    @classmethod
    def _has_a_reference(cls, steps: int, info: ValidationInfo) -> int:
        if steps > 0 and info.data.get("beta") == 0 and info.data.get("objective") != "sdpo":
            raise ValueError("has no effect with rl.beta 0; set it to 0")
        return steps

    @field_validator("hint_weight")
    @classmethod
    def _has_hints(cls, weight: float, info: ValidationInfo) -> float:
        if weight > 0 and info.data.get("hints") is False:
            raise ValueError("has no effect without rl.hints; set it to 0")
        return weight

    @model_validator(mode="after")
    def _the_anchor_holds(self) -> Self:
        """What depends on values that nobody may have written."""
        if self.objective == "sft" and not self.sft_weight:
            raise ValueError("objective: sft has no loss but that of sft_weight; give it a weight")
        if self.anchor == "labels" and not self.sft_weight:
            raise ValueError("anchor: labels has no effect without sft_weight; leave it out")
        if self.anchor == "target" and self.sft_weight and self.open_histories:
            raise ValueError("anchor: target, but open_histories have none; set it to labels")
        return self

    @field_validator("open_histories")
    @classmethod
    def _can_be_judged(cls, wanted: bool, info: ValidationInfo) -> bool:
        judged = info.data.get("teacher") or info.data.get("objective") == "sft"
        if wanted and not judged:
            raise ValueError("needs rl.teacher and rl.rewards: {collaborative: ...}")
        return wanted

    @field_validator("hints")
    @classmethod
    def _have_targets(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and info.data.get("open_histories"):
            raise ValueError("rl.open_histories have no target to give away; set one to false")
        return wanted

    @field_validator("teacher")
    @classmethod
    def _teaches(cls, teacher: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if teacher and not info.data.get("rewards", {}).get("collaborative"):
            raise ValueError("has no effect without rl.rewards: {collaborative: ...}; leave it out")
        if teacher and not any(teacher.values()):
            raise ValueError("every weight is 0; give a ranker a weight")
        return teacher
