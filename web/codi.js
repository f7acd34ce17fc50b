// Shows what CoDi's nodes made on the nodes themselves: text in a box, sound in the stock player. Clips and pictures show by themselves.
import { app } from "../../scripts/app.js";

const SHOWS_TEXT = ["CoDiDecodeText", "CoDiShowText", "CoDiCoherence", "CoDiPickBest", "CoDiLoad", "CoDiLoadJoint", "CoDiConditionMixer", "CoDiPromptTravel"];
const SHOWS_NOTES = ["CoDiKeep", "CoDiMediaToLatent"]; // a text box where there is something to say
const PLAYS_AUDIO = ["CoDiDecodeAudio", "CoDiBounceScene"];

function textBox(node) {
  const box = document.createElement("div");
  box.className = "codi-text";
  box.style.cssText =
    "overflow:auto; min-height:34px; white-space:pre-wrap; user-select:text; padding:6px 8px; box-sizing:border-box; border-radius:4px;" +
    "font-size:13px; background:var(--comfy-input-bg); color:var(--input-text);";
  const widget = node.addDOMWidget("codi_text", "codi_text", box, { serialize: false, getMinHeight: () => 48 });
  widget.serialize = false; // nothing of it is stored
  return widget;
}

function showTexts(nodeType, always) {
  const { onNodeCreated, onExecuted } = nodeType.prototype;
  nodeType.prototype.onNodeCreated = function () {
    onNodeCreated?.apply(this, arguments);
    if (always) this.codiText = textBox(this);
  };
  nodeType.prototype.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    if (output?.text) this.codiText ??= textBox(this);
    if (this.codiText && (output?.text || !always)) this.codiText.element.textContent = [output?.text ?? ""].flat().join("\n");
  };
}

app.registerExtension({
  name: "codi.show",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (SHOWS_TEXT.includes(nodeData.name)) showTexts(nodeType, true);
    if (SHOWS_NOTES.includes(nodeData.name)) showTexts(nodeType, false);
    if (PLAYS_AUDIO.includes(nodeData.name)) (nodeData.input.required ??= {}).audioUI = ["AUDIO_UI", {}];
  },
});
