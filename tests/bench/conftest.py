"""A small run of a benchmark, shared by the tests of benchmarks."""

import chat_server
import golden  # noqa: F401  (one thread: the tensors are too small for more to pay)
import pytest
import yaml
from PIL import Image

from kiwi_core import media
from training.asking import remote
from training.nano import edits, world

CATEGORIES = (*edits.CATEGORIES, *edits.REFERENCE_CATEGORIES)


@pytest.fixture(scope="session")
def refvie_bench(tmp_path_factory):
    """A benchmark in the layout of RefVIE-Bench: two subjects, two backgrounds. Not to be changed."""
    folder = tmp_path_factory.mktemp("refvie_bench")
    rows = []
    for number in range(4):
        category = edits.REFERENCE_CATEGORIES[number % 2]
        edit = edits.draw(category, 700 + number)
        media.save_video(folder / "source_videos" / f"clip{number}.mp4", world.render(edit.before), 8, crf=4)
        (folder / "ref_images").mkdir(exist_ok=True)
        Image.fromarray(edit.reference_picture()).save(folder / "ref_images" / f"ref{number}.png")
        rows.append({
            "src_video": f"source_videos/clip{number}.mp4", "instruction": edit.prompt,
            "ref_img": f"ref_images/ref{number}.png", "edit_type": ("subject", "background")[number % 2],
        })  # fmt: skip
    (folder / "refvie_bench.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def openve_bench(tmp_path_factory):
    """A benchmark in the layout of OpenVE-Bench: each scored type twice, and one that is not. Not to be changed."""
    folder = tmp_path_factory.mktemp("openve_bench")
    lines = ["original_video,prompt,edited_type,edited_result_path"]
    for number in range(10):
        edit = edits.draw(edits.CATEGORIES[number % 5], 800 + number)
        media.save_video(folder / "videos" / f"clip{number}.mp4", world.render(edit.before), 8, crf=4)
        kind = edit.category.replace("_", " ").title()
        lines.append(f'videos/clip{number}.mp4,"{edit.prompt}",{kind},')
    lines.append('videos/clip0.mp4,"Add a subtitle.",Subtitles Edit,')
    (folder / "benchmark_videos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


@pytest.fixture
def stand(monkeypatch):
    """A stand-in for a judge's server, which answers at once and is waited for briefly."""
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = chat_server.Stand("")
    yield made
    made.close()
