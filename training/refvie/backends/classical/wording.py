"""What an instruction asks for, read by a few hundred English words and turns of phrase of our own choice.

It finds the kind of the edit, what is to be there, what was there before, and the colours, the side of the frame and
the style that are named. It understands nothing else: "make him look tired" changes "him" into "tired".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...pairs.pair import ADD, BACKGROUND, CHANGE, REMOVE, STYLE
from . import colours


@dataclass(frozen=True)
class Wish:
    """What was read; a field is empty where the wording does not tell."""

    category: str
    """The given one, else the one read, else ""."""
    name: str = ""
    """What stands there after the edit: "red kite"."""
    colours: tuple[str, ...] = ()
    """Of that, from :data:`training.refvie.backends.classical.colours.NAMES`."""
    old: str = ""
    """What stood there before, or is removed."""
    old_colours: tuple[str, ...] = ()
    place: tuple[float | None, float | None] = (None, None)
    """Where something is to be added, as shares of the frame from the left and from the top."""
    style: str = ""
    """One of :data:`STYLES`."""
    recolours: bool = False
    """Whether only the colour of something is to change."""


STYLES = {
    "grey": r"black[- ]and[- ]white|monochrom\w+|gr[ae]y[- ]?scale|noir",
    "sepia": r"sepia",
    "negative": r"negative|invert(?:ed)?",
    "dark": r"night(?:time)?|dark(?:er)?|midnight|dim(?:mer)?|moonlit",
    "bright": r"bright(?:er)?|sunny|sunlit|day(?:light|time)",
    "pale": r"faded|washed[- ]out|pale|hazy|misty|foggy|low[- ]contrast",
    "vivid": r"vivid|saturated|colou?rful|vibrant",
    "warm": r"warm(?:er)?|sunset|golden hour",
    "cold": r"cold(?:er)?|cool(?:er)?|icy|wintry",
}
"""Styles whose effect on the pixels is known, by the words for them."""

_WHOLE = (
    r"(?:(?:the|this|my|entire|whole|all of the) )*"
    r"(?:video|clip|scene|picture|image|footage|film|movie|shot|everything|it|this)"
)
_TIMES = r"(?:the )?(?:day|night|summer|winter|spring|autumn|weather|season|style|look|mood|tone)(?: of .*)?"
_GROUND = r"(?:the )?(?:back ?ground|backdrop|scenery|surroundings|setting|environment)s?"
_COLOUR = rf"(?:(?:light|dark|bright|pale|deep) )?(?:{'|'.join(sorted(colours.NAMES))})"
_SHOULD = r"(?:should|must|has to|have to|needs to)"

_REMOVING = (
    r"\b(?:remove|delete|erase|eliminate|get rid of|cut out|wipe out|hide|take (?:out|away)|do away with) (?P<old>.+)",
    r"\btake (?P<old>.+?) (?:away|out|off|from)\b",
    rf"^(?P<old>.+?) {_SHOULD} (?:be gone|go away|disappear|vanish|be removed)",
    r"\b(?:make|let|want|have) (?P<old>.+?) (?:to )?(?:disappear|vanish|go away|gone|removed)\b",
    r"\b(?:do not|don't|no longer) want (?:to see )?(?P<old>.+)",
    r"\b(?:without|no more) (?P<old>.+)",
)
_CHANGING = (
    r"\b(?:replace|substitute) (?P<old>.+) (?:with|by) (?P<new>.+)",
    r"\b(?:swap|exchange|switch|trade) (?P<old>.+) (?:for|with) (?P<new>.+)",
    r"(?P<new>.+) (?:in(?:to)? the place of|instead of) (?P<old>.+)",
    r"\bchange the (?:colou?r|shape) of (?P<old>.+?) (?:from .+ )?(?:in)?to (?P<new>.+)",
    r"\b(?:turn|change|transform|convert|morph|modify|restyle) (?P<old>.+?) (?:from .+ )?(?:in)?to (?P<new>.+)",
    rf"\b(?:make|turn|paint|dye|colou?r) (?P<old>.+?) (?P<new>{_COLOUR}(?: and {_COLOUR})*)(?: colou?r(?:ed)?)?$",
    r"\b(?:paint|dye|colou?r|recolou?r|tint|render) (?P<old>.+?) (?:to|in|into|as) (?P<new>.+)",
    r"\bgive (?P<old>.+?) the (?:shape|look|style|colou?r) of (?P<new>.+)",
    r"\bgive (?P<old>.+?) (?P<new>(?:a|an) .+ (?:colou?r|shape|look|style))$",
    rf"^(?P<old>.+?) {_SHOULD} (?:become|be|turn into|turn|look like|look) (?P<new>.+)",
    r"\blet (?P<old>.+?) (?:become|be|turn into|look like) (?P<new>.+)",
    r"\bwant (?:to see )?(?P<old>.+?) (?:to (?:become|be|look)|in|as) (?P<new>.+)",
    r"\buse (?P<new>.+) (?:for|as) (?P<old>.+)",
    r"\bmake (?P<old>.+?) (?:look like|look|into|become) (?P<new>.+)",
    r"\bmake (?P<old>.+?) (?P<new>(?:a|an) .+)",
)
_ADDING = (
    r"\b(?:wear|hold|carry|wearing|holding|carrying) (?P<new>.+)",
    r"\b(?:add|insert|include|introduce|place|put|draw|attach|paste|bring in|create|show|generate|have) (?P<new>.+)",
    rf"\b(?:let there be|there {_SHOULD} be) (?P<new>.+)",
    r"\b(?:let|make) (?P<new>.+?) (?:appear|show up|enter)\b",
    rf"^(?P<new>.+?) {_SHOULD} appear",
    r"\bgive .+? (?P<new>(?:a|an|some) .+)",
    r"\bwant (?:to see )?(?P<new>.+)",
)
_GROUNDS = (
    r"\bin front of (?P<new>.+)",
    rf"\b(?:set|move|put|place) {_WHOLE} (?:in|into|to|on|at) (?P<new>.+)",
    *_CHANGING[:5],
    rf"\bmake {_GROUND} (?P<new>.+)",
    rf"^{_GROUND} {_SHOULD} (?:become|be|show|look like) (?P<new>.+)",
    r"\b(?P<new>(?:a|an) .+? (?:background|backdrop))",
)
_OPENING = r"^.*\b(?:put|use|want|place|insert|see|be) "
"""What may stand before the new thing where the sentence begins with it."""
_ARTICLES = r"^(?:(?:a|an|the|some|this|that|these|those|its|his|her|their|my|your|one|another|new) )+"
_END = (
    r" (?:at|in|on|onto|into|inside|to|near|next|beside|behind|under|below|over|above|across|around|between|from|off|"
    r"for|so|that|which|who|while|and then|instead|throughout|during|by|of the same)\b|[,.;:!?]"
)
"""Where the name of a thing ends."""
_SIDES = (("left", 0, 0.2), ("right", 0, 0.8), ("top|upper", 1, 0.2), ("bottom|lower", 1, 0.8))


def read(prompt: str, category: str = "") -> Wish:
    """What an instruction asks for; a category that is given is not read."""
    text = re.sub(r"\s+", " ", prompt.lower()).strip(" .!\"'")
    kind = category or _category(text)
    if kind == STYLE:
        return Wish(kind, style=next((name for name, words in STYLES.items() if _says(words, text)), ""))
    if kind == REMOVE:
        old = _name(_objects(text, _REMOVING)[0])
        return Wish(kind, old=old, old_colours=_colours(old))
    if kind == BACKGROUND:
        name = re.sub(r" (?:background|backdrop|pattern)$", "", _name(_objects(text, _GROUNDS)[1]))
        return Wish(kind, name, _colours(name))
    if kind == ADD:
        name = _name(_objects(text, _ADDING)[1])
        return Wish(kind, name, _colours(name), place=_place(text))
    if not kind:
        return Wish("")
    old, new = (_name(words) for words in _objects(text, _CHANGING))
    if old and new and not _uncoloured(new):  # a colour alone: the thing stays what it is
        return Wish(kind, f"{new} {_uncoloured(old)}".strip(), _colours(new), old, _colours(old), recolours=True)
    if new and _says("same colou?r", text):
        new = " ".join((*_colours(old), new))
    return Wish(kind, new, _colours(new), old, _colours(old))


def _category(text: str) -> str:
    removed = _objects(text, _REMOVING)[0]
    if removed and not re.fullmatch(_GROUND, removed):
        return REMOVE
    if _says(_GROUND, text) and not _says(rf"(?:in|to|into) {_GROUND}$", text):
        return BACKGROUND
    moved = re.match(rf"(?:set|move|put) {_WHOLE}\b", text)
    if moved or _says(r"(?:shapes|things|people|them|everyone) (?:\w+ )?in front of", text):
        return BACKGROUND
    old, new = _objects(text, _CHANGING)
    whole = re.fullmatch(rf"{_WHOLE}|{_TIMES}", old) or re.match(rf"(?:make|turn|give) {_WHOLE}\b", text)
    applied = re.match(r"(?:apply|use|i want) an? .*\b(?:style|look|filter|effect|video|film|clip)\b", text)
    if whole or applied:
        return STYLE
    if re.match(rf"(?:there {_SHOULD} be|let there be)\b", text) and not _says("place of|instead of", text):
        return ADD
    if _says("appear|wear|wearing", text):
        return ADD
    return CHANGE if new else ADD if _objects(text, _ADDING)[1] else ""


def _objects(text: str, patterns: tuple[str, ...]) -> tuple[str, str]:
    """What was there and what is to be there, by the first pattern that fits, in the words of the text."""
    for pattern in patterns:
        if found := re.search(pattern, text):
            parts = found.groupdict()
            return parts.get("old") or "", re.sub(_OPENING, "", parts.get("new") or "")
    return "", ""


def _says(words: str, text: str) -> bool:
    return re.search(rf"\b(?:{words})\b", text) is not None


def _name(words: str) -> str:
    """A noun phrase of at most six words, without articles and without where it is."""
    words = re.split(_END, re.sub(_ARTICLES, "", words.strip()))[0]
    words = re.sub(r" (?:colou?r|colou?red|one|away|appear)$", "", words.strip())
    return " ".join(words.split()[:6])


def _uncoloured(name: str) -> str:
    left = [word for word in name.split() if not re.fullmatch(r"light|dark|bright|pale|deep|and|matte", word)]
    return " ".join(word for word in left if word not in colours.NAMES)


def _colours(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in re.findall(r"[a-z]+", name) if word in colours.NAMES))


def _place(text: str) -> tuple[float | None, float | None]:
    place: list[float | None] = [None, None]
    for words, axis, share in _SIDES:
        if _says(words, text):
            place[axis] = share
    if place == [None, None] and _says("middle|cent(?:er|re)", text):
        place = [0.5, 0.5]
    return place[0], place[1]
