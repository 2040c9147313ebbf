"""Groups of speech tokens that sound alike: the channels of coarse-grained acceptance (`tts/speculative.py`).

The group of a token holds the tokens whose embeddings in the target model have a cosine above a threshold
(Principled Coarse-Graining, arXiv 2511.13732). There is one threshold for each codebook, found for a wanted mean size:
at one threshold for all, the groups of the deeper codebooks vanish. Ids that a model does not use stay alone, and so do
the ids that end the speech or ask for text: their law is then the target's exactly.

A groups file is a safetensors file of (group, token) pairs a codebook, with the SHA-256 of the weights that they were
built from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..codecs.folders import weights_sha256
from ..errors import BadInput, ConfigError, CorruptFile, MissingFile
from .speculative import Channel, CoarseGrained, Verdict, output_law, total_variation

__all__ = [
    "CoarseGrainedLevels",
    "Groups",
    "build_groups",
    "code_embeddings",
    "cosine_groups",
    "load_groups",
    "save_groups",
    "threshold_for",
    "weights_hash",
]

FORMAT = "quaver-groups-1"
ANISOTROPIC = 0.2
"""Mean cosine between embeddings from which on their mean is taken out first."""


@dataclass(frozen=True)
class Groups:
    """The channels of a model, one a codebook.

    Attributes:
        channels: codebook 0 over `vocab + stops` ids, the others over `vocab`.
        thresholds: cosine of each codebook. live: ids that took part. partition: no overlap.
    """

    channels: tuple[Channel, ...]
    thresholds: tuple[float, ...]
    live: tuple[int, ...]
    partition: bool = False

    def mean_sizes(self) -> list[float]:
        """Mean number of tokens that share a token's groups, itself included, over the live ids of each codebook."""
        out = []
        for channel, live in zip(self.channels, self.live, strict=True):
            alone = channel.vocab - live
            company = channel.back(channel.sizes.float()).sum() - alone
            out.append(float(company) / max(live, 1))
        return out

    def report(self) -> list[dict[str, float]]:
        """Sizes of each codebook's groups: for the table and the plot of `quaver groups build`."""
        rows = []
        for level, (channel, mean) in enumerate(zip(self.channels, self.mean_sizes(), strict=True)):
            sizes = channel.sizes.float()
            rows.append(
                {
                    "codebook": level,
                    "threshold": self.thresholds[level],
                    "live": self.live[level],
                    "groups": channel.count,
                    "mean": mean,
                    "median": float(sizes.median()),
                    "largest": float(sizes.max()),
                    "alone": float((channel.back(sizes) <= 1).sum()) / channel.vocab,
                }
            )
        return rows


# -- similarity -------------------------------------------------------------------------------------------------------
def _directions(embeddings: Tensor) -> Tensor:
    """Unit vectors; a mean that all of them share says nothing about their likeness."""
    unit = nn.functional.normalize(embeddings.float(), dim=-1)
    shared = unit.mean(0)
    if float(shared.square().sum()) > ANISOTROPIC:
        unit = nn.functional.normalize(unit - shared, dim=-1)
    return unit


def cosine_groups(embeddings: Tensor, threshold: float, partition: bool = False) -> list[list[int]]:
    """The distinct groups of `embeddings[token, dim]`: each token with all whose cosine is above the threshold.

    Args:
        partition: hard clusters instead: the token with the most neighbours that are still free takes them, and so on.

    Raises:
        BadInput: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"the threshold of a group is a cosine in (0, 1], not {threshold}")
    unit = _directions(embeddings)
    near = [torch.nonzero(rows > threshold) for rows in (unit @ unit.T).split(1024)]
    members: list[list[int]] = []
    for part in near:
        begin = len(members)
        count = min(1024, len(unit) - begin)
        found: list[list[int]] = [[] for _ in range(count)]
        for row, token in part.tolist():
            found[row].append(token)
        members += [sorted({*group, begin + i}) for i, group in enumerate(found)]
    if partition:
        return _clusters(members)
    distinct: dict[tuple[int, ...], None] = dict.fromkeys(tuple(group) for group in members)
    return [list(group) for group in distinct]


def _clusters(members: list[list[int]]) -> list[list[int]]:
    free, out = set(range(len(members))), []
    order = sorted(range(len(members)), key=lambda t: -len(members[t]))
    for token in order:
        if token in free:
            cluster = [t for t in members[token] if t in free]
            free.difference_update(cluster)
            out.append(cluster)
    return out


def threshold_for(embeddings: Tensor, size: float) -> float:
    """The threshold at which a token's group holds `size` tokens in the mean, itself included (bisected to 1e-3).

    Raises:
        BadInput: a size below 1 or above the number of tokens.
    """
    count = len(embeddings)
    if not 1 <= size <= count:
        raise BadInput(f"groups of {size:g} tokens in the mean cannot be made of {count} live tokens")
    unit = _directions(embeddings)
    low, high = 0.0, 1.0
    # The cosines of a sample of the tokens to all of them say what the mean is, without count ** 2 comparisons a step.
    rows = torch.linspace(0, count - 1, min(count, 1024)).long()
    cosines = unit[rows] @ unit.T
    cosines[torch.arange(len(rows)), rows] = 2.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if float((cosines > middle).sum()) / len(rows) > size:
            low = middle
        else:
            high = middle
    return high


def build_groups(
    embeddings: Sequence[Tensor],
    size: float = 8.0,
    *,
    threshold: float | None = None,
    live: Sequence[Tensor] | None = None,
    control: int = 0,
    partition: bool = False,
) -> Groups:
    """The groups of each codebook.

    Args:
        embeddings: `[vocab, dim]` of each codebook. size: wanted mean size of a token's group, for which each
            codebook's threshold is looked for. threshold: the same one for all instead.
        live: BoolTensor[vocab] of each codebook: ids that the model uses (all by default). The others are alone.
        control: ids after the codes of codebook 0 (end of speech, fill), each alone.
    """
    channels, thresholds, counts = [], [], []
    for level, table in enumerate(embeddings):
        vocab = len(table)
        used = torch.arange(vocab) if live is None else torch.nonzero(live[level])[:, 0]
        if not len(used):
            raise BadInput(f"codebook {level} has no live ids; count them on speech of this codec")
        cosine = threshold or threshold_for(table[used], min(size, len(used)))
        ids = used.tolist()
        members = [[ids[t] for t in group] for group in cosine_groups(table[used], cosine, partition)]
        total = vocab + (control if level == 0 else 0)
        alone = sorted(set(range(total)) - set(ids))
        channels.append(Channel.of_groups([*members, *([t] for t in alone)], total))
        thresholds.append(cosine)
        counts.append(len(ids))
    return Groups(tuple(channels), tuple(thresholds), tuple(counts), partition)


def code_embeddings(head: nn.Module) -> list[Tensor]:
    """The embeddings `[vocab, dim]` of each codebook's codes, from a head of `tts/heads.py` or `tts/token_heads.py`."""
    table, vocab = head.table.weight.detach(), int(head.vocab)  # type: ignore[union-attr,arg-type]
    block = int(head.empty) + 1  # type: ignore[arg-type]
    return [table[k * block : k * block + vocab].cpu() for k in range(int(head.codebooks))]  # type: ignore[arg-type]


