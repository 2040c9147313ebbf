"""Backbones of the token language models: our transformer, or any `transformers` causal language model.

Both are streaming modules over `[batch, time, width]` with their key-value cache in the caller's `State`, one position
a slot, so that slots join, freeze, leave and roll back alike, whoever wrote the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..errors import BadInput, ConfigError, MissingFile
from ..nn.state import State, StreamingModule
from ..nn.transformer import Transformer, TransformerConfig

__all__ = ["HFBackbone", "HFConfig", "hf_config", "load_hf_weights", "make_backbone"]


class HFConfig(BaseModel):
    """A backbone of the `transformers` package.

    Attributes:
        arch: the model's own configuration, with its `model_type` (Qwen2, Llama, SmolLM ...); kept with our weights, so
            that a trained model loads without the checkpoint that it started from.
        context: positions that a slot's cache holds; nothing older is kept, so a request must fit.
        chunk: longest prefill at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hf"] = "hf"
    arch: dict[str, Any]
    context: int = 1024
    chunk: int = 32


def hf_config(name: str, context: int = 1024) -> HFConfig:
    """The configuration of a checkpoint, by hub name or folder (`hf:` before it is dropped).

    Raises:
        MissingFile: no such checkpoint. ConfigError: it needs code of its own, which is never run.
    """
    from transformers import AutoConfig

    name = _checked(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except OSError:
        raise MissingFile(f"no checkpoint {name!r}: give a folder with config.json, or a name of the hub") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from None
    return HFConfig(arch=config.to_diff_dict() | {"model_type": config.model_type}, context=context)


def _checked(name: str) -> str:
    """The name without `hf:`; a path must lead to a checkpoint, or the hub would be asked for it."""
    name = name.removeprefix("hf:")
    if name.startswith(("/", ".", "~")) and not (Path(name) / "config.json").exists():
        raise MissingFile(f"no checkpoint {name!r}: the folder has no config.json")
    return name


class HFBackbone(StreamingModule):
    """A `transformers` decoder over given embeddings; its cache is a tree of ours."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        # Float32, whatever the checkpoint was saved in: our own parts are.
        arch = {k: v for k, v in config.arch.items() if k not in ("model_type", "dtype", "torch_dtype")}
        try:
            settings = AutoConfig.for_model(config.arch["model_type"], **arch)
            settings._attn_implementation = "sdpa"
            self.model: Any = AutoModel.from_config(settings, trust_remote_code=False)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"the backbone cannot be built from its `arch`: {str(error).splitlines()[0]}") from None
        self.config = config
        text = settings.get_text_config()
        self.width: int = text.hidden_size
        self.layers: int = text.num_hidden_layers
        self.kv_heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self.head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.chunk, self.context = config.chunk, config.context
        self.vocab: int = text.vocab_size

    @property
    def text_table(self) -> nn.Module:
        """The language model's own embeddings of its text tokens."""
        return self.model.get_input_embeddings()

    def init_state(self, batch: int) -> State:
        state = State(batch)
        weight = next(self.model.parameters())
        state.add("position", dtype=torch.long, device=weight.device)
        for layer in range(self.layers):
            for name in ("keys", "values"):
                shape = (self.kv_heads, self.context + self.chunk, self.head_dim)
                state.add(f"{name}.{layer}", *shape, dtype=weight.dtype, device=weight.device, write_only=True)
        return state

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """`[batch, time, width] -> [batch, time, width]`, offline or from where each slot stands.

        Raises:
            BadInput: a slot's cache is full, or the chunk is longer than `chunk`.
        """
        if state is None:
            return self.model(inputs_embeds=x, use_cache=False).last_hidden_state
        time = x.shape[1]
        if time > self.chunk:
            raise BadInput(f"chunk of {time} positions; this cache takes at most {self.chunk} at a time")
        start = state["position"]
        moving = start if state.active is None else start[state.active]
        if moving.numel() and int(moving.max()) + time > self.context:
            raise BadInput(f"the request is longer than the {self.context} positions of the backbone's cache")
        positions = start[:, None] + torch.arange(time, device=x.device)
        held = torch.arange(self.context + self.chunk, device=x.device)
        mask = (held[None, None] <= positions[:, :, None])[:, None]
        cache = _SlotCache(state, positions)
        y = self.model(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        state.update("position", start + time)
        return y


class _SlotCache:
    """What a `transformers` layer sees of our state: `update` writes each slot at its own positions."""

    is_compileable = False
    is_sliding = (False,)

    def __init__(self, state: State, positions: Tensor) -> None:
        self.state, self.positions = state, positions

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        index = self.positions[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        # Written for frozen slots too: past their position nothing is of value.
        k = self.state[f"keys.{layer_idx}"].scatter_(2, index, keys)
        v = self.state[f"values.{layer_idx}"].scatter_(2, index, values)
        return k, v

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.positions[:, 0].max())


def make_backbone(config: TransformerConfig | HFConfig) -> Transformer | HFBackbone:
    return HFBackbone(config) if isinstance(config, HFConfig) else Transformer(config)


def load_hf_weights(backbone: HFBackbone, name: str) -> None:
    """Fills the backbone from a checkpoint's safetensors, by hub name or folder.

    Raises:
        MissingFile: no safetensors there (pickled weights are not read).
    """
    from transformers import AutoModel

    name = _checked(name)
    try:
        loaded = AutoModel.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=next(backbone.parameters()).dtype
        )
    except OSError as error:
        raise MissingFile(f"no safetensors weights for {name!r}: {str(error).splitlines()[0]}") from None
    backbone.model.load_state_dict(loaded.state_dict())
