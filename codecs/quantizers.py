"""Bottlenecks: residual vector quantization (joint or split), finite scalar quantization (plain or residual), and a
Gaussian VAE.

All of them map latents `[batch, dim, frame]` to a `Quantized` and are told apart by recipes, not by code around them.
They work in float32 whatever the autocast says: nearest-neighbour search in half precision picks other codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput

__all__ = ["FSQ", "GaussianVAE", "Quantized", "ResidualFSQ", "ResidualVQ", "SplitVQ"]


@dataclass
class Quantized:
    """What a bottleneck gives.

    Attributes:
        latents: `[batch, dim, frame]`, what the decoder sees; gradients pass straight through.
        frames: LongTensor `[batch, codebook, frame]`, or for the VAE FloatTensor `[batch, dim, frame]`.
        losses: auxiliary losses by name (scalars).
    """

    latents: Tensor
    frames: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class ResidualVQ(nn.Module):
    """Residual vector quantization with codebooks learned by exponential moving averages (SoundStream, EnCodec).

    Level k quantizes what levels 0..k-1 left over. Two bugs of the reference implementations are avoided and tested:
    dead codes are replaced in the running sums as well, so that the replacement survives the next update
    (encodec issue 61), and there is a single straight-through step around the sum of all levels, with detached
    residuals (encodec issue 25).

    Args:
        dim: width of the latents.
        codebooks: number of levels K.
        vocab: entries per level.
        decay: of the moving averages.
        dead_below: a code is replaced when its average use falls below this share of uniform use.
    """

    codebook: Tensor
    usage: Tensor
    sums: Tensor
    ready: Tensor

    def __init__(
        self, dim: int, codebooks: int = 8, vocab: int = 1024, decay: float = 0.99, dead_below: float = 0.1
    ) -> None:
        super().__init__()
        self.dim, self.codebooks, self.vocab = dim, codebooks, vocab
        self.decay, self.dead_below = decay, dead_below
        self._kept: tuple[Tensor, int, Tensor] | None = None
        self.register_buffer("codebook", torch.randn(codebooks, vocab, dim) * 0.1)
        self.register_buffer("usage", torch.ones(codebooks, vocab))
        self.register_buffer("sums", torch.zeros(codebooks, vocab, dim))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    # -- inference ----------------------------------------------------------------------------------------------------
    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """`[batch, dim, frame] -> codes [batch, codebooks, frame]`."""
        return self._search(x.detach().float().transpose(1, 2), self._levels(codebooks))[1]

    def decode(self, codes: Tensor) -> Tensor:
        """`[batch, k, frame] -> [batch, dim, frame]`, for any k from 1 to K.

        Raises:
            BadInput: more levels than this quantizer has, or a code outside the vocabulary.
        """
        levels = self._levels(codes.shape[1])
        _check_range(codes, self.vocab)
        total = sum(F.embedding(codes[:, k], self.codebook[k]) for k in range(levels))
        assert isinstance(total, Tensor)
        return total.transpose(1, 2)

    def _levels(self, codebooks: int | None) -> int:
        levels = self.codebooks if codebooks is None else codebooks
        if not 1 <= levels <= self.codebooks:
            raise BadInput(f"between 1 and {self.codebooks} codebooks are possible, not {levels}")
        return levels

    def _search(self, x: Tensor, levels: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """`x[batch, frame, dim]` -> quantized sums after each level `[levels, batch, frame, dim]`, codes, residuals."""
        residual, quantized, sums, codes, residuals = x, torch.zeros_like(x), [], [], []
        squares = self._squares()
        for k in range(levels):
            residuals.append(residual)
            table = self.codebook[k]
            distance = squares[k] - 2 * residual @ table.T
            index = distance.argmin(-1)
            step = F.embedding(index, table)
            quantized, residual = quantized + step, residual - step
            codes.append(index)
            sums.append(quantized)
        return torch.stack(sums), torch.stack(codes, 1), residuals

    def _squares(self) -> Tensor:
        """Squared lengths of all codes `[K, vocab]`; kept while the codebook stays what it is, because a streamed frame
        would spend more on them than on its search."""
        table = self.codebook
        if self.training or table.is_inference():  # no version by which to see a change
            return table.square().sum(2)
        if self._kept is None or self._kept[0] is not table or self._kept[1] != table._version:
            self._kept = (table, table._version, table.detach().square().sum(2))
        return self._kept[2]

    # -- training -----------------------------------------------------------------------------------------------------
    def forward(self, x: Tensor, levels: Tensor | None = None, bypass: Tensor | None = None) -> Quantized:
        """Quantizes, and in training mode moves the codebooks.

        Args:
            x: `[batch, dim, frame]`.
            levels: LongTensor[batch], how many codebooks each item keeps (quantizer dropout); default all.
            bypass: BoolTensor[batch], items whose latents pass unquantized (Mimi).
        """
        rows = x.float().transpose(1, 2)
        with torch.no_grad():
            if self.training and not self.ready:
                self._initialise(rows)
            sums, codes, residuals = self._search(rows.detach(), self.codebooks)
            if self.training:
                for k, residual in enumerate(residuals):
                    self._move(k, residual.reshape(-1, self.dim), codes[:, k].reshape(-1))
        quantized = sums[-1] if levels is None else self._keep(sums, levels)
        losses = {"commit": F.mse_loss(rows, quantized)}
        out = rows + (quantized - rows).detach()
        if bypass is not None:
            out = torch.where(bypass[:, None, None], rows, out)
        return Quantized(out.transpose(1, 2), codes, losses)

    @staticmethod
    def _keep(sums: Tensor, levels: Tensor) -> Tensor:
        items = torch.arange(sums.shape[1], device=sums.device)
        return sums[levels - 1, items]

    @torch.no_grad()
    def _initialise(self, rows: Tensor) -> None:
        """Draws each level's codes from the residuals of the first batch."""
        residual = rows.detach().reshape(-1, self.dim)
        for k in range(self.codebooks):
            table = self._draw(residual, self.vocab)
            self.codebook[k] = table
            self.sums[k] = table
            residual = residual - F.embedding((table.square().sum(1) - 2 * residual @ table.T).argmin(-1), table)
        self.usage.fill_(1.0)
        self.ready.fill_(True)

    @torch.no_grad()
    def _move(self, k: int, residual: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=self.vocab).to(residual.dtype)
        totals = torch.zeros_like(self.sums[k]).index_add_(0, index, residual)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(totals)
        self.usage[k].lerp_(counts, 1 - self.decay)
        self.sums[k].lerp_(totals, 1 - self.decay)
        uniform = counts.sum() / self.vocab
        dead = self.usage[k] < self.dead_below * uniform
        count = int(dead.sum())
        if count:
            fresh = self._draw(residual, count)
            start = self.dead_below * uniform * 3  # above the threshold: a newcomer gets time to win its cell
            self.usage[k][dead] = start
            self.sums[k][dead] = fresh * start
        self.codebook[k] = self.sums[k] / self.usage[k].clamp(min=1e-8)[:, None]

    def _draw(self, rows: Tensor, count: int) -> Tensor:
        """`count` random rows, slightly jittered; the same on every process."""
        pick = torch.randint(len(rows), (count,), device=rows.device)
        drawn = rows[pick] + 1e-3 * rows.std() * torch.randn(count, self.dim, device=rows.device)
        if dist.is_initialized():
            dist.broadcast(drawn, 0)
        return drawn


