"use strict";
// The playground: one chat over /v1/chat/completions, and charts of /metrics once a second.

const $ = (id) => document.getElementById(id);
const conversation = [];
let controller = null; // of the answer being streamed

function headers() {
  const key = $("api-key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// ---- chat

function addMessage(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.dataset.role = role;
  item.textContent = text;
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function parameters() {
  const body = {};
  for (const input of $("parameters").querySelectorAll("input")) {
    if (input.value !== "") body[input.name] = Number(input.value);
  }
  return body;
}

async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffered += value;
    const events = buffered.split("\n\n");
    buffered = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ") && event !== "data: [DONE]") yield JSON.parse(event.slice(6));
    }
  }
}

function newAnswer() {
  const item = addMessage("assistant", "");
  const thinking = document.createElement("div");
  thinking.className = "thinking";
  const answer = document.createElement("div");
  return { item, thinking, answer, text: "" };
}

function showDelta(view, delta) {
  if (delta.reasoning_content) {
    if (!view.thinking.isConnected) view.item.prepend(view.thinking);
    view.thinking.textContent += delta.reasoning_content;
  }
  if (delta.content) {
    if (!view.answer.isConnected) view.item.append(view.answer);
    view.text += delta.content;
    view.answer.textContent = view.text;
  }
  view.item.scrollIntoView({ block: "end" });
}

async function errorText(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

async function streamAnswer(view) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...conversation] : conversation;
  const started = performance.now();
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    signal: controller.signal,
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({
      messages, stream: true, stream_options: { include_usage: true }, ...parameters(),
      ...(modelName ? { model: modelName } : {}),
    }),
  });
  if (!response.ok) throw new Error(await errorText(response));
  let first = null;
  for await (const event of serverEvents(response)) {
    if (event.error) throw new Error(event.error.message);
    const delta = event.choices?.[0]?.delta;
    if (delta && (delta.content || delta.reasoning_content)) first ??= performance.now() - started;
    if (delta) showDelta(view, delta);
    if (event.usage) reportUsage(event.usage, first, performance.now() - started);
  }
}

function reportUsage(usage, first, total) {
  const rate = usage.completion_tokens / Math.max((total - (first ?? 0)) / 1000, 1e-3);
  $("status").textContent =
    `${usage.completion_tokens} tokens, first after ${Math.round(first ?? total)} ms, ` +
    `${Math.round(rate)} tokens/s`;
}

async function send(text) {
  addMessage("user", text);
  conversation.push({ role: "user", content: text });
  const view = newAnswer();
  setBusy(true);
  try {
    await streamAnswer(view);
  } catch (error) {
    if (error.name === "AbortError") {
      $("status").textContent = "stopped";
    } else {
      if (!view.text) view.item.remove();
      addMessage("error", error.message);
    }
  }
  if (view.text) conversation.push({ role: "assistant", content: view.text });
  else if (view.item.isConnected && !view.thinking.isConnected) view.item.remove();
  setBusy(false);
}

function setBusy(busy) {
  controller = busy ? new AbortController() : null;
  $("send").disabled = busy;
  $("stop").disabled = !busy;
  if (busy) $("status").textContent = "…";
  else $("prompt").focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || controller) return;
  $("prompt").value = "";
  send(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("stop").addEventListener("click", () => controller?.abort());
$("clear").addEventListener("click", () => {
  controller?.abort();
  conversation.length = 0;
  $("messages").replaceChildren();
  $("status").textContent = "";
});
$("toggle-side").addEventListener("click", () => {
  const open = $("side").classList.toggle("open");
  $("toggle-side").setAttribute("aria-expanded", String(open));
});

// ---- model name

let modelName = null;

async function loadModel() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await errorText(response));
    modelName = (await response.json()).data[0].id;
    $("model").textContent = modelName;
  } catch (error) {
    $("model").textContent = error.message;
  }
}
$("api-key").addEventListener("change", loadModel);

// ---- charts

const KEPT_POINTS = 60; // one a second

class Chart {
  constructor(title, format) {
    this.points = [];
    this.format = format;
    const figure = document.createElement("figure");
    figure.innerHTML =
      '<figcaption><span></span><b>–</b></figcaption>' +
      '<svg viewBox="0 0 59 40" preserveAspectRatio="none" role="img"><path d=""/></svg>';
    figure.querySelector("span").textContent = title;
    figure.querySelector("svg").setAttribute("aria-label", `${title}, last minute`);
    this.value = figure.querySelector("b");
    this.path = figure.querySelector("path");
    $("charts").append(figure);
  }

  push(value, top) {
    this.points.push(value);
    if (this.points.length > KEPT_POINTS) this.points.shift();
    const max = top ?? Math.max(...this.points.map((p) => p ?? 0), 1e-9);
    const start = KEPT_POINTS - this.points.length;
    let pen = "M";
    this.path.setAttribute("d", this.points.map((p, i) => {
      if (p === null) { pen = "M"; return ""; }
      const step = `${pen}${start + i} ${(38 - 36 * Math.min(p / max, 1)).toFixed(2)}`;
      pen = "L";
      return step;
    }).join(""));
    this.value.textContent = value === null ? "–" : this.format(value);
  }
}

const integer = (value) => Math.round(value).toLocaleString("en");
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const charts = {
  rate: new Chart("generated tokens/s", integer),
  ttft: new Chart("time to first token (ms)", (v) => v.toFixed(1)),
  running: new Chart("requests running", integer),
  waiting: new Chart("requests waiting", integer),
  kv: new Chart("KV cache in use", percent),
  prefix: new Chart("prefix-cache hits", percent),
};

// Prometheus text -> { name: sum over label sets }.
function parseMetrics(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? (\S+)/.exec(line);
    if (match) sums[match[1]] = (sums[match[1]] ?? 0) + Number(match[2]);
  }
  return (name) => sums[`dlcore:${name}`] ?? 0;
}

let previous = null;

function ratioSince(now, part, whole) {
  const growth = now(whole) - previous.now(whole);
  return growth > 0 ? (now(part) - previous.now(part)) / growth : null;
}

async function poll() {
  try {
    const response = await fetch("/metrics", { headers: headers() });
    if (!response.ok) return;
    const now = parseMetrics(await response.text());
    const at = performance.now();
    if (previous) {
      const seconds = (at - previous.at) / 1000;
      const generated = now("generation_tokens_total") - previous.now("generation_tokens_total");
      charts.rate.push(generated / seconds);
      const ttft = ratioSince(now, "time_to_first_token_seconds_sum", "time_to_first_token_seconds_count");
      charts.ttft.push(ttft === null ? null : 1000 * ttft);
      charts.prefix.push(ratioSince(now, "prefix_cache_hits_total", "prefix_cache_queries_total"), 1);
    }
    charts.running.push(now("num_requests_running"));
    charts.waiting.push(now("num_requests_waiting"));
    charts.kv.push(now("kv_cache_usage_perc"), 1);
    previous = { at, now };
  } catch {
    $("model").textContent = "server unreachable";
  } finally {
    setTimeout(poll, 1000);
  }
}

loadModel();
poll();
