"""Log-mel features: the common input of the codec encoder and the semantic tokenizer."""

from __future__ import annotations

from torch import Tensor
from torchaudio.functional import melscale_fbanks

from ..nn.state import State, StreamingModule
from ..nn.stft import STFT

__all__ = ["LogMel"]


class LogMel(StreamingModule):
    """Audio `[batch, 1, sample]` to standardised log-mel `[batch, mels, frame]`, one frame per hop, causal.

    The natural logarithm of the mel magnitude (Slaney scale and norm), floored at 1e-5, then shifted and scaled by
    fixed numbers so that speech has roughly zero mean and unit variance.
    """

    bank: Tensor

    def __init__(self, sample_rate: int = 24_000, n_fft: int = 960, hop: int = 240, mels: int = 100) -> None:
        super().__init__()
        self.hop = hop
        self.stft = STFT(n_fft, hop)
        bank = melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, "slaney", "slaney")
        self.register_buffer("bank", bank, persistent=False)

    def init_state(self, batch: int) -> State:
        return self._state_of(batch, stft=self.stft)

    def forward(self, audio: Tensor, state: State | None = None) -> Tensor:
        spectra = self.stft(audio[:, 0], None if state is None else state.child("stft"))
        mel = spectra.abs().transpose(1, 2) @ self.bank
        return ((mel.clamp(min=1e-5).log() + 5.0) / 3.0).transpose(1, 2)
