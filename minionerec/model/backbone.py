"""The language model: from a checkpoint or from scratch, with the SID tokens, its adapters, and back to disk.

A checkpoint folder of this pipeline is a plain Hugging Face one (``AutoModelForCausalLM.from_pretrained`` needs nothing
of ours) plus ``sids.json`` and ``prompt_template.json``: what its tokens and its prompts mean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from minionerec.catalogue.prompts import Template, save_template
from minionerec.catalogue.rows import Row
from minionerec.catalogue.sids import SIDS_FILE, SidTable, load_sids
from minionerec.errors import UserError
from minionerec.experiment.processes import processes
from minionerec.experiment.settings import ModelSettings
from minionerec.model.token_trees import base_causal_lm, enable_trees

SCRATCH = "scratch"


def build(
    settings: ModelSettings, sids: SidTable, texts: Iterable[str], seed: int, dropout: float = 0.0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that SFT starts from, SID tokens included.

    Args:
        settings: the ``model`` section.
        sids: whose tokens are added.
        texts: what a scratch tokenizer is trained on.
        seed: of every new weight.
        dropout: scratch models only.

    Raises:
        UserError: the backbone cannot be loaded, or its config cannot be built.
    """
    torch.manual_seed(seed)
    if settings.backbone == SCRATCH:
        tokenizer = train_tokenizer(texts, settings.text_vocab_size)
        tokenizer.add_tokens(sids.tokens(), special_tokens=True)
        model = _from_config(settings.config, tokenizer)
        add_dropout(model, dropout)
    else:
        model, tokenizer = load(settings.backbone, torch.float32, settings.trust_remote_code)
        extend_vocabulary(model, tokenizer, sids, seed)
    return warn_if_slow(enable_trees(model)), tokenizer


def load(
    source: str | Path, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint and its tokenizer by hub name or folder, in eval mode, with ``policy.enable_trees``.

    Raises:
        UserError: nothing loadable is there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        expected = "expected a hub name or a folder in hub format (config.json, model.safetensors, tokenizer.json)"
        if "custom code" in reason:
            expected = "if you trust whoever wrote that code, set model.trust_remote_code: true"
        raise UserError(f"model '{source}': cannot be loaded: {reason}; {expected}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"model '{source}': its tokenizer has {len(tokenizer)} tokens, its model only {rows}: they do not belong together; "
            "use the tokenizer that was saved with the model"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model '{source}': its tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    return warn_if_slow(enable_trees(model.eval())), tokenizer


def warn_if_slow(model: PreTrainedModel) -> PreTrainedModel:
    """Say so where prefixes cannot be shared; results are the same."""
    if not model.takes_trees and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: {type(model).__name__} takes no token trees; using the exact but slow way without shared prefixes"
        )
    return model


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the catalogue's text; every string can be encoded and decoded back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def _from_config(config: dict, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    settings = {
        **config,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_type = settings.pop("model_type", None)
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
        model(input_ids=torch.tensor([[0, 1]]))  # sizes that do not fit together show only here
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"model.config: cannot build a '{model_type}' model: {str(error).strip().splitlines()[0]}"
        ) from error
    return model


def add_dropout(model: PreTrainedModel, p: float) -> None:
    """Dropout on the embeddings and on what each attention and MLP block adds to the residual stream, while training.

    Hooks instead of config keys: the families name (or lack) them differently, and a checkpoint must not inherit them.
    """

    def hook(
        module: nn.Module, _arguments: tuple, output: torch.Tensor | tuple
    ) -> torch.Tensor | tuple:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], p, module.training), *output[1:])
        return nn.functional.dropout(output, p, module.training)

    if not p:
        return
    blocks = [
        m
        for name, m in model.named_modules()
        if name.rpartition(".")[2] in ("self_attn", "attn", "attention", "mlp")
    ]
    for module in [model.get_input_embeddings(), *blocks]:
        module.register_forward_hook(hook)


