// While a clip is sampled its frames play on the node that samples, a stock sampler too. Where the sampling ends they go, and the node is as before.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const HEIGHT = 132;
const playing = new Map(); // node -> { path, widget, root, canvas, strip, frames, rate, height }

/** The node of an execution path such as "5:12": in the graph that is open, else the one that samples. */
function nodeOf(path) {
  let graph = app.rootGraph ?? app.graph, found = null;
  for (const id of String(path).split(":")) {
    const node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
    if (!node) break;
    found = node;
    if (node.graph === app.canvas?.graph) break;
    graph = node.subgraph;
  }
  return found;
}

function start(node, path) {
  const canvas = document.createElement("canvas");
  const root = document.createElement("div");
  root.className = "codi-frames";
  root.style.cssText = `width:100%; height:100%; min-height:${HEIGHT}px; display:flex; justify-content:center; pointer-events:none;`;
  canvas.style.cssText = "max-width:100%; height:100%; object-fit:contain; border-radius:4px;";
  root.append(canvas);
  const height = node.size[1];
  const widget = node.addDOMWidget("codi_frames", "codi_frames", root, { serialize: false, hideInPanel: true, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT });
  widget.serialize = false;
  node.setSize([node.size[0], height + HEIGHT + 10]);
  if (!playing.size) requestAnimationFrame(tick);
  playing.set(node, { path, widget, root, canvas, height, strip: null, frames: 0, rate: 1 });
}

function stop(except = null) {
  for (const [node, { path, widget, root, height }] of playing) {
    if (path === except) continue;
    playing.delete(node);
    const grown = node.size[1] - HEIGHT - 10;
    if (node.widgets?.includes(widget)) node.removeWidget(widget);
    root.remove();
    node.setSize([node.size[0], Math.max(height, grown)]); // what else made the node grow meanwhile stays
    node.setDirtyCanvas?.(true, true);
  }
}

function tick(time) {
  for (const { canvas, strip, frames, rate } of playing.values()) {
    if (!strip) continue;
    const width = strip.naturalWidth / frames, index = Math.floor((time / 1000) * rate) % frames;
    if (canvas.width !== width || canvas.height !== strip.naturalHeight) Object.assign(canvas, { width, height: strip.naturalHeight });
    canvas.dataset.frame = index;
    canvas.getContext("2d").drawImage(strip, index * width, 0, width, strip.naturalHeight, 0, 0, width, strip.naturalHeight);
  }
  if (playing.size) requestAnimationFrame(tick);
}

app.registerExtension({
  name: "codianytoany.VideoWhileSampling",
  setup() {
    api.addEventListener("codi.frames", ({ detail }) => {
      const path = String(detail.node), node = nodeOf(path);
      if (!node?.addDOMWidget) return;
      if (!playing.has(node)) start(node, path);
      const entry = playing.get(node), strip = new Image();
      entry.path = path;
      strip.onload = () => Object.assign(entry, { strip, frames: detail.frames, rate: detail.rate });
      strip.src = detail.strip;
    });
    api.addEventListener("executing", ({ detail }) => stop(typeof detail === "object" ? String(detail?.node ?? "") : String(detail)));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, () => stop());
  },
});
