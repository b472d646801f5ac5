"""Clips like photographs for tests, with exact truth: rough grounds, rough things that move over them, a camera that
pans, and edits that draw the whole frame a little anew."""

from dataclasses import dataclass

import cv2
import numpy as np

SIZE, FRAMES = 256, 6
_GROUNDS = {
    "green": (70, 130, 60), "grey": (128, 128, 130), "brown": (115, 75, 45), "blue": (90, 130, 190),
}  # fmt: skip
_THINGS = {
    "red": (190, 40, 40), "yellow": (225, 200, 60), "white": (235, 235, 235), "purple": (130, 50, 170),
    "orange": (235, 130, 40),
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """A pair: frames uint8 ``[T, 256, 256, 3]``, masks bool ``[T, 256, 256]`` as a segmenter should give them."""

    prompt: str
    category: str
    source: np.ndarray
    target: np.ndarray
    masks: np.ndarray


def pair(category: str, seed: int) -> Photo:
    """A good pair of a category: an ellipse, box or triangle comes, goes or changes, or the ground does."""
    rng = np.random.default_rng([seed, 5])
    old_ground, new_ground = rng.permutation(list(_GROUNDS))[:2]
    grounds = [rough(rng, SIZE + 40, _GROUNDS[name]) for name in (old_ground, new_ground)]
    pan = rng.uniform(0, 4, 2)
    colours = rng.permutation(list(_THINGS))[:3]
    first, second, third = (
        _thing(rng, colour, *place) for colour, place in zip(colours, ((80, 90), (175, 165), (175, 165)))
    )
    third["step"] = second["step"]
    before, after, ground = [first, second], [first, second], grounds[0]
    if category == "local_add":
        before, prompt = [first], f"Add a {colours[1]} balloon on the right."
    elif category == "local_remove":
        after, prompt = [first], f"Remove the {colours[1]} balloon."
    elif category == "local_change":
        after, prompt = [first, third], f"Replace the {colours[1]} balloon with a {colours[2]} lamp."
    else:
        ground, prompt = grounds[1], f"Change the background to a {new_ground} meadow."
    source, old_covers = _film(grounds[0], pan, before)
    target, new_covers = _film(ground, pan, after)
    covers = old_covers if category == "local_remove" else new_covers
    masks = covers.any(axis=0) if category == "background_change" else covers[1]
    return Photo(prompt, category, _noisy(rng, source, 2.0), redrawn(source=target, seed=seed), masks)


def redrawn(source: np.ndarray, seed: int) -> np.ndarray:
    """A clip as an edit model gives it back where it leaves it alone: a little other in colours and sharpness."""
    rng = np.random.default_rng([seed, 6])
    stains = cv2.resize(rng.normal(0, 3, (12, 12, 3)).astype(np.float32), source.shape[2:0:-1])
    softer = np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 0.6) for frame in source])
    return _noisy(rng, softer * (1 + rng.uniform(-0.03, 0.03, 3)) + stains, 1.5)


def rough(rng: np.random.Generator, size: int, colour: tuple[int, int, int], spread: float = 28.0) -> np.ndarray:
    """A surface with structure of all sizes, float32 ``[size, size, 3]``."""
    whole = np.zeros((size, size, 3), np.float32)
    for octave, cells in enumerate((4, 9, 20, 45)):
        noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        noise = 1.25 * noise.mean(axis=-1, keepdims=True) + 0.35 * noise
        whole += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) * spread / 1.5**octave
    return np.clip(whole + np.array(colour, np.float32), 0, 255)


def _thing(rng, colour: str, x: float, y: float) -> dict:
    return {
        "place": np.array([x, y], float), "step": rng.uniform(-3, 3, 2), "radius": rng.uniform(30, 48),
        "kind": rng.integers(3), "angle": rng.uniform(0, 360), "surface": rough(rng, SIZE, _THINGS[colour], 18.0),
    }  # fmt: skip


def _film(ground: np.ndarray, pan: np.ndarray, things: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    frames, covers = [], []
    for time in range(FRAMES):
        left, top = (pan * time).astype(int)
        frame = ground[top : top + SIZE, left : left + SIZE].copy()
        covers.append([])
        for thing in things:
            place = thing["place"] + thing["step"] * time
            cover = _cover(place, thing)[..., None]
            move = np.float32([[1, 0, place[0] - SIZE / 2], [0, 1, place[1] - SIZE / 2]])
            surface = cv2.warpAffine(thing["surface"], move, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
            frame += cover * (surface - frame)
            covers[-1].append(cover[..., 0] > 0.5)
        frames.append(frame)
    return np.stack(frames), np.array(covers).swapaxes(0, 1)


def _cover(place: np.ndarray, thing: dict) -> np.ndarray:
    mask, radius = np.zeros((SIZE, SIZE), np.uint8), thing["radius"]
    centre, angle = tuple(map(float, place)), float(thing["angle"])
    if thing["kind"] == 0:
        cv2.ellipse(mask, (centre, (2 * radius, 1.3 * radius), angle), 255, -1, cv2.LINE_AA)
    elif thing["kind"] == 1:
        corners = cv2.boxPoints((centre, (1.7 * radius, 1.2 * radius), angle))
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255, cv2.LINE_AA)
    else:
        turns = np.radians(angle) + np.arange(3) * 2 * np.pi / 3
        corners = place + radius * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255, cv2.LINE_AA)
    return cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32) / 255


def _noisy(rng, frames: np.ndarray, spread: float) -> np.ndarray:
    return np.clip(frames + rng.normal(0, spread, frames.shape), 0, 255).astype(np.uint8)
