// CoDi Preview: picture, clip with its sound, spectrogram with a moving mark, caption. One DOM widget for both node styles.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const STYLE = `
.codi-preview { display:flex; flex-direction:column; gap:6px; width:100%; height:100%; overflow:auto; box-sizing:border-box; padding:4px; }
.codi-preview .row { display:flex; gap:6px; justify-content:center; min-height:0; flex:1 1 auto; }
.codi-preview .row > * { flex:1 1 0; min-width:0; min-height:0; max-height:100%; object-fit:contain; border-radius:4px; background:#0008; }
.codi-preview img.codi-image { image-rendering:auto; }
.codi-preview .sound { position:relative; flex:0 0 48px; cursor:pointer; border-radius:4px; overflow:hidden; }
.codi-preview .sound img { width:100%; height:100%; object-fit:fill; display:block; }
.codi-preview .sound i { position:absolute; top:0; bottom:0; width:2px; background:#fff; left:0; pointer-events:none; }
.codi-preview audio { flex:0 0 32px; width:100%; height:32px; }
.codi-preview .caption { flex:0 0 auto; white-space:pre-wrap; user-select:text; padding:6px 8px; border-radius:4px; font-size:13px;
  background:var(--comfy-input-bg); color:var(--input-text); }
.codi-preview .pages { flex:0 0 auto; display:flex; gap:8px; justify-content:center; align-items:center; font-size:12px; color:var(--input-text); }
.codi-preview .pages button { padding:0 10px; cursor:pointer; }
.codi-preview [hidden] { display:none !important; }
`;

const make = (tag, fields = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
};

const address = (file) =>
  api.apiURL(`/view?filename=${encodeURIComponent(file.filename)}&subfolder=${encodeURIComponent(file.subfolder ?? "")}&type=${file.type}`);

function buildView() {
  const image = make("img", { className: "codi-image", alt: "image" });
  const video = make("video", { controls: true, loop: true, playsInline: true, preload: "auto" });
  const mark = make("i");
  const picture = make("img", { alt: "spectrogram" });
  const sound = make("div", { className: "sound", title: "Click to play from here" }, picture, mark);
  const audio = make("audio", { controls: true, preload: "auto" });
  const caption = make("div", { className: "caption" });
  const count = make("span");
  const pages = make("div", { className: "pages" }, make("button", { textContent: "‹" }), count, make("button", { textContent: "›" }));
  const row = make("div", { className: "row" }, image, video);
  const root = make("div", { className: "codi-preview" }, row, sound, audio, caption, pages);
  for (const kind of ["pointerdown", "wheel"]) root.addEventListener(kind, (event) => event.stopPropagation());

  // The clip carries the sound: while there is one, it is what plays, and the mark follows it.
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
    const box = sound.getBoundingClientRect();
    const target = player();
    if (target.duration) target.currentTime = (target.duration * (event.clientX - box.left)) / box.width;
    target.play();
  });

  let shown = {}, page = 0, total = 0;
  const show = (element, file) => {
    element.hidden = !file;
    const source = file ? address(file) : "";
    if (source && element.getAttribute("src") !== source) element.src = source;
    if (!source) element.removeAttribute("src");
  };
  const draw = () => {
    show(image, shown.codi_image?.[page]);
    show(video, shown.codi_video?.[page]);
    show(audio, shown.codi_audio?.[page]);
    show(picture, shown.codi_sound?.[page]);
    sound.hidden = picture.hidden;
    row.hidden = image.hidden && video.hidden;
    caption.hidden = shown.text?.[page] === undefined;
    caption.textContent = shown.text?.[page] ?? "";
    pages.hidden = total < 2;
    count.textContent = `${page + 1} / ${total}`;
    mark.style.left = "0";
  };
  const turn = (by) => { page = (page + by + total) % total; draw(); };
  pages.firstChild.addEventListener("click", () => turn(-1));
  pages.lastChild.addEventListener("click", () => turn(1));
  draw();
  return {
    root,
    update(output) {
      shown = output;
      total = Math.max(0, ...["codi_image", "codi_video", "codi_audio", "text"].map((key) => output[key]?.length ?? 0));
      page = 0;
      draw();
    },
  };
}

app.registerExtension({
  name: "codi.preview",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
  },
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "CoDiPreview") return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      this.codiView = buildView();
      this.addDOMWidget("codi_preview", "codi_preview", this.codiView.root, { serialize: false, getMinHeight: () => 320 });
      this.setSize([Math.max(this.size[0], 420), Math.max(this.size[1], 480)]);
    };
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output) this.codiView.update(output);
    };
  },
});
