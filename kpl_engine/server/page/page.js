// Drop images, ask, show the answers; beside it what the server does. Speaks only to the server it came from.

import { card, element } from "/answers.js";
import { Chart } from "/charts.js";

const $ = (id) => document.getElementById(id);
const MODES = {
  batch: "Adapts to the images you send together, and to nothing else.",
  frozen: "Answers each image alone, with proxies fitted before.",
  stream: "Adapts to every image this server has seen in this mode.",
};

let token = null;
let models = [];
let offered = ""; // the last answer of /v1/models
let limits = null;
let files = [];
let asking = null; // AbortController of the question under way

async function call(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const reply = await fetch(path, { ...options, headers, cache: "no-store" });
  if (reply.status === 401) $("token-form").hidden = false;
  return reply;
}

function setState(state, text) {
  if ($("state").textContent === text) return;
  $("state").dataset.state = state;
  $("state").textContent = text;
}

// --- what can be asked

async function loadModels() {
  const reply = await call("/v1/models");
  if (!reply.ok) return false;
  const text = await reply.text();
  if (text === offered) return true;
  offered = text;
  const told = JSON.parse(text);
  models = told.models.filter((model) => model.is_ready && model.knowledge.length);
  limits = told.limits;
  const megabytes = Math.round(limits.max_body_bytes / 2 ** 20);
  $("limits").textContent = `JPEG, PNG, TIFF, DICOM and more; at most ${limits.max_images} images and ${megabytes} MiB at once`;
  fill($("model"), models.map((model) => model.name));
  changeModel(true); // what was chosen stays chosen
  return true;
}

// `keeps`: what stands there goes before what is preferred.
function fill(select, values, preferred, keeps = false) {
  const before = keeps && values.includes(select.value) ? select.value : (preferred ?? select.value);
  select.replaceChildren(...values.map((value) => element("option", { value, textContent: value })));
  if (values.includes(before)) select.value = before;
}

const model = () => models.find((each) => each.name === $("model").value);
const knowledge = () => model()?.knowledge.find((each) => each.name === $("task").value);

function changeModel(keeps = false) {
  fill($("task"), (model()?.knowledge ?? []).map((each) => each.name));
  changeTask(keeps);
}

function changeTask(keeps = false) {
  const base = knowledge();
  fill($("mode"), Object.keys(base?.modes ?? {}), base?.default_mode, keeps);
  changeMode(keeps);
}

function changeMode(keeps = false) {
  const mode = $("mode").value;
  const methods = knowledge()?.modes[mode] ?? [];
  fill($("method"), methods, methods.includes("kpl") ? "kpl" : undefined, keeps);
  $("mode-hint").textContent = MODES[mode] ?? "";
  changeButton();
}

function changeButton() {
  $("classify").disabled = !files.length || !models.length || asking !== null;
}

// --- files

function take(found) {
  if (!found.length) return;
  files = [...found];
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  const size = bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  let text = `${files.length} image${files.length > 1 ? "s" : ""} chosen, ${size}`;
  if (limits && files.length > limits.max_images) text += `: more than the ${limits.max_images} of one request`;
  else if (limits && bytes > limits.max_body_bytes) text += ": more than one request may have";
  $("chosen").textContent = text;
  changeButton();
}

function clear() {
  asking?.abort();
  files = [];
  $("files").value = "";
  $("chosen").textContent = "no images chosen";
  $("summary").textContent = "Nothing asked yet.";
  $("results").replaceChildren();
  $("warnings").replaceChildren();
  changeButton();
}

// --- a question and its answer

async function ask(event) {
  event.preventDefault();
  const sent = files;
  const form = new FormData();
  for (const name of ["model", "task", "mode", "method"]) if ($(name).value) form.append(name, $(name).value);
  form.append("top_k", "3");
  for (const file of sent) form.append("image", file, file.name || "pasted image");
  asking = new AbortController();
  changeButton();
  $("summary").textContent = `Asking about ${sent.length} image${sent.length > 1 ? "s" : ""} …`;
  try {
    const reply = await call("/v1/classify", { method: "POST", body: form, signal: asking.signal });
    const told = await reply.json();
    if (reply.ok) show(told, sent);
    else refuse(reply, told, sent);
  } catch (error) {
    if (error.name !== "AbortError") $("summary").textContent = "The server did not answer. Is it running? Your images are still chosen.";
  } finally {
    asking = null;
    changeButton();
  }
}

