"""Runs of a benchmark for tests of its reports: real small clips, made-up scores."""

import numpy as np
from PIL import Image

from kiwi_core import media
from training.bench.folder import DONE, FAILED, Edit, Folder, Measured, Verdict
from training.bench.items import Item
from training.nano import edits, world

NASTY = '<script>alert("x")</script> & so on'
CATEGORIES = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)


def fill(path, name="mine", count=14, better=0.0, audit=None, bench="refvie", judges=("a-judge",), fails=(3, 5)):
    """A run of so many items, ``i0`` and on. Item 0 has a nasty prompt; of ``fails`` the first edit failed, and the
    judge on the second. Item ``n`` has the score ``1 + n % 5 + better``, at most 5."""
    items, made = [], {}
    for number in range(count):
        edit = edits.draw(CATEGORIES[number % len(CATEGORIES)], 300 + number)
        source, reference = path / "clips" / f"s{number}.mp4", None
        media.save_video(source, world.render(edit.before), 8, crf=10)
        made[number] = media.save_video(path / "clips" / f"e{number}.mp4", world.render(edit.after), 8, crf=10)
        if edit.reference is not None:
            reference = path / "clips" / f"r{number}.png"
            Image.fromarray(edit.reference_picture()).save(reference)
        prompt = edit.prompt if number else NASTY
        items.append(Item(f"i{number}", edit.category, prompt, source, reference))
    folder = Folder.begin(path / "run", {"bench": bench, "system": {"name": name}}, items)
    for number, item in enumerate(items):
        if number in fails[:1]:
            folder.note_edit(Edit(item.id, FAILED, error="Out of <memory>."))
            continue
        folder.note_edit(Edit(item.id, DONE, made[number]))
        folder.note_measured(Measured(item.id, {"preservation_psnr": 30.0 + number, "text_alignment": None}))
    for judge in judges:
        told = {"model": judge, "identity": f"identity of {judge}", "settings": {}, "audit": audit}
        folder.note_judge(f"{judge}-1", told)
        for number, item in enumerate(items):
            if number in fails[:1]:
                continue
            if number in fails[1:]:
                folder.note_verdicts(f"{judge}-1", [Verdict(item.id, 0, FAILED, error="No answer could be read.")])
                continue
            value = float(np.clip(1 + number % 5 + better, 1, 5))
            scores = dict.fromkeys(item.criteria, value)
            folder.note_verdicts(f"{judge}-1", [Verdict(item.id, 0, DONE, scores, scores, f"Reason {number} <b>.")])
    return folder
