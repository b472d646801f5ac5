"""A tokenizer of 640 tokens: Qwen's special ones, and what the toy world's sentences are made of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kiwi_core import mllm

from . import words, world

VOCABULARY = 640
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def _sentences() -> Iterator[str]:
    """What is said in the world, without drawing from it: the tokens must not change with how scenes are drawn."""
    for _ in range(40):  # in front of every instruction: as few tokens as can be
        yield mllm.SYSTEM_PROMPT
        yield mllm.REFERENCE_SUFFIX
        yield "system\nuser\nassistant\n"
    wordings = [one for group in words.WORDINGS.values() for one in group]
    yield from (re.sub(r"\{\w+\}", "", wording) for wording in wordings for _ in range(20))
    grounds = [world.Ground(colour, pattern) for colour in world.GROUNDS for pattern in world.PATTERNS]
    yield from (f"{words.describe_ground(ground)} with" for ground in grounds for _ in range(4))
    yield from (f", {style}. no instead of" for style in world.STYLES for _ in range(20))
    for place, colour, shape in itertools.product(words.PLACES, world.COLOURS, world.SHAPES):
        for texture in world.TEXTURES:
            thing = world.Thing(shape, colour, texture, 1, 0, 0, 0, 0)
            yield f"{words.describe_thing(thing)} at the {place} and the {colour} shape"


def build() -> Tokenizer:
    """The tokenizer, the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_sentences(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
