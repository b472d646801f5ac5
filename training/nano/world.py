"""The toy world: textured shapes that move over patterned grounds, before a camera that pans.

A :class:`Scene` is a few numbers and words; :func:`render` gives its pixels, exactly and the same everywhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

SIZE, FRAMES = 64, 9
"""Pixels of a side and frames of a clip."""
RADIUS = 13.0
"""Of things, in pixels."""
GRID = (16, 24, 32, 40, 48)
"""Where things are in the middle frame, along each side."""
MOTIONS = ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))
"""Of the camera, and of a thing over its ground, in pixels a frame."""
REFERENCE_SIZE = 112
"""Pixels of a reference's side: 4 x 4 tokens of the language model."""

COLOURS = {
    "red": (214, 45, 45),
    "orange": (242, 140, 40),
    "yellow": (244, 220, 60),
    "green": (50, 165, 75),
    "blue": (50, 85, 220),
    "purple": (140, 60, 190),
    "pink": (245, 135, 195),
    "white": (245, 245, 245),
    "black": (30, 30, 35),
    "teal": (30, 185, 185),
    "brown": (125, 80, 45),
}
"""Of shapes. Training never sees the last two."""
HELD_OUT_COLOURS = ("teal", "brown")

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "arrow")
"""Training never sees the last two."""
HELD_OUT_SHAPES = ("heart", "arrow")

TEXTURES = ("plain", "shaded", "banded")

GROUNDS = {
    "blue": (120, 155, 215),
    "green": (130, 190, 130),
    "yellow": (225, 205, 130),
    "purple": (175, 140, 205),
    "orange": (225, 165, 115),
    "grey": (165, 165, 170),
}
"""Colours of grounds: softer than those of shapes."""
PATTERNS = ("plain", "striped", "checked", "dotted", "wavy")
_DARKER = 0.70

STYLES = ("black and white", "sepia", "negative", "night", "faded")
NEW_STYLE = "infrared"
"""One that the model is never shown: for a LoRA to teach."""

_COLD, _WARM = np.array([40.0, 40.0, 170.0]), np.array([255.0, 190.0, 50.0])
_CONTRAST = 75.0
_EDGE = 0.9


@dataclass(frozen=True)
class Thing:
    """A shape, where it is in the middle frame and how far it goes in each frame, in pixels."""

    shape: str
    colour: str
    texture: str
    radius: float
    x: float
    y: float
    dx: float
    dy: float

    def at(self, frame: float) -> tuple[float, float]:
        """Centre in a frame, counted from the middle one."""
        return self.x + self.dx * frame, self.y + self.dy * frame


@dataclass(frozen=True)
class Ground:
    """What is behind the shapes; the phase is where its pattern begins in the middle frame."""

    colour: str
    pattern: str
    phase: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """Everything in a clip. The camera's pan moves the ground by so many pixels a frame."""

    ground: Ground
    things: tuple[Thing, ...]
    pan: tuple[float, float] = (0.0, 0.0)
    frames: int = FRAMES
    style: str | None = None

    @property
    def times(self) -> np.ndarray:
        """Frame numbers, counted from the middle one."""
        return np.arange(self.frames) - (self.frames - 1) / 2


@functools.cache
def contrast(thing: str, ground: str) -> bool:
    """Whether a shape of this colour stands out from this ground, its darker tone included."""
    shape, back = np.array(COLOURS[thing], float), np.array(GROUNDS[ground], float)
    return min(np.linalg.norm(shape - back), np.linalg.norm(shape - back * _DARKER)) >= _CONTRAST


def render(scene: Scene) -> np.ndarray:
    """Pixels of a scene: uint8 ``[T, 64, 64, 3]``."""
    clip = _ground(scene)
    for thing in scene.things:
        window = _window(thing, scene.times)
        cover, colours = _painted(thing, scene.times, window)
        part = clip[:, window[0], window[1]]
        part += cover[..., None] * (colours - part)
    if scene.style:
        clip = restyle(clip, scene.style)
    return _bytes(clip)


def covered(thing: Thing, scene: Scene) -> np.ndarray:
    """Share of each pixel that a shape covers: ``[T, 64, 64]``, 0 to 1."""
    whole = np.zeros((scene.frames, SIZE, SIZE))
    window = _window(thing, scene.times)
    whole[:, window[0], window[1]] = _painted(thing, scene.times, window)[0]
    return whole


def cover(scene: Scene) -> np.ndarray:
    """Share of each pixel that any thing covers: ``[T, 64, 64]``, 0 to 1."""
    nothing = np.zeros((scene.frames, SIZE, SIZE))
    return np.max([nothing, *(covered(thing, scene) for thing in scene.things)], axis=0)


def portrait(thing: Thing, size: int = REFERENCE_SIZE) -> np.ndarray:
    """A reference picture of a shape alone on white: uint8 ``[size, size, 3]``. Its place is in pixels of that."""
    cover, colours = _painted(thing, np.zeros(1), (slice(0, size), slice(0, size)))
    page = np.full((1, size, size, 3), 255.0)
    return _bytes(page + cover[..., None] * (colours - page))[0]


def backdrop(ground: Ground) -> np.ndarray:
    """A reference picture of a ground alone: uint8 ``[64, 64, 3]``."""
    return render(Scene(ground, (), frames=1))[0]


