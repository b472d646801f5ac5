"""Which samples come when: an endless, shuffled stream of batches in which every place can be computed alone.

So a run that goes on after a kill, with any number of workers, sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Sequence


class BatchStream:
    """Batches of samples of one shape, shuffled anew in every epoch.

    Args:
        shapes: shape of each sample, anything that can be compared. shards: name of the file that each lies in;
            samples of one file stay near each other, so that files are read in one go. batch_size: of full batches;
            an epoch ends with smaller ones where the numbers do not fit. seed: with ``name``, of the shuffling.
    """

    def __init__(self, shapes: Sequence[Hashable], shards: Sequence[str], batch_size: int, seed: int, name: str):
        self._shapes, self._shards, self._batch_size = list(shapes), list(shards), batch_size
        self._seed, self._name = seed, name
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
        shards = sorted(set(self._shards))
        draw.shuffle(shards)
        rank = {shard: place for place, shard in enumerate(shards)}
        order = list(range(len(self._shapes)))
        draw.shuffle(order)
        order.sort(key=lambda sample: rank[self._shards[sample]])
        open_batches: dict[Hashable, list[int]] = {}
        batches = []
        for sample in order:
            batch = open_batches.setdefault(self._shapes[sample], [])
            batch.append(sample)
            if len(batch) == self._batch_size:
                batches.append(open_batches.pop(self._shapes[sample]))
        batches += open_batches.values()
        if len(shards) == 1:  # else the order of the files is to stay
            draw.shuffle(batches)
        return batches


def derive(*parts: object) -> int:
    """A seed of 63 bits from anything with a stable text, the same on every machine."""
    text = "|".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
