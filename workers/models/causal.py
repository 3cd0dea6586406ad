"""Causal language models of the transformers library: from a configuration or from a checkpoint, with adapters by peft."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.kinds.hub import is_folder
from workers.kinds.language import CheckpointModel, Lora, NewModel
from workers.language.cross_entropy import cross_entropy
from workers.problems import first_line
from workers.sources.problems import BadDataError

# Settings that the data or other fields of the job decide.
GIVEN = frozenset({"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "tie_encoder_decoder"})
DROPOUTS = frozenset(
    {"resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "resid_dropout", "embed_dropout",
     "dropout"}
)  # fmt: skip


class LanguageModel(nn.Module):
    """A causal model of the library and its loss, so that the loss is computed inside the forward pass that DDP and FSDP watch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.by_chunks = False  # whether its logits are the output layer's, of the hidden states that the rest gives
        self.keeps_documents_apart = False  # by their positions

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Any:
        """With ``labels`` (B, T): (sum of losses, right predictions, predictions). Without: logits of the last token (B, V).

        ``tokens`` (B, T); ``positions`` (B, T) begin anew with each document of a packed block. ``cache``: of keys and values, which grows.
        """
        if labels is None:
            return self.network(input_ids=tokens, past_key_values=cache, use_cache=cache is not None).logits[:, -1]
        inner = plain_network(self.network)
        inputs = {"input_ids": tokens, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
        head = inner.get_output_embeddings()
        if not self.by_chunks:
            hidden, head = inner(**inputs).logits, nn.Identity()
        else:
            hidden = inner.base_model(**inputs).last_hidden_state
        return cross_entropy(head, hidden.flatten(0, 1), labels.flatten(), vocabulary=inner.config.vocab_size)


def plain_network(network: Any) -> Any:
    """The library's model, of which the adapters of peft are parts."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


# --- building ---------------------------------------------------------------------------------------------------------


def new_model(spec: NewModel, vocabulary_size: int, block_size: int, end: int | None) -> LanguageModel:
    """Weights are drawn from torch's global generator. Raises BadDataError for configurations that cannot be built."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = _configuration(spec, vocabulary_size, block_size, end)
    try:
        model = LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation=spec.attention))
        _try(model, vocabulary_size, block_size)
    except Exception as error:  # whatever the library raises for settings that do not go together
        raise BadDataError(
            "task.model.config", f"{spec.architecture} cannot be built so: {first_line(error)}"
        ) from error
    return model


def _configuration(spec: NewModel, vocabulary_size: int, block_size: int, end: int | None) -> Any:
    from transformers import AutoConfig

    known = AutoConfig.for_model(spec.architecture)
    names: Mapping[str, str] = known.attribute_map
    settings = known.to_dict()
    for key in spec.config:
        if key in GIVEN or names.get(key, key) not in settings:
            raise BadDataError(
                f"task.model.config.{key}", f"{spec.architecture} has no such setting, or the data decides it"
            )
    width, heads = spec.width, spec.heads
    wanted: dict[str, Any] = {
        "num_hidden_layers": spec.layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "max_position_embeddings": block_size,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        # Gated layers have three matrices where others have two.
        "intermediate_size": 4 * width if spec.architecture in ("gpt_neox", "phi") else -(-8 * width // 96) * 32,
        **dict.fromkeys(DROPOUTS, spec.dropout),
    }
    chosen = {names.get(key, key): value for key, value in wanted.items() if names.get(key, key) in settings}
    chosen |= {names.get(key, key): value for key, value in spec.config.items()}
    tokens = {"vocab_size": vocabulary_size, "bos_token_id": end, "eos_token_id": end}
    # Without a token for padding: its embedding would never be trained, and here it is the end of a text.
    try:
        return AutoConfig.for_model(spec.architecture, **chosen, **tokens, pad_token_id=None)
    except Exception as error:
        raise BadDataError(
            "task.model.config", f"{spec.architecture} cannot be configured so: {first_line(error)}"
        ) from error


def load_model(spec: CheckpointModel, vocabulary_size: int, block_size: int) -> LanguageModel:
    """Raises BadDataError for what is no checkpoint of a causal model, or does not fit the data."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    local = is_folder(spec.checkpoint)
    if local and not os.path.isdir(spec.checkpoint):
        raise BadDataError("task.model.checkpoint", f"there is no folder {spec.checkpoint}")
    if local and os.path.exists(os.path.join(spec.checkpoint, "adapter_config.json")):
        raise BadDataError(
            "task.model.checkpoint", f"{spec.checkpoint} holds adapters only; name the model that they belong to"
        )
    try:
        network = AutoModelForCausalLM.from_pretrained(
            spec.checkpoint,
            local_files_only=local,
            use_safetensors=True,  # the other format is a pickle
            dtype=torch.float32,
            attn_implementation=spec.attention,
        )
    except Exception as error:  # whatever the library raises for folders that are none of its own
        raise BadDataError(
            "task.model.checkpoint", f"there is no causal language model at {spec.checkpoint}: {first_line(error)}"
        ) from error
    _fits(network.config, vocabulary_size, block_size)
    model = LanguageModel(network if spec.lora is None else _adapted(network, spec.lora))
    _try(model, vocabulary_size, block_size)
    return model


def _fits(config: Any, vocabulary_size: int, block_size: int) -> None:
    if vocabulary_size > config.vocab_size:
        raise BadDataError(
            "task.tokenizer",
            f"has {vocabulary_size} tokens; the checkpoint knows {config.vocab_size}: use its own tokenizer",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and block_size > longest:
        raise BadDataError(
            "task.block_size", f"{block_size} is longer than the checkpoint's {longest}; at most {longest}"
        )


def _adapted(network: Any, spec: Lora) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),  # GPT-2's own linear layers
    )
    try:
        adapted: nn.Module = get_peft_model(network, config)
    except ValueError as error:
        raise BadDataError("task.model.lora.target_modules", first_line(error)) from error
    return adapted


def _try(model: LanguageModel, vocabulary_size: int, block_size: int) -> None:
    """One pass over a few tokens: whether the loss can be computed by chunks, and which parameters have other uses and never get a gradient.

    Draws nothing from the generators that the weights came from.
    """
    inner = plain_network(model.network)
    tokens = torch.arange(2 * min(8, block_size)).reshape(2, -1) % vocabulary_size
    with torch.random.fork_rng(devices=[]):
        model.eval()
        with torch.no_grad():
            logits = inner(input_ids=tokens, use_cache=False).logits
            head = inner.get_output_embeddings()
            hidden = getattr(inner.base_model(input_ids=tokens, use_cache=False), "last_hidden_state", None)
            ours = head(hidden) if head is not None and hidden is not None else None
        model.by_chunks = ours is not None and ours.shape == logits.shape and torch.allclose(ours, logits, atol=1e-5)
        model.keeps_documents_apart = _keeps_apart(model, tokens[:1])
        model(tokens, tokens)[0].backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    model.train()


def _keeps_apart(model: LanguageModel, tokens: Tensor) -> bool:
    """Whether two documents in one block give the same loss as each of them alone."""
    length = tokens.shape[1]
    if length < 4:
        return True
    half = length // 2
    positions = torch.cat([torch.arange(half), torch.arange(length - half)]).unsqueeze(0)
    with torch.no_grad():
        together = model(tokens, tokens, positions)[0]
        apart = model(tokens[:, :half], tokens[:, :half])[0] + model(tokens[:, half:], tokens[:, half:])[0]
    return torch.allclose(together, apart, rtol=1e-4)
