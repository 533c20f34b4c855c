"""The language model: loaded or made, with SID tokens and adapters, and back to disk.

A checkpoint folder of this pipeline is a plain Hugging Face one
(``AutoModelForCausalLM.from_pretrained`` needs nothing of ours) plus ``sids.json`` and
``prompt_template.json``: what its tokens and its prompts mean.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minionerec.catalogue.rows import Row, Rows
from minionerec.catalogue.sids import SIDS_FILE, SidTable, load_sids
from minionerec.catalogue.templates import Template, save_template
from minionerec.errors import UserError
from minionerec.experiment.files import fingerprints, sha256_file
from minionerec.experiment.problems import did_you_mean
from minionerec.experiment.processes import processes
from minionerec.experiment.run import say
from minionerec.experiment.settings import ModelSettings
from minionerec.model.loading import load_causal_lm, load_tokenizer
from minionerec.model.pretrained import find_gguf, keep_first_layers, load_gguf
from minionerec.model.probes import reads_from_left_to_right
from minionerec.model.tree_attention import base_causal_lm, enable_trees
from minionerec.model.vocabulary import extend_vocabulary, train_tokenizer
from minionerec.model.word_rows import start_from_words

SCRATCH = "scratch"
# Keys of a config that transformers takes though no family lists them any more
ALWAYS_KNOWN = (
    "model_type",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
)


def build(
    settings: ModelSettings, sids: SidTable, texts: Iterable[str], seed: int, dropout: float = 0.0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that SFT starts from, SID tokens included.

    Args:
        settings: the ``model`` section.
        sids: whose tokens are added.
        texts: of the items, in the order of ``sids``: what a scratch tokenizer is trained on, and
            whose words rows of SID tokens may start from.
        seed: of every new weight.
        dropout: scratch models only.

    Raises:
        UserError: the backbone cannot be loaded, or its config cannot be built.
    """
    torch.manual_seed(seed)
    if settings.backbone == SCRATCH:
        tokenizer = train_tokenizer(texts, settings.text_vocab_size)
        # Special: they are never merged with text around them, nor split
        tokenizer.add_tokens(sids.tokens(), special_tokens=True)
        model = _from_config(settings.config, tokenizer)
        name = f"model.config: a '{settings.config.get('model_type')}' model"
        add_dropout(model, dropout)
    else:
        model, tokenizer = _pretrained(settings)
        name = f"model '{settings.backbone}'"
        _say_what_is_known(settings.backbone, tokenizer, sids)
        rows = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
        new_ids = extend_vocabulary(model, tokenizer, sids, seed)
        if settings.sid_init != "random":
            shuffle_seed = seed if settings.sid_init == "shuffled_words" else None
            start_from_words(model, tokenizer, sids, list(texts), new_ids, rows, shuffle_seed)
    return _ready(model, tokenizer, name), tokenizer


def sources_of(settings: ModelSettings) -> dict[str, Any]:
    """The fingerprint of the backbone's file or folder, by its path, for the manifest.

    Nothing for a model from scratch, or for a hub name, which is no file of this machine.
    """
    if settings.backbone == SCRATCH:
        return {}
    path = find_gguf(settings.backbone) or Path(settings.backbone)
    return fingerprints([path] if path.exists() else [])


def _pretrained(
    settings: ModelSettings,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The backbone as people have it: hub name, folder, GGUF file or package; in float32."""
    file = find_gguf(settings.backbone)
    if file is not None:
        model, tokenizer = load_gguf(file, torch.float32)
    else:
        trust = settings.trust_remote_code
        model = load_causal_lm(settings.backbone, torch.float32, trust).eval()
        tokenizer = load_tokenizer(settings.backbone, trust)
    if settings.layers:
        keep_first_layers(model, settings.layers)
    return model, tokenizer


def load(
    source: str | Path, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint and its tokenizer by hub name or folder, in eval mode, with ``enable_trees``.

    Raises:
        UserError: nothing loadable is there.
    """
    model = load_causal_lm(source, dtype, trust_remote_code).eval()
    tokenizer = load_tokenizer(source, trust_remote_code)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"model '{source}': its tokenizer has {len(tokenizer)} tokens, its model only {rows}: "
            "they do not belong together; use the tokenizer that was saved with the model"
        )
    return _ready(model, tokenizer, f"model '{source}'"), tokenizer


