// Curves of prompts as SVG. Click adds a key to the chosen curve, drag moves it, right click or double click takes it away.
import { formatLine, moved, parseLine, tidy, valueAt, withKey } from "./codi_keyframes.js";

export const COLOURS = ["#5aa2ff", "#ffa348", "#62c979", "#ee6a8c", "#b08cf7", "#45cccc", "#d2bb45", "#a8a8a8"];
const PAD = { left: 28, right: 10, top: 10, bottom: 18 }; // pixels around the plot
const REACH = 11; // pixels within which a key is hit
const SLACK = 14; // pixels beyond the plot that still mean its edge
const AGAIN = 500; // ms within which a double click belongs to the click that added a key
const MOST_MARKS = 64;

const STYLE = `
.codi-curve { display:flex; flex-direction:column; width:100%; height:100%; min-height:150px; box-sizing:border-box; border-radius:4px;
  overflow:hidden; background:var(--comfy-input-bg, #222); color:var(--input-text, #ddd); font-size:11px; user-select:none; }
.codi-curve .prompts { display:flex; flex-wrap:wrap; gap:4px; padding:4px 6px 0; flex:0 0 auto; }
.codi-curve .prompts button { all:unset; cursor:pointer; padding:0 8px; line-height:18px; border-radius:9px; border:1px solid var(--colour);
  color:var(--colour); }
.codi-curve .prompts button[aria-pressed="true"] { background:var(--colour); color:#111; }
.codi-curve .plot { position:relative; flex:1 1 0; min-height:110px; }
.codi-curve svg { position:absolute; inset:0; width:100%; height:100%; cursor:crosshair; touch-action:none; }
.codi-curve svg.over-key { cursor:grab; }
.codi-curve svg * { pointer-events:none; } /* what is drawn anew between two clicks would lose the second */
.codi-curve svg text { fill:currentColor; opacity:.7; font-size:10px; }
.codi-curve .frame { fill:none; stroke:currentColor; opacity:.25; }
.codi-curve .mark { stroke:currentColor; opacity:.12; }
.codi-curve polyline { fill:none; stroke-width:1.5; stroke-linejoin:round; }
.codi-curve polyline.chosen { stroke-width:2.5; }
.codi-curve polyline.resting { stroke-dasharray:2 4; opacity:.5; }
.codi-curve circle { stroke:var(--comfy-input-bg, #222); stroke-width:1.5; }
.codi-curve svg .note { opacity:1; font-size:11px; }
`;

