"""Reading canvas files, as ComfyUI's frontend saves them."""


def widget_values(node: dict) -> dict:
    """The node's own values by widget: slots that are widgets stand in the order of the widgets."""
    names = []
    for slot in node["inputs"]:
        if "widget" in slot:
            names.append(slot["widget"]["name"])
            if slot["name"] in ("seed", "index"):  # both count on after a run
                names.append("control_after_generate")
    values = dict(zip(names, node.get("widgets_values", []), strict=True))
    linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
    return {name: value for name, value in values.items() if name not in ("control_after_generate", "upload", *linked)}
