// Images that come to the page: dropped, chosen, pasted, or taken with a camera.

import { $, button, el, fill } from "./dom.js";

const KIND = /\.(a?png|jpe?g|jpe|jfif|pjpeg|pjp|mpo|webp|bmp|dib|gif|tiff?|ppm|pgm|pbm|pnm|avif|hei[cf]|hif)$/i;

export const isImage = (file) => file.type.startsWith("image/") || KIND.test(file.name);

/** An image with the folder that it lay in, "" where it came alone. */
const found = (file, folder = "") => ({ file, folder });

async function below(entry, folder, left) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    if (!file || file.name.startsWith(".")) return [];
    if (isImage(file)) return [found(file, folder)];
    left.count += 1;
    return [];
  }
  const reader = entry.createReader();
  const all = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!some.length) break;
    all.push(...some);
  }
  all.sort((a, b) => a.name.localeCompare(b.name));
  const parts = [];
  for (const one of all) parts.push(...await below(one, entry.name, left));
  return parts;
}

async function dropped(transfer) {
  // Both lists are empty once the event is over.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [...transfer.files];
  const parts = files.filter(isImage).map((file) => found(file));
  if (!entries.length) return [parts, files.length - parts.length];
  const all = [], left = { count: 0 };
  for (const entry of entries) all.push(...await below(entry, "", left));
  return [all, left.count];
}

/** Have `taken` get the images that are dropped on an element, and the number of other files. */
export function onDrop(element, taken) {
  let depth = 0;
  element.addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; element.classList.add("over"); });
  element.addEventListener("dragleave", () => { depth -= 1; if (!depth) element.classList.remove("over"); });
  element.addEventListener("dragover", (event) => { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; });
  element.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    element.classList.remove("over");
    taken(...await dropped(event.dataTransfer));
  });
}

/** Let somebody choose files, or a folder. */
export function choose(taken, { folder = false, camera = false } = {}) {
  const input = el("input", { type: "file", multiple: !camera, hidden: true });
  if (folder) input.webkitdirectory = true;
  else input.accept = "image/*,.heic,.heif,.tif,.tiff,.ppm,.pgm";
  if (camera) input.capture = "environment";
  input.addEventListener("change", () => {
    const parts = [...input.files].filter(isImage).map((file) => {
      const path = (file.webkitRelativePath || "").split("/");
      return found(file, path.length > 1 ? path[path.length - 2] : "");
    });
    input.remove();
    parts.sort((a, b) => a.folder.localeCompare(b.folder) || a.file.name.localeCompare(b.file.name));
    taken(parts, input.files.length - parts.length);
  });
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input);
  input.click();
}

export function onPaste(isHere, taken) {
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter(isImage);
    if (files.length && isHere()) taken(files.map((file) => found(file)));
  });
}

/** Take a photo: with the camera of this machine, or with the camera of a phone by its own means. */
export async function photo(taken) {
  if (!navigator.mediaDevices?.getUserMedia) {
    choose(taken, { camera: true });
    return;
  }
  const dialog = $("camera"), video = $("viewfinder"), shutter = $("shutter");
  let stream = null;
  $("camera-error").hidden = true;
  shutter.disabled = true;
  dialog.showModal();
  const end = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.srcObject = null;
  };
  dialog.addEventListener("close", end, { once: true });
  $("camera-close").onclick = () => dialog.close();
  shutter.onclick = () => {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
      dialog.close();
      taken([found(new File([blob], `photo ${time}.jpg`, { type: "image/jpeg" }))]);
    }, "image/jpeg", 0.92);
  };
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    if (!dialog.open) { end(); return; }
    video.srcObject = stream;
    await video.play();
    shutter.disabled = false;
    shutter.focus();
  } catch (error) {
    $("camera-error").textContent = error.name === "NotAllowedError"
      ? "This page may not use the camera; the browser's settings of this page allow it."
      : "No camera was found.";
    $("camera-error").hidden = false;
  }
}

/** Ask a question first; resolves with true, or with the text of the input, or with null where the answer is no. */
export function question({ title, text, action, danger = false, input = null }) {
  const dialog = $("question");
  return new Promise((resolve) => {
    let answer = null;
    const hint = el("p", { className: "soft", "aria-live": "polite" });
    const yes = el("button", { className: danger ? "danger" : "primary" }, action);
    const field = input && el("input", { id: "question-input", value: input.value, autocomplete: "off", required: true, maxLength: 200 });
    const changed = () => {
      const said = input?.check(field.value.trim()) ?? {};
      hint.textContent = said.hint ?? "";
      yes.textContent = said.action ?? action;
      yes.disabled = Boolean(said.no);
    };
    field?.addEventListener("input", changed);
    fill(dialog, el("form", { method: "dialog", onsubmit: () => { answer = field ? field.value.trim() : true; } },
      el("h2", { id: "question-title" }, title), text && el("p", {}, text),
      field && el("p", {}, el("label", { for: "question-input" }, input.label), field), input && hint,
      el("p", { className: "row end" }, button("Cancel", () => dialog.close(), { autofocus: !field }), yes)));
    if (input) changed();
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.showModal();
    field?.select();
  });
}
