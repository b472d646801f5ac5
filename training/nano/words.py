"""How the toy world is spoken of: instructions in varied wording, and descriptions of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .world import SIZE, Ground, Scene, Thing

if TYPE_CHECKING:
    from .edits import Edit

PLACES = {
    "top left": (16, 16), "top right": (48, 16), "bottom left": (16, 48), "bottom right": (48, 48), "middle": (32, 32),
}  # fmt: skip
"""Where things are asked for, in pixels of the middle frame."""

_A = "{a_new}"
WORDINGS: dict[str, tuple[str, ...]] = {
    "style": (
        "Make the video {style}.",
        "Turn the whole clip into a {style} film.",
        "Give the video a {style} look.",
        "Apply a {style} style to everything.",
        "Change the style of the video to {style}.",
        "Render the scene in a {style} style.",
        "I want the whole picture to look {style}.",
        "Convert this into a {style} video.",
    ),
    "background": (
        "Replace the background with {a_ground} background.",
        "Change the background to {a_ground} one.",
        "Put the shapes in front of {a_ground} background.",
        "Make the background {ground}.",
        "Swap the background for {a_ground} pattern.",
        "Turn the background into {a_ground} one.",
        "Use {a_ground} background instead.",
        "The background should be {ground}.",
    ),
    "recolour": (
        "Make the {thing} {colour}.",
        "Change the colour of the {thing} to {colour}.",
        "Turn the {thing} {colour}.",
        "Paint the {thing} {colour}.",
        "The {thing} should be {colour}.",
        "Recolour the {thing} to {colour}.",
        "Give the {thing} a {colour} colour.",
        "I want the {thing} in {colour}.",
    ),
    "reshape": (
        "Turn the {thing} into a {shape}.",
        "Change the {thing} into a {shape}.",
        "Replace the {thing} with a {shape} of the same colour.",
        "Make the {thing} a {shape}.",
        "The {thing} should become a {shape}.",
        "Give the {thing} the shape of a {shape}.",
    ),
    "replace": (
        f"Replace the {{thing}} with {_A}.",
        f"Turn the {{thing}} into {_A}.",
        f"Change the {{thing}} into {_A}.",
        f"Swap the {{thing}} for {_A}.",
        f"Put {_A} in the place of the {{thing}}.",
        f"I want {_A} instead of the {{thing}}.",
    ),
    "remove": (
        "Remove the {thing}.",
        "Delete the {thing} from the video.",
        "Take the {thing} away.",
        "Get rid of the {thing}.",
        "Make the {thing} disappear.",
        "I do not want to see the {thing}.",
        "Take out the {thing}.",
        "The {thing} should be gone.",
    ),
    "add": (
        f"Add {_A} at the {{place}}.",
        f"Put {_A} at the {{place}}.",
        f"Place {_A} at the {{place}} of the video.",
        f"Insert {_A} in the {{place}}.",
        f"I want to see {_A} at the {{place}}.",
        f"Draw {_A} in the {{place}} of the picture.",
        f"There should be {_A} at the {{place}}.",
        f"Let {_A} appear at the {{place}}.",
    ),
    "reference_replace": (
        "Replace the {thing} with the object of the reference picture.",
        "Turn the {thing} into the object in the picture.",
        "Swap the {thing} for the object in the reference.",
        "Put the object from the picture in the place of the {thing}.",
        "Change the {thing} into what the reference shows.",
        "I want the object of the reference instead of the {thing}.",
    ),
    "reference_add": (
        "Add the object of the reference picture at the {place}.",
        "Put the object from the picture at the {place}.",
        "Place the object in the reference at the {place} of the video.",
        "Insert what the reference shows in the {place}.",
        "Let the object of the reference appear at the {place}.",
        "There should be the object from the picture at the {place}.",
    ),
    "reference_background": (
        "Replace the background with the one in the reference picture.",
        "Use the reference as the background.",
        "Change the background to the one of the picture.",
        "Put the shapes in front of what the reference shows.",
        "Swap the background for the one in the picture.",
        "The background should be the one of the reference.",
    ),
}  # fmt: skip
"""What training is told."""

HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "style": (
        "The whole scene should be {style}.",
        "I want a {style} video.",
        "Use a {style} style for the whole clip.",
    ),
    "background": (
        "I want {a_ground} background.",
        "Let the shapes appear in front of {a_ground} pattern.",
        "Give the video {a_ground} background.",
    ),
    "recolour": (
        "I want to see the {thing} in {colour}.",
        "Let the {thing} become {colour}.",
        "Use {colour} for the {thing}.",
    ),
    "reshape": ("I want the {thing} to become a {shape}.", "Let the {thing} be a {shape}."),
    "replace": (f"There should be {_A} in the place of the {{thing}}.", f"Use {_A} instead of the {{thing}}."),
    "remove": (
        "I want the {thing} to disappear.",
        "Let the {thing} disappear.",
        "Take the {thing} from the picture.",
    ),
    "add": (
        f"Make {_A} appear in the {{place}}.",
        f"There should appear {_A} in the {{place}}.",
        f"Insert {_A} at the {{place}} of the picture.",
    ),
    "reference_replace": (
        "The {thing} should become the object in the picture.",
        "Use the object of the reference in the place of the {thing}.",
    ),
    "reference_add": (
        "I want to see the object of the reference at the {place}.",
        "Draw what the picture shows in the {place}.",
    ),
    "reference_background": (
        "I want the background of the picture.",
        "Give the video the background of the reference.",
    ),
}  # fmt: skip
"""What only the benchmark says: words that training knows, put together otherwise."""


def say(wording: str, **words: str) -> str:
    """A wording with its words: ``thing``, ``colour``, ``shape``, ``place``, ``style``, ``ground``, ``new``."""
    with_articles = {f"a_{name}": f"{_article(word)} {word}" for name, word in words.items()}
    return wording.format(**words, **with_articles)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def name_thing(thing: Thing) -> str:
    """"red circle"."""
    return f"{thing.colour} {thing.shape}"


def name_ground(ground: Ground) -> str:
    """"blue striped" or "plain grey"."""
    return f"plain {ground.colour}" if ground.pattern == "plain" else f"{ground.colour} {ground.pattern}"


def where(thing: Thing) -> str:
    """Which ninth of the frame a thing's centre is in."""
    row, column = (min(2, max(0, int(3 * side / SIZE))) for side in (thing.y, thing.x))
    words = (("top", "", "bottom")[row] + " " + ("left", "", "right")[column]).strip()
    return words or "middle"


