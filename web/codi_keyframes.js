// Text of keyframes, one line a prompt: "0:1, 0.5:0.2, 1:0". The text is what is stored; these functions read and write it.
// The pack checks it again when it runs (codi_models/keyframes.py).

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Keys [[place, value], ...] of a line, none for an empty one. Throws an Error that names what is no key. */
export function parseLine(text) {
  const keys = [];
  for (const word of text.split(/[,;]/).map((w) => w.trim()).filter(Boolean)) {
    const pair = word.split(":").map((n) => n.trim());
    if (pair.length !== 2 || !pair.every((n) => NUMBER.test(n))) throw new Error(`${word} is no key: write place:value`);
    const [place, value] = pair.map(Number);
    if (!(place >= 0 && place <= 1)) throw new Error(`${word}: places go from 0 to 1`);
    if (keys.length && place <= keys.at(-1)[0]) throw new Error(`${word}: places must ascend`);
    if (!Number.isFinite(value)) throw new Error(`${word}: values must be finite`);
    keys.push([place, value]);
  }
  return keys;
}

/** The line of some keys. */
export const formatLine = (keys) => keys.map(([place, value]) => `${place}:${value}`).join(", ");

/** At least `count` lines of a text; trailing empty ones beyond that are left out. */
export function splitLines(text, count) {
  const lines = String(text ?? "").split("\n");
  while (lines.length > count && !lines.at(-1).trim()) lines.pop();
  while (lines.length < count) lines.push("");
  return lines;
}

/** The text of some lines; empty where all of them are. */
export function joinLines(lines) {
  const last = lines.findLastIndex((line) => line.trim());
  return lines.slice(0, last + 1).join("\n");
}

/** Value of keys at a place: straight lines between keys, level outside; 1 where there are none. */
export function valueAt(keys, place) {
  if (!keys.length) return 1;
  const after = keys.findIndex(([p]) => p > place);
  if (after === 0) return keys[0][1];
  if (after < 0) return keys.at(-1)[1];
  const [[left, from], [right, to]] = [keys[after - 1], keys[after]];
  return from + ((to - from) * (place - left)) / (right - left);
}

/** Keys with one more; the first key of a level line comes with its two ends, so that the rest stays level. Returns [keys, its index]. */
export function withKey(keys, place, value) {
  const others = (keys.length ? keys : [[0, 1], [1, 1]]).filter(([p]) => p !== place);
  const all = [...others, [place, value]].sort(([a], [b]) => a - b);
  return [all, all.findIndex(([p]) => p === place)];
}

/** Keys with one moved, kept between its neighbours. */
export function moved(keys, index, place, value, gap = 0.01) {
  const low = index > 0 ? keys[index - 1][0] + gap : 0;
  const high = index < keys.length - 1 ? keys[index + 1][0] - gap : 1;
  const kept = low > high ? keys[index][0] : Math.min(high, Math.max(low, place));
  return keys.map((key, i) => (i === index ? [tidy(kept), tidy(value)] : key));
}

/** Two decimals. */
export const tidy = (number) => Math.round(number * 100) / 100 || 0;
