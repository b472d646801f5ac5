"""Editing pairs with exact targets: five categories by instruction, two by reference, and what is held out of training.

An edit is drawn from a seed alone. Seeds below :data:`BENCH_SEEDS` are training's, those from there on nano-bench's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import words, world
from .world import SIZE, Ground, Scene, Thing

CATEGORIES = ("global_style", "background_change", "local_change", "local_remove", "local_add")
REFERENCE_CATEGORIES = ("subject_reference", "background_reference")
SPLITS = ("seen", "composition", "wording", "shape", "colour")
"""What is new to the model: only the scene; a pair of colour and shape (or ground and pattern, or style and ground)
that it never saw together; the wording; a shape; a colour."""

BENCH_SEEDS = 1_000_000_000

_COLOURS = tuple(colour for colour in world.COLOURS if colour not in world.HELD_OUT_COLOURS)
_SHAPES = tuple(shape for shape in world.SHAPES if shape not in world.HELD_OUT_SHAPES)
_GROUNDS = tuple(world.GROUNDS)

HELD_OUT_THINGS = frozenset(
    (colour, shape) for i, colour in enumerate(_COLOURS) for j, shape in enumerate(_SHAPES) if (3 * i + j) % 7 == 0
)
"""Colours with shapes that training never sees together, at most one of each colour."""
HELD_OUT_GROUNDS = frozenset((colour, world.PATTERNS[1 + i % 4]) for i, colour in enumerate(_GROUNDS))
HELD_OUT_STYLES = frozenset((style, _GROUNDS[(i + 1) % 6]) for i, style in enumerate(world.STYLES))
"""Styles with colours of grounds that training never sees together."""

_THINGS = tuple((c, s) for c in _COLOURS for s in _SHAPES if (c, s) not in HELD_OUT_THINGS)
_PAIRS = tuple((c, p) for c in _GROUNDS for p in world.PATTERNS if (c, p) not in HELD_OUT_GROUNDS)


@dataclass(frozen=True)
class Edit:
    """An instruction and the scenes before and after it."""

    category: str
    split: str
    task: str
    """Whose wordings it uses, see :data:`training.nano.words.WORDINGS`."""
    prompt: str
    before: Scene
    after: Scene
    thing: int | None = None
    """Place of the thing that changes, in ``before`` or, for one that is added, in ``after``."""
    reference: Thing | Ground | None = None
    """What the reference picture shows."""

    def reference_picture(self) -> np.ndarray | None:
        """uint8 ``[H, W, 3]``."""
        if isinstance(self.reference, Ground):
            return world.backdrop(self.reference)
        return None if self.reference is None else world.portrait(self.reference)


class _Impossible(Exception):
    """A draw that leads nowhere; another is tried."""


def draw(category: str, seed: int, split: str = "seen", frames: int = world.FRAMES) -> Edit:
    """The edit of a category that belongs to a seed.

    Args:
        split: see :data:`SPLITS`; training draws "seen" only. frames: 1 for a picture.
    """
    kind = (*CATEGORIES, *REFERENCE_CATEGORIES).index(category)
    for attempt in range(1000):
        rng = np.random.default_rng([seed, kind, SPLITS.index(split), attempt])
        try:
            return _DRAWS[category](rng, split, frames)
        except _Impossible:
            continue
    raise AssertionError(f"no {category} of split {split} in seed {seed}")


def new_style(seed: int, frames: int = world.FRAMES) -> Edit:
    """An edit into the style that the model is never shown."""
    edit = draw("global_style", seed, frames=frames)
    after = dataclasses.replace(edit.after, style=world.NEW_STYLE)
    return dataclasses.replace(edit, prompt=f"Make the video {world.NEW_STYLE}.", after=after)


def _phase(rng: np.random.Generator) -> tuple[float, float]:
    return tuple(map(float, rng.choice([0, 8, 16, 24], 2)))


def _choose(rng: np.random.Generator, options):
    options = list(options)
    if not options:
        raise _Impossible
    return options[rng.integers(len(options))]


def _pairs(split: str, wanted: bool) -> tuple[tuple[str, str], ...]:
    """Colours and shapes of a thing; ``wanted`` for the one in which the split shows."""
    if wanted and split == "composition":
        return tuple(sorted(HELD_OUT_THINGS))
    if wanted and split == "shape":
        return tuple((colour, shape) for colour in _COLOURS for shape in world.HELD_OUT_SHAPES)
    if wanted and split == "colour":
        return tuple((colour, shape) for colour in world.HELD_OUT_COLOURS for shape in _SHAPES)
    return _THINGS


def random_scene(rng: np.random.Generator, frames: int, split: str = "seen", most: int = 3) -> Scene:
    """A scene of up to ``most`` things, no two of one colour or shape; the split shows in the first of them."""
    ground = Ground(*_choose(rng, _PAIRS), _phase(rng))
    pan = _choose(rng, world.MOTIONS)
    scene = Scene(ground, (), pan, frames)
    for number in range(int(rng.integers(1, most + 1))):
        try:
            scene = _with_thing(rng, scene, _pairs(split, number == 0))
        except _Impossible:
            if number == 0:
                raise
            break
    return scene


def _with_thing(rng: np.random.Generator, scene: Scene, pairs) -> Scene:
    """With one thing more, of one of these colours and shapes, that goes its own way."""
    colour, shape = _choose(rng, _possible(scene, pairs))
    for _ in range(30):
        x, y = rng.choice(world.GRID, 2)
        dx, dy = np.add(scene.pan, _choose(rng, world.MOTIONS))
        thing = Thing(shape, colour, _choose(rng, world.TEXTURES), world.RADIUS, *map(float, (x, y, dx, dy)))
        if _fits(scene, thing):
            return dataclasses.replace(scene, things=(*scene.things, thing))
    raise _Impossible


def _possible(scene: Scene, pairs, without: int | None = None):
    """Colours and shapes that none of the scene's things has and that stand out from its ground."""
    others = [thing for place, thing in enumerate(scene.things) if place != without]
    return [
        (colour, shape)
        for colour, shape in pairs
        if world.contrast(colour, scene.ground.colour)
        and all(colour != other.colour and shape != other.shape for other in others)
    ]