def describe(scene: Scene) -> str:
    """A scene in a sentence, its things from left to right."""
    things = [f"{describe_thing(thing)} at the {where(thing)}" for thing in sorted(scene.things, key=lambda one: one.x)]
    text = f"{describe_ground(scene.ground)} with {_listed(things)}" if things else describe_ground(scene.ground)
    return f"{text}, {scene.style}" if scene.style else text


def outcome(edit: Edit) -> str:
    """What an instruction asks for in few words, with the things it means by their names."""
    if edit.category == "global_style":
        return edit.after.style
    if edit.thing is None:
        return describe_ground(edit.after.ground)
    if edit.task == "remove":
        return f"no {name_thing(edit.before.things[edit.thing])}"
    new = edit.after.things[edit.thing]
    if edit.task in ("add", "reference_add"):
        return f"{describe_thing(new)} at the {where(new)}"
    return f"{describe_thing(new)} instead of the {name_thing(edit.before.things[edit.thing])}"


def describe_thing(thing: Thing) -> str:
    """"a banded red circle"."""
    words = name_thing(thing) if thing.texture == "plain" else f"{thing.texture} {name_thing(thing)}"
    return f"{_article(words)} {words}"


def describe_ground(ground: Ground) -> str:
    """"a blue striped background"."""
    return f"{_article(name_ground(ground))} {name_ground(ground)} background"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