def _ready(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> PreTrainedModel:
    """Give a model its tree forward, or say that it has none.

    Raises:
        UserError: later tokens change its earlier logits.
    """
    # An encoder with a language-model head trains without a complaint, and its loss looks excellent
    if not reads_from_left_to_right(model):
        raise UserError(
            f"{name}: is no causal language model: later tokens change what it says about earlier "
            "ones, so that it would see what it is to predict; use a decoder"
        )
    model.generation_config = greedy(tokenizer)
    enable_trees(model)
    if not model.takes_trees:
        say(
            f"warning: {type(model).__name__} takes no token trees; "
            "using the exact but slow way without shared prefixes"
        )
    return model


def greedy(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Settings for generation that every checkpoint carries instead of its backbone's.

    A chat model's sampling settings would silently break beam search elsewhere, and where they
    contradict each other the library refuses to save them, after the first validation.
    """
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _say_what_is_known(source: str, tokenizer: PreTrainedTokenizerBase, sids: SidTable) -> None:
    """Tell when a backbone has SID tokens already.

    What they mean to it may be another catalogue.
    """
    # Codes are named by level and number, so any two catalogues share most of their tokens
    vocabulary = tokenizer.get_vocab()
    wanted = sids.tokens()
    known = sum(token in vocabulary for token in wanted)
    if not known:
        return
    file = Path(source) / SIDS_FILE
    if file.is_file() and load_sids(file).sha256 == sids.sha256:
        meaning = "they mean the same SIDs"
    elif file.is_file():
        meaning = "they meant another catalogue's SIDs"
    else:
        meaning = "what they meant is not known"
    say(
        f"model '{source}': has {known} of the {len(wanted)} SID tokens already and keeps their "
        f"rows; {meaning}"
    )


def _from_config(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights for the tokenizer's vocabulary.

    Raises:
        UserError: the config cannot be built, or its sizes do not fit together.
    """
    settings = {
        **config,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_type = settings.pop("model_type", None)
    check_config_keys(str(model_type), list(config))
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
        model(input_ids=torch.tensor([[0, 1]]))  # sizes that do not fit together show only here
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the library's classes check a config in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"model.config: cannot build a '{model_type}' model: {lines[0].strip()}"
        ) from error
    return model


def check_config_keys(model_type: str, keys: Sequence[str]) -> None:
    """Refuse keys that the family's config does not have; transformers would keep and ignore them.

    Raises:
        UserError: a line per key, with the nearest one that there is.
    """
    if model_type not in CONFIG_MAPPING:
        return  # said where the config is built
    # Of defaults: it lists all that the family knows, under the library's own names
    family = CONFIG_MAPPING[model_type]()
    # gpt2's n_embd and hidden_size are one key under two names
    known = {*family.to_dict(), *family.attribute_map, *ALWAYS_KNOWN}
    lines = []
    for key in keys:
        if key not in known:
            lines.append(
                f"model.config: {key}: no key of a '{model_type}' model{did_you_mean(key, known)}"
            )
    if lines:
        raise UserError("\n".join(lines))


def add_dropout(model: PreTrainedModel, p: float) -> None:
    """Dropout on the embeddings and on what each block adds to the residual stream.

    Hooks instead of config keys: the families name (or lack) them differently, and a checkpoint
    must not inherit them.
    """

    def hook(
        module: nn.Module, _arguments: tuple, output: torch.Tensor | tuple
    ) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], p, module.training), *output[1:])
        return nn.functional.dropout(output, p, module.training)

    # The names of these blocks in the families that can be built from scratch
    if not p:
        return
    blocks = [
        m
        for name, m in model.named_modules()
        if name.rpartition(".")[2] in ("self_attn", "attn", "attention", "mlp")
    ]
    for module in [model.get_input_embeddings(), *blocks]:
        module.register_forward_hook(hook)