function show(told, sent) {
  const usable = told.images.filter((image) => !image.error).length;
  const used = told.method_used === told.method ? told.method_used : `${told.method_used} instead of ${told.method}`;
  $("summary").textContent =
    `${usable} of ${told.images.length} image${told.images.length > 1 ? "s" : ""} answered by ${used}, mode ${told.mode}, ` +
    `in ${told.timings_ms.total.toFixed(0)} ms (decode ${told.timings_ms.decode.toFixed(0)}, wait ${told.timings_ms.queue.toFixed(0)}, ` +
    `encode ${told.timings_ms.encode.toFixed(0)}, solve ${told.timings_ms.solve.toFixed(0)}).`;
  $("warnings").replaceChildren(...told.warnings.map((each) => element("li", { textContent: each.message })));
  $("results").replaceChildren(...told.images.map((image, i) => card(image, told.classes, sent[i])));
  $("answers-title").focus({ preventScroll: false });
}

function refuse(reply, told, sent) {
  const wait = reply.headers.get("Retry-After");
  const reasons = {
    401: "The server asks for a token: give it above and ask again.",
    429: `The server is full. Ask again in ${wait ?? "a few"} s; your images are still chosen.`,
    503: "The server is starting or stopping. Ask again in a moment; your images are still chosen.",
  };
  const message = told?.error?.message ?? `status ${reply.status}`;
  $("summary").textContent = reasons[reply.status] ?? `Refused: ${message}`;
  $("warnings").replaceChildren();
  $("results").replaceChildren(...(told?.images ?? []).map((image, i) => card(image, [], sent[i])));
}

// --- what the server does

const charts = {
  throughput: new Chart($("throughput"), $("throughput-value"), ["images a second"], "images/s", 1),
  queue: new Chart($("queue"), $("queue-value"), ["in flight", "waiting"], "images"),
  latency: new Chart($("latency"), $("latency-value"), ["p50", "p99"], "ms", 1),
};
let last = null;

const MODELS_EVERY = 5; // polls
const POLL_MS = 5000; // a server that took longer counts as away
let polls = 0;
let isPolling = false;

async function poll() {
  if (isPolling) return; // a slow server is not asked again
  isPolling = true;
  try {
    const reply = await call("/v1/status", { signal: AbortSignal.timeout(POLL_MS) });
    if (reply.status === 401) {
      setState("busy", "token needed");
    } else if (reply.ok) {
      const told = await reply.json();
      if (told.is_ready && (!models.length || polls % MODELS_EVERY === 0)) await loadModels();
      polls += 1;
      setState(told.is_ready ? "ready" : "busy", told.is_ready ? "ready" : "starting or stopping");
      draw(told);
    } else {
      setState("busy", "not ready");
    }
  } catch {
    setState("away", "no answer from the server");
    last = null;
  } finally {
    isPolling = false;
  }
}

function draw(told) {
  const now = { uptime: told.uptime_s, images: told.totals.images };
  const seconds = last ? now.uptime - last.uptime : 0;
  if (seconds > 0) charts.throughput.add(Math.max(0, now.images - last.images) / seconds);
  last = now;
  charts.queue.add(told.inflight_images, told.queue_images);
  charts.latency.add(told.latency_ms?.p50 ?? null, told.latency_ms?.p99 ?? null);
}

// --- wiring

$("drop").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => take($("files").files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
$("model").addEventListener("change", () => changeModel());
$("task").addEventListener("change", () => changeTask());
$("mode").addEventListener("change", () => changeMode());
$("ask").addEventListener("submit", ask);
$("clear").addEventListener("click", clear);
$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  $("token-form").hidden = true;
  if (await loadModels()) setState("ready", "ready");
});

poll();
setInterval(() => {
  if (!document.hidden) poll();
}, 1000);
