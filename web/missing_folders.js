// ComfyUI's frontend offers missing model files for download, but knows no folders. This says where to get ours, by the
// links that workflows carry in node.properties.models, under the folder's name as the loaders show it ("NAME/").
import { app } from "../../scripts/app.js";

function* nodes(graph) {
    yield* graph._nodes;
    for (const subgraph of graph.subgraphs?.values() ?? []) yield* subgraph._nodes;
}

app.registerExtension({
    name: "kiwi-edit.missing-folders",
    afterConfigureGraph() {
        const missing = new Map();
        for (const node of nodes(app.rootGraph ?? app.graph)) {
            for (const widget of node.widgets ?? []) {
                const values = widget.options?.values;
                const link = node.properties?.models?.find(({ name }) => name === widget.value);
                if (link?.name.endsWith("/") && Array.isArray(values) && !values.includes(link.name))
                    missing.set(link.name, link);
            }
        }
        const chinese = app.extensionManager.setting.get("Comfy.Locale") === "zh";
        for (const { name, url, directory } of missing.values()) {
            const folder = `models/${directory}/${name}`;
            app.extensionManager.toast.add({
                severity: "warn",
                summary: chinese ? `缺少模型文件夹 ${name}` : `The model folder ${name} is missing`,
                detail: chinese ? `请把 ${url} 下载到 ${folder}，然后按 R。` : `Download ${url} into ${folder} and press R.`,
            });
        }
    },
});
