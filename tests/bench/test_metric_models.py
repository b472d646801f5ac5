"""Values that take models: small random ones, in folders as the published ones are. What they say means nothing here;
it must be what the models say."""

import importlib.machinery
import json
import logging
import sys
import types

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from random_model import byte_tokenizer

from training.bench.folder import Edit
from training.bench.items import Item
from training.bench.metrics import VERSION, Meter, preservation
from training.bench.metrics.likeness import Texts
from training.nano import edits, world
from training.nano.rows import save_exactly
from training.refvie.backends import Unavailable

PROMPT = "Make the disc blue."
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
         "initializer_range": 0.3}  # fmt: skip
WORDS = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 300,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 24, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")

    def write(kind):
        folder = root / kind
        if folder.exists():
            return str(folder)
        torch.manual_seed(0)
        edge, square = {"shortest_edge": 28}, {"height": 28, "width": 28}
        vision = SHAPE | {"intermediate_size": 32}
        if kind == "dinov2":
            model = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE))
            processor = transformers.BitImageProcessor(size=edge, crop_size=square)
        elif kind == "clip":
            config = transformers.CLIPConfig(text_config=WORDS, vision_config=vision, projection_dim=8)
            model, processor = (
                transformers.CLIPModel(config), transformers.CLIPImageProcessor(size=edge, crop_size=square),
            )  # fmt: skip
        else:
            config = transformers.SiglipConfig(text_config=WORDS | {"projection_size": 16}, vision_config=vision)
            model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=square)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if kind != "dinov2":
            end = "<|endoftext|>"
            transformers.PreTrainedTokenizerFast(
                tokenizer_object=byte_tokenizer(), pad_token=end, eos_token=end
            ).save_pretrained(folder)
        return str(folder)

    return write


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """An item and its edit with a reference, and their frames."""
    folder = tmp_path_factory.mktemp("clips")
    edit = edits.draw("subject_reference", 20)
    source, target = world.render(edit.before), world.render(edit.after)
    save_exactly(folder / "source.mkv", source)
    save_exactly(folder / "edit.mkv", target)
    Image.fromarray(edit.reference_picture()).save(folder / "reference.png")
    item = Item("one", "subject", PROMPT, folder / "source.mkv", folder / "reference.png")
    return item, Edit("one", "done", folder / "edit.mkv"), source, target


def measured(meter, clips):
    found = meter.measure(*clips[:2])
    assert not found.error
    return found.values


def pooled(found):
    found = found if torch.is_tensor(found) else found.pooler_output
    return torch.nn.functional.normalize(found, dim=-1).detach()


def images(folder, kind, frames):
    """Vectors of frames, by transformers alone."""
    model = getattr(transformers, {"dinov2": "Dinov2Model", "clip": "CLIPModel", "siglip": "SiglipModel"}[kind])
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
    model = model.from_pretrained(folder).eval()
    return model, pooled(model(**inputs) if kind == "dinov2" else model.get_image_features(**inputs))


def test_frames_are_compared_by_an_image_model(folder_of, clips):
    meter = Meter(images=folder_of("dinov2"), device="cpu")
    values, plain = measured(meter, clips), measured(Meter(), clips)
    wanted = []
    for frames in clips[2:]:
        vectors = images(folder_of("dinov2"), "dinov2", frames)[1]
        wanted.append(float((vectors[1:] * vectors[:-1]).sum(dim=1).mean()))
    assert values["consistency"] == pytest.approx(wanted[1], abs=1e-5)
    assert values["consistency_gain"] == pytest.approx(wanted[1] - wanted[0], abs=1e-5)
    assert values["reference_similarity"] != plain["reference_similarity"] > 0
    assert values["copy_paste"] == plain["copy_paste"]  # of pixels, whatever the model
    assert values["preservation_psnr"] == plain["preservation_psnr"]
    assert values["text_alignment"] is None


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_prompts_are_compared_by_a_model_of_texts(folder_of, clips, kind):
    folder = folder_of(kind)
    values = measured(Meter(texts=folder, device="cpu"), clips)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        [PROMPT], return_tensors="pt", **({"padding": "max_length", "max_length": 24} if kind == "siglip" else {})
    )
    wanted = []
    for frames in clips[2:]:
        model, vectors = images(folder, kind, frames)
        text = pooled(model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]))
        wanted.append(float((vectors @ text[0]).mean()))
    assert values["text_alignment"] == pytest.approx(wanted[1], abs=1e-5)
    assert values["text_gain"] == pytest.approx(wanted[1] - wanted[0], abs=1e-5)


