"""Which samples come when: an endless, shuffled stream of batches in which every place can be computed alone.

So a run that goes on after a kill, with any number of workers, sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Hashable, Sequence

# Units whose samples come in turn: more mix better, but a process keeps the row groups of all of them in memory.
_MIXED = 16


class BatchStream:
    """Batches of samples of one shape, shuffled anew in every epoch.

    Args:
        shapes: shape of each sample, anything that can be compared. units: what each is read in one go with, anything
            that can be sorted, or None; of these, a few at a time are mixed. batch_size: of full batches; smaller
            ones are among them where the numbers do not fit. seed: with ``name``, of the shuffling.
        by_file: the order of older runs: file by file, for which ``units`` are to be the files, all of one type.
    """

    def __init__(
        self,
        shapes: Sequence[Hashable],
        units: Sequence[Hashable],
        batch_size: int,
        seed: int,
        name: str,
        by_file: bool = False,
    ):
        self._shapes, self._units, self._batch_size = list(shapes), list(units), batch_size
        self._seed, self._name, self._by_file = seed, name, by_file
        counts: dict[Hashable, int] = {}
        for shape in self._shapes:
            counts[shape] = counts.get(shape, 0) + 1
        self.batches_per_epoch = sum(-(-count // batch_size) for count in counts.values())
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, index: int) -> list[int]:
        """Samples of the batch at a place of the stream, from 0 on."""
        epoch, within = divmod(index, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][within]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        draw = random.Random(derive(self._seed, self._name, epoch))  # noqa: S311
        units = sorted(set(self._units) - {None})
        draw.shuffle(units)
        if self._by_file:
            rank = {unit: place for place, unit in enumerate(units)}
            order = list(range(len(self._shapes)))
            draw.shuffle(order)
            batches = self._batches(sorted(order, key=lambda sample: rank[self._units[sample]]))
            if len(units) == 1:
                draw.shuffle(batches)
            return batches
        times = self._times(units, draw)
        batches = self._batches(sorted(range(len(times)), key=times.__getitem__))
        # By when it was full, a batch of a rare shape would come late, and one that never is would come last.
        batches.sort(key=lambda batch: times[draw.choice(batch)])
        return batches

    def _times(self, units: list[Hashable], draw: random.Random) -> list[float]:
        """When in the epoch, from 0 to 1, each sample comes: any time, but those of a unit with some other units."""
        window = {unit: place // _MIXED for place, unit in enumerate(units)}
        sizes = [0] * (len(units) // _MIXED + 1)
        for unit in self._units:
            if unit is not None:
                sizes[window[unit]] += 1
        ends = list(itertools.accumulate(sizes))
        times = []
        for unit in self._units:
            time = draw.random()
            if unit is not None:
                time = (ends[window[unit]] - sizes[window[unit]] * time) / ends[-1]
            times.append(time)
        return times

    def _batches(self, order: list[int]) -> list[list[int]]:
        open_batches: dict[Hashable, list[int]] = {}
        batches = []
        for sample in order:
            batch = open_batches.setdefault(self._shapes[sample], [])
            batch.append(sample)
            if len(batch) == self._batch_size:
                batches.append(open_batches.pop(self._shapes[sample]))
        return batches + list(open_batches.values())


def derive(*parts: object) -> int:
    """A seed of 63 bits from anything with a stable text, the same on every machine."""
    text = "|".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
