"""What a picture looks like as one vector, by fixed arithmetic: for finding pictures that are nearly the same."""

from __future__ import annotations

import numpy as np

from .. import pixels

_SIDE = 64
_CELLS, _WAVES, _PLACES, _TURNS = 6, 6, 6, 8
_LIGHT_BINS, _CHROMA_BINS = 5, 9
_WEIGHTS = {"layout": 0.2, "colours": 0.27, "waves": 0.08, "edges": 0.45}
"""Of the parts in the cosine of two vectors."""
_NOTHING = {"layout": 20.0, "colours": 0.0, "waves": 100.0, "edges": 2.5}
"""How long a part is that counts as much as there being nothing."""
SIZE = _CELLS**2 * 3 + _LIGHT_BINS * _CHROMA_BINS**2 + _WAVES**2 + _PLACES**2 * _TURNS + len(_WEIGHTS)


def describe(picture: np.ndarray) -> np.ndarray:
    """Float32 ``[SIZE]`` of length one, of uint8 ``[H, W, 3]``.

    Four parts: colours of a 6 x 6 grid against the border's, a soft histogram of colours, the slowest waves of the
    lightness, and strengths of edges by place and direction. What differs from the border counts most, so that a thing
    on a page is compared by the thing.
    """
    import cv2

    lab = pixels.lab(pixels.resized(np.ascontiguousarray(picture), _SIDE, _SIDE))
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]]).mean(axis=0)
    apart = lab - border
    weights = 0.05 + np.clip(np.sqrt((apart**2).sum(axis=-1)) / 30, 0, 1)
    parts = {
        "layout": cv2.resize(cv2.GaussianBlur(apart, (0, 0), 4.0), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA),
        "colours": np.sqrt(histogram(lab.reshape(-1, 3), weights.ravel())),
        "waves": cv2.dct(np.ascontiguousarray(lab[..., 0] - lab[..., 0].mean()))[:_WAVES, :_WAVES],
        "edges": np.sqrt(_edges(lab)),
    }
    vector = []
    for name, part in parts.items():
        # Where there is hardly anything, as on a wall, the last number says so instead of noise being enlarged.
        flat = np.append(part.astype(np.float32).ravel(), _NOTHING[name])
        vector.append(_WEIGHTS[name] ** 0.5 * flat / np.linalg.norm(flat))
    return np.concatenate(vector)


def histogram(lab: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of each colour among Lab ``[N, 3]``, weighted; one between two bins counts for both. Of sum 1."""
    light = np.clip(lab[:, 0] / 100 * (_LIGHT_BINS - 1), 0, _LIGHT_BINS - 1)
    # Finer near grey, where colours are most alike.
    chroma = np.sign(lab[:, 1:]) * np.sqrt(np.abs(lab[:, 1:]) / 100)
    green, blue = (np.clip((chroma[:, axis] + 1) / 2, 0, 1) * (_CHROMA_BINS - 1) for axis in range(2))
    sizes = (_LIGHT_BINS, _CHROMA_BINS, _CHROMA_BINS)
    counts = np.zeros(int(np.prod(sizes)))
    lows = [np.minimum(axis.astype(int), size - 2) for axis, size in zip((light, green, blue), sizes)]
    parts = [axis - low for axis, low in zip((light, green, blue), lows)]
    for corner in np.ndindex(2, 2, 2):
        share = weights.astype(float)
        for step, part in zip(corner, parts):
            share = share * (part if step else 1 - part)
        place = np.ravel_multi_index([low + step for low, step in zip(lows, corner)], sizes)
        counts += np.bincount(place, share, len(counts))
    return counts / counts.sum()


def directions(picture: np.ndarray) -> np.ndarray:
    """How strong the edges of uint8 ``[H, W, 3]`` are by direction alone, with what counts as none: ``[D + 1]``."""
    import cv2

    lab = cv2.GaussianBlur(pixels.lab(pixels.resized(np.ascontiguousarray(picture), _SIDE, _SIDE)), (0, 0), 1.0)
    return np.append(np.sqrt(_edges(lab).sum(axis=(0, 1))), _NOTHING["edges"])


def _edges(lab: np.ndarray) -> np.ndarray:
    """How strong edges are, by place and direction ``[P, P, D]``, each spread over its neighbours."""
    import cv2

    x, y = (cv2.Sobel(lab, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    strongest = np.abs(x).sum(axis=-1) + np.abs(y).sum(axis=-1)
    across, down = (x**2).sum(axis=-1) - (y**2).sum(axis=-1), 2 * (x * y).sum(axis=-1)
    turn = (np.arctan2(down, across) / (2 * np.pi) % 1) * _TURNS
    found = np.zeros((_PLACES, _PLACES, _TURNS), np.float32)
    for number in range(_TURNS):
        near = np.abs((turn - number + _TURNS / 2) % _TURNS - _TURNS / 2)
        part = (strongest * np.clip(1 - near, 0, 1)).astype(np.float32)
        found[..., number] = cv2.resize(
            cv2.GaussianBlur(part, (0, 0), 4.0), (_PLACES, _PLACES), interpolation=cv2.INTER_AREA
        )
    return found / _PLACES**2
