"""Models of language and pictures that run here, on transformers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from . import MAX_NEW_TOKENS, TEMPERATURE, Question
from .loading import Portions, device_of, loading


class LocalChat:
    """A model of transformers' ``AutoModelForImageTextToText`` that takes several pictures and has a chat template.

    Args:
        model: name on the Hugging Face hub, or folder. revision: of the hub's. device: "cuda", "cuda:1", "cpu", or
            "auto" to spread it over all GPUs; without one, the first GPU where there is one. dtype: such as "bfloat16",
            "auto" for the weights' own. max_new_tokens: the longest answer. attention: transformers' name of how
            attention is computed.

    Raises Unavailable for a model that cannot be loaded.
    """

    processing: dict = {}
    """What the processor is told besides."""

    def __init__(
        self, model: str, revision: str | None = None, device: str | None = None, dtype: str = "auto",
        max_new_tokens: int = MAX_NEW_TOKENS, attention: str | None = None,
    ):  # fmt: skip
        with loading(model):
            from transformers import AutoModelForImageTextToText, AutoProcessor

            self.processor = AutoProcessor.from_pretrained(model, revision=revision)
            if not getattr(self.processor, "chat_template", None):
                raise ValueError("it has no chat template")
            self.model = AutoModelForImageTextToText.from_pretrained(
                model, revision=revision, dtype=dtype, device_map=device_of(device), attn_implementation=attention,
                use_safetensors=True,
            ).eval()  # fmt: skip
        self.processor.tokenizer.padding_side = "left"
        # The published settings are for sampling; what is asked first is to be the likeliest answer.
        self.model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        self.max_new_tokens = max_new_tokens
        self.portions = Portions(model)

    def answers(self, questions: Sequence[Question], attempt: int = 0) -> list[str]:
        return self.portions(lambda some: self._generated(some, attempt), questions)

    def _generated(self, questions: Sequence[Question], attempt: int) -> list[str]:
        import torch

        texts = [
            self.processor.apply_chat_template(_chat(one), tokenize=False, add_generation_prompt=True)
            for one in questions
        ]
        pictures = [[Image.fromarray(part) for part in one.parts if _is_picture(part)] for one in questions]
        inputs = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt", **self.processing)
        inputs = inputs.to(self.model.device, self.model.dtype)
        sampling = {"do_sample": True, "temperature": TEMPERATURE} if attempt else {}
        torch.manual_seed(questions[0].seed + attempt)
        with torch.inference_mode():
            found = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **sampling)
        return self.processor.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _is_picture(part: str | np.ndarray) -> bool:
    return isinstance(part, np.ndarray)


def _chat(question: Question) -> list[dict]:
    content = [{"type": "image"} if _is_picture(part) else {"type": "text", "text": part} for part in question.parts]
    return [
        {"role": "system", "content": [{"type": "text", "text": question.system}]},
        {"role": "user", "content": content},
    ]
