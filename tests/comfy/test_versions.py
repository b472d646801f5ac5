"""Every ComfyUI between the oldest and the newest loads the nodes and runs the instruct and the reference workflow.

Each version is a server of its own, whatever version the other tests here run on; on those two, all of them do.
"""

import comfyui
import pytest
import random_model
import sample_graph
from PIL import Image

from kiwi_core import media

FRAMES = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    random_model.write(folder)
    return folder / "comfyui"


@pytest.fixture(scope="module", params=comfyui.VERSIONS[1:-1])
def any_server(request, models, tmp_path_factory):
    base = tmp_path_factory.mktemp(f"comfyui-{request.param}")
    (base / "models").symlink_to(models, target_is_directory=True)
    with comfyui.Server(request.param, base, cpu=True) as server:
        media.save_video(base / "input" / "clip.mp4", sample_graph.draw_clip()[:FRAMES, ::2, ::2], 12)
        Image.fromarray(sample_graph.draw_clip()[20, ::3, ::3]).save(base / "input" / "reference.png")
        yield server


def test_the_nodes_load(any_server):
    module = f"custom_nodes.{comfyui.PACK}"
    listed = {name for name, info in any_server.object_info().items() if info["python_module"] == module}
    assert listed == {page.stem for page in (comfyui.REPO / "web" / "docs").glob("*.md")}


@pytest.mark.parametrize("name", ["instruct_video_edit", "reference_video_edit"])
def test_the_workflow_runs_to_its_file(any_server, name):
    (path,) = any_server.output_files(any_server.run(sample_graph.workflow(name, {"steps": 2})))
    clip = media.load_video(path)
    assert clip.frames.shape == (FRAMES, 64, 96, 3)
    assert clip.frame_rate == 12
