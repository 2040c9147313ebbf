"""Published Moshi checkpoints in our model: kyutai's own layout and that of `transformers`, from a folder or the hub.

Nothing is executed from a checkpoint: JSON and safetensors only. What differs from a model of ours is only its
configuration (no QK-norm, a smaller epsilon) and, in kyutai's layout, the order of the rotary dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ConfigError, CorruptFile, MissingFile
from ..nn.transformer import TransformerConfig
from .depth import DepthConfig
from .model import DuplexConfig, DuplexModel, delays_of

__all__ = ["MOSHI_7B", "load_moshi", "moshi_config", "moshi_folder", "moshi_state", "weight_files"]

MOSHI_7B: dict[str, Any] = {
    "dim": 4096,
    "text_card": 32_000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "context": 3000,
    "max_period": 10_000,
    "norm": "rms_norm_f32",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
"""kyutai's configuration of moshiko and moshika (7.69 B), whose repositories state none."""

_EXPECTED: dict[str, tuple[Any, ...]] = {
    "norm": ("rms_norm_f32", "rms_norm"),
    "gating": ("silu",),
    "positional_embedding": ("rope",),
    "depformer_pos_emb": ("none",),
    "depformer_gating": ("silu",),
    "depformer_weights_per_step": (True,),
    "depformer_multi_linear": (True,),
    "causal": (True,),
    "layer_scale": (None,),
    "depformer_layer_scale": (None,),
    "depformer_low_rank_embeddings": (None,),
    "depformer_norm": (None,),
    "demux_second_stream": (False,),
    "extra_heads_num_heads": (0,),
    "conditioners": (None, {}),
    "lora": (False,),
    "quantize": (False,),
}
_EPS = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}


def moshi_config(raw: dict[str, Any], slack: int = 16) -> DuplexConfig:
    """Our configuration for a `config.json` of either layout.

    Raises:
        ConfigError: it asks for a part that this model does not have (low-rank embeddings, conditioners, ...).
    """
    try:
        return _transformers_config(raw, slack) if "hidden_size" in raw else _kyutai_config(raw, slack)
    except (KeyError, ValidationError, TypeError) as error:
        raise ConfigError(f"this is no usable Moshi configuration ({type(error).__name__}: {error})") from error


def _kyutai_config(raw: dict[str, Any], slack: int) -> DuplexConfig:
    for key, allowed in _EXPECTED.items():
        if key in raw and raw[key] not in allowed:
            raise ConfigError(f"Moshi checkpoints with {key}={raw[key]!r} are not supported; known: {allowed}")
    own, eps = raw["dep_q"], _EPS[raw.get("norm", "rms_norm_f32")]
    width, depth = raw["dim"], raw.get("depformer_dim", 1024)
    backbone = TransformerConfig(
        width=width,
        layers=raw["num_layers"],
        heads=raw["num_heads"],
        hidden=_gated(width, int(raw["hidden_scale"] * width)),
        window=raw["context"],
        slack=slack,
        rope_base=float(raw.get("max_period", 10_000)),
        qk_norm=False,
        eps=eps,
    )
    schedule = raw.get("depformer_weights_per_step_schedule")
    return DuplexConfig(
        text_vocab=raw["text_card"],
        vocab=raw["card"],
        own=own,
        user=raw["n_q"] - own,
        delays=tuple(raw["delays"]),
        pad=raw.get("existing_text_padding_id", 3),
        epad=raw.get("existing_text_end_padding_id", 0),
        backbone=backbone,
        depth=DepthConfig(
            width=depth,
            layers=raw["depformer_num_layers"],
            heads=raw["depformer_num_heads"],
            hidden=_gated(depth, raw.get("depformer_dim_feedforward") or int(raw["hidden_scale"] * depth)),
            eps=eps,
        ),
        schedule=None if schedule is None else tuple(schedule),
    )


def _gated(width: int, feedforward: int) -> int:
    """Width of a gated layer that costs what a plain one of `feedforward` would (kyutai's rounding)."""
    return 21 * width // 8 if feedforward == 4 * width else 2 * feedforward // 3


def _transformers_config(raw: dict[str, Any], slack: int) -> DuplexConfig:
    depth, own = raw["depth_decoder_config"], raw["num_codebooks"]
    for part in (raw, depth):
        heads = part["num_attention_heads"]
        if part.get("num_key_value_heads") not in (None, heads) or part.get("hidden_act", "silu") != "silu":
            raise ConfigError("Moshi checkpoints with grouped keys or another activation than silu are not supported")
        if part.get("head_dim") not in (None, part["hidden_size"] // heads):
            raise ConfigError("Moshi checkpoints whose heads do not fill the width are not supported")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"rotary embeddings of type {rope['rope_type']!r} are not supported")
    return DuplexConfig(
        text_vocab=raw["vocab_size"],
        vocab=raw["audio_vocab_size"],
        own=own,
        user=own,
        delays=delays_of(own, own),
        backbone=TransformerConfig(
            width=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            hidden=raw["ffn_dim"] // 2,
            window=raw["sliding_window"],
            slack=slack,
            rope_base=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            qk_norm=False,
            eps=raw["rms_norm_eps"],
        ),
        depth=DepthConfig(
            width=depth["hidden_size"],
            layers=depth["num_hidden_layers"],
            heads=depth["num_attention_heads"],
            hidden=depth["ffn_dim"] // 2,
            eps=depth["rms_norm_eps"],
        ),
    )


