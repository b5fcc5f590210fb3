// Shows photos with loose boxes and refines the boxes with the exported model, inside the browser.

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
const MODEL = "refiner.onnx";
const EXAMPLES = "../photos/";

const UNKNOWN = 0; // label of a box of unknown class
const CLICK = 6; // screen pixels: a shorter movement does not draw a box
const PAUSE_MS = 500; // pause on the loose boxes before the animation
const GLIDE_MS = 900; // duration of the animation from loose to tight

const $ = (id) => document.getElementById(id);

let ort = null;
let session = null;
let photo = null; // the photo on display: {name, url, loose, button}
// {name, label, loose, tight, ious, share}: loose and tight are [x1, y1, x2, y2] in pixels of the photo, ious the
// predicted IoUs before and after; share, from 0 to 1, is the progress of the animation from loose to tight.
let boxes = [];
let corner = null; // {x, y, clientX, clientY}: first corner of the box being drawn
let drawn = null; // the box being drawn
let frame = 0;

// state: "loading", "running" (the model), "ready", "drawing" or "broken"
function setState(state, { hint = "", error = "" } = {}) {
  document.body.dataset.state = state;
  $("hint").textContent = hint;
  $("error").textContent = error;
  const isReady = state === "ready";
  $("again").disabled = $("clear").disabled = !isReady || !boxes.length;
  $("loose").disabled = !isReady || !photo?.loose.length;
}

const isBusy = () => ["loading", "running"].includes(document.body.dataset.state);

function setReady(error = "") {
  setState("ready", { hint: boxes.length ? "" : "Drag a loose box around an object", error });
}

// The model

async function loadModel() {
  try {
    ort = await import(RUNTIME);
  } catch {
    throw new Error("onnxruntime-web is missing; run `npm install onnxruntime-web` in the folder of this page.");
  }
  const answer = await fetch(MODEL);
  if (!answer.ok) throw new Error(`${MODEL} is missing; export it to the folder of this page with tools/export_onnx.py.`);
  session = await ort.InferenceSession.create(await answer.arrayBuffer());
}

// Sets `tight` and `ious` of the boxes. Returns the milliseconds that the model took.
async function refine(image, boxes) {
  const bitmap = await createImageBitmap(image); // fromImage would read an <img> at its size on screen
  const feeds = {
    image: await ort.Tensor.fromImage(bitmap, {}), // float32 [1, 3, height, width], RGB in [0, 1]
    boxes: new ort.Tensor("float32", boxes.flatMap((box) => box.loose), [boxes.length, 4]),
    labels: new ort.Tensor("int64", boxes.map((box) => BigInt(box.label)), [boxes.length]),
  };
  const start = performance.now();
  const { refined_boxes, ious_before, ious } = await session.run(feeds);
  const milliseconds = performance.now() - start;
  boxes.forEach((box, i) => {
    box.tight = [...refined_boxes.data.slice(4 * i, 4 * i + 4)];
    box.ious = [ious_before.data[i], ious.data[i]];
  });
  return milliseconds;
}

async function tighten(added) {
  boxes.push(...added);
  setState("running");
  render();
  await new Promise((resolve) => setTimeout(resolve, 30)); // the model blocks the page, so show the loose boxes first
  try {
    const milliseconds = await refine($("image"), added);
    const count = added.length === 1 ? "1 box" : `${added.length} boxes`;
    $("time").textContent = `${count} in ${milliseconds.toFixed(0)} ms`;
    setReady();
    play(added);
  } catch (error) {
    boxes = boxes.filter((box) => !added.includes(box));
    setReady(`The model failed to refine the boxes: ${error.message ?? error}`);
    render();
  }
}

// Animates the boxes `moving` from loose to tight, and shows all others as tight.
function play(moving) {
  cancelAnimationFrame(frame);
  const glides = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = performance.now();
  const tick = (now) => {
    const share = glides ? Math.min(Math.max((now - start - PAUSE_MS) / GLIDE_MS, 0), 1) : 1;
    for (const box of boxes) box.share = moving.includes(box) ? share * share * (3 - 2 * share) : 1;
    render();
    if (share < 1) frame = requestAnimationFrame(tick);
  };
  tick(start);
}

// Photos

function addPhoto(name, url, loose = []) {
  const added = { name, url, loose };
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  button.append(Object.assign(new Image(), { alt: name, src: url }));
  button.addEventListener("click", () => isBusy() || showPhoto(added));
  added.button = button;
  $("strip").append(button);
  return added;
}

async function addExamples() {
  const { images, annotations, categories } = await (await fetch(`${EXAMPLES}loose.json`)).json();
  const names = new Map(categories.map(({ id, name }) => [id, name]));
  const labels = new Map(categories.map(({ id }, i) => [id, i + 1])); // the model must have these classes in this order
  return images.map(({ id, file_name }) => {
    const ofPhoto = annotations.filter((annotation) => annotation.image_id === id);
    const loose = ofPhoto.map(({ category_id, bbox: [x, y, width, height] }) => ({
      name: names.get(category_id), label: labels.get(category_id), loose: [x, y, x + width, y + height],
    }));
    return addPhoto(file_name, EXAMPLES + file_name, loose);
  });
}