const make = (tag, fields = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

const draw = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const clamp = (number, low, high) => Math.min(high, Math.max(low, number));

/** Lowest and highest whole number around all values, with 0 and 1 in between. */
function rangeOf(curves) {
  const values = curves.flatMap(({ keys }) => keys.map(([, value]) => value));
  return [Math.floor(Math.min(0, ...values)), Math.ceil(Math.max(1, ...values))];
}

/**
 * A view of curves. `read()` gives what to show:
 *   lines: text of each curve; names: of the prompts; spans: [start, end] of each, where it counts; marks: places of steps or frames;
 *   ends: labels below the two ends; locked: why nothing can be drawn, or "".
 * `write(lines)` is called with all lines after each change. Returns { root, refresh }.
 */
export function buildCurves({ read, write }) {
  const prompts = make("div", { className: "prompts" });
  const svg = draw("svg", {});
  const plot = make("div", { className: "plot" }, svg);
  const root = make("div", { className: "codi-curve" }, make("style", { textContent: STYLE }), prompts, plot);
  let chosen = 0, drag = null, over = null, added = 0, shown = null;

  const size = () => [Math.max(80, plot.clientWidth), Math.max(60, plot.clientHeight)];
  const across = (place) => PAD.left + place * (size()[0] - PAD.left - PAD.right);
  const down = (value, [low, high]) => PAD.top + ((high - value) / (high - low)) * (size()[1] - PAD.top - PAD.bottom);

  /** Pointer as pixels of the plot, place and value. The canvas may be zoomed: screen pixels are not the plot's. */
  function where(event) {
    const box = plot.getBoundingClientRect();
    const [wide, high] = size();
    const x = ((event.clientX - box.left) * wide) / (box.width || 1);
    const y = ((event.clientY - box.top) * high) / (box.height || 1);
    const [low, top] = shown.range;
    const [up, floor] = [PAD.top, high - PAD.bottom];
    const settled = y < up ? Math.min(up, y + SLACK) : y > floor ? Math.max(floor, y - SLACK) : y;
    return {
      x,
      y,
      inside: x >= PAD.left - SLACK && x <= wide - PAD.right + SLACK && y >= up - SLACK && y <= floor + SLACK,
      place: tidy(clamp((x - PAD.left) / (wide - PAD.left - PAD.right), 0, 1)),
      value: tidy(clamp(top - ((settled - up) / (floor - up)) * (top - low), Math.min(-10, low), Math.max(10, top))),
    };
  }

  /** The key under the pointer, of the chosen curve rather than of others: [line, index] or null. */
  function hit({ x, y }) {
    let best = null, nearest = REACH;
    const order = [chosen, ...shown.curves.keys()].filter((line, i, all) => all.indexOf(line) === i);
    for (const line of order) {
      shown.curves[line]?.keys.forEach(([place, value], index) => {
        const distance = Math.hypot(across(place) - x, down(value, shown.range) - y);
        if (distance < nearest) [best, nearest] = [[line, index], distance];
      });
      if (best) break;
    }
    return best;
  }

  function change(line, keys) {
    shown.curves[line].keys = keys;
    const lines = [...shown.lines];
    lines[line] = formatLine(keys);
    write(lines);
    refresh();
  }

  function press(event) {
    event.stopPropagation();
    if (event.button !== 0) return;
    event.preventDefault();
    refresh();
    const at = where(event);
    if (shown.locked) return;
    let key = hit(at);
    if (!key) {
      if (!at.inside || shown.curves[chosen]?.error !== "") return;
      const [keys, index] = withKey(shown.curves[chosen].keys, at.place, at.value);
      key = [chosen, index];
      added = event.timeStamp;
      change(chosen, keys);
    }
    chosen = key[0];
    drag = { line: key[0], index: key[1], range: shown.range, x: at.x, y: at.y, moving: false };
    svg.setPointerCapture(event.pointerId);
    refresh();
  }

  function move(event) {
    if (!shown) return;
    const at = where(event);
    if (!drag) return point(shown.locked ? null : hit(at));
    event.stopPropagation();
    drag.moving ||= Math.hypot(at.x - drag.x, at.y - drag.y) > 2; // a click that trembles moves nothing
    if (drag.moving) change(drag.line, moved(shown.curves[drag.line].keys, drag.index, at.place, at.value));
  }

  /** Says what the key under the pointer is. */
  function point(key) {
    if (String(key) === String(over)) return;
    over = key;
    svg.classList.toggle("over-key", Boolean(key));
    refresh();
  }

  function release(event) {
    if (!drag) return;
    event.stopPropagation();
    drag = null;
    refresh();
  }

  function remove(event) {
    event.stopPropagation();
    event.preventDefault();
    if (event.type === "dblclick" && event.timeStamp - added < AGAIN) return;
    refresh();
    const key = shown.locked ? null : hit(where(event));
    if (!key) return;
    drag = over = null;
    chosen = key[0];
    change(key[0], shown.curves[key[0]].keys.filter((_, index) => index !== key[1]));
  }

  svg.addEventListener("pointerdown", press);
  svg.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) svg.addEventListener(kind, release);
  svg.addEventListener("pointerleave", () => point(null));
  for (const kind of ["contextmenu", "dblclick"]) svg.addEventListener(kind, remove);
  prompts.addEventListener("pointerdown", (event) => event.stopPropagation());

  function drawPrompts() {
    prompts.hidden = shown.lines.length < 2;
    prompts.style.display = prompts.hidden ? "none" : "";
    prompts.replaceChildren(
      ...shown.lines.map((_, line) => {
        const button = make("button", { type: "button", textContent: String(line + 1), title: shown.names[line] ?? "" });
        button.style.setProperty("--colour", COLOURS[line % COLOURS.length]);
        button.setAttribute("aria-pressed", String(line === chosen));
        button.addEventListener("click", () => { chosen = line; refresh(); });
        return button;
      }),
    );
  }

  /** A curve as lines: where its prompt counts drawn through, elsewhere dotted. */
  function drawCurve({ keys }, line) {
    const [start, end] = shown.spans[line] ?? [0, 1];
    const points = (from, to) =>
      [from, ...keys.map(([place]) => place).filter((place) => place > from && place < to), to]
        .map((place) => `${across(place).toFixed(1)},${down(valueAt(keys, place), shown.range).toFixed(1)}`).join(" ");
    const stroke = COLOURS[line % COLOURS.length];
    const lines = [draw("polyline", { points: points(start, end), stroke, class: line === chosen ? "chosen" : "" })];
    for (const [from, to] of [[0, start], [end, 1]]) if (from < to) lines.push(draw("polyline", { points: points(from, to), stroke, class: "resting" }));
    return lines;
  }

  const drawKeys = ({ keys }, line) =>
    keys.map(([place, value], index) => {
      const at = { cx: across(place), cy: down(value, shown.range), r: line === chosen ? 5.5 : 4, fill: COLOURS[line % COLOURS.length] };
      return draw("circle", { ...at, "data-line": line, "data-key": index });
    });

  const label = (x, y, text, anchor, kind = "") => {
    const element = draw("text", { x, y, "text-anchor": anchor, class: kind });
    element.textContent = text;
    return element;
  };

  function drawAxes([low, high], wide, tall) {
    const [left, right, top, bottom] = [PAD.left, wide - PAD.right, PAD.top, tall - PAD.bottom];
    const marks = shown.marks.length > MOST_MARKS ? [] : shown.marks;
    const levels = [...new Set([low, 0, 1, high])];
    return [
      draw("rect", { class: "frame", x: left, y: top, width: right - left, height: bottom - top }),
      ...marks.map((place) => draw("line", { class: "mark", x1: across(place), x2: across(place), y1: top, y2: bottom })),
      ...levels.map((v) => draw("line", { class: "mark", x1: left, x2: right, y1: down(v, [low, high]), y2: down(v, [low, high]) })),
      ...levels.map((v) => label(left - 5, down(v, [low, high]) + 3, v, "end")),
      label(left, tall - 5, shown.ends[0], "start"),
      label(right, tall - 5, shown.ends[1], "end"),
    ];
  }

  /** Read again and draw. */
  function refresh() {
    const given = read();
    const curves = given.lines.map((line) => {
      try {
        return { keys: parseLine(line), error: "" };
      } catch (error) {
        return { keys: [], error: error.message };
      }
    });
    shown = { ...given, curves, range: drag?.range ?? rangeOf(curves) };
    chosen = clamp(chosen, 0, given.lines.length - 1);
    const [wide, tall] = size();
    const wrong = curves.findIndex(({ error }) => error);
    const note = given.locked || (wrong >= 0 ? `${wrong + 1}: ${curves[wrong].error}` : "");
    const order = [...curves.keys()].filter((line) => !curves[line].error).sort((a, b) => (a === chosen) - (b === chosen)); // the chosen on top
    const key = drag ? curves[drag.line]?.keys[drag.index] : over && curves[over[0]]?.keys[over[1]];
    drawPrompts();
    svg.setAttribute("viewBox", `0 0 ${wide} ${tall}`);
    svg.replaceChildren(
      ...drawAxes(shown.range, wide, tall),
      ...(given.locked ? [] : order.flatMap((line) => drawCurve(curves[line], line))),
      ...(given.locked ? [] : order.flatMap((line) => drawKeys(curves[line], line))),
      ...(note ? [label(PAD.left + 6, PAD.top + 14, note, "start", "note")] : []),
      ...(key ? [label(wide - PAD.right - 6, PAD.top + 14, formatLine([key]), "end", "note")] : []),
    );
  }

  new ResizeObserver(() => refresh()).observe(plot);
  return { root, refresh };
}