def moshi_state(tensors: dict[str, Tensor], config: DuplexConfig) -> dict[str, Tensor]:
    """A checkpoint's tensors of either layout as a state dict of `DuplexModel(config)`. `tensors` is emptied.

    Raises:
        CorruptFile: a tensor is missing, or there is one more than the model has.
    """
    for name in [n for n in tensors if n.startswith("audio_encoder.")]:  # Mimi: the codec's business
        del tensors[name]
    convert = _from_transformers if "decoder.lm_head.weight" in tensors else _from_kyutai
    try:
        state = convert(tensors.pop, config)
    except KeyError as error:
        raise CorruptFile(f"the checkpoint lacks the tensor {error}; it is not a Moshi of this configuration") from None
    except RuntimeError as error:
        raise CorruptFile(f"the checkpoint does not fit its configuration: {error}") from None
    if tensors:
        raise CorruptFile(f"the checkpoint has tensors that the model lacks, such as {sorted(tensors)[0]}")
    return state


Take = Callable[[str], Tensor]


def _from_kyutai(pop: Take, config: DuplexConfig) -> dict[str, Tensor]:
    state = {
        "text_table.weight": pop("text_emb.weight"),
        "audio_table.weight": torch.cat([pop(f"emb.{k}.weight") for k in range(config.own + config.user)]),
        "text_head.weight": pop("text_linear.weight"),
        "transformer.norm.weight": pop("out_norm.alpha").flatten(),
    }
    for i in range(config.backbone.layers):
        theirs, ours = f"transformer.layers.{i}.", f"transformer.layers.{i}."
        qkv = _either(pop, theirs + "self_attn.in_proj_weight", theirs + "self_attn.in_projs.0.weight")
        q, k, v = qkv.chunk(3)
        heads = config.backbone.heads
        state[ours + "attention.qkv.weight"] = torch.cat([_halves(q, heads), _halves(k, heads), v])
        state[ours + "attention.out.weight"] = _either(
            pop, theirs + "self_attn.out_proj.weight", theirs + "self_attn.out_projs.0.weight"
        )
        state[ours + "gate_up.weight"] = pop(theirs + "gating.linear_in.weight")
        state[ours + "down.weight"] = pop(theirs + "gating.linear_out.weight")
        state[ours + "attention_norm.weight"] = pop(theirs + "norm1.alpha").flatten()
        state[ours + "mlp_norm.weight"] = pop(theirs + "norm2.alpha").flatten()
    if config.levels:
        _depth_from_kyutai(pop, config, state)
    return state


def _depth_from_kyutai(pop: Take, config: DuplexConfig, state: dict[str, Tensor]) -> None:
    sets = max(config.schedule or range(config.levels)) + 1
    state["depth_text.weight"] = pop("depformer_text_emb.weight")
    for k in range(config.levels - 1):
        state[f"depth_audio.{k}.weight"] = pop(f"depformer_emb.{k}.weight")
    for k in range(config.levels):
        state[f"depth_heads.{k}.weight"] = pop(f"linears.{k}.weight")
    for s in range(sets):
        state[f"depth_in.{s}.weight"] = pop(f"depformer_in.{s}.weight")
    for i in range(config.depth.layers):
        theirs, ours = f"depformer.layers.{i}.", f"depth.layers.{i}."
        for name, part in (("qkv", "in_proj"), ("out", "out_proj")):
            for s, weight in enumerate(_sets(pop, theirs + "self_attn.", part, sets)):
                state[f"{ours}{name}.{s}.weight"] = weight
        for s in range(sets):
            state[f"{ours}gate_up.{s}.weight"] = pop(f"{theirs}gating.{s}.linear_in.weight")
            state[f"{ours}down.{s}.weight"] = pop(f"{theirs}gating.{s}.linear_out.weight")
        state[ours + "attention_norm.weight"] = pop(theirs + "norm1.alpha").flatten()
        state[ours + "mlp_norm.weight"] = pop(theirs + "norm2.alpha").flatten()


def _sets(pop: Take, prefix: str, part: str, sets: int) -> list[Tensor]:
    """The weights of all sets: stacked in one tensor (the published files) or one by one (as the package saves)."""
    whole = "in_proj_weight" if part == "in_proj" else "out_proj.weight"
    try:
        return list(pop(prefix + whole).chunk(sets))
    except KeyError:
        return [pop(f"{prefix}{part}s.{s}.weight") for s in range(sets)]


