"""Decoder heads: from a backbone's hidden frames (100 Hz) to audio by one inverse STFT.

`ISTFTHead` predicts every bin's magnitude and phase freely (Vocos, Siuzdak 2023). `HarmonicHead` predicts F0 and shapes
a band-limited pulse train and noise per bin, beside a small free branch; clean voiced speech then needs neither many
steps nor a discriminator, because the fine phase structure comes from the pulse train (the harmonic-plus-noise idea of
Serra & Smith 1990, in the neural form of NSF, Wang et al. 2019, and of the hibari teacher).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn.state import State, StreamingModule
from ..nn.stft import STFT, InverseSTFT

__all__ = ["HEADS", "HarmonicHead", "HeadOutput", "ISTFTHead", "make_head"]

NOISE_FRAMES = 1024
"""Period of the stored noise spectra: 10 s at 100 Hz, long enough not to be heard as a loop."""


@dataclass
class HeadOutput:
    """Attributes: audio `[batch, sample]`; log_f0 and voicing (logits) `[batch, frame]` where the head predicts
    them."""

    audio: Tensor
    log_f0: Tensor | None = None
    voicing: Tensor | None = None


class ISTFTHead(StreamingModule):
    """Magnitude and phase of every bin from a linear layer."""

    def __init__(self, width: int, sample_rate: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_fft + 2)
        self.istft = InverseSTFT(n_fft, hop)
        self.overlap = self.istft.overlap

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, istft=self.istft)

    def forward(self, x: Tensor, state: State | None = None, f0: Tensor | None = None) -> HeadOutput:
        """`x[batch, width, frame]`; `f0` is accepted and ignored, so that heads are interchangeable."""
        log_magnitude, phase = self.linear(x.transpose(1, 2)).float().transpose(1, 2).chunk(2, 1)
        spectra = torch.polar(log_magnitude.clamp(max=4.6).exp(), phase)
        return HeadOutput(self.istft(spectra, None if state is None else state.child("istft")))

    def flush(self, state: State) -> Tensor:
        return self.istft.flush(state.child("istft"))


class HarmonicHead(StreamingModule):
    """Filtered pulse train + filtered noise + free branch, one inverse STFT.

    Per frame: F0 and voicing; per bin: log-magnitude and phase of the pulse filter, log-magnitude of the noise filter,
    log-magnitude and phase of the free branch.

    Attributes:
        amount: factor on the noise in use, a temperature. Training has 1: there the energy distance needs all of it.
    """

    noise: Tensor
    amount: float = 1.0

    def __init__(self, width: int, sample_rate: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.sample_rate, self.hop = sample_rate, hop
        self.pitch = nn.Linear(width, 2)
        self.filters = nn.Linear(width, 5 * (n_fft // 2 + 1))
        nn.init.normal_(self.filters.weight, std=0.01)
        nn.init.zeros_(self.filters.bias)
        self.stft = STFT(n_fft, hop)
        self.istft = InverseSTFT(n_fft, hop)
        self.overlap = self.istft.overlap
        self.register_buffer("noise", _noise_spectra(n_fft, hop), persistent=False)

    def init_state(self, batch: int) -> State:
        state = self._state_of(batch, stft=self.stft, istft=self.istft)
        device = self.pitch.weight.device
        state.add("phase", dtype=torch.float64, device=device)  # in cycles, [0, 1)
        state.add("last_f0", device=device)  # Hz, 0 = unvoiced
        state.add("frame", dtype=torch.long, device=device)  # index into the noise
        return state

    def forward(self, x: Tensor, state: State | None = None, f0: Tensor | None = None) -> HeadOutput:
        """`x[batch, width, frame]`; `f0[batch, frame]` in Hz (0 = unvoiced) replaces the predicted one in training."""
        hidden = x.transpose(1, 2)
        log_f0, voicing = self.pitch(hidden).float().unbind(-1)
        log_f0 = log_f0 * 0.3 + 5.2  # around 181 Hz, the scale of voices
        if f0 is None:
            f0 = self._decide(log_f0, voicing)
        pulses = self._pulses(f0, state)
        harmonic = self.stft(pulses, None if state is None else state.child("stft"))
        noise = self._noise(f0, state)
        filters = self.filters(hidden).float().transpose(1, 2)
        gain, phase, noise_gain, free_gain, free_phase = filters.chunk(5, 1)
        spectra = (
            torch.polar(gain.clamp(-12, 5).exp(), phase) * harmonic
            + (noise_gain - 2).clamp(-12, 5).exp() * noise
            + torch.polar((free_gain - 3).clamp(-12, 6).exp(), 3 * free_phase)
        )
        audio = self.istft(spectra, None if state is None else state.child("istft"))
        return HeadOutput(audio, log_f0, voicing)

    def flush(self, state: State) -> Tensor:
        return self.istft.flush(state.child("istft"))

    @staticmethod
    def _decide(log_f0: Tensor, voicing: Tensor) -> Tensor:
        """F0 in Hz, 0 where unvoiced, on a grid of 1/16 Hz (half a cent at 200 Hz, inaudible).

        The phase integrates F0: without the grid, rounding differences of 1e-7 between a chunked and a whole run would
        add up with the length of the stream, and the two would drift apart.
        """
        hertz = log_f0.clamp(math.log(50.0), math.log(800.0)).exp()
        return ((hertz * 16).round() / 16 * (voicing > 0)).detach()

    def _pulses(self, f0: Tensor, state: State | None) -> Tensor:
        """Band-limited pulse train `[batch, frame * hop]`: all harmonics below Nyquist, summed in closed form."""
        batch = f0.shape[0]
        last = f0.new_zeros(batch) if state is None else state["last_f0"]
        before = torch.cat([last[:, None], f0[:, :-1]], 1)
        before = torch.where(before > 0, before, f0)  # no glide out of silence
        ramp = torch.arange(1, self.hop + 1, device=f0.device) / self.hop
        hertz = torch.where(f0[..., None] > 0, before[..., None].lerp(f0[..., None], ramp), f0[..., None]).flatten(1)
        start = torch.zeros(batch, dtype=torch.float64, device=f0.device) if state is None else state["phase"]
        cycles = start[:, None] + (hertz.double() / self.sample_rate).cumsum(1)
        if state is not None and f0.shape[1]:
            state.update("phase", cycles[:, -1] % 1.0)
            state.update("last_f0", f0[:, -1])
        angle = ((cycles % 1.0) * 2 * math.pi).float()
        harmonics = (self.sample_rate / 2 / hertz.clamp(min=50.0)).floor()
        # sum_k cos(k a) = sin((K + 1/2) a) / (2 sin(a / 2)) - 1/2, whose limit at a = 0 is K
        half = (angle / 2).sin()
        safe = torch.where(half.abs() < 1e-4, torch.ones_like(half), half)
        total = torch.where(half.abs() < 1e-4, harmonics, ((harmonics + 0.5) * angle).sin() / (2 * safe) - 0.5)
        return total * (hertz > 0) / (harmonics + 1).sqrt()

    def _noise(self, f0: Tensor, state: State | None) -> Tensor:
        """Complex noise spectra `[batch, bins, frame]`, a function of the absolute frame index so that chunks equal the
        whole; in training each item starts at a random place."""
        batch, frames = f0.shape
        if state is not None:
            start = state["frame"].clone()  # the update below writes in place
            state.update("frame", (start + frames) % NOISE_FRAMES)
        elif self.training:
            start = torch.randint(NOISE_FRAMES, (batch,), device=f0.device)
        else:
            start = torch.zeros(batch, dtype=torch.long, device=f0.device)
        index = (start[:, None] + torch.arange(frames, device=f0.device)) % NOISE_FRAMES
        noise = self.noise[:, index].transpose(0, 1)
        return noise if self.training else self.amount * noise


def _noise_spectra(n_fft: int, hop: int) -> Tensor:
    """STFT frames `[bins, NOISE_FRAMES]` of a fixed periodic white noise of standard deviation 0.3."""
    generator = torch.Generator().manual_seed(20_240_229)
    noise = 0.3 * torch.randn(1, NOISE_FRAMES * hop, generator=generator)
    wrapped = torch.cat([noise[:, -(n_fft - hop) :], noise], 1)
    return STFT(n_fft, hop)(wrapped[:, : wrapped.shape[1] // hop * hop])[0][:, (n_fft - hop) // hop :].contiguous()


HEADS: dict[str, type[ISTFTHead] | type[HarmonicHead]] = {"istft": ISTFTHead, "harmonic": HarmonicHead}


def make_head(
    name: str, width: int, sample_rate: int, n_fft: int, hop: int, noise: float = 1.0
) -> ISTFTHead | HarmonicHead:
    """A head by name; `noise` is the harmonic head's `amount`."""
    head = HEADS[name](width, sample_rate, n_fft, hop)
    if isinstance(head, HarmonicHead):
        head.amount = noise
    return head
