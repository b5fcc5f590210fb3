// Shows a photo, lets the user draw a box on it, and plays the refinement steps that the server computes.
"use strict";

const $ = (id) => document.getElementById(id);
const CLICK = 6; // screen pixels: a shorter movement is a click, and the next click sets the opposite corner
const PLAY_MS = 1800; // time to play all steps
const PAUSE_MS = 450; // pause on the drawn box before playing
const LOW_IOU = 0.5; // below this predicted IoU, a note asks for a box closer to an object

const photos = []; // {name, url, file}; file is set once it is loaded
let photo = null; // the photo on display
let corner = null; // {x, y, clientX, clientY}: first corner of the box being drawn
let yours = null; // the drawn box, [x1, y1, x2, y2] in pixels of the photo
let steps = null; // {boxes, ious} of the refinement
let at = 0; // the step on display, a fraction while playing
let request = 0; // number of the latest request; answers to earlier ones are ignored
let frame = 0;

function setState(state, message = "") {
  document.body.dataset.state = state;
  $("error").textContent = message;
  $("play").disabled = $("step").disabled = state !== "done";
}

// Photos

function addPhoto(name, url, file) {
  const added = { name, url, file };
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  const thumbnail = document.createElement("img");
  thumbnail.loading = "lazy";
  thumbnail.alt = name;
  thumbnail.src = url;
  button.append(thumbnail);
  button.addEventListener("click", () => showPhoto(added));
  added.button = button;
  $("strip").append(button);
  photos.push(added);
  return added;
}

const notShown = (name) => `${name} cannot be shown; try a JPEG or PNG file.`;

async function isImage(image) {
  try {
    await image.decode();
    return true;
  } catch {
    return false;
  }
}

async function showPhoto(shown) {
  request += 1;
  cancelAnimationFrame(frame);
  photo = shown;
  yours = steps = corner = null;
  for (const each of photos) each.button.setAttribute("aria-current", each === shown);
  $("image").src = shown.url;
  $("image").alt = shown.name;
  const decodes = await isImage($("image"));
  if (photo !== shown) return;
  if (!decodes) {
    setState("broken", notShown(shown.name));
    return;
  }
  const { naturalWidth: width, naturalHeight: height } = $("image");
  $("photo").style.setProperty("--aspect", width / height);
  $("overlay").setAttribute("viewBox", `0 0 ${width} ${height}`);
  setState("ready");
  render();
}

async function addFiles(files) {
  const added = [];
  for (const file of [...files]) {
    const trial = new Image();
    trial.src = URL.createObjectURL(file);
    if (await isImage(trial)) added.push(addPhoto(file.name, trial.src, file));
    else $("error").textContent = notShown(file.name);
  }
  $("file").value = ""; // lets the user choose the same file again
  if (added.length) showPhoto(added[0]);
}

$("file").addEventListener("change", () => addFiles($("file").files));
document.addEventListener("paste", (event) => addFiles(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  addFiles(event.dataTransfer.files);
});

// Drawing: drag from corner to corner, or click on two opposite corners

function pointOf(event) {
  const { left, top, width, height } = $("overlay").getBoundingClientRect();
  const share = (value, size) => Math.min(Math.max(value / size, 0), 1);
  return {
    x: share(event.clientX - left, width) * $("image").naturalWidth,
    y: share(event.clientY - top, height) * $("image").naturalHeight,
    clientX: event.clientX,
    clientY: event.clientY,
  };
}

function drawTo(point) {
  yours = [
    Math.min(corner.x, point.x), Math.min(corner.y, point.y),
    Math.max(corner.x, point.x), Math.max(corner.y, point.y),
  ];
  render();
}

function hasMoved(point) {
  return Math.hypot(point.clientX - corner.clientX, point.clientY - corner.clientY) >= CLICK;
}

$("overlay").addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0 || corner !== null) return;
  event.preventDefault();
  $("overlay").setPointerCapture(event.pointerId);
  request += 1;
  cancelAnimationFrame(frame);
  corner = pointOf(event);
  steps = null;
  setState("drawing");
  drawTo(corner);
});
$("overlay").addEventListener("pointermove", (event) => {
  if (corner !== null) drawTo(pointOf(event));
});
$("overlay").addEventListener("pointerup", (event) => {
  if (corner === null) return;
  const point = pointOf(event);
  if (!hasMoved(point)) return; // the first of two clicks
  drawTo(point);
  corner = null;
  tighten();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || corner === null) return;
  corner = yours = null;
  setState("ready");
  render();
});

// Refinement