# -- files ------------------------------------------------------------------------------------------------------------
def weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weights.

    Raises:
        MissingFile: it has none.
    """
    found = weights_sha256(folder)
    if not found:
        raise MissingFile(
            f"{folder / 'model.safetensors'} is missing; groups and drafters belong to the weights of a model"
        )
    return found


def save_groups(groups: Groups, path: Path, sha256: str) -> None:
    """Writes a groups file for the weights of that hash."""
    tensors = {}
    for level, channel in enumerate(groups.channels):
        tensors[f"{level}.groups"] = channel.groups.to(torch.int32).contiguous()
        tensors[f"{level}.tokens"] = channel.tokens.to(torch.int32).contiguous()
    facts = {
        "thresholds": groups.thresholds,
        "live": groups.live,
        "counts": [c.count for c in groups.channels],
        "vocabs": [c.vocab for c in groups.channels],
        "partition": groups.partition,
    }
    save_file(tensors, path, {"format": FORMAT, "sha256": sha256, "facts": json.dumps(facts)})


def load_groups(path: Path, sha256: str | None = None) -> Groups:
    """Reads a groups file; `sha256`: of the weights that it must have been built from.

    Raises:
        MissingFile: no such file. CorruptFile: not a groups file. ConfigError: built for other weights.
    """
    if not path.exists():
        raise MissingFile(f"no groups {path}; make them with `quaver groups build MODEL -o {path}`")
    try:
        with safe_open(path, framework="pt") as file:
            info = file.metadata() or {}
            if info.get("format") != FORMAT:
                raise CorruptFile(f"{path} is not a groups file; make one with `quaver groups build MODEL`")
            facts = json.loads(info["facts"])
            if sha256 is not None and info["sha256"] != sha256:
                raise ConfigError(
                    f"{path} was built for other weights ({info['sha256'][:12]}, the model has {sha256[:12]}); "
                    "build it again with `quaver groups build MODEL`"
                )
            channels = []
            for level, (count, vocab) in enumerate(zip(facts["counts"], facts["vocabs"], strict=True)):
                labels, tokens = (file.get_tensor(f"{level}.{name}").long() for name in ("groups", "tokens"))
                channels.append(Channel(labels, tokens, torch.ones(len(labels)), count, vocab))
    except (ConfigError, CorruptFile):
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, BadInput) as error:
        raise CorruptFile(f"{path} is damaged ({error}); make it again with `quaver groups build MODEL`") from None
    return Groups(tuple(channels), tuple(facts["thresholds"]), tuple(facts["live"]), bool(facts["partition"]))


# -- along depth ------------------------------------------------------------------------------------------------------
class CoarseGrainedLevels:
    """`CoarseGrained` with a channel of its own for each codebook: laws `[..., level, vocab]`.

    The channels lie side by side in one, so that all levels are judged by the same few operations.

    Raises:
        BadInput: channels of unlike vocabularies.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        if len({c.vocab for c in channels}) != 1:
            raise BadInput("codebooks that are judged together need vocabularies of one size")
        self.levels, self.vocab = len(channels), channels[0].vocab
        labels, tokens, weights, count = [], [], [], 0
        for level, channel in enumerate(channels):
            labels.append(channel.groups + count)
            tokens.append(channel.tokens + level * self.vocab)
            weights.append(channel.weights)
            count += channel.count
        joined = Channel(torch.cat(labels), torch.cat(tokens), torch.cat(weights), count, self.levels * self.vocab)
        self.rule = CoarseGrained(joined)

    def __call__(self, p: Tensor, q: Tensor) -> Verdict:
        joined = self.rule(p.flatten(-2), q.flatten(-2))
        accept, residual = joined.accept.view_as(p), joined.residual.view_as(p)
        return Verdict(accept, residual, total_variation(output_law(p, Verdict(accept, residual)), q))
