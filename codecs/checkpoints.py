"""Checkpoints of published codecs: where they lie, and their tensors under plain names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CorruptFile, MissingFile

__all__ = ["check_finite", "hub_folder", "is_hub_id", "plain_tensors", "put", "read_tensors"]


def is_hub_id(name: str) -> bool:
    """Whether a name reads as `owner/name` of the hub; a folder of that name goes first."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and not Path(name).exists()


def hub_folder(name: str) -> Path:
    """The folder of `owner/name`: from the local cache if it is there, else fetched.

    Raises:
        MissingFile: neither is possible; the message says which files go where.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise MissingFile(
            f"{name} is not on this machine and cannot be fetched ({type(error).__name__}): on a machine with network "
            f"take config.json and model.safetensors of the model {name} from the Hugging Face hub, put both into one "
            "folder here, and name that folder instead"
        ) from None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published model's safetensors files.

    Raises:
        MissingFile: there is none (pickled weights, `pytorch_model.bin` or `*.th`, are never loaded).
        CorruptFile: a file is damaged, or holds numbers that are not finite.
    """
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise MissingFile(
            f"{whole} is missing; put the model's safetensors file there (pickled weights are not loaded: "
            "convert them with save_pretrained of transformers)"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{file} is damaged ({error}); fetch the model again") from None
    check_finite(tensors, folder)
    return tensors


def check_finite(tensors: dict[str, Tensor], place: Path) -> None:
    """Raises CorruptFile if a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CorruptFile(f"{place}: {name} holds numbers that are not finite; fetch the model again")


def plain_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm folded into weights, and one spelling for the layouts of `transformers` and of kyutai and encodec.

    `encoder.model.3.conv.conv.weight_g` and `..._v`, or `encoder.layers.3.conv.parametrizations.weight.original0` and
    `...1`, become `encoder.layers.3.weight`.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for gain_end, direction_end in (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight_g", "weight_v"),
        ):
            if name.endswith(direction_end):
                gain = tensors.get(name.removesuffix(direction_end) + gain_end)
                if gain is None:
                    raise CorruptFile(f"the checkpoint has {name} without its gain; fetch the model again")
                tensor = torch._weight_norm(tensor.float(), gain.float(), 0)
                name = name.removesuffix(direction_end) + "weight"
                break
            if name.endswith(gain_end):
                break
        else:
            gain_end = ""
        if gain_end and name.endswith(gain_end):
            continue
        name = re.sub(r"(\.(conv|convtr))+\.(weight|bias)$", r".\3", name)
        plain[re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)] = tensor.float()
    return plain


def put(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Fills a module with exactly these tensors.

    Raises:
        CorruptFile: one is missing, unknown, or of another shape: a checkpoint of another codec.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise CorruptFile(
            f"{folder}: the weights do not fit the configuration ({line}); fetch the model again"
        ) from None