async function tighten() {
  request += 1;
  const asked = request;
  const box = yours;
  setState("waiting");
  try {
    photo.file ??= await (await fetch(photo.url)).blob();
    const answer = await fetch(`tighten?box=${box.join(",")}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: photo.file,
    });
    const content = await answer.json();
    if (asked !== request) return;
    if (!answer.ok) {
      setState("ready", `The box cannot be refined: ${content.error}.`);
      return;
    }
    steps = content;
  } catch {
    if (asked === request) setState("ready", "The server does not answer. Is iounet-demo still running?");
    return;
  }
  $("step").max = steps.boxes.length - 1;
  setState("done");
  play();
}

function play() {
  const last = steps.boxes.length - 1;
  cancelAnimationFrame(frame);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    at = last;
    render();
    return;
  }
  const start = performance.now();
  const tick = (now) => {
    const share = Math.min(Math.max((now - start - PAUSE_MS) / PLAY_MS, 0), 1);
    at = last * share;
    render();
    if (share < 1) frame = requestAnimationFrame(tick);
  };
  at = 0;
  render();
  frame = requestAnimationFrame(tick);
}

$("play").addEventListener("click", play);
$("step").addEventListener("input", () => {
  cancelAnimationFrame(frame);
  at = Number($("step").value);
  render();
});

// Pictures

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function rectangles([x1, y1, x2, y2], kind) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  return [`box halo`, `box ${kind}`].map((style) => element("rect", { ...place, class: style }));
}

// The box at a fractional step, interpolated
function boxAt(step) {
  const low = Math.floor(step);
  const high = Math.min(low + 1, steps.boxes.length - 1);
  return steps.boxes[low].map((value, i) => value + (steps.boxes[high][i] - value) * (step - low));
}

function boxes() {
  const drawn = [];
  if (steps !== null) drawn.push(...rectangles(boxAt(at), "is-tight"));
  if (yours !== null) drawn.push(...rectangles(steps === null ? yours : steps.boxes[0], "is-yours"));
  return drawn;
}

function renderCloseup() {
  if (steps === null) {
    $("closeup").replaceChildren();
    return;
  }
  const all = steps.boxes;
  const low = [0, 1].map((i) => Math.min(...all.map((box) => box[i])));
  const high = [2, 3].map((i) => Math.max(...all.map((box) => box[i])));
  const side = 1.2 * Math.max(high[0] - low[0], high[1] - low[1], 4);
  const [x, y] = [0, 1].map((i) => (low[i] + high[i] - side) / 2);
  const { naturalWidth: width, naturalHeight: height } = $("image");
  const travelled = [...all.slice(0, Math.floor(at) + 1), boxAt(at)];
  const trails = [[0, 1], [2, 3]].flatMap(([i, j]) => {
    const points = travelled.map((box) => `${box[i]},${box[j]}`).join(" ");
    return ["trail halo", "trail"].map((style) => element("polyline", { points, class: style }));
  });
  $("closeup").setAttribute("viewBox", `${x} ${y} ${side} ${side}`);
  $("closeup").replaceChildren(element("image", { href: photo.url, width, height }), ...boxes(), ...trails);
}

function renderChart() {
  const [left, right, top, bottom] = [26, 310, 10, 80];
  const y = (iou) => bottom - (bottom - top) * Math.min(Math.max(iou, 0), 1);
  const parts = [0, 0.5, 1].flatMap((iou) => [
    element("line", { x1: left, x2: right, y1: y(iou), y2: y(iou), class: "grid" }),
    element("text", { x: left - 6, y: y(iou) + 4, "text-anchor": "end" }, String(iou)),
  ]);
  if (steps !== null) {
    const last = steps.ious.length - 1;
    const x = (step) => left + ((right - left) * step) / Math.max(last, 1);
    const points = steps.ious.map((iou, step) => `${x(step)},${y(iou)}`);
    const shown = Math.round(at);
    parts.push(
      element("polyline", { points: points.join(" "), class: "all" }),
      element("polyline", { points: points.slice(0, shown + 1).join(" "), class: "run" }),
      element("circle", { cx: x(0), cy: y(steps.ious[0]), r: 4.5, class: "first" }),
    );
    if (shown > 0) parts.push(element("circle", { cx: x(shown), cy: y(steps.ious[shown]), r: 4.5, class: "last" }));
    parts.push(element("text", { x: left, y: bottom + 18 }, "your box"));
    parts.push(element("text", { x: right, y: bottom + 18, "text-anchor": "end" }, `step ${last}`));
  }
  $("chart").replaceChildren(...parts);
}

function render() {
  const shown = Math.round(at);
  $("overlay").replaceChildren(...boxes());
  $("before").textContent = steps === null ? "–" : steps.ious[0].toFixed(2);
  $("now").textContent = steps === null ? "–" : steps.ious[shown].toFixed(2);
  $("count").textContent = steps === null ? "step –" : `step ${shown} of ${steps.ious.length - 1}`;
  if (steps !== null) $("step").value = shown;
  $("note").hidden = steps === null || steps.ious.at(-1) >= LOW_IOU;
  renderCloseup();
  renderChart();
}

async function start() {
  const names = await (await fetch("photos")).json();
  names.forEach((name, number) => addPhoto(name, `photos/${number}`));
  if (photos.length && photo === null) await showPhoto(photos[0]);
}

render();
start();
