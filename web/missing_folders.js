// ComfyUI's frontend offers missing model files for download, but knows no folders. This says where to get ours, by the
// links that workflows carry in node.properties.models, under the folder's name as the loaders show it ("NAME/"). Where
// there is no other model, the toy model that comes with the pack is chosen, so that every workflow runs.
import { app } from "../../scripts/app.js";

const NANO = "kiwi-edit-nano/";
const told = new Set(); // a graph is configured anew with every undo and change of tabs

function* nodes(graph) {
    yield* graph._nodes;
    for (const subgraph of graph.subgraphs?.values() ?? []) yield* subgraph._nodes;
}

app.registerExtension({
    name: "kiwi-edit.missing-folders",
    afterConfigureGraph() {
        const missing = new Map();
        let standsIn = false;
        for (const node of nodes(app.rootGraph ?? app.graph)) {
            for (const widget of node.widgets ?? []) {
                const values = widget.options?.values;
                const link = node.properties?.models?.find(({ name }) => name === widget.value);
                if (!link?.name.endsWith("/") || !Array.isArray(values) || values.includes(link.name)) continue;
                missing.set(link.name, link);
                const folders = values.filter((value) => value.endsWith("/"));
                if (folders.length === 1 && folders[0] === NANO) {
                    widget.value = NANO;
                    standsIn = true;
                }
            }
        }
        const chinese = app.extensionManager.setting.get("Comfy.Locale") === "zh";
        for (const name of told) if (!missing.has(name)) told.delete(name);
        for (const { name, url, directory } of missing.values()) {
            if (told.has(name)) continue;
            told.add(name);
            const folder = `models/${directory}/${name}`;
            app.extensionManager.toast.add({
                severity: "warn",
                summary: chinese ? `缺少模型文件夹 ${name}` : `The model folder ${name} is missing`,
                detail: chinese ? `请把 ${url} 下载到 ${folder}，然后按 R。` : `Download ${url} into ${folder} and press R.`,
            });
        }
        if (standsIn)
            app.extensionManager.toast.add({
                severity: "info",
                life: 15000,
                summary: chinese ? "已选择玩具模型" : "The toy model is chosen",
                detail: chinese
                    ? "kiwi-edit-nano 随节点包附带，只认识 64 x 64 的彩色形状。"
                    : "kiwi-edit-nano comes with the pack and knows 64 x 64 pixels of coloured shapes, nothing else.",
            });
    },
});
