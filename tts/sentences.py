"""Where one sentence ends: for a whole text, and for a text that arrives in pieces, with the same result.

A decision is taken only when everything that it depends on has arrived (the run of white space after the full stop, and
three characters of what follows), so the cut never depends on how the text was chopped up on its way.
"""

from __future__ import annotations

import re

__all__ = ["BREAK_TAG", "MAX_SENTENCE", "TextStream", "split_sentences"]

MAX_SENTENCE = 360
"""Characters after which a sentence is cut at a clause mark, else at a space, else in the middle of the word."""

LOOK_AHEAD = 3
SHORT_LINE = 50
BREAK_TAG = re.compile(r"<break(?=[\s/>])([^<>]{0,80})>")
_GAP = re.compile(rf"(?:\s|{BREAK_TAG.pattern})+")
_PARTIAL_TAG = re.compile(r"<(?:b(?:r(?:e(?:a(?:k(?:[\s/][^<>]{0,80})?)?)?)?)?)?\Z")
_CLAUSE = re.compile(r"[,;:—–]\s+")
_STOP = re.compile(r"[.!?…。！？\n<\[]")
CLAUSE_WORDS, CLAUSE_REST = 3, 12
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_OPENERS, _CLOSERS = "\"'“‘«([{<¿¡*_", "\"'”’»)]}>*_"
_ENDS = (".", "!", "?", "…", "。", "！", "？")
_BULLETS = "-–•*·"
# A full stop after these never ends a sentence ...
_NEVER = frozenset(
    """Mr Mrs Ms Mx Dr Prof St Mt Ft Gen Gov Sen Rep Capt Lt Col Sgt Cmdr Rev Hon Pres Supt Cpl Maj Adm Fr Msgr Messrs
    Mme e.g i.e eg ie vs viz cf al approx ca U.S U.K U.N E.U D.C Ph.D""".split()  # noqa: SIM905
)
# ... and after these only when no number follows ("Fig. 3", "Jan. 5").
_NOT_BEFORE_NUMBER = frozenset(
    "No Nos Fig Figs Vol Ch Sec Art Eq p pp Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec est".split()  # noqa: SIM905
)
_INITIALS = re.compile(r"(?:[A-Z]\.)*[A-Z]")
_LIST_NUMBER = re.compile(r"\d{1,3}")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, in order; joined they hold every character but white space.

    Ends are . ! ? … before white space (not after abbreviations, initials and list numbers, nor before a lower-case
    letter), blank lines, and single newlines after a short line that look like a new item. `<break/>` tags stay with
    the sentence before them. No sentence is longer than `MAX_SENTENCE` characters.
    """
    stream = TextStream()
    return stream.push(text) + stream.close()


class TextStream:
    """Sentences out of text that arrives in pieces (the output of a language model).

    `push(chunk)` returns the sentences that are complete, `close()` the rest; together they equal
    `split_sentences(whole text)` however the text was cut. Holds back at most one sentence.
    """

    def __init__(self) -> None:
        self._text = ""

    def push(self, chunk: str) -> list[str]:
        """Sentences that this piece of text has completed (often none)."""
        self._text += chunk
        return self._take(final=False)

    @property
    def pending(self) -> str:
        """What has arrived of the sentence that is still open."""
        return self._text.lstrip()

    def clause(self) -> str | None:
        """Takes the first clause out of the sentence that is still open, or gives None (see `split_clause`)."""
        cut = split_clause(self._text)
        if not cut:
            return None
        clause, self._text = self._text[:cut].strip(), self._text[cut:]
        return clause

    def close(self) -> list[str]:
        """What is left; the stream can be used again afterwards."""
        return self._take(final=True)

    def _take(self, final: bool) -> list[str]:
        text, start, sentences = self._text, 0, []
        while True:
            end = _next_end(text, start, final)
            if end is None:
                break
            sentences.append(text[start:end].strip())
            start = end
        self._text = "" if final else text[start:]
        if final:
            sentences.append(text[start:].strip())
        return [sentence for sentence in sentences if sentence]


def split_clause(sentence: str) -> int:
    """Where the first clause of a sentence ends that can be spoken by itself, or 0.

    It has at least three words before its mark (, ; : or a dash), and twelve characters without the end of a sentence
    come after, so the answer is the same for the whole sentence and for as much of it as has arrived. Text with tags or
    phoneme overrides is left whole.
    """
    for match in _CLAUSE.finditer(sentence):
        before, rest = sentence[: match.start()], sentence[match.end() : match.end() + CLAUSE_REST]
        if any(mark in before for mark in "<["):
            return 0
        if len(before.split()) >= CLAUSE_WORDS and len(rest) == CLAUSE_REST and not _STOP.search(rest):
            return match.end()
    return 0


def _next_end(text: str, start: int, final: bool) -> int | None:
    """End of the sentence that begins at `start`, or None: not known yet, or (if final) the end of the text."""
    for gap in _GAP.finditer(text, start):
        if gap.start() - start > MAX_SENTENCE:
            break
        rest = text[gap.end() : gap.end() + 100]
        if not final and (len(rest) < LOOK_AHEAD or _PARTIAL_TAG.match(rest)):
            return None
        if rest and gap.start() > start and _is_end(text[start : gap.start()], gap.group(), rest[:LOOK_AHEAD]):
            return gap.end()
    return start + _forced_cut(text[start : start + MAX_SENTENCE]) if len(text) - start > MAX_SENTENCE else None


def _is_end(before: str, gap: str, after: str) -> bool:
    if _BLANK_LINE.search(gap):
        return True
    word = before.rsplit(None, 1)[-1:]
    last = (word[0] if word else "").rstrip(_CLOSERS)
    following = after.lstrip(_OPENERS)[:1]
    if last.endswith(_ENDS):
        return not following.islower() and (not last.endswith(".") or _stop_ends(last[:-1], before, following))
    if "\n" not in gap:
        return False
    line = before.rsplit("\n", 1)[-1].strip()
    return after[0] in _BULLETS or (len(line) < SHORT_LINE and (following.isupper() or following.isdigit()))


def _stop_ends(word: str, before: str, following: str) -> bool:
    word = word.lstrip(_OPENERS)
    if word in _NEVER or (following.isdigit() and word in _NOT_BEFORE_NUMBER):
        return False
    if _INITIALS.fullmatch(word):
        return word == "I"
    return not (_LIST_NUMBER.fullmatch(word) and len(before.strip()) == len(word) + 1)


def _forced_cut(window: str) -> int:
    clauses = [match.end() for match in _CLAUSE.finditer(window, MAX_SENTENCE // 3)]
    cut = clauses[-1] if clauses else max(window.rfind(space) for space in " \n\t") + 1
    tag = window.rfind("<break", 0, cut or None)
    if tag > 0 and ">" not in window[tag:cut]:
        cut = tag
    return cut or len(window)
