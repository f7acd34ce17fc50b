// What a node made, in one element: images, video with its audio, spectrogram with a moving mark, text; pages where there are several.
import { api } from "../../scripts/api.js";

const STYLE = `
.codi-results { position:relative; width:100%; height:100%; box-sizing:border-box; }
.codi-results > div { position:absolute; inset:0; display:flex; flex-direction:column; gap:6px; padding:4px; box-sizing:border-box; overflow:hidden; }
.codi-results .row { display:flex; gap:6px; justify-content:center; min-height:0; flex:1 1 auto; }
.codi-results .row > * { flex:1 1 0; min-width:0; min-height:0; max-height:100%; object-fit:contain; border-radius:4px; background:#0008; }
.codi-results .small { image-rendering:pixelated; }
.codi-results .sound { position:relative; flex:0 0 48px; cursor:pointer; border-radius:4px; overflow:hidden; }
.codi-results .sound img { width:100%; height:100%; object-fit:fill; display:block; }
.codi-results .sound i { position:absolute; top:0; bottom:0; width:2px; background:#fff; left:0; pointer-events:none; }
.codi-results audio { flex:0 0 32px; width:100%; height:32px; }
.codi-results .codi-text { flex:0 1 auto; min-height:1.4em; overflow:auto; white-space:pre-wrap; user-select:text; padding:6px 8px; border-radius:4px;
  font-size:13px; background:var(--comfy-input-bg); color:var(--input-text); }
.codi-results .codi-note { flex:0 0 auto; white-space:pre-wrap; font-size:12px; opacity:0.8; color:var(--input-text); }
.codi-results .row[hidden] ~ .codi-text { flex:1 1 auto; }
.codi-results .pages { flex:0 0 auto; display:flex; gap:8px; justify-content:center; align-items:center; font-size:12px; color:var(--input-text); }
.codi-results .pages button { padding:0 10px; cursor:pointer; }
.codi-results [hidden] { display:none !important; }
`;

const SMALL = 256; // pixels; what is no larger is enlarged without blur

const make = (tag, fields = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

const address = ({ filename, subfolder = "", type = "temp" }) =>
  api.apiURL(`/view?filename=${encodeURIComponent(filename)}&subfolder=${encodeURIComponent(subfolder)}&type=${type}`);

/** Lists of what a node's output holds, by kind. Clips come as `video`, or as `images` that are `animated`. */
function sorted(output) {
  const moves = [output?.animated].flat()[0];
  return {
    image: moves ? [] : output?.images ?? [],
    video: output?.video ?? (moves ? output.images : []) ?? [],
    audio: output?.audio ?? [],
    spectrogram: (output?.codi_spectrogram ?? []).map((filename) => ({ filename })),
    text: [output?.text ?? []].flat(),
    note: output?.codi_note ?? [],
  };
}

/** An element and `show(output)`, which puts a node's output into it; `onImages` gets the img elements that are shown. */
export function buildView(onImages = () => {}) {
  const image = make("img", { className: "codi-image", alt: "image" });
  const video = make("video", { controls: true, loop: true, playsInline: true, preload: "auto" });
  const mark = make("i");
  const spectrum = make("img", { alt: "spectrogram" });
  const sound = make("div", { className: "sound", title: "Click to play from here" }, spectrum, mark);
  const audio = make("audio", { controls: true, preload: "auto" });
  const text = make("div", { className: "codi-text" });
  const note = make("div", { className: "codi-note" });
  const count = make("span");
  const pages = make("div", { className: "pages" }, make("button", { textContent: "‹" }), count, make("button", { textContent: "›" }));
  const row = make("div", { className: "row" }, image, video);
  const root = make("div", { className: "codi-results" }, make("style", { textContent: STYLE }), make("div", {}, row, sound, audio, text, note, pages));
  for (const element of [audio, video, sound, pages]) element.addEventListener("pointerdown", (event) => event.stopPropagation());
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= SMALL));
  video.addEventListener("loadedmetadata", () => video.classList.toggle("small", video.videoWidth <= SMALL));

  // The video carries the audio: while there is one, it is what plays, and the mark follows it.
  const player = () => (video.hidden ? audio : video);
  const follow = () => {
    const { currentTime, duration } = player();
    mark.style.left = duration ? `${(100 * currentTime) / duration}%` : "0";
    if (!player().paused) requestAnimationFrame(follow);
  };
  for (const element of [audio, video]) for (const kind of ["play", "seeked"]) element.addEventListener(kind, follow);
  audio.addEventListener("play", () => video.pause());
  video.addEventListener("play", () => audio.pause());
  sound.addEventListener("click", (event) => {
    const box = sound.getBoundingClientRect(), target = player();
    if (target.duration) target.currentTime = (target.duration * (event.clientX - box.left)) / box.width;
    target.play();
  });

  let shown = sorted(null), page = 0, total = 0;
  const at = (list) => list[page] ?? (list.length === 1 ? list[0] : undefined);
  const show = (element, file) => {
    element.hidden = !file;
    const source = file ? address(file) : "";
    if (source && element.getAttribute("src") !== source) element.src = source;
    if (!source) element.removeAttribute("src");
  };
  const draw = () => {
    show(image, at(shown.image));
    show(video, at(shown.video));
    show(audio, at(shown.audio));
    show(spectrum, at(shown.spectrogram));
    sound.hidden = spectrum.hidden;
    row.hidden = image.hidden && video.hidden;
    text.textContent = at(shown.text) ?? "";
    text.hidden = !text.textContent;
    note.textContent = shown.note.join("\n");
    note.hidden = !note.textContent;
    pages.hidden = total < 2;
    count.textContent = `${page + 1} / ${total}`;
    mark.style.left = "0";
    onImages(image.hidden ? [] : [image]);
  };
  const turn = (by) => {
    page = (page + by + total) % total;
    draw();
  };
  pages.firstChild.addEventListener("click", () => turn(-1));
  pages.lastChild.addEventListener("click", () => turn(1));
  draw();
  return {
    root,
    show(output) {
      shown = sorted(output);
      total = Math.max(0, ...Object.entries(shown).map(([kind, list]) => (kind === "note" ? 0 : list.length)));
      page = 0;
      draw();
    },
  };
}
