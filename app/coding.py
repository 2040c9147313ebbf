"""Audio into .qvr files: the one path that `quaver codec encode` takes for a file and for a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ..errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from ..codecs.base import Codec
    from ..codecs.container import QvrHeader
    from ..codecs.entropy import EntropyTables
    from .audio import AudioSource

__all__ = ["Coded", "Coder", "fit_entropy", "levels_of", "load_marked", "tables_of"]


@dataclass(frozen=True)
class Coded:
    """What an encoded file holds; seconds of audio, frames of codes."""

    samples: int
    frames: int
    bytes: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Coder:
    """A codec that writes .qvr files.

    Attributes:
        mark: its name and the SHA-256 of its weights, which a file carries. levels: codebooks that are kept.
        chunk_frames: frames under one checksum. tables: of entropy coding, None: codes are packed.
    """

    codec: Codec
    mark: tuple[str, str]
    levels: int
    chunk_frames: int = 50
    tables: EntropyTables | None = None

    @classmethod
    def load(
        cls, name: str, threads: int = 1, *, codebooks: int | None = None, chunk_frames: int = 50, entropy: bool = False
    ) -> Coder:
        """A bundled codec or a folder; with `entropy`, by the tables that lie in it.

        Raises:
            BadInput: codebooks or chunk frames out of range, or a codec of latents. MissingFile, ...: of the codec, or
                it has no tables.
        """
        if not 1 <= chunk_frames <= 1 << 16:
            raise BadInput(f"--chunk-frames must lie between 1 and 65536, not {chunk_frames}")
        codec, mark = load_marked(name, threads)
        tables = tables_of(name, mark) if entropy else None
        return cls(codec, mark, levels_of(codebooks, codec), chunk_frames, tables)

    def encode(self, audio: AudioSource, file: BinaryIO) -> Coded:
        """Codes a whole source, in constant memory; silence fills the last frame."""
        from ..codecs.container import QvrWriter

        header, rate = self._header(audio), self.codec.sample_rate
        counter = _Counter()
        with QvrWriter(file, header, self.tables) as writer:
            for codes in self.codes(counter.count(audio.blocks(rate)), audio.channels):
                writer.write(codes)
            writer.finish(counter.samples)
        return Coded(counter.samples, writer.frames, writer.bytes, rate, audio.channels)

    def _header(self, audio: AudioSource) -> QvrHeader:
        from ..codecs.container import QvrHeader

        spec, rate = self.codec.frame_spec, self.codec.sample_rate
        header = QvrHeader(
            model=self.mark[0],
            weights_sha256=self.mark[1],
            sample_rate=rate,
            channels=audio.channels,
            codebooks=self.levels,
            vocab=spec.vocab,
            rate_num=spec.rate.numerator,
            rate_den=spec.rate.denominator,
            chunk_frames=self.chunk_frames,
            tables=None if self.tables is None else self.tables.mark,
        )
        if audio.frames is None:  # the totals stand at the end of the file only
            return header
        samples = -(-audio.frames * rate // audio.sample_rate)
        return header.with_totals(samples, -(-samples // self.codec.frame_size))

    def codes(self, blocks: Iterable[np.ndarray], channels: int) -> Iterator[np.ndarray]:
        """Audio blocks [channels, n] -> codes [channels, levels, frames]."""
        import torch

        with torch.inference_mode():
            if self.codec.no_stream:  # it must see the whole recording, which then lies in memory
                yield self._whole(list(blocks), channels)
                return
            state = self.codec.init_state(channels)
            total = 0
            for block in blocks:
                total += block.shape[1]
                codes, _ = self.codec.encode(torch.from_numpy(block)[:, None], state=state)
                yield codes[:, : self.levels].numpy()
            fill = -total % self.codec.frame_size
            if fill:
                codes, _ = self.codec.encode(torch.zeros(channels, 1, fill), state=state)
                yield codes[:, : self.levels].numpy()
            if self.codec.first_frames > 1:
                yield self.codec.finish(state)[:, : self.levels].numpy()

    def _whole(self, blocks: list[np.ndarray], channels: int) -> np.ndarray:
        import numpy as np
        import torch

        audio = np.concatenate([np.zeros((channels, 0), np.float32), *blocks], 1)
        codes, _ = self.codec.encode(torch.from_numpy(audio)[:, None])
        return codes[:, : self.levels].numpy()


def load_marked(name: str, threads: int) -> tuple[Codec, tuple[str, str]]:
    """The codec, and what a file says of it: its name and the SHA-256 of its weights."""
    from ..codecs.checkpoints import is_hub_id
    from ..codecs.loading import codec_folder, load_codec, weights_sha256
    from .runtime import use_threads

    use_threads(threads)
    codec = load_codec(name)
    folder = codec_folder(name)
    return codec, (name if is_hub_id(name) else folder.resolve().name, weights_sha256(folder))


def fit_entropy(coder: Coder, sources: Iterable[str], minutes: float | None = None) -> tuple[EntropyTables, float]:
    """Entropy tables from the codes of audio files, and the seconds that were heard (`minutes` at most)."""
    from ..codecs.entropy import classes_of, code_vectors, fit_tables
    from .audio import open_audio

    heard, rate = _Counter(), coder.codec.sample_rate

    def codes() -> Iterator[np.ndarray]:
        import numpy as np

        for source in sources:
            if minutes is not None and heard.samples >= 60 * minutes * rate:
                return
            with open_audio(source) as audio:
                blocks = list(coder.codes(heard.count(audio.blocks(rate)), audio.channels))
                if blocks:
                    yield from np.concatenate(blocks, 2)

    spec, vectors = coder.codec.frame_spec, code_vectors(coder.codec)
    classes = None if vectors is None else classes_of(vectors)
    tables = fit_tables(codes(), spec.codebooks, spec.vocab, classes)
    return tables, heard.samples / rate


def tables_of(name: str, mark: tuple[str, str]) -> EntropyTables:
    """The entropy tables of a codec, by its name and what `load_marked` says of it. Raises as `load_tables`."""
    from ..codecs.entropy import load_tables
    from ..codecs.loading import codec_folder

    return load_tables(codec_folder(name), mark[1])


def levels_of(codebooks: int | None, codec: Codec) -> int:
    """How many codebooks to keep: all, or as many as were asked for.

    Raises:
        BadInput: the codec has fewer, or makes latents.
    """
    spec = codec.frame_spec
    if spec.kind != "codes":
        raise BadInput("this codec makes continuous latents, which a .qvr file cannot hold; choose another")
    if codebooks is not None and not 1 <= codebooks <= spec.codebooks:
        raise BadInput(f"--codebooks must lie between 1 and {spec.codebooks}, not {codebooks}")
    return codebooks or spec.codebooks


class _Counter:
    """Counts the samples that pass through a generator."""

    def __init__(self) -> None:
        self.samples = 0

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += block.shape[1]
            yield block