def _check_range(codes: Tensor, vocab: int) -> None:
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= vocab):
        raise BadInput(f"codes must lie in 0..{vocab - 1}, got {int(codes.min())}..{int(codes.max())}")


class SplitVQ(nn.Module):
    """Semantic levels beside acoustic ones (Mimi): two residual quantizers see the same latents, their sum goes on.

    So the acoustic levels need not carry what the first level's semantic training costs them.

    Args:
        dim: width of the latents. codebooks: of both together. semantic: how many of them come first.
        inner: width of the codes. projected: whether each quantizer has its own way in and out of that width.
    """

    def __init__(
        self,
        dim: int,
        codebooks: int = 8,
        vocab: int = 1024,
        semantic: int = 1,
        inner: int | None = None,
        projected: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= semantic < codebooks:
            raise BadInput(f"of {codebooks} codebooks between 1 and {codebooks - 1} can be semantic, not {semantic}")
        inner = dim if inner is None else inner
        if not projected and inner != dim:
            raise BadInput(f"without projections the codes are as wide as the latents, {dim}, not {inner}")
        self.dim, self.codebooks, self.vocab, self.projected = dim, codebooks, vocab, projected
        self.semantic = ResidualVQ(inner, semantic, vocab)
        self.acoustic = ResidualVQ(inner, codebooks - semantic, vocab)
        self.semantic_in, self.semantic_out = _projection(dim, inner, projected), _projection(inner, dim, projected)
        self.acoustic_in, self.acoustic_out = _projection(dim, inner, projected), _projection(inner, dim, projected)

    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """`[batch, dim, frame] -> codes [batch, codebooks, frame]`, semantic levels first."""
        levels = self.codebooks if codebooks is None else codebooks
        if not 1 <= levels <= self.codebooks:
            raise BadInput(f"between 1 and {self.codebooks} codebooks are possible, not {levels}")
        if x.shape[-1] == 0:  # a stream whose frame is not complete; a convolution would not take it
            return torch.zeros(x.shape[0], levels, 0, dtype=torch.long, device=x.device)
        first = self.semantic.codebooks
        codes = [self.semantic.encode(self.semantic_in(x), min(levels, first))]
        if levels > first:
            codes.append(self.acoustic.encode(self.acoustic_in(x), levels - first))
        return torch.cat(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """`[batch, k, frame] -> [batch, dim, frame]`, for any k from 1 to K. Raises BadInput as `ResidualVQ`."""
        if not 1 <= codes.shape[1] <= self.codebooks:
            raise BadInput(f"between 1 and {self.codebooks} codebooks are possible, not {codes.shape[1]}")
        if codes.shape[-1] == 0:
            return torch.zeros(codes.shape[0], self.dim, 0, device=codes.device)
        first = self.semantic.codebooks
        latents = self.semantic_out(self.semantic.decode(codes[:, :first]))
        if codes.shape[1] > first:
            latents = latents + self.acoustic_out(self.acoustic.decode(codes[:, first:]))
        return latents

    def forward(self, x: Tensor, levels: Tensor | None = None, bypass: Tensor | None = None) -> Quantized:
        """As `ResidualVQ`; with fewer levels than the semantic ones plus one, the acoustic side is left out."""
        x = x.float()
        first = self.semantic.codebooks
        low = None if levels is None else levels.clamp(max=first)
        high = None if levels is None else (levels - first).clamp(min=1)
        semantic = self.semantic(self.semantic_in(x), low)
        acoustic = self.acoustic(self.acoustic_in(x), high)
        part = self.acoustic_out(acoustic.latents)
        if levels is not None:
            part = torch.where((levels > first)[:, None, None], part, torch.zeros_like(part))
        latents = self.semantic_out(semantic.latents) + part
        if bypass is not None:
            latents = torch.where(bypass[:, None, None], x, latents)
        losses = {"commit": semantic.losses["commit"] + acoustic.losses["commit"]}
        return Quantized(latents, torch.cat([semantic.frames, acoustic.frames], 1), losses)


def _projection(width: int, to: int, projected: bool) -> nn.Module:
    return nn.Conv1d(width, to, 1, bias=False) if projected else nn.Identity()


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): each dimension is bounded and rounded to a few levels.

    One codebook of `prod(levels)` codes; nothing is learned and nothing can die. The code of a vector is its
    mixed-radix number, first dimension least significant.
    """

    basis: Tensor
    counts: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise BadInput(f"every FSQ dimension needs at least 2 levels, got {list(levels)}")
        self.levels = tuple(levels)
        self.dim, self.vocab, self.codebooks = len(levels), math.prod(levels), 1
        counts = torch.tensor(self.levels)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("basis", torch.cumprod(torch.tensor([1, *levels[:-1]]), 0), persistent=False)

    def _grid(self, x: Tensor) -> Tensor:
        """Rounded coordinates 0..level-1, with a straight-through gradient; `x[..., dim]`."""
        half = (self.counts - 1) / 2
        bounded = (torch.tanh(x.float()) * (1 + 1e-3) + 1) * half
        bounded = bounded.minimum(self.counts - 1 + 0.0).clamp(min=0)
        return bounded + (bounded.round() - bounded).detach()

    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """`[batch, dim, frame] -> codes [batch, 1, frame]`."""
        grid = self._grid(x.transpose(1, 2)).round().long()
        return (grid * self.basis).sum(-1)[:, None]

    def decode(self, codes: Tensor) -> Tensor:
        """`[batch, 1, frame] -> [batch, dim, frame]` with coordinates in [-1, 1].

        Raises:
            BadInput: not one codebook, or a code outside the vocabulary.
        """
        if codes.shape[1] != 1:
            raise BadInput(f"FSQ has one codebook, got {codes.shape[1]}")
        _check_range(codes, self.vocab)
        grid = codes[:, 0, :, None] // self.basis % self.counts
        return (grid * 2 / (self.counts - 1) - 1).float().transpose(1, 2)

    def forward(self, x: Tensor, levels: Tensor | None = None, bypass: Tensor | None = None) -> Quantized:
        grid = self._grid(x.transpose(1, 2))
        latents = (grid * 2 / (self.counts - 1) - 1).transpose(1, 2)
        if bypass is not None:
            latents = torch.where(bypass[:, None, None], torch.tanh(x.float()), latents)
        return Quantized(latents, (grid.detach().round().long() * self.basis).sum(-1)[:, None])


class ResidualFSQ(nn.Module):
    """Finite scalar quantization in several levels: each level divides the cells of the one before once more.

    Level k rounds what is left over on the same grid, scaled by `(levels - 1) ** -k` per dimension (the scales of
    vector-quantize-pytorch's `ResidualFSQ`), so any number of leading codebooks decodes. Nothing is learned.

    Args:
        levels: grid points per dimension. codebooks: number of levels K, each of `prod(levels)` codes.
    """

    basis: Tensor
    counts: Tensor

    def __init__(self, levels: Sequence[int], codebooks: int = 8) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise BadInput(f"every dimension of a residual FSQ needs at least 3 levels, got {list(levels)}")
        self.levels = tuple(levels)
        self.dim, self.vocab, self.codebooks = len(levels), math.prod(levels), codebooks
        self.register_buffer("counts", torch.tensor(self.levels), persistent=False)
        self.register_buffer("basis", torch.cumprod(torch.tensor([1, *levels[:-1]]), 0), persistent=False)

    def _search(self, x: Tensor, codebooks: int) -> tuple[Tensor, Tensor]:
        """`x[batch, frame, dim]` in [-1, 1] -> sums after each level `[levels, batch, frame, dim]` and codes."""
        steps = self.counts - 1
        residual, scale, total, sums, codes = x, torch.ones_like(x[:1, :1]), torch.zeros_like(x), [], []
        for _ in range(codebooks):
            grid = ((residual / scale + 1) / 2 * steps).round().clamp(min=0).minimum(steps)
            part = (grid * 2 / steps - 1) * scale
            total, residual, scale = total + part, residual - part, scale / steps
            sums.append(total)
            codes.append((grid.long() * self.basis).sum(-1))
        return torch.stack(sums), torch.stack(codes, 1)

    def _levels(self, codebooks: int | None) -> int:
        levels = self.codebooks if codebooks is None else codebooks
        if not 1 <= levels <= self.codebooks:
            raise BadInput(f"between 1 and {self.codebooks} codebooks are possible, not {levels}")
        return levels

    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """`[batch, dim, frame] -> codes [batch, codebooks, frame]`."""
        return self._search(torch.tanh(x.detach().float()).transpose(1, 2), self._levels(codebooks))[1]

    def decode(self, codes: Tensor) -> Tensor:
        """`[batch, k, frame] -> [batch, dim, frame]`, for any k from 1 to K.

        Raises:
            BadInput: more levels than this quantizer has, or a code outside the vocabulary.
        """
        levels = self._levels(codes.shape[1])
        _check_range(codes, self.vocab)
        steps = self.counts - 1
        grid = codes[..., None] // self.basis % self.counts
        scale = steps.float() ** -torch.arange(levels, device=codes.device)[:, None, None]
        return ((grid * 2 / steps - 1) * scale).sum(1).transpose(1, 2)

    def forward(self, x: Tensor, levels: Tensor | None = None, bypass: Tensor | None = None) -> Quantized:
        """As `ResidualVQ`, without losses."""
        rows = torch.tanh(x.float()).transpose(1, 2)
        with torch.no_grad():
            sums, codes = self._search(rows.detach(), self.codebooks)
        quantized = sums[-1] if levels is None else sums[levels - 1, torch.arange(len(rows), device=rows.device)]
        out = rows + (quantized - rows).detach()
        if bypass is not None:
            out = torch.where(bypass[:, None, None], rows, out)
        return Quantized(out.transpose(1, 2), codes)


class GaussianVAE(nn.Module):
    """Continuous bottleneck: the encoder's output is split into mean and log-scale of a Gaussian.

    Input `[batch, 2 * dim, frame]`, latents `[batch, dim, frame]`. The KL weight belongs to the recipe: KALL-E and
    ARDiT report that it decides whether a language model can learn the latents.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.codebooks, self.vocab = dim, dim, 0

    def encode(self, x: Tensor, codebooks: int | None = None) -> Tensor:
        """The posterior mean `[batch, dim, frame]`."""
        return x[:, : self.dim].float()

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale `[batch, dim, frame]`."""
        mean, log_scale = x.float().chunk(2, 1)
        return mean, log_scale.clamp(-8.0, 4.0)

    def forward(self, x: Tensor, levels: Tensor | None = None, bypass: Tensor | None = None) -> Quantized:
        mean, log_scale = self.posterior(x)
        latents = mean
        if self.training:
            latents = mean + torch.randn_like(mean) * log_scale.exp()
            if bypass is not None:
                latents = torch.where(bypass[:, None, None], mean, latents)
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale)
        return Quantized(latents, mean.detach(), {"kl": kl.mean()})
