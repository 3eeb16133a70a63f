"""Text: the few phrasings that messages share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def counted(count: float, thing: str) -> str:
    """How many there are, in words.

    >>> counted(1, "game"), counted(1200, "new session"), counted(0.5, "minute")
    ('1 game', '1,200 new sessions', '0.5 minutes')
    """
    return f"{count:,.12g} {thing}{'' if count == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that nobody knows; "" where none is like it.

    >>> did_you_mean("trian", ["play", "train"])
    ' Did you mean train?'
    """
    close = get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""
