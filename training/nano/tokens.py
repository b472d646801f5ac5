"""A tokenizer of 640 tokens: Qwen's special ones, and what the toy world's sentences are made of."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kiwi_core import mllm

from . import edits, words, world

VOCABULARY = 640
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def _sentences() -> Iterator[str]:
    for _ in range(60):  # in front of every instruction: as few tokens as can be
        yield mllm.SYSTEM_PROMPT
        yield mllm.REFERENCE_SUFFIX
        yield "system\nuser\nassistant\n"
    named = (*world.COLOURS, *world.SHAPES, *world.TEXTURES, *world.GROUNDS)
    yield from (f" {word}" for word in named for _ in range(9))
    for seed in range(200):
        for category in (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES):
            edit = edits.draw(category, seed)
            yield edit.prompt
            yield words.describe(edit.after)
            yield from (wording.replace("{", "").replace("}", "") for wording in words.WORDINGS[edit.task])


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