def test_a_prompt_longer_than_the_model_reads_is_cut(folder_of, clips):
    texts = Texts(folder_of("clip"), "cpu")
    long = PROMPT * 20
    assert texts.alignment(long, clips[2]) == texts.alignment(long + "!", clips[2])
    assert texts.alignment(PROMPT, clips[2]) != texts.alignment("Add a cat.", clips[2])


def test_one_model_serves_for_both(folder_of, clips):
    folder = folder_of("clip")
    both = measured(Meter(images=folder, texts=folder, device="cpu"), clips)
    assert both["text_alignment"] == measured(Meter(texts=folder, device="cpu"), clips)["text_alignment"]
    assert both["consistency"] == measured(Meter(images=folder, device="cpu"), clips)["consistency"]


def test_models_that_will_not_do_are_told_in_a_sentence(folder_of, tmp_path):
    with pytest.raises(ValueError, match="knows pictures but no texts; give one such as CLIP or SigLIP"):
        Meter(texts=folder_of("dinov2"), device="cpu")
    for given in ("images", "texts"):
        with pytest.raises(Unavailable, match="cannot be loaded"):
            Meter(**{given: str(tmp_path / "none")}, device="cpu")


def test_numbers_are_known_by_their_models_and_not_by_the_device(folder_of):
    dino, clip = folder_of("dinov2"), folder_of("clip")
    known = [
        Meter(**given).identity for given in ({}, {"device": "cpu"}, {"images": dino, "device": "cpu"}, {"texts": clip})
    ]
    assert known[0] == known[1] and len(set(known)) == 3
    assert json.loads(known[0])[0] == VERSION


# LPIPS


def test_without_lpips_there_is_no_such_value_and_the_log_says_so_once(clips, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "lpips", None)
    meter = Meter()
    with caplog.at_level(logging.INFO, "training.bench.metrics"):
        assert [measured(meter, clips)["preservation_lpips"] for _ in range(2)] == [None, None]
    assert sum("LPIPS is not measured" in line for line in caplog.messages) == 1


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A package whose distance is the squared difference around each pixel, and a folder for weights."""
    module = types.ModuleType("lpips")
    module.__spec__ = importlib.machinery.ModuleSpec("lpips", None)

    class Stand(torch.nn.Module):
        def __init__(self, net, spatial, verbose):
            super().__init__()
            assert (net, spatial) == ("alex", True)

        def forward(self, one, other):
            assert one.min() >= -1 and one.max() <= 1
            apart = (one - other).square().mean(dim=1, keepdim=True)
            return torch.nn.functional.avg_pool2d(apart, 5, 1, 2, count_include_pad=False)

    module.LPIPS = Stand
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_lpips_without_weights_is_not_measured(weights, caplog):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    assert preservation.Lpips("cpu")(frames, frames, np.ones((2, 16, 16), bool)) is None
    assert "AlexNet's weights are not in" in caplog.text


def test_lpips_is_measured_outside_the_region(weights):
    weights.mkdir()
    (weights / "alexnet-0.pth").touch()
    rng = np.random.default_rng(0)
    source = rng.integers(0, 230, (3, 16, 16, 3), dtype=np.uint8)
    outside = np.ones((3, 16, 16), bool)
    lpips = preservation.Lpips("cpu")
    assert lpips(source, source + 20, outside) == pytest.approx((20 / 127.5) ** 2, rel=1e-4)
    outside[:, 4:12, 4:12] = False
    assert lpips(source, np.where(outside[..., None], source, 255 - source), outside) == 0
    assert 0 < lpips(source, np.where(outside[..., None], source + 20, source), outside) < (20 / 127.5) ** 2
