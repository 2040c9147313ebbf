"""What an answer says next: a whole text sentence by sentence, or a text that arrives in pieces, as early as can be.

A sentence that is still arriving can be spoken word by word: the pointer layout reads a few phones ahead, not the whole
sentence. A word is settled once the next one is complete, because words are read in their context ("the" before a
vowel); the readings are made word by word even when more has arrived, so what is spoken does not depend on how the
text was cut into pieces. It is not quite what the whole text would give: the model is told which pause comes next, and
of an open sentence it is told a full stop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from ..errors import BadInput
from .lm import PhoneFeatures, phone_features
from .marks import Marks, Piece
from .sentences import MAX_SENTENCE, split_clause
from .text import Frontend, TextStream, Utterance, WordSpan, is_pause

__all__ = ["Growing", "Script", "Split", "features_of"]

Split = Literal["sentence", "clause", "word"]

EARLY = MAX_SENTENCE // 3
"""Characters of an open sentence that may be spoken; a sentence that is too long is never cut before them."""


def features_of(utterance: Utterance, whole: bool = True) -> PhoneFeatures:
    """What the model reads of an utterance; of one that is not whole, as if it would end in a full stop."""
    starts = frozenset(word.start for word in utterance.words)
    if whole:
        return phone_features(utterance.phones, starts)
    features = phone_features((*utterance.phones, "."), starts)
    return PhoneFeatures(features.phones[:-1], features.word_start[:-1], features.upcoming[:-1])


class Growing:
    """The settled part of a sentence whose end has not arrived."""

    def __init__(self, frontend: Frontend, rate: float = 1.0) -> None:
        self._frontend, self._rate = frontend, rate
        self._words = 0  # of the text that have been read
        self.utterance = Utterance("", (), (), rate=rate)

    def read(self, text: str) -> bool:
        """Reads the next words of an open sentence, up to one that settles something; False where none does yet."""
        if "<" in text or "[" in text:  # a tag or a phoneme override may still be open
            return False
        words, before = _complete_words(text[:EARLY]), len(self.utterance.phones)
        while self._words < len(words) and len(self.utterance.phones) == before:
            self._words += 1
            self._settle(" ".join(words[: self._words]))
        return len(self.utterance.phones) > before

    def _settle(self, prefix: str) -> None:
        """Takes all words but the last of what is known."""
        read = self._frontend.sentence(prefix)
        if len(read) != 1 or len(read[0].words) < 2:
            return
        known, mine = read[0], self.utterance
        phones = known.phones[: known.words[-1].start]
        # A reading that changes what has been settled waits for the next word, or for the end.
        if phones[: len(mine.phones)] == mine.phones:
            self.utterance = Utterance(prefix, phones, known.words[:-1], rate=self._rate)

    def finish(self, sentence: str) -> list[Utterance]:
        """The whole sentence: the rest of this utterance, which keeps what is settled, and what follows if it is very
        long."""
        read = _paced(self._frontend.sentence(sentence), self._rate)
        if not read:
            return [self.utterance]
        whole, mine = read[0], self.utterance
        if whole.phones[: len(mine.phones)] != mine.phones:
            whole = _joined(mine, whole)
        self.utterance = whole
        return [whole, *read[1:]]


def _complete_words(text: str) -> list[str]:
    """Words that white space follows."""
    words = text.split()
    return words[:-1] if words and not text[-1].isspace() else words


def _joined(settled: Utterance, whole: Utterance) -> Utterance:
    """The settled words, then those of `whole` that come after as many words."""
    count, shift = len(settled.words), len(settled.phones)
    start = whole.words[count - 1].end if 0 < count <= len(whole.words) else len(whole.phones)
    if shift and is_pause(settled.phones[-1]):
        start += start < len(whole.phones) and is_pause(whole.phones[start])
    rest = [WordSpan(w.text, w.start - start + shift, w.end - start + shift) for w in whole.words[count:]]
    phones = (*settled.phones, *whole.phones[start:])
    breaks = tuple((i - start + shift, seconds) for i, seconds in whole.breaks if i >= start)
    return Utterance(whole.text, phones, (*settled.words, *rest), breaks, whole.rate)


def _paced(utterances: list[Utterance], rate: float) -> list[Utterance]:
    return utterances if rate == 1 else [replace(utterance, rate=rate) for utterance in utterances]


class Script:
    """The text of an answer, read sentence by sentence: each as late as possible, so that a long text costs its first
    sentence's time before it starts.

    Args:
        text: the whole text, or None when it comes through `push` and `close`.
        by: what is spoken at a time when text comes in pieces. `word`: a sentence begins when its first words are
            there, and waits where the next ones are not. `clause`: each clause begins afresh, which is a little less
            fluent. None of them depends on how the text was cut into pieces.
    """

    def __init__(self, frontend: Frontend, text: str | None = None, *, by: Split = "sentence") -> None:
        self._frontend, self._stream, self._marks = frontend, TextStream(), Marks()
        self._by: Split = by if text is None or by != "word" else "sentence"
        self._sentences: deque[tuple[str, float]] = deque()  # and the pace of each
        self._rate = 1.0
        self._error: BadInput | None = None
        self._length, self._read = 0, 0
        self._utterances: deque[Utterance] = deque()
        self._growing: Growing | None = None
        self._fresh = False  # something has arrived that `next` or `grow` has not looked at
        self._closed = False
        self._any, self._seen = False, ""
        if text is not None:
            self.push(text)
            self.close()

    def push(self, text: str) -> None:
        """More text. What is wrong with its marks is raised by `next`, when what comes before them has been given."""
        self._read_marks(lambda: self._marks.push(text))

    def close(self) -> None:
        """No more text."""
        if not self._closed:
            self._read_marks(self._marks.close)
            self._closed = True
            self._take(self._stream.close())

    def _read_marks(self, read: Callable[[], Iterator[Piece]]) -> None:
        if self._error is not None or self._closed:
            return
        self._fresh = True
        try:
            for piece in read():
                if piece.rate != self._rate:  # a change of pace ends a sentence
                    self._take(self._stream.close())
                    self._rate = piece.rate
                self._seen = (self._seen + piece.text)[-200:]
                self._take(self._stream.push(piece.text))
                while self._by == "clause" and (clause := self._stream.clause()):
                    self._take([clause])
        except BadInput as error:
            self._take(self._stream.close())
            self._error = error

    def _take(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self._length += len(sentence)
            while self._by == "clause" and (cut := split_clause(sentence)):
                self._sentences.append((sentence[:cut].strip(), self._rate))
                sentence = sentence[cut:]
            self._sentences.append((sentence, self._rate))

    def _read_one(self) -> None:
        """Reads the next sentence."""
        sentence, rate = self._sentences.popleft()
        self._utterances.extend(_paced(self._frontend.sentence(sentence), rate))
        self._read += len(sentence)

    @property
    def waits(self) -> bool:
        """Nothing to read now, but there may be later."""
        unread = self._fresh and self._by == "word"
        return not (self._closed or self._sentences or self._utterances or unread or self._error)

    @property
    def over(self) -> bool:
        """Nothing is left to read, now or ever."""
        return self._closed and not (self._sentences or self._utterances or self._growing or self._error)

    @property
    def growing(self) -> bool:
        """The utterance that was given last is not whole: `grow` gives more of it."""
        return self._growing is not None

    @property
    def upcoming(self) -> tuple[Utterance, ...]:
        """The utterances that have been read and not yet given (after `read_all`: all that are left)."""
        return tuple(self._utterances)

    @property
    def share(self) -> float:
        """Share of the text that `next` has given; 0 until its end is known."""
        return self._read / self._length if self._closed and self._length else 0.0

    def next(self) -> Utterance | None:
        """The next utterance, perhaps only the beginning of it (`growing`); None when there is none now (`waits`) or
        ever.

        Raises:
            BadInput: the text has ended and nothing in it could be read, or a mark or phoneme override is wrong.
        """
        if not self._utterances and self._by == "word" and (begun := self._begin()):
            return begun
        while not self._utterances and self._sentences:
            self._read_one()
        if self._utterances:
            self._any = True
            return self._utterances.popleft()
        if self._error is not None:
            raise self._error
        if self._closed and not self._any:
            self._frontend(self._seen)  # raises the error that names the reason
            raise BadInput("there is nothing to speak in this text")
        self._fresh = False
        return None

    @property
    def _open(self) -> str:
        """The sentence that comes next, as far as it has arrived. One that is complete is read in the same way, so
        that it sounds the same."""
        return self._sentences[0][0] + " " if self._sentences else self._stream.pending

    def _begin(self) -> Utterance | None:
        """The beginning of the next sentence, once a word of it is settled."""
        growing = Growing(self._frontend, self._sentences[0][1] if self._sentences else self._rate)
        if not growing.read(self._open):
            return None
        self._growing, self._any = growing, True
        return growing.utterance

    def grow(self) -> Utterance | None:
        """The utterance that was given last with one more word that is settled, or with all the rest; None if there is
        nothing new. To be called until then."""
        if self._growing is None:
            return None
        if self._growing.read(self._open):
            return self._growing.utterance
        if not self._sentences:
            self._fresh = False
            return None
        sentence, _ = self._sentences.popleft()
        self._read += len(sentence)
        utterance, *rest = self._growing.finish(sentence)
        self._utterances.extend(rest)
        self._growing = None
        return utterance

    def read_all(self) -> None:
        """Reads the whole text now, so that what is wrong with it shows before anything is spoken."""
        while self._sentences:
            self._read_one()
        if self._error is not None:
            raise self._error
        if not self._utterances:
            self.next()
