// The official model from the loader: what is missing, a button that says how much is fetched, progress, cancel, go on.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LOADERS = ["CoDiLoad", "CoDiLoadJoint"], ROUTE = "/codi/install", NAME = "codi", HEIGHT = 118;
const views = new Set();
let state = { state: "unknown" };

const gigabytes = (n) => (n >= 1e8 ? `${(n / 1e9).toFixed(1)} GB` : `${(n / 1e6).toFixed(1)} MB`);
const minutes = (s) => (s == null ? "" : s < 90 ? `, ${Math.ceil(s)} s left` : `, ${Math.ceil(s / 60)} min left`);
const wanted = (node) => {
  const value = String(node.widgets?.find((w) => w.name === "name")?.value ?? "");
  return value.startsWith("CoDi (official") || (value === NAME && state.missing?.length > 0);
};

async function ask(body) {
  try {
    const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await (await api.fetchApi(ROUTE, options || {})).json();
    take(answer.state ? answer : { ...state, state: "failed", error: answer.error });  // without a state: the request was refused
  } catch (error) {
    take({ ...state, state: "failed", error: `the server does not answer (${error})` });
  }
}

async function take(next) {
  if (next.at < state.at) return;  // an answer that an event has overtaken
  const finished = next.state === "done" && state.state === "running";
  state = next;
  if (finished) {
    await app.refreshComboInNodes?.();
    for (const { node } of views) {
      const widget = node.widgets?.find((w) => w.name === "name");
      if (widget && String(widget.value).startsWith("CoDi (official")) (widget.value = NAME), widget.callback?.(NAME);
    }
  }
  for (const view of views) draw(view);
}

function button(text, body, title = "") {
  const element = Object.assign(document.createElement("button"), { textContent: text, title });
  element.style.cssText = "padding:3px 8px; border-radius:4px; border:1px solid var(--border-color); background:var(--comfy-input-bg); color:var(--input-text); cursor:pointer;";
  element.addEventListener("click", () => ask(body));
  return element;
}

function words() {
  const { missing = [], download = 0, disk = 0, memory = 0, found = [], folder } = state;
  if (state.state === "running") return `${state.stage}: ${gigabytes(state.done)} of ${gigabytes(state.total)}${minutes(state.left)}`;
  if (state.problem) return state.problem;
  if (!missing.length) return "CoDi's official model is installed.";
  const before = { stopped: "Stopped; what was fetched is kept. ", failed: `${state.error} ` }[state.state] ?? "";
  const lies = found.length ? ` ${found.length} published file(s) lie in the model folders unconverted.` : "";
  return `${before}CoDi's official model lacks ${missing.length} part(s) in ${folder}: ${gigabytes(download)} to fetch, ${gigabytes(disk)} of free disk` +
    ` and ${gigabytes(memory)} of memory needed. Weights: ZinengTang/CoDi, MIT licence.${lies}`;
}

/** Text, request and tooltip of each button. */
function offers() {
  if (state.state === "running") return [["Cancel", { action: "stop" }, "What was fetched so far is kept."]];
  if (!state.missing?.length) return [];
  const again = ["stopped", "failed"].includes(state.state) ? "Go on: " : "", found = state.found ?? [];
  const download = [`${again}Download and convert ${gigabytes(state.download ?? 0)}`, { action: "start", source: "download" }, state.folder];
  const size = gigabytes(found.reduce((sum, f) => sum + f.size, 0)), names = found.map((f) => f.file).join("\n");
  return found.length ? [download, [`Convert what lies there (${size})`, { action: "start", source: "found" }, names]] : [download];
}

function draw({ node, root, text, bar, buttons }) {
  const shown = wanted(node);
  root.style.display = shown ? "flex" : "none";
  text.textContent = words();
  text.style.color = state.state === "failed" ? "var(--error-text, #f66)" : "";
  bar.style.display = state.state === "running" ? "block" : "none";
  Object.assign(bar, { max: Math.max(1, state.total ?? 1), value: state.done ?? 0 });
  const offered = JSON.stringify(offers());
  if (buttons.dataset.offered !== offered) {  // a button that is replaced while it is pressed does nothing
    buttons.dataset.offered = offered;
    buttons.replaceChildren(...offers().map((offer) => button(...offer)));
  }
  const missing = HEIGHT - (node.codiInstallHeight ?? 0);
  if (shown && missing > 0) (node.codiInstallHeight = HEIGHT), node.setSize([Math.max(node.size[0], 320), node.size[1] + missing]);
  if (!shown && node.codiInstallHeight) node.setSize([node.size[0], node.size[1] - HEIGHT]), (node.codiInstallHeight = 0);
  node.setDirtyCanvas?.(true, true);
}

function addView(node) {
  const root = document.createElement("div"), text = document.createElement("div");
  const bar = document.createElement("progress"), buttons = document.createElement("div");
  root.className = "codi-install";
  root.style.cssText = "display:none; flex-direction:column; gap:4px; font-size:12px; color:var(--input-text); overflow:auto;";
  bar.style.cssText = "width:100%; height:8px; flex:none;";
  buttons.style.cssText = "display:flex; gap:6px; flex-wrap:wrap;";
  root.append(text, bar, buttons);
  const height = () => (root.style.display === "none" ? 0 : HEIGHT);
  const widget = node.addDOMWidget("codi_install", "codi_install", root, { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height });
  widget.serialize = false;
  const view = { node, root, text, bar, buttons }, name = node.widgets?.find((w) => w.name === "name");
  views.add(view);
  if (name) {
    const { callback } = name;
    name.callback = function () {
      const result = callback?.apply(this, arguments);
      ask();
      return result;
    };
  }
  const { onRemoved, onConfigure } = node;
  node.onRemoved = function () {
    views.delete(view);
    onRemoved?.apply(this, arguments);
  };
  node.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    draw(view);
  };
  ask();
}

app.registerExtension({
  name: "codianytoany.Install",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!LOADERS.includes(nodeData.name)) return;
    const { onNodeCreated } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      addView(this);
    };
  },
  setup() {
    api.addEventListener("codi.install", ({ detail }) => take(detail));
  },
});