def extend_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sids: SidTable, seed: int
) -> list[int]:
    """Add the SID tokens and give each a row of its own, on the input and on the output side.

    New rows are drawn around the mean of the rows in use with their spread, also where a checkpoint has spare padding
    rows that would otherwise be taken over as they are. The matrices grow if needed and never shrink.

    Returns:
        The token ids whose rows were initialised; empty when the tokenizer knows all tokens already.
    """
    used = len(tokenizer)
    known = tokenizer.get_vocab()
    new = [token for token in sids.tokens() if token not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    new_ids = tokenizer.convert_tokens_to_ids(new)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    sides = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not sides[0]:
        sides.append(model.get_output_embeddings().weight)
    for weight in sides if new else []:
        with torch.no_grad():
            old = weight[:used].float()
            noise = torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
            weight[new_ids] = (old.mean(0) + noise * old.std(0)).to(weight.dtype)
    return new_ids


def add_adapters(
    model: PreTrainedModel, settings: ModelSettings, sid_token_ids: list[int]
) -> PreTrainedModel | PeftModel:
    """Choose which weights learn: all; LoRA plus the rows of the SID tokens; or those rows alone."""
    if settings.tune == "full":
        return model
    tables = [model.get_input_embeddings()]
    if model.get_output_embeddings().weight is not tables[0].weight:
        tables.append(model.get_output_embeddings())
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
    """Write a complete checkpoint folder; sampling settings of the backbone's generation config are left behind."""
    if isinstance(model, PreTrainedModel):
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_template(template, directory)
    if not (directory / SIDS_FILE).exists():
        shutil.copyfile(sids_file, directory / SIDS_FILE)


def check_sids(checkpoint: Path, sids: SidTable) -> None:
    """Refuse a checkpoint to which the experiment's SIDs mean something else.

    Every item that it was trained with must have the same codes from the same codebooks. The experiment may have further
    items (``rqvae/add_items.py``): their codes have tokens, and the trie reaches them.

    Raises:
        UserError: naming an item that has another SID.
    """
    file = checkpoint / SIDS_FILE
    if not file.is_file():
        return
    trained = load_sids(file)
    ours = dict(zip(sids.item_ids, map(list, sids.codes), strict=True))
    theirs = dict(zip(trained.item_ids, map(list, trained.codes), strict=True))
    moved = [
        f"item '{item}' has {ours.get(item, 'no SID')}, there {codes}"
        for item, codes in theirs.items()
        if ours.get(item) != codes
    ]
    if trained.codebook_sizes != sids.codebook_sizes:
        moved.append(f"codebook sizes {sids.codebook_sizes}, there {trained.codebook_sizes}")
    if moved:
        raise UserError(
            f"{checkpoint}: was trained on other SIDs than this experiment's ({moved[0]}; {len(moved)} differences between "
            f"{file}, sha256 {trained.sha256[:12]}, and {sids.path}, sha256 {sids.sha256[:12]}); use the checkpoint that was "
            "trained on them, or train again"
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
        if not isinstance(
            error, torch.OutOfMemoryError | MemoryError
        ) and "DefaultCPUAllocator" not in str(error):
            raise
        reason = (
            str(error).strip().splitlines()[0]
            if str(error).strip()
            else "the machine's memory is used up"
        )
        raise UserError(f"out of memory: {reason}; lower {advice}") from error


def precision(name: str) -> tuple[torch.dtype, bool]:
    """dtype to load a model in for inference, and whether training autocasts to bfloat16 (weights then stay float32)."""
    bf16 = name == "bfloat16" or (name == "auto" and torch.cuda.is_available())
    return (torch.bfloat16 if bf16 else torch.float32), bf16


def check_context(model: nn.Module, rows: Sequence[Row], setting: str) -> None:
    """Refuse rows that are longer than what the model can read.

    Raises:
        UserError: naming the setting to lower.
    """
    longest = max(len(row.prompt) + len(row.completion) for row in rows)
    context = getattr(
        base_causal_lm(model).config.get_text_config(), "max_position_embeddings", None
    )
    if context and longest > context:
        raise UserError(
            f"{setting}: the longest of {len(rows):,} rows has {longest} tokens, the model's context is {context}; lower it"
        )


def describe(model: nn.Module) -> str:
    """``0.91 M parameters, 0.91 M of them trained, on cpu``."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained, on {processes().num_processes} x {device}"
