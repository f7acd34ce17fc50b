// The curves of Condition Mixer and of Prompt Weight, drawn on the node. What is stored is the text of the keyframes widget.
import { app } from "../../scripts/app.js";
import { buildCurves } from "./codi_curve_view.js";
import { joinLines, splitLines } from "./codi_keyframes.js";

const WATCHED = ["keyframes", "over", "count", "starts", "ends"];
const INSTEAD = ["floats", "curve", "keyframes"]; // inputs that count instead of what is drawn, the first that is connected

const MOST_PLACES = 1024, MOST_LINES = 64, MOST_TEXT = 20000; // beyond which a figure shows nothing and drawing takes seconds

const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);
const isLinked = (node, name) => node.inputs?.some((input, slot) => input.name === name && node.isInputConnected(slot));

/** Connected prompts in order, as titles of the nodes that they come from. */
function promptsOf(node) {
  if (!node.graph) return []; // it is being made
  return (node.inputs ?? [])
    .map((input, slot) => [input, slot])
    .filter(([input, slot]) => /^prompts?\b/.test(input.name) && node.isInputConnected(slot))
    .map(([, slot]) => node.getInputNode?.(slot)?.title ?? "");
}

/** Numbers of a column such as starts or ends, or an empty list. */
const column = (node, name) =>
  String(widgetOf(node, name)?.value ?? "").split(/[,;\n]/).map((w) => w.trim()).filter(Boolean).map(Number);

/** Where each prompt counts; only the run has a beginning and an end, frames and samples have not. */
function spansOf(node, count) {
  if (!["steps", undefined].includes(widgetOf(node, "over")?.value)) return [];
  const single = widgetOf(node, "weight") ? ["start", "end"] : ["starts", "ends"];
  const [starts, ends] = single.map((name) => column(node, name));
  return Array.from({ length: count }, (_, i) => {
    const [start, end] = [starts[i] ?? 0, ends[i] ?? 1];
    return start >= 0 && start < end && end <= 1 ? [start, end] : [0, 1];
  });
}

/** Places at which curves are read, and what stands below their ends. */
function stepsOf(node) {
  const over = widgetOf(node, "over")?.value, count = Math.min(MOST_PLACES, Math.max(1, Number(widgetOf(node, "count")?.value) || 1));
  if (over === undefined) return { marks: [], ends: ["0", "1"] };
  if (over === "steps") return { marks: Array.from({ length: count + 1 }, (_, i) => i / count), ends: ["0 %", `${over} 100 %`] };
  return { marks: Array.from({ length: count }, (_, i) => i / Math.max(1, count - 1)), ends: ["1", `${over} ${count}`] };
}

function attach(node) {
  const text = widgetOf(node, "keyframes");
  if (!text) return;
  const read = () => {
    const names = promptsOf(node);
    const many = !widgetOf(node, "weight");
    const written = String(text.value ?? ""), tooLong = written.length > MOST_TEXT;
    const all = splitLines(tooLong ? "" : written, many ? Math.max(1, names.length) : 1);
    const lines = all.slice(0, MOST_LINES), long = tooLong || all.length > MOST_LINES ? "too long to be drawn" : "";
    const from = INSTEAD.find((name) => isLinked(node, name));
    return { lines, names, spans: spansOf(node, lines.length), ...stepsOf(node), locked: from ? `← ${from}` : long };
  };
  const write = (lines) => {
    text.value = joinLines(lines);
    text.callback?.(text.value);
    node.setDirtyCanvas?.(true, true);
  };
  const view = buildCurves({ read, write });
  const widget = node.addDOMWidget("codi_curve", "codi_curve", view.root, { serialize: false, hideInPanel: true, getMinHeight: () => 160 });
  widget.serialize = false; // the text is what workflows store
  // Below what is stored, above the text box with the result.
  const box = node.widgets.findIndex((w) => w.name === "codi_results");
  if (box >= 0) node.widgets.splice(box, 0, node.widgets.pop());
  for (const name of [...WATCHED, "start", "end"]) {
    const watched = widgetOf(node, name);
    if (!watched) continue;
    const { callback } = watched;
    watched.callback = function () {
      const result = callback?.apply(this, arguments);
      view.refresh();
      return result;
    };
  }
  view.root.addEventListener("pointerenter", view.refresh);
  forward(view.root);
  node.codiCurve = view;
}

/** In the classic canvas an element lies above the canvas: hand on what pans and zooms it. Nodes 2.0 does so by itself. */
function forward(root) {
  const classic = () => !root.closest("[data-node-id]");
  root.addEventListener("wheel", (event) => { if (classic()) app.canvas.processMouseWheel(event); }, { passive: false });
  root.addEventListener("pointerdown", (event) => { if (event.button === 1 && classic()) app.canvas.processMouseDown(event); }, true);
  root.addEventListener("pointermove", (event) => { if (event.buttons & 4 && classic()) app.canvas.processMouseMove(event); }, true);
  root.addEventListener("pointerup", (event) => { if (event.button === 1 && classic()) app.canvas.processMouseUp(event); }, true);
}

app.registerExtension({
  name: "codianytoany.Curves",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!["CoDiConditionMixer", "CoDiPromptWeight"].includes(nodeData.name)) return;
    const { onNodeCreated, onConfigure, onConnectionsChange } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      attach(this);
    };
    nodeType.prototype.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      this.codiCurve?.refresh();
    };
    nodeType.prototype.onConnectionsChange = function () {
      onConnectionsChange?.apply(this, arguments);
      // Inputs that grow are renamed after the connection.
      setTimeout(() => this.codiCurve?.refresh());
    };
  },
});