def _either(pop: Take, name: str, other: str) -> Tensor:
    try:
        return pop(name)
    except KeyError:
        return pop(other)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection to heads whose rotary pairs lie side by side -> pairs half a head apart, as we rotate."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _from_transformers(pop: Take, config: DuplexConfig) -> dict[str, Tensor]:
    state = {
        "text_table.weight": pop("decoder.model.embed_tokens.weight"),
        "audio_table.weight": torch.cat([pop(f"embed_tokens.{k}.weight") for k in range(config.own + config.user)]),
        "text_head.weight": pop("decoder.lm_head.weight"),
        "transformer.norm.weight": pop("decoder.model.norm.weight"),
        "depth_text.weight": pop("depth_decoder.text_embed_tokens.weight"),
    }
    for k in range(config.levels - 1):
        state[f"depth_audio.{k}.weight"] = pop(f"depth_decoder.embed_tokens.{k}.weight")
    for name, theirs in (("depth_in", "input_projections"), ("depth_heads", "lm_heads")):
        for k, weight in enumerate(pop(f"depth_decoder.{theirs}.weight")):
            state[f"{name}.{k}.weight"] = weight
    for i in range(config.backbone.layers):
        theirs, ours = f"decoder.model.layers.{i}.", f"transformer.layers.{i}."
        parts = _layer(pop, theirs)
        state |= {ours + ("attention." + n if n in ("qkv", "out") else n) + ".weight": w for n, w in parts.items()}
    for i in range(config.depth.layers):
        for name, weight in _layer(pop, f"depth_decoder.layers.{i}.").items():
            if name.endswith("norm"):
                state[f"depth.layers.{i}.{name}.weight"] = weight
            else:
                state |= {f"depth.layers.{i}.{name}.{s}.weight": w for s, w in enumerate(weight)}
    return state


def _layer(pop: Take, prefix: str) -> dict[str, Tensor]:
    """One layer of either transformer of `transformers`; the depth transformer's have a leading axis of sets."""
    attention = prefix + "self_attn."
    return {
        "qkv": torch.cat([pop(f"{attention}{n}_proj.linear.weight") for n in "qkv"], -2),
        "out": pop(attention + "o_proj.linear.weight"),
        "gate_up": pop(prefix + "mlp.fc1.weight"),
        "down": pop(prefix + "mlp.fc2.weight"),
        "attention_norm": pop(prefix + "input_layernorm.weight"),
        "mlp_norm": pop(prefix + "post_attention_layernorm.weight"),
    }


def load_moshi(source: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> DuplexModel:
    """A published Moshi in eval mode, from a folder or a hub id such as `kyutai/moshiko-pytorch-bf16`.

    Args:
        dtype: of the weights; as stored by default.

    Raises:
        MissingFile, ConfigError, CorruptFile: what is wrong with it.
    """
    folder = moshi_folder(str(source))
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text()) if path.exists() else MOSHI_7B
    except ValueError as error:
        raise CorruptFile(f"{path} is not valid JSON ({error}); fetch the model again") from None
    config = moshi_config(raw)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, raw):
        try:
            tensors |= load_file(file, device=device)
        except SafetensorError as error:
            raise CorruptFile(f"{file} is damaged ({error}); fetch the model again") from None
    if odd := next((name for name, t in tensors.items() if not t.is_floating_point()), None):
        raise ConfigError(f"{folder} holds quantized weights ({odd}); load the bf16 model")
    state = {name: t if dtype is None else t.to(dtype) for name, t in moshi_state(tensors, config).items()}
    with torch.device("meta"):  # 7 billion weights are not worth making up first
        model = DuplexModel(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CorruptFile(f"{folder} does not fit its configuration: {str(error).splitlines()[-1].strip()}") from None
    model.register_ids(device)
    for module in model.modules():
        if getattr(module, "like", None) is not None:
            module.like = torch.zeros((), dtype=state["text_head.weight"].dtype, device=device)
    return model.eval()


def moshi_folder(source: str) -> Path:
    """A folder, or that of a hub id. Raises MissingFile."""
    if Path(source).is_dir():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise MissingFile(f"no folder {source!r}; give a folder or a hub id such as kyutai/moshiko-pytorch-bf16")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "tokenizer*.model"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFile(f"{source} cannot be fetched ({type(error).__name__}); give a folder") from error


def weight_files(folder: Path, raw: dict[str, Any]) -> list[Path]:
    """Mimi lies beside the model in kyutai's repositories: only what is named model*.safetensors is ours."""
    named = folder / str(raw.get("moshi_name", "model.safetensors"))
    files = [named] if named.exists() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise MissingFile(f"{folder} holds no model.safetensors; fetch the model again")
    return files