def add_adapters(
    model: PreTrainedModel, settings: ModelSettings, sid_token_ids: list[int]
) -> PreTrainedModel | PeftModel:
    """Choose which weights learn.

    All; LoRA plus the rows of the SID tokens; or those rows alone.
    """
    if settings.tune == "full":
        return model
    # Untied models have a second matrix, whose rows for new tokens must learn too
    tables = [model.get_input_embeddings()]
    if model.get_output_embeddings().weight is not tables[0].weight:
        tables.append(model.get_output_embeddings())
    # PEFT wants the last part of a module's name
    names = [name for table in tables for name, module in model.named_modules() if module is table]
    rows = {name.rpartition(".")[2]: sid_token_ids for name in names}
    if settings.tune == "new_tokens":
        return get_peft_model(
            model, TrainableTokensConfig(token_indices=sid_token_ids, target_modules=list(rows))
        )
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules="all-linear",
            trainable_token_indices=rows,
            task_type="CAUSAL_LM",
        ),
    )


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain model with what adapters learnt written into its weights."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sids_file: Path,
    template: Template,
    directory: Path,
) -> None:
    """Write a complete checkpoint folder."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_template(template, directory)
    if not (directory / SIDS_FILE).exists():
        shutil.copyfile(sids_file, directory / SIDS_FILE)


def check_sids(checkpoint: Path, sids: SidTable) -> None:
    """Refuse a checkpoint to which the experiment's SIDs mean something else.

    Every item that it was trained with must have the same codes from the same codebooks. The
    experiment may have further items (``rqvae/add_items.py``): their codes have tokens, and the
    trie reaches them.

    Raises:
        UserError: naming an item that has another SID.
    """
    file = checkpoint / SIDS_FILE
    if not file.is_file() or sha256_file(file) == sids.sha256:
        return
    trained = load_sids(file)
    ours = dict(zip(sids.item_ids, sids.codes, strict=True))
    moved = []
    for item, codes in zip(trained.item_ids, trained.codes, strict=True):
        own = ours.get(item)
        if own is None or list(own) != list(codes):
            found = "no SID" if own is None else list(own)
            moved.append(f"item '{item}' has {found}, there {list(codes)}")
    if trained.codebook_sizes != sids.codebook_sizes:
        moved.append(f"codebook sizes {sids.codebook_sizes}, there {trained.codebook_sizes}")
    if moved:
        raise UserError(
            f"{checkpoint}: was trained on other SIDs than this experiment's ({moved[0]}; "
            f"{len(moved)} differences between {file}, sha256 {trained.sha256[:12]}, and "
            f"{sids.path}, sha256 {sids.sha256[:12]}); use the checkpoint that was trained on "
            "them, "
            "or train again"
        )


@contextlib.contextmanager
def fits_memory(advice: str) -> Iterator[None]:
    """Inside, an allocation that fails ends with one line.

    Args:
        advice: the setting to lower.

    Raises:
        UserError: memory, of the GPU or of the machine, ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        lines = str(error).strip().splitlines() or ["the machine's memory is used up"]
        raise UserError(f"out of memory: {lines[0]}; lower {advice}") from error


def precision(name: str) -> tuple[torch.dtype, bool]:
    """The dtype for inference, and whether training autocasts to bfloat16.

    Weights that are trained stay float32.
    """
    # On a CPU by name only: it is faster on some, slower on others, and the same configuration is
    # to give the same results on all
    bf16 = name == "bfloat16" or (name == "auto" and torch.cuda.is_available())
    return (torch.bfloat16 if bf16 else torch.float32), bf16


def check_context(model: nn.Module, rows: Sequence[Row], setting: str) -> None:
    """Refuse rows that are longer than what the model can read.

    Raises:
        UserError: naming the setting to lower.
    """
    config = base_causal_lm(model).config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)  # models with a state have none
    if not context or (isinstance(rows, Rows) and rows.longest_possible() <= context):
        return
    longest = max(len(row.prompt) + len(row.completion) for row in rows)
    if longest > context:
        raise UserError(
            f"{setting}: the longest of {len(rows):,} rows has {longest} tokens, "
            f"the model's context is {context}; lower it"
        )


def describe(model: nn.Module) -> str:
    """``0.91 M parameters, 0.91 M of them trained, on cpu``."""
    total = 0
    trained = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return (
        f"{total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained, "
        f"on {processes().num_processes} x {device}"
    )