def _fits(scene: Scene, thing: Thing) -> bool:
    """Whether a thing stays in the frame and clear of the others in every frame."""
    for time in scene.times:
        x, y = thing.at(time)
        if not all(0.9 * thing.radius <= side <= SIZE - 0.9 * thing.radius for side in (x, y)):
            return False
        for other in scene.things:
            apart = np.hypot(x - other.at(time)[0], y - other.at(time)[1])
            if apart < 1.08 * (thing.radius + other.radius):
                return False
    return True


def _say(rng: np.random.Generator, split: str, task: str, **given: str) -> str:
    wordings = words.HELD_OUT_WORDINGS if split == "wording" else words.WORDINGS
    return words.say(_choose(rng, wordings[task]), **given)


def _named(rng: np.random.Generator, thing: Thing, split: str) -> str:
    """How an instruction calls a thing of its scene: by what training has words for."""
    names = [words.name_thing(thing)] * 3 + [thing.shape, f"{thing.colour} shape"]
    if split == "shape":
        names = [f"{thing.colour} shape"]
    if split == "colour":
        names = [thing.shape]
    return _choose(rng, names)


def replaced(scene: Scene, place: int, thing: Thing | None) -> Scene:
    """With another thing in the place of one, or without it."""
    things = list(scene.things)
    things[place : place + 1] = [] if thing is None else [thing]
    return dataclasses.replace(scene, things=tuple(things))


def _style(rng, split: str, frames: int) -> Edit:
    scene, style = random_scene(rng, frames, split), _choose(rng, world.STYLES)
    if style == "black and white" and scene.ground.colour == "grey":
        raise _Impossible  # hardly an edit
    if ((style, scene.ground.colour) in HELD_OUT_STYLES) != (split == "composition"):
        raise _Impossible
    prompt = _say(rng, split, "style", style=style)
    return Edit("global_style", split, "style", prompt, scene, dataclasses.replace(scene, style=style))


def _background(rng, split: str, frames: int, category: str = "background_change") -> Edit:
    scene = random_scene(rng, frames, split if split in ("shape", "colour") else "seen")
    pairs = sorted(HELD_OUT_GROUNDS) if split == "composition" else _PAIRS
    colour, pattern = _choose(rng, pairs)
    same = (colour, pattern) == (scene.ground.colour, scene.ground.pattern)
    if same or not all(world.contrast(thing.colour, colour) for thing in scene.things):
        raise _Impossible
    # One that words ask for begins where the frame does, one of a picture where it does there.
    ground = Ground(colour, pattern) if category == "background_change" else Ground(colour, pattern, _phase(rng))
    after = dataclasses.replace(scene, ground=ground)
    if category == "background_change":
        prompt = _say(rng, split, "background", ground=words.name_ground(ground))
        return Edit(category, split, "background", prompt, scene, after)
    prompt = _say(rng, split, "reference_background")
    return Edit(category, split, "reference_background", prompt, scene, after, reference=ground)


