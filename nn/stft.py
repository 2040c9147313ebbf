"""Short-time Fourier transform and its inverse as streaming modules.

Frame t covers the samples `[(t + 1) * hop - n_fft, (t + 1) * hop)`: it ends where the t-th hop of samples ends, so the
transform needs no look-ahead. With a Hann window and `n_fft` an even number of hops, at least four, the squared windows
add up to a constant, and overlap-add needs no edge normalisation: streaming equals offline by construction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput
from .state import State, StreamingModule

__all__ = ["STFT", "InverseSTFT"]


class _Frames(StreamingModule):
    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        if n_fft % (2 * hop) or n_fft < 4 * hop:
            raise BadInput(f"n_fft {n_fft} must be a multiple of twice the hop {hop}, and at least four times it")
        self.n_fft, self.hop, self.overlap = n_fft, hop, n_fft - hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)


class STFT(_Frames):
    """Audio `[batch, sample]` to complex spectra `[batch, n_fft / 2 + 1, frame]`, one frame per hop.

    Chunks must be a multiple of `hop` long.
    """

    def init_state(self, batch: int) -> State:
        state = State(batch)
        state.add("previous", self.overlap, device=self.window.device)
        return state

    def forward(self, audio: Tensor, state: State | None = None) -> Tensor:
        if audio.shape[-1] % self.hop:
            raise BadInput(f"chunk of {audio.shape[-1]} samples is not a multiple of the hop {self.hop}")
        if audio.shape[-1] == 0:
            return torch.zeros(audio.shape[0], self.n_fft // 2 + 1, 0, dtype=torch.complex64, device=audio.device)
        if state is None:
            audio = F.pad(audio, (self.overlap, 0))
        else:
            audio = torch.cat([state["previous"], audio], -1)
            state.update("previous", audio[..., -self.overlap :])
        frames = audio.unfold(-1, self.n_fft, self.hop) * self.window
        return torch.fft.rfft(frames).transpose(1, 2)


class InverseSTFT(_Frames):
    """Complex spectra `[batch, n_fft / 2 + 1, frame]` back to audio `[batch, sample]`.

    Offline (no state), the output is aligned with the input of `STFT` and `frame * hop` samples long. With a state, the
    output is as long but delayed by `overlap = n_fft - hop` samples, the time until the last window that covers a
    sample has arrived; `flush` gives the rest. So `cat(stream outputs, flush)[overlap:]` equals the offline output.
    """

    def init_state(self, batch: int) -> State:
        state = State(batch)
        state.add("tail", self.overlap, device=self.window.device)
        return state

    def forward(self, spectra: Tensor, state: State | None = None) -> Tensor:
        if spectra.shape[-1] == 0:
            return torch.zeros(spectra.shape[0], 0, device=spectra.device)
        summed = self._overlap_add(spectra)
        length = spectra.shape[-1] * self.hop
        if state is None:
            return summed[:, self.overlap :]
        summed = summed + F.pad(state["tail"], (0, length))
        state.update("tail", summed[:, length:])
        return summed[:, :length]

    def flush(self, state: State) -> Tensor:
        """The last `overlap` samples of the stream; the state is at rest afterwards."""
        tail = state["tail"].clone()
        state.update("tail", torch.zeros_like(tail))
        return tail

    def _overlap_add(self, spectra: Tensor) -> Tensor:
        """`[batch, bins, frame] -> [batch, frame * hop + overlap]`."""
        frames = torch.fft.irfft(spectra.transpose(1, 2), n=self.n_fft) * (self.window / self._gain())
        batch, count, _ = frames.shape
        parts = self.n_fft // self.hop
        hops = frames.view(batch, count, parts, self.hop)
        # Sample block i is the sum of part k of frame i - k.
        total = sum(F.pad(hops[:, :, k], (0, 0, k, parts - 1 - k)) for k in range(parts))
        assert isinstance(total, Tensor)
        return total.reshape(batch, (count + parts - 1) * self.hop)

    def _gain(self) -> float:
        """The constant that the overlapping squared Hann windows add up to."""
        return 3 / 8 * self.n_fft / self.hop