async function showPhoto(shown) {
  setState("running");
  if (await present(shown)) await tightenLoose();
}

// Shows a photo without boxes. Returns whether the browser could decode it.
async function present(shown) {
  cancelAnimationFrame(frame);
  photo = shown;
  boxes = [];
  drawn = corner = null;
  $("time").textContent = "\u00a0";
  for (const button of document.querySelectorAll("#strip button")) {
    button.setAttribute("aria-current", button === shown.button);
  }
  $("image").src = shown.url;
  $("image").alt = shown.name;
  try {
    await $("image").decode();
  } catch {
    setState("broken", { error: `${shown.name} cannot be shown; try a JPEG or PNG file.` });
    return false;
  }
  const { naturalWidth: width, naturalHeight: height } = $("image");
  $("photo").style.setProperty("--aspect", width / height);
  $("overlay").setAttribute("viewBox", `0 0 ${width} ${height}`);
  render();
  return true;
}

async function tightenLoose() {
  boxes = [];
  if (photo.loose.length) await tighten(photo.loose.map((box) => ({ ...box, share: 0 })));
  else stopDrawing();
}

function addFiles(files) {
  if (isBusy()) return;
  const added = [...files].map((file) => addPhoto(file.name, URL.createObjectURL(file)));
  $("file").value = ""; // lets the user choose the same file again
  if (added.length) showPhoto(added[0]);
}

$("file").addEventListener("change", () => addFiles($("file").files));
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

// Drawing

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

function stopDrawing() {
  corner = drawn = null;
  setReady();
  render();
}

$("overlay").addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0 || document.body.dataset.state !== "ready") return;
  event.preventDefault();
  $("overlay").setPointerCapture(event.pointerId);
  corner = pointOf(event);
  setState("drawing");
});
$("overlay").addEventListener("pointermove", (event) => {
  if (corner === null) return;
  const { x, y } = pointOf(event);
  drawn = [Math.min(corner.x, x), Math.min(corner.y, y), Math.max(corner.x, x), Math.max(corner.y, y)];
  render();
});
$("overlay").addEventListener("pointerup", (event) => {
  if (corner === null) return;
  const box = drawn;
  const moved = Math.hypot(event.clientX - corner.clientX, event.clientY - corner.clientY);
  stopDrawing();
  if (box && moved >= CLICK) tighten([{ name: "drawn", label: UNKNOWN, loose: box, share: 0 }]);
});
$("overlay").addEventListener("pointercancel", stopDrawing);

$("again").addEventListener("click", () => play(boxes));
$("loose").addEventListener("click", tightenLoose);
$("clear").addEventListener("click", () => {
  cancelAnimationFrame(frame);
  boxes = [];
  stopDrawing();
});

// Pictures

function rectangles([x1, y1, x2, y2], kind) {
  return [`box halo`, `box ${kind}`].map((style) => {
    const rectangle = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const attributes = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: style };
    for (const [key, value] of Object.entries(attributes)) rectangle.setAttribute(key, value);
    return rectangle;
  });
}

function span(text, style) {
  return Object.assign(document.createElement("span"), { className: style, textContent: text });
}

const now = ({ loose, tight, share }) => loose.map((value, i) => value + (tight[i] - value) * share);

function tag(box) {
  const [from, to] = box.ious.map((iou) => iou.toFixed(2));
  const made = span("", "tag");
  made.append(span(from, "from"), ...(box.share === 1 ? [span("→", "to"), span(to, "now")] : []));
  const [x1, y1] = now(box);
  made.style.left = `${(100 * x1) / $("image").naturalWidth}%`;
  made.style.top = `max(${(100 * y1) / $("image").naturalHeight}%, 1.7rem)`; // inside the photo
  return made;
}

function row(box) {
  const made = document.createElement("tr");
  for (const text of [box.name, ...box.ious.map((iou) => iou.toFixed(2))]) made.insertCell().textContent = text;
  return made;
}

function render() {
  const refined = boxes.filter((box) => box.tight);
  $("overlay").replaceChildren(
    ...boxes.flatMap((box) => rectangles(box.loose, "is-loose")),
    ...refined.filter((box) => box.share > 0).flatMap((box) => rectangles(now(box), "is-tight")),
    ...(drawn ? rectangles(drawn, "is-loose") : []),
  );
  $("tags").replaceChildren(...refined.map(tag));
  $("rows").replaceChildren(...refined.map(row));
  ["before", "after"].forEach((id, i) => {
    const mean = refined.reduce((sum, box) => sum + box.ious[i], 0) / refined.length;
    $(id).textContent = refined.length ? mean.toFixed(2) : "–";
  });
}

async function start() {
  const examples = await addExamples();
  setState("loading", { hint: "Loading the model" });
  if (!(await present(examples[0]))) return;
  await loadModel();
  await tightenLoose();
}

start().catch((error) => setState("broken", { error: error.message ?? String(error) }));