def _background_reference(rng, split: str, frames: int) -> Edit:
    return _background(rng, split, frames, "background_reference")


def _change(rng, split: str, frames: int) -> Edit:
    task = _choose(rng, ("recolour", "reshape", "replace"))
    scene = random_scene(rng, frames, split if split in ("shape", "colour") else "seen")
    place = 0 if split in ("shape", "colour") else int(rng.integers(len(scene.things)))
    old = scene.things[place]
    options = [
        (colour, shape)
        for colour, shape in _possible(scene, _pairs(split if split == "composition" else "seen", True), place)
        if (task == "replace" and colour != old.colour and shape != old.shape)
        or (task == "recolour" and colour != old.colour and shape == old.shape)
        or (task == "reshape" and colour == old.colour and shape != old.shape)
    ]
    colour, shape = _choose(rng, options)
    new = dataclasses.replace(old, colour=colour, shape=shape)
    prompt = _say(
        rng, split, task, thing=_named(rng, old, split), colour=colour, shape=shape, new=words.name_thing(new)
    )
    return Edit("local_change", split, task, prompt, scene, replaced(scene, place, new), place)


def _remove(rng, split: str, frames: int) -> Edit:
    scene = random_scene(rng, frames, split)
    place = 0 if split in ("composition", "shape", "colour") else int(rng.integers(len(scene.things)))
    prompt = _say(rng, split, "remove", thing=_named(rng, scene.things[place], split))
    return Edit("local_remove", split, "remove", prompt, scene, replaced(scene, place, None), place)


def _placed(rng, scene: Scene, pairs) -> tuple[str, Thing]:
    """A new thing that stands still in the scene, and the place's name."""
    place = _choose(rng, words.PLACES)
    colour, shape = _choose(rng, _possible(scene, pairs))
    thing = Thing(shape, colour, "plain", world.RADIUS, *map(float, words.PLACES[place]), *scene.pan)
    if not _fits(scene, thing):
        raise _Impossible
    return place, thing


def _add(rng, split: str, frames: int) -> Edit:
    scene = random_scene(rng, frames, split if split in ("shape", "colour") else "seen", most=2)
    place, thing = _placed(rng, scene, _pairs(split if split == "composition" else "seen", True))
    after = dataclasses.replace(scene, things=(*scene.things, thing))
    prompt = _say(rng, split, "add", new=words.name_thing(thing), place=place)
    return Edit("local_add", split, "add", prompt, scene, after, len(scene.things))


def _subject_reference(rng, split: str, frames: int) -> Edit:
    pairs = [(colour, shape) for colour, shape in _pairs(split, True) if colour != "white"]  # white on white
    if rng.random() < 0.6:
        scene = random_scene(rng, frames)
        place = int(rng.integers(len(scene.things)))
        old = scene.things[place]
        options = [
            (colour, shape)
            for colour, shape in _possible(scene, pairs, place)
            if colour != old.colour and shape != old.shape
        ]
        colour, shape = _choose(rng, options)
        new = dataclasses.replace(old, colour=colour, shape=shape, texture=_choose(rng, world.TEXTURES))
        prompt = _say(rng, split, "reference_replace", thing=_named(rng, old, "seen"))
        task, after = "reference_replace", replaced(scene, place, new)
    else:
        scene = random_scene(rng, frames, most=2)
        where, new = _placed(rng, scene, pairs)
        new = dataclasses.replace(new, texture=_choose(rng, world.TEXTURES))
        prompt = _say(rng, split, "reference_add", place=where)
        task, place = "reference_add", len(scene.things)
        after = dataclasses.replace(scene, things=(*scene.things, new))
    middle, size = world.REFERENCE_SIZE / 2, world.REFERENCE_SIZE
    shown = dataclasses.replace(
        new, radius=float(rng.uniform(0.28, 0.4) * size), dx=0.0, dy=0.0,
        x=middle + float(rng.uniform(-6, 6)), y=middle + float(rng.uniform(-6, 6)),
    )  # fmt: skip
    return Edit("subject_reference", split, task, prompt, scene, after, place, shown)


_DRAWS: dict[str, Callable[..., Edit]] = {
    "global_style": _style,
    "background_change": _background,
    "local_change": _change,
    "local_remove": _remove,
    "local_add": _add,
    "subject_reference": _subject_reference,
    "background_reference": _background_reference,
}
