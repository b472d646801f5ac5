"""A small random model of language and pictures, in a folder as the published ones are."""

import torch
import transformers
from random_model import byte_tokenizer

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None,
    "initializer_range": 0.3,  # so that answers depend on what is seen
}  # fmt: skip
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
PATCHES = {"qwen2_5_vl": 14, "qwen3_vl": 16}


def write_qwen(folder, kind):
    """A model of Qwen's with a token a byte, whose generation is set to sample as the published ones are."""
    tokenizer = byte_tokenizer()
    names = ("image", "video", "vision_start", "vision_end")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {f"{name}_token_id": tokenizer.token_to_id(mark) for name, mark in zip(names, marks)}
    rope = {"mrope_section": [2, 3, 3]}
    if kind == "qwen2_5_vl":
        config = transformers.Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_scaling": rope | {"type": "mrope", "rope_type": "default"}},
            vision_config=VISION | {"fullatt_block_indexes": [1], "patch_size": 14}, **ids,
        )  # fmt: skip
        model_class, processor_class = (
            transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLProcessor,
        )  # fmt: skip
        size = {"shortest_edge": 100 * 28**2, "longest_edge": 200 * 28**2}  # not what the frames have
        video = transformers.Qwen2VLVideoProcessor()
    else:
        rope |= {"rope_type": "default", "mrope_interleaved": True}
        config = transformers.Qwen3VLConfig(
            text_config=TEXT | {"head_dim": 16, "rope_scaling": rope},
            vision_config=VISION | {"deepstack_visual_indexes": [0], "patch_size": 16, "num_position_embeddings": 64},
            **ids,
        )  # fmt: skip
        model_class, processor_class = transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLProcessor
        size = {"shortest_edge": 64**2, "longest_edge": 4096**2}
        video = transformers.Qwen3VLVideoProcessor()
    torch.manual_seed(0)
    model = model_class(config)
    end = tokenizer.token_to_id("<|im_end|>")
    model.generation_config.update(
        do_sample=True, temperature=0.9, top_k=20, top_p=0.8, eos_token_id=end, pad_token_id=end
    )
    model.save_pretrained(folder)
    processor_class(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=PATCHES[kind], size=size),
        tokenizer=transformers.Qwen2TokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"  # noqa: S106
        ),
        video_processor=video, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)