def restyle(clip: np.ndarray, style: str) -> np.ndarray:
    """A clip ``[..., 3]`` in 0..255 in another style, as floats."""
    clip = np.asarray(clip, float)
    grey = clip @ np.array([0.299, 0.587, 0.114])
    if style == "black and white":
        return np.repeat(grey[..., None], 3, axis=-1)
    if style == "sepia":
        return np.clip(grey[..., None] * np.array([1.07, 0.84, 0.58]), 0, 255)
    if style == "negative":
        return 255 - clip
    if style == "night":
        return clip * np.array([0.25, 0.32, 0.55]) + np.array([0, 5, 25])
    if style == "faded":
        return clip * 0.4 + 150
    if style == NEW_STYLE:  # what is dark looks cold, what is light warm
        return _COLD + grey[..., None] / 255 * (_WARM - _COLD)
    raise ValueError(f"There is no style {style!r}; use one of {', '.join(STYLES)}.")


def _bytes(clip: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def _ground(scene: Scene) -> np.ndarray:
    light = np.array(GROUNDS[scene.ground.colour], float)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    x = columns - scene.ground.phase[0] - scene.pan[0] * scene.times[:, None, None]
    y = rows - scene.ground.phase[1] - scene.pan[1] * scene.times[:, None, None]
    dark = _pattern(scene.ground.pattern, x, y)
    return light * (1 - (1 - _DARKER) * dark[..., None])


def _pattern(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How dark each pixel is, 0 to 1. Soft edges: what a small autoencoder can carry."""
    turn = 2 * np.pi
    if name == "plain":
        return np.zeros_like(x)
    if name == "striped":
        wave = np.cos(turn * x / 16)
    elif name == "checked":
        wave = 1.4 * np.sin(turn * x / 32) * np.sin(turn * y / 32)
    elif name == "dotted":
        wave = np.cos(turn * x / 16) + np.cos(turn * y / 16) - 0.6
    elif name == "wavy":
        wave = np.cos(turn * (y + 4 * np.sin(turn * x / 32)) / 20)
    else:
        raise ValueError(f"There is no pattern {name!r}; use one of {', '.join(PATTERNS)}.")
    return 1 / (1 + np.exp(-5 * wave))


def _window(thing: Thing, times: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that a shape touches in any frame."""
    reach = 1.4 * thing.radius + 1

    def along(centre: float, step: float) -> slice:
        ends = centre + step * times[0], centre + step * times[-1]
        return slice(max(0, int(min(ends) - reach)), min(SIZE, max(0, int(np.ceil(max(ends) + reach)))))

    return along(thing.y, thing.dy), along(thing.x, thing.dx)


def _painted(thing: Thing, times: np.ndarray, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Cover ``[T, h, w]`` and colours ``[T, h, w, 3]`` of a shape within a window."""
    rows, columns = np.mgrid[window] + 0.5
    x = (columns - thing.x - thing.dx * times[:, None, None]) / thing.radius
    y = (rows - thing.y - thing.dy * times[:, None, None]) / thing.radius
    cover = np.clip(0.5 - _distance(thing.shape, x, y) * thing.radius / (2 * _EDGE), 0, 1)
    return cover, _texture(thing, x, y)


def _texture(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    colour = np.array(COLOURS[thing.colour], float)
    if thing.texture == "plain":
        light = np.ones_like(x)
    elif thing.texture == "shaded":
        light = 1.12 - 0.36 * np.clip(0.5 + 0.5 * (x + y), 0, 1)
    elif thing.texture == "banded":
        light = 1 - 0.32 / (1 + np.exp(-4 * np.cos(1.8 * np.pi * y)))
    else:
        raise ValueError(f"There is no texture {thing.texture!r}; use one of {', '.join(TEXTURES)}.")
    return np.clip(colour * light[..., None], 0, 255)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About how far a point is outside of a shape of radius 1; negative inside. y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.84
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.72) - 0.27
    if shape == "cross":
        near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
        return np.maximum(near - 0.34, far - 0.98)
    if shape == "triangle":
        return np.maximum(y - 0.72, 0.866 * abs(x) - 0.5 * y - 0.55)
    if shape == "heart":
        lobes = np.hypot(abs(x) - 0.45, y + 0.32) - 0.52
        tip = np.maximum((1.33 * abs(x) + y - 0.98) / 1.66, -0.32 - y)
        return np.minimum(lobes, tip)
    if shape == "arrow":
        head = np.maximum(0.8 * abs(x) - 0.6 * y - 0.6, y - 0.05)
        shaft = np.maximum(abs(x) - 0.3, abs(y - 0.45) - 0.5)
        return np.minimum(head, shaft)
    if shape == "star":
        angle = np.arctan2(x, -y)
        sector = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # from the nearest tip
        radius = np.hypot(x, y)
        px, py = radius * np.cos(sector), radius * np.sin(sector)
        tip, notch = np.array([1.08, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = notch - tip
        normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
        outside = (px - tip[0]) * normal[0] + (py - tip[1]) * normal[1]
        return -outside
    raise ValueError(f"There is no shape {shape!r}; use one of {', '.join(SHAPES)}.")
