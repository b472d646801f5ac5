"""Which thing or ground of the toy world a reference picture shows: the nearest of renderings of all that there are."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from ..nano import world
from ..nano.world import Ground, Thing

_SIDE = 40
"""Pixels to which silhouettes are brought."""
_ANGLES = tuple(range(-24, 25, 6))
"""Degrees by which a reference may be turned."""
_SHARES = (1.0, 0.92, 0.85, 0.78)
"""Of a ground's side that a reference may show."""
_GAINS = 0.8, 1.25
"""How much brighter a reference may be."""


def subject(picture: np.ndarray) -> dict[str, str]:
    """Shape and colour that are nearest to a picture, uint8 ``[H, W, 3]``, of one thing before a plain ground.

    Turned, moved, scaled or lit otherwise a thing stays what it is. {} if there is nothing before the ground.
    """
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    apart = np.abs(picture.astype(int) - np.median(border, axis=0)).max(axis=-1)
    mask = apart > max(12, 0.35 * np.quantile(apart, 0.98))
    if mask.sum() < 20:
        return {}
    crop = _box(mask)
    cover = _fitted(mask[crop].astype(np.float32))
    overlaps = {key: _overlap(cover > 0.5, other > 0.5) for key, other in _silhouettes().items()}
    shape, angle = max(overlaps, key=overlaps.get)
    colours = np.stack([_fitted(picture[crop][..., channel].astype(np.float32)) for channel in range(3)], axis=-1)
    inside = (cover > 0.9) & (_silhouettes()[shape, angle] > 0.9)
    misses = {
        colour: min(_miss(colours, _rendered(shape, colour, texture, angle), inside) for texture in world.TEXTURES)
        for colour in world.COLOURS
    }
    return {"shape": shape, "colour": min(misses, key=misses.get)}


def ground(picture: np.ndarray) -> dict[str, str]:
    """Colour and pattern of the ground that is nearest to a picture, uint8 ``[H, W, 3]``, wherever it begins."""
    small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX), np.float32)
    misses = {}
    for pattern in world.PATTERNS:
        lights = _lights(pattern).reshape(-1, small.shape[0] * small.shape[1])
        for colour, light in world.GROUNDS.items():
            # |small - g * lights x light|^2, without a picture for every place where the pattern may begin
            both = lights @ (small @ np.array(light, np.float32)).ravel()
            own = np.square(lights).sum(axis=1) * float(np.square(light).sum())
            gains = np.clip(both / own, *_GAINS)
            misses[colour, pattern] = float((gains**2 * own - 2 * gains * both).min())
    colour, pattern = min(misses, key=misses.get)
    return {"colour": colour, "pattern": pattern}


def _miss(picture: np.ndarray, other: np.ndarray, inside: np.ndarray) -> float:
    one, other = picture[inside], other[inside]
    gain = np.clip((one * other).sum() / max(1.0, (other**2).sum()), *_GAINS)
    return float(np.square(one - gain * other).mean()) if len(one) else np.inf


@functools.cache
def _silhouettes() -> dict[tuple[str, int], np.ndarray]:
    """Cover of every shape at every angle, brought to one size."""
    found = {}
    for shape in world.SHAPES:
        for angle in _ANGLES:
            cover = 1 - _turned(shape, "black", "plain", angle)[..., 0] / 255
            found[shape, angle] = _fitted(cover[_box(cover > 0.45)] / cover.max())
    return found


@functools.cache
def _rendered(shape: str, colour: str, texture: str, angle: int) -> np.ndarray:
    crop = _box(_turned(shape, "black", "plain", angle)[..., 0] < 140)
    part = _turned(shape, colour, texture, angle)[crop]
    return np.stack([_fitted(part[..., channel]) for channel in range(3)], axis=-1)


def _turned(shape: str, colour: str, texture: str, angle: int) -> np.ndarray:
    thing = Thing(shape, colour, texture, 30.0, 48.0, 48.0, 0.0, 0.0)
    picture = Image.fromarray(world.portrait(thing, 96))
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255))
    return np.asarray(turned, np.float32)


@functools.cache
def _lights(pattern: str) -> np.ndarray:
    """How light a pattern is, wherever it begins and whatever share of it is shown: ``[N, 32, 32]``."""
    found = []
    for x in range(0, 32, 4):
        for y in range(0, 32, 4):
            light = world.backdrop(Ground("grey", pattern, (x, y)))[..., 0] / world.GROUNDS["grey"][0]
            picture = Image.fromarray(light.astype(np.float32))
            for share in _SHARES:
                side = world.SIZE * share
                made = picture.resize((32, 32), Image.Resampling.BOX, box=(0, 0, side, side))
                found.append(np.asarray(made))
    return np.stack(found)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of what a mask holds."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _fitted(part: np.ndarray) -> np.ndarray:
    """A part in the middle of a square of one size, its sides in proportion."""
    height, width = part.shape
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    made = np.asarray(Image.fromarray(part.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    whole = np.zeros((_SIDE, _SIDE), np.float32)
    top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
    whole[top : top + size[1], left : left + size[0]] = made
    return whole


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
