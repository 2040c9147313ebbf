"""Reconstruction losses on waveforms. Three STFT resolutions: small FFTs cost as much as the network does on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from ..codecs.decoders import HeadOutput

__all__ = ["SpectralLoss", "pitch_losses"]


class SpectralLoss(nn.Module):
    """Multi-resolution STFT loss (log-magnitude L1 + spectral convergence, Yamamoto et al. 2020) and log-mel L1.

    `forward(y, x)`: audio `[batch, sample]` of the model and of the target -> dictionary of scalars. With `other`, a
    second sample of the model for the same input but with other noise, half the distance between the two is taken off:
    the spectral energy distance (Gritsenko et al. 2020), a proper score. Without it the least loss is that of a model
    with too little noise, which sounds like a buzz; a discriminator is what others use against that.
    """

    bank: Tensor

    def __init__(
        self,
        sample_rate: int = 24_000,
        resolutions: tuple[tuple[int, int], ...] = ((2048, 512), (1024, 256), (512, 128)),
        mels: int = 100,
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        self.register_buffer("bank", melscale_fbanks(513, 0.0, sample_rate / 2, mels, sample_rate, "slaney", "slaney"))
        for n_fft, _ in resolutions:
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft))

    def forward(self, y: Tensor, x: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        stft = y.new_zeros(())
        mel = y.new_zeros(())
        for n_fft, hop in self.resolutions:
            a, b = self._magnitude(y, n_fft, hop), self._magnitude(x, n_fft, hop)
            scale = b.norm().clamp(min=1e-3)
            stft = stft + _distance(a, b, scale)
            if n_fft == 1024:
                mel = F.l1_loss(self._log_mel(a), self._log_mel(b))
            if other is not None:
                c = self._magnitude(other, n_fft, hop)
                stft = stft - 0.5 * _distance(a, c, scale)
                if n_fft == 1024:
                    mel = mel - 0.5 * F.l1_loss(self._log_mel(a), self._log_mel(c))
        return {"stft": stft / len(self.resolutions), "mel": mel}

    def _magnitude(self, audio: Tensor, n_fft: int, hop: int) -> Tensor:
        window = getattr(self, f"window_{n_fft}")
        spectra = torch.stft(audio, n_fft, hop, n_fft, window, center=True, return_complex=True)
        # The epsilon keeps the gradient of the square root finite at silence.
        return (spectra.real.square() + spectra.imag.square() + 1e-9).sqrt()

    def _log_mel(self, magnitude: Tensor) -> Tensor:
        return (magnitude.transpose(1, 2) @ self.bank).clamp(min=1e-5).log()


def _distance(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return F.l1_loss((a + 1e-4).log(), (b + 1e-4).log()) + (a - b).norm() / scale


def pitch_losses(head: HeadOutput, f0: Tensor) -> dict[str, Tensor]:
    """A decoder head's F0 (L1 of the logarithm, where voiced) and voicing, against `f0[batch, frame]` in Hz."""
    assert head.log_f0 is not None
    assert head.voicing is not None
    voiced = (f0 > 0).float()
    error = (head.log_f0 - f0.clamp(min=50.0).log()).abs()
    return {
        "f0": (error * voiced).sum() / voiced.sum().clamp(min=1.0),
        "voicing": F.binary_cross_entropy_with_logits(head.voicing, voiced),
    }
