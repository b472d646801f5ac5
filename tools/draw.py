"""Draw the shipped workflows on ComfyUI's real canvas: workflows/api/NAME.json -> workflows/NAME.json and NAME.jpg.

    make workflows

It also makes the subgraph blueprint out of quick_edit, and takes the pictures of the help pages: web/docs/NODE.jpg.
"""

import json
import re
import tempfile
import uuid
from pathlib import Path

import canvas as canvases
import comfyui
import props
from canvas import Canvas
from PIL import Image

WORKFLOWS = comfyui.REPO / "workflows"
BLUEPRINT = comfyui.REPO / "subgraphs" / "Video Edit (Kiwi-Edit).json"
HELP = comfyui.REPO / "web" / "docs"
COLUMN, WIDTH, ROW, BAND = 400, 340, 60, 6
# Room for the previews that these get once a file is chosen.
HEIGHTS = {"LoadVideo": 330, "LoadImage": 380, "KiwiEditEstimate": 420}
HUB = "https://huggingface.co/linyq"
MODEL_NOTE = f"""## Model

Download [{props.MODEL}]({HUB}/{props.MODEL}) into `ComfyUI/models/diffusers/`, so that its files lie in
`models/diffusers/{props.MODEL}/`, and press R.
"""
NOTES = {
    "batch_clips": "Put the clips into a folder `clips` in ComfyUI's input folder and queue as many runs as there are "
    "clips (the number beside Run).",
    "long_video": "A clip of more than 81 frames is edited in windows, in the memory of one. The language model sees "
    "the whole clip, as it was trained; set `window_frames` of *Encode Instruction* to 81 to show it each window. "
    "*Match Colours* takes back what drifts over the length.",
    "lora_style": "Put a Wan or Kiwi-Edit LoRA into `models/loras`, press R and choose it.",
    "low_memory": "For cards of 8 GB: fp8 weights, 480p, 49 frames. *Estimate Memory* says what each phase takes; set "
    "it to your card.",
    "masked_edit": "White in the mask is where to edit; all else stays the source's own. For one mask on all frames "
    "put *Load Image (as Mask)* in the place of the mask video.",
    "preview_edit": "Tries the instruction on three frames, in a small part of the clip's time.",
    "quick_edit": "The whole edit in one node. Connect a `reference` picture or a `mask` if there is one.",
    "reference_background": "The picture becomes the new background: it is cropped to the clip's shape first.",
    "reference_video_edit": "The picture shows what is to appear, best alone on white: *Make Reference* cuts it out.",
}
_LOAD = """async ([api, width, heights]) => {
    const app = window.app;
    await app.loadApiJson(api, 'workflow');
    await new Promise(done => setTimeout(done, 1000));  // previews
    for (const node of app.graph._nodes) {
        const inputs = api[node.id]?.inputs ?? {};
        for (const widget of node.widgets ?? []) {
            const value = inputs[widget.name];
            if (value !== undefined && !Array.isArray(value)) widget.value = value;  // else a link
            if (widget.name === 'control_after_generate' && 'seed' in inputs) widget.value = 'fixed';
        }
        node.setSize([width, Math.max(node.computeSize()[1], heights[node.type] ?? 0)]);
    }
    return Object.fromEntries(app.graph._nodes.map(node => [node.id, [...node.size]]));
}"""
_PLACE = """([places, note]) => {
    const app = window.app;
    for (const [id, pos] of Object.entries(places)) app.graph.getNodeById(Number(id)).pos = pos;
    const node = window.LiteGraph.createNode('MarkdownNote');
    app.graph.add(node);
    node.title = note.title;
    node.widgets[0].value = note.text;
    node.pos = note.pos;
    node.setSize(note.size);
    app.graph.setDirtyCanvas(true, true);
}"""

_BLUEPRINT = """([title, shown]) => {  // the loader and the edit as a node that shows these of their inputs
    const graph = window.app.graph;
    const inner = graph._nodes.filter(node => node.type in shown);
    const {subgraph, node} = graph.convertToSubgraph(new Set(inner));
    for (const input of [...subgraph.inputs].slice(1)) subgraph.removeInput(input);  // all but the video
    for (const [type, names] of Object.entries(shown)) {
        const part = subgraph._nodes.find(node => node.type === type);
        for (const name of names) {
            const slot = part.inputs.find(input => input.name === name);
            subgraph.addInput(name, String(slot.type)).connect(slot, part);
        }
    }
    const edit = subgraph._nodes.find(node => node.type === 'KiwiEditEditVideo');
    const frames = edit.outputs.find(output => output.name === 'frames');
    subgraph.addOutput('frames', 'IMAGE').connect(frames, edit);
    for (const other of [...graph._nodes]) if (other !== node) graph.remove(other);
    node.title = subgraph.name = title;
    node.pos = [0, 0];
    node.setSize([340, node.computeSize()[1]]);
    return graph.serialize();
}"""
_SHOWN = {
    "KiwiEditEditVideo": ["reference", "mask", "prompt", "seed", "steps", "max_pixels", "max_frames"],
    "KiwiEditLoadAll": ["model_name", "weight_dtype"],
}
_ALONE = """(type) => {
    const graph = window.app.graph;
    for (const other of [...graph._nodes]) graph.remove(other);  // cleared, values of its nodes would come back
    const node = window.LiteGraph.createNode(type);
    graph.add(node);
    node.setSize(node.computeSize().map((side, axis) => axis ? side : Math.max(side, 320)));
}"""


