"""Text: phrases that messages of several modules share."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def counted(count: float, thing: str) -> str:
    """Returns a number with its noun in singular or plural.

    >>> counted(1, "environment"), counted(1200, "new session"), counted(0.5, "minute")
    ('1 environment', '1,200 new sessions', '0.5 minutes')
    """
    return f"{count:,.12g} {thing}{'' if count == 1 else 's'}"


def printable(text: str, most: int = 200, keep: str = "") -> str:
    """Returns text from elsewhere so that it can be shown: at most so many characters, none that commands a terminal.

    >>> printable("a\\x1b[2Jb\\nc"), printable("longer", 4), printable("b\\nc", keep="\\n")
    ('a?[2Jb?c', 'long', 'b\\nc')
    """
    text = text[:most]
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else "?" for c in text)


def article(thing: Any) -> str:
    """Returns the name of a thing's type with its article.

    >>> article([]), article(0), article(None)
    ('a list', 'an int', 'None')
    """
    name = type(thing).__name__
    return "None" if thing is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a hint for the end of a message about an unknown word; "" where no known word is similar.

    >>> did_you_mean("trian", ["play", "train"])
    ' Did you mean train?'
    """
    close = get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""
