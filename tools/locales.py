"""Write locales/en/nodeDefs.json from the nodes as a real ComfyUI lists them.

    make locales

What it lists is what other languages translate: display names, descriptions, the names and tooltips of inputs and
outputs, under the keys that ComfyUI's frontend looks up.
"""

import json
import re
import tempfile
from typing import Any

import comfyui

LOCALES = comfyui.REPO / "locales"


def key(name: str) -> str:
    """A name as part of a frontend key, which are joined by dots."""
    return name.replace(".", "_")


def _text(value: str) -> str:
    """Literal text in the frontend's message format, in which these characters would mean something."""
    return re.sub(r"[{}@|$]", lambda found: "{'" + found.group() + "'}", value)


def _entry(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": _text(name)} | ({"tooltip": tooltip} if tooltip else {})


def _inputs(info: dict) -> dict[str, dict]:
    found = {}
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, ()):
            kind, options = info["input"][group][name]
            tooltip = options.get("tooltip")
            if kind == "COMFY_AUTOGROW_V3":
                for slot in options["template"].get("names", ()):
                    found[key(f"{name}.{slot}")] = _entry(slot, tooltip)
            else:
                found[key(name)] = _entry(options.get("display_name") or name, tooltip)
    return found


def node_defs(object_info: dict[str, Any]) -> dict[str, dict]:
    """The pack's nodes of ``/object_info`` as the content of a ``nodeDefs.json``."""
    found = {}
    for node, info in sorted(object_info.items()):
        if info["python_module"] != f"custom_nodes.{comfyui.PACK}":
            continue
        outputs = zip(info["output_name"], info.get("output_tooltips") or [None] * len(info["output_name"]))
        found[node] = {
            "display_name": _text(info["display_name"]),
            "description": _text(info["description"]),
            "inputs": _inputs(info),
            "outputs": {str(index): _entry(*output) for index, output in enumerate(outputs)},
        }
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, comfyui.Server(comfyui.DEFAULT_VERSION, folder) as server:
        text = json.dumps(node_defs(server.object_info()), indent=2, ensure_ascii=False)
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(path.relative_to(comfyui.REPO))


if __name__ == "__main__":
    main()