def columns(api: dict) -> dict[str, int]:
    """Which column each node stands in: right of all that it needs, and a loader left of its first user."""
    parents = {
        name: [value[0] for value in node["inputs"].values() if isinstance(value, list)] for name, node in api.items()
    }

    def depth(name: str) -> int:
        return max((depth(parent) + 1 for parent in parents[name]), default=0)

    found = {name: depth(name) for name in api}
    for name in api:
        users = [found[user] for user in api if name in parents[user]]
        if not parents[name] and users:
            found[name] = min(users) - 1
    return found


def places(api: dict, sizes: dict[str, list[float]]) -> dict[str, list[float]]:
    """Where each node goes: in its column from the top, loaders below the others; six columns, the rest below."""
    found, bottoms = {}, {}
    column_of = columns(api)
    beyond = max(column_of.values()) + 1 - BAND
    linked = {name: any(isinstance(value, list) for value in node["inputs"].values()) for name, node in api.items()}
    for name, column in sorted(column_of.items(), key=lambda item: (item[1], not linked[item[0]], int(item[0]))):
        place, top = column, 0.0
        if column >= BAND:  # the second row stands on the right
            place = column - beyond
            top = max(bottom for other, bottom in bottoms.items() if BAND - beyond <= other < BAND)
        found[name] = [COLUMN * place, bottoms.get(column, top)]
        bottoms[column] = found[name][1] + sizes[name][1] + ROW
    return found


def lay_out(canvas: Canvas, api: dict, hint: str) -> dict:
    """Put an API workflow onto the canvas, with a note beside it; its canvas file."""
    canvas.start()  # previews of the last workflow would stay with the numbers of its nodes
    sizes = canvas.page.evaluate(_LOAD, [api, WIDTH, HEIGHTS])
    note = {"title": "Note", "text": f"{hint}\n\n{MODEL_NOTE}".strip(), "pos": [-COLUMN, 0], "size": [WIDTH, 240]}
    canvas.page.evaluate(_PLACE, [places(api, sizes), note])
    graph = canvas.graph()
    for node in graph["nodes"]:
        _link_models(node)
    return graph


def draw_workflow(canvas: Canvas, name: str) -> Image.Image:
    """Write the canvas file of ``workflows/api/NAME.json`` and what nodes have gained since into that; its picture."""
    path = WORKFLOWS / "api" / f"{name}.json"
    api = json.loads(path.read_text(encoding="utf-8"))
    graph = lay_out(canvas, api, NOTES.get(name, ""))
    prompt = canvas.prompt()
    for node_id, node in api.items():
        if not node["inputs"].items() <= prompt[node_id]["inputs"].items():
            raise SystemExit(f"The canvas does not give node {node_id} of api/{name}.json back: {prompt[node_id]}")
        node["inputs"] = prompt[node_id]["inputs"]
    _write(path, api)
    graph["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"kiwi-edit/{name}"))
    _write(WORKFLOWS / f"{name}.json", graph)
    canvas.open(graph, name)
    picture = canvas.picture()
    picture.thumbnail((2000, 2000), Image.Resampling.LANCZOS)
    return picture


def make_blueprint(canvas: Canvas) -> None:
    """Write the subgraph blueprint: the loader and the edit of ``quick_edit`` as one node."""
    api = json.loads((WORKFLOWS / "api" / "quick_edit.json").read_text(encoding="utf-8"))
    lay_out(canvas, api, "")
    graph = canvas.page.evaluate(_BLUEPRINT, [BLUEPRINT.stem, _SHOWN])
    (subgraph,) = graph["definitions"]["subgraphs"]
    subgraph["category"] = "Video generation and editing/Video Edit"
    subgraph["description"] = "Edits a video by an instruction, a reference picture and a mask with Kiwi-Edit."
    graph["extra"] = {"BlueprintSearchAliases": ["kiwi", "video to video", "instruct edit"]}
    for part in subgraph["nodes"]:
        _link_models(part)
    text = json.dumps(graph)
    for number, found in enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"kiwi-edit/blueprint/{number}")))
    _write(BLUEPRINT, json.loads(text))


def _link_models(node: dict) -> None:
    """Say in a serialised node where to get the model folder that it names."""
    name = f"{props.MODEL}/"
    if name in node.get("widgets_values", []):
        link = {"name": name, "url": f"{HUB}/{props.MODEL}", "directory": "diffusers"}
        node["properties"]["models"] = [link]


def draw_node(canvas: Canvas, node_id: str) -> Image.Image:
    """The node alone, for its help page."""
    canvas.page.evaluate(_ALONE, node_id)
    canvas.page.wait_for_timeout(300)
    return canvas.picture(margin=12, zoom=1.25)


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        props.place(Path(folder))
        with comfyui.Server(comfyui.DEFAULT_VERSION, folder) as server, canvases.browse(server) as canvas:
            for path in sorted((WORKFLOWS / "api").glob("*.json")):
                draw_workflow(canvas, path.stem).save(WORKFLOWS / f"{path.stem}.jpg", quality=85)
                print(f"workflows/{path.stem}.json, {path.stem}.jpg")
            make_blueprint(canvas)
            canvas.start()
            print(BLUEPRINT.relative_to(comfyui.REPO))
            for page in sorted(HELP.glob("*.md")):
                draw_node(canvas, page.stem).save(page.with_suffix(".jpg"), quality=80)
                print(f"web/docs/{page.stem}.jpg")


if __name__ == "__main__":
    main()
