"""Whether two short answers say the same: articles, plurals, numbers, signs, and more or fewer words.

What decides that a counterfactual is false should err on the side of "the same": a false answer is easily replaced.
"""

import re
import unicodedata

ARTICLES = {"a", "an", "the"}
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: str(number) for number, word in enumerate(COUNTED)}
IRREGULAR = {
    "children": "child", "people": "person", "feet": "foot", "teeth": "tooth", "geese": "goose", "mice": "mouse", "lice": "louse",
    "oxen": "ox", "dice": "die", "cacti": "cactus", "fungi": "fungus",
}  # fmt: skip
ACCENTS = re.compile("[\u0300-\u036f]")
# A word or number with the signs that belong to it: -1, 10:30, C++, A-, O'Neill's. A hyphen between words is none.
TOKEN = re.compile(
    r"""(?:(?<![^\W_])-(?=\.?\d))?           # a minus
    (?:\d+(?:[.,:/\u2044]\d+)+(?![^\W_])|\.\d+  # a number with points
    |[^\W_]+(?:'[^\W_]+)*                  # a word
    (?:[+#]+|(?:(?<![^\W_].)|(?<=\bab))-(?![\w-]))?)  # the signs behind it
    """,
    re.VERBOSE,
)
INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}|\b(?:[^\W\d_]\.)+[^\W\d_]\b")  # U.S., U.S


def words(text: str) -> list[str]:
    """The words of a text in the form in which they are compared: lower case, without accents, numbers as digits, each with the
    signs that belong to it.
    """
    bare = ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    bare = re.sub("[\u2010-\u2015\u2212]", "-", bare).replace("\u2019", "'")
    bare = INITIALS.sub(lambda found: found[0].replace(".", ""), bare)
    return [_number(NUMBERS.get(word, word)) for word in TOKEN.findall(bare)]


def _number(word: str) -> str:
    """1,000 → 1000; 1.50 → 1.5; .5 → 0.5; 007 → 7."""
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", word):
        word = word.replace(",", "")
    if not (found := re.fullmatch(r"(-?)0*(\d*)(?:\.(\d+))?", word)) or not word:
        return word
    sign, whole, part = found.groups(default="")
    value = (whole or "0") + (f".{part}" if (part := part.rstrip("0")) else "")
    return value if value == "0" else sign + value


def singulars(word: str) -> set[str]:
    """The word itself and what it may be the plural of."""
    word = word.removesuffix("'s") or word
    found = {word, IRREGULAR.get(word, word)}
    if not word.isalpha() or len(word) < 3:
        return found
    for end, singular in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("sses", "s"), ("es", ""), ("s", "")):
        if word.endswith(end) and not word.endswith("ss"):
            found.add(word.removesuffix(end) + singular)
    return found - {""}


def says_same(one: str, other: str) -> bool:
    """Whether one answer says what the other does, maybe with more words: "the bus", "buses" and "red bus" say "bus".

    "-1" does not say "1", nor "C++" "C". Texts without a word say the same where they are equal.
    """
    few, many = sorted((_content(one), _content(other)), key=len)
    if not few:
        return not many and one.strip() == other.strip()
    return all(any(singulars(word) & singulars(more) for more in many) for word in few)


def _content(text: str) -> set[str]:
    found = words(text)
    return set(found) - ARTICLES or set(found)
