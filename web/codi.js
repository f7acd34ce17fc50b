// Shows on CoDi's nodes what they made. It is read from the host's node outputs, so it is there again after a change of tab, undo, a subgraph
// entered and left, or a reload of the page. What is copied takes it along, within the clipboard, to the outputs of the copy.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { buildView } from "./codi_view.js";

const HEIGHTS = { // of what nodes show, at least, in pixels
  CoDiPreview: 320, CoDiDecodeImage: 200, CoDiDecodeVideo: 200, CoDiDecodeAudio: 44, CoDiDecodeText: 60, CoDiShowText: 60, CoDiBounceScene: 240,
  CoDiCoherence: 320, CoDiSharedSpace: 320, CoDiPickBest: 60, CoDiTrain: 200, CoDiLoad: 72, CoDiLoadJoint: 72, CoDiConditionMixer: 60, CoDiPromptTravel: 60,
  CoDiKeep: 48, CoDiMediaToLatent: 48, CoDiEmptyJointLatent: 48,
};
const rootGraph = () => app.rootGraph ?? app.graph;

/** Key of a node in the host's node outputs: its id, in a subgraph after the subgraph's. */
const keyOf = (node) => (!node.graph || node.graph === rootGraph() ? String(node.id) : `${node.graph.id}:${node.id}`);

/** All nodes of ours that show something, those in subgraphs too. */
function* showing(graph = rootGraph()) {
  for (const node of graph?._nodes ?? []) {
    if (node.codiView) yield node;
    if (node.subgraph) yield* showing(node.subgraph);
  }
}

function refresh(node, output = app.nodeOutputs?.[keyOf(node)]) {
  if (output === node.codiShown) return;
  node.codiShown = output;
  node.codiView.show(output);
}

function attach(nodeType, height) {
  const { onNodeCreated, onExecuted, onConfigure, onSerialize, clone } = nodeType.prototype;
  nodeType.prototype.onNodeCreated = function () {
    onNodeCreated?.apply(this, arguments);
    this.codiView = buildView((images) => { this.imgs = images.length ? images : undefined; }); // for the host's menu: open, copy, save
    this.hideOutputImages = true;
    this.codiView.root.style.minHeight = `${height}px`;
    const options = { serialize: false, hideInPanel: true, hideOnZoom: false, getMinHeight: () => height };
    const widget = this.addDOMWidget("codi_results", "codi_results", this.codiView.root, options);
    widget.serialize = false; // nothing of it is stored
    this.setSize([Math.max(this.size[0], height > 300 ? 420 : 300), this.computeSize()[1]]);
    setTimeout(() => refresh(this)); // once it has its id
  };
  nodeType.prototype.onConfigure = function (data) {
    onConfigure?.apply(this, arguments);
    delete this.codiCopied; // the host puts every field of the data on the node
    setTimeout(() => {
      if (data?.codiCopied && this.graph) app.nodeOutputs[keyOf(this)] ??= data.codiCopied;
      refresh(this);
    });
  };
  nodeType.prototype.clone = function () { // the host puts a clone, serialized, into the clipboard
    const copy = clone.apply(this, arguments);
    if (copy) copy.codiCopied = app.nodeOutputs?.[keyOf(this)];
    return copy;
  };
  nodeType.prototype.onSerialize = function (data) {
    onSerialize?.apply(this, arguments);
    for (const fields of [data, data.extensions ?? {}]) delete fields.codiCopied; // newer hosts keep what a node was configured with
    if (this.codiCopied) data.codiCopied = this.codiCopied;
  };
  nodeType.prototype.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    refresh(this, output);
  };
  nodeType.prototype.onDrawBackground = () => {}; // the classic canvas would draw the images once more
}

/** Opens the template that the page's address names, as in /?codi=01%20Text%20to%20everything. */
async function openNamed() {
  const address = new URL(location.href), name = address.searchParams.get("codi");
  if (!name) return;
  address.searchParams.delete("codi");
  history.replaceState(null, "", address);
  const pack = new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0];
  const answer = await fetch(api.fileURL(`/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`));
  if (answer.ok) await app.loadGraphData(await answer.json(), true, true, name);
}

/** Node outputs of the last run of the open workflow, where the host has none, as after a reload of the page. */
async function fromHistory() {
  const graph = rootGraph();
  if (!graph?.id || Object.keys(app.nodeOutputs ?? {}).length || ![...showing()].length) return;
  const runs = Object.values(await (await api.fetchApi("/history?max_items=32")).json()).reverse();
  const run = runs.find(({ prompt }) => prompt?.[3]?.extra_pnginfo?.workflow?.id === graph.id);
  if (!run || rootGraph() !== graph) return;
  for (const [path, output] of Object.entries(run.outputs ?? {})) {
    const node = path.split(":").reduce((at, id) => at && (at.subgraph ?? at).getNodeById?.(Number(id)), graph);
    if (node?.codiView) app.nodeOutputs[keyOf(node)] ??= output;
  }
  for (const node of showing()) refresh(node);
}

app.registerExtension({
  name: "codianytoany.Results",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (HEIGHTS[nodeData.name]) attach(nodeType, HEIGHTS[nodeData.name]);
  },
  afterConfigureGraph() {
    openNamed().catch(() => {});
    setTimeout(() => fromHistory().catch(() => {}), 500); // after the host has put back what it kept for the tab
  },
  onNodeOutputsUpdated() {
    for (const node of showing()) refresh(node);
  },
});
