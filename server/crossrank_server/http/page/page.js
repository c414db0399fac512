// The playground: collects a request, sends it, shows the answer or what is wrong.

import { element, showRanking } from "./results.js";
import { curl, python } from "./snippets.js";
import { watch } from "./state.js";

const SAMPLE_QUERY = "How many people live in Berlin?";
const SAMPLE_PASSAGES = [
  "Berlin is well known for its museums, its parks and its long nights.",
  "New York City is famous for the Metropolitan Museum of Art.",
  "Munich is the capital of Bavaria and has 1.5 million inhabitants.",
  "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
  "The first railway of Prussia opened in 1838 and led from Potsdam to its capital.",
];
const KEY = "crossrank-api-key";
// A model that is asleep is waited for this long instead of an error at once.
const WAIT_S = 30;
// What takes longer than this is said to be under way.
const SLOW_MS = 400;

const $ = (id) => document.getElementById(id);
const rerankUrl = new URL("v1/rerank", document.baseURI).href;
let underWay;

function passageFields() {
  return [...$("passages").querySelectorAll("textarea")];
}

function currentRequest() {
  const request = { query: $("query").value, documents: passageFields().map((field) => field.value) };
  return $("model").options.length > 1 ? { model: $("model").value, ...request } : request;
}

function addPassage(text = "") {
  const item = element("li");
  const field = element("textarea");
  field.rows = 1;
  field.value = text;
  const remove = element("button", "remove", "×");
  remove.type = "button";
  remove.addEventListener("click", () => {
    const place = passageFields().indexOf(field);
    item.remove();
    inputChanged();
    (passageFields()[Math.min(place, passageFields().length - 1)] ?? $("add")).focus();
  });
  item.append(field, remove);
  $("passages").append(item);
  return field;
}

/** Brings numbers, heights and snippets in line with the fields. */
function inputChanged() {
  passageFields().forEach((field, i) => {
    field.setAttribute("aria-label", `Passage ${i + 1}`);
    field.nextSibling.setAttribute("aria-label", `Remove passage ${i + 1}`);
  });
  $("count").textContent = passageFields().length;
  for (const field of [$("query"), ...passageFields()]) fit(field);
  $("stale").hidden = $("ranking").hidden;
  showSnippets();
}

/** Makes a field as high as its text, where the browser does not do so itself. */
function fit(field) {
  if (CSS.supports("field-sizing", "content")) return;
  field.style.blockSize = "auto";
  field.style.blockSize = `${field.scrollHeight + 2}px`;
}

function showSnippets() {
  const withKey = Boolean($("key").value);
  $("curl").textContent = curl(rerankUrl, currentRequest(), withKey);
  $("python").textContent = python(rerankUrl, currentRequest(), withKey);
  $("key-note").hidden = !withKey;
}

async function rerank() {
  underWay?.abort();
  underWay = new AbortController();
  const { signal } = underWay;
  const request = currentRequest();
  const key = $("key").value.trim();
  keepKey(key);
  $("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { $("summary").textContent = "Waiting for the server."; }, SLOW_MS);
  try {
    const started = performance.now();
    const response = await fetch(rerankUrl, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        prefer: `wait=${WAIT_S}`,
        ...(key && { authorization: `Bearer ${key}` }),
      },
      body: JSON.stringify(request),
      signal,
    });
    const text = await response.text();
    const browserMs = performance.now() - started;
    if (!response.ok) return showRefusal(response, text);
    clearError();
    showRanking(JSON.parse(text), request.documents, { browserMs, serverTiming: response.headers.get("server-timing") });
    $("stale").hidden = true;
  } catch (failure) {
    if (signal.aborted) return;
    showError(`The server at ${rerankUrl} did not answer (${failure.message}). Is it running, and reachable from here?`);
    refreshState();
  } finally {
    clearTimeout(slow);
    if (!signal.aborted) $("results").removeAttribute("aria-busy");
  }
}

/** Shows an error as the server words it, and leads to the field at fault. */
function showRefusal(response, text) {
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    // Something between the browser and the server answered in its own words.
  }
  const facts = [`${response.status}`, error?.code, error?.param && `param ${error.param}`,
    error?.retry_after_s && `retry after ${error.retry_after_s} s`];
  showError(error?.message ?? (response.statusText || "The answer is not JSON."), facts.filter(Boolean).join(" · "));
  let field = error?.param === "query" ? $("query") : error?.param === "model" ? $("model") : null;
  const document_ = /^documents\[(\d+)\]/.exec(error?.param ?? "");
  if (document_) field = passageFields()[document_[1]];
  if (response.status === 401) {
    $("key-field").hidden = false;
    field = $("key");
  }
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "error");
  field.focus();
}

function showError(message, facts = "") {
  clearError();
  $("error").append(element("p", "", message), element("p", "facts", facts));
  $("error").hidden = false;
  $("ranking").hidden = $("facts").hidden = $("stale").hidden = true;
  $("summary").textContent = "";
}

function clearError() {
  $("error").hidden = true;
  $("error").replaceChildren();
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

function keepKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Storage is switched off: the field holds it.
  }
}

function recallKey() {
  try {
    $("key").value = sessionStorage.getItem(KEY) ?? "";
  } catch {
    // As above.
  }
  $("key-field").hidden = !$("key").value;
}

async function copy(button) {
  const code = $(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // Pages that do not come over TLS may not write the clipboard.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  $("copied").textContent = `${button.textContent}.`;
  setTimeout(() => {
    button.textContent = "Copy";
    $("copied").textContent = "";
  }, 2000);
}

function showModels(models) {
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  $("model-field").hidden = models.length < 2;
  showSnippets();
}

$("query").value = SAMPLE_QUERY;
SAMPLE_PASSAGES.forEach(addPassage);
recallKey();
inputChanged();
if (/Mac|iP(hone|ad)/.test(navigator.platform)) $("modifier").textContent = "⌘";

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  rerank();
});
$("form").addEventListener("input", ({ target }) => {
  if (target.id !== "many-text") inputChanged();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.target.id === "many-text") return;
  event.preventDefault();
  rerank();
});
$("add").addEventListener("click", () => {
  const field = addPassage();
  inputChanged();
  field.focus();
});
$("many").addEventListener("click", () => {
  $("many-panel").hidden = !$("many-panel").hidden;
  $("many").setAttribute("aria-expanded", String(!$("many-panel").hidden));
  if (!$("many-panel").hidden) $("many-text").focus();
});
$("many-add").addEventListener("click", () => {
  const fields = $("many-text").value.split(/\r?\n/).filter((line) => line.trim()).map(addPassage);
  $("many-text").value = "";
  inputChanged();
  fields[0]?.focus();
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));

const refreshState = watch(showModels);
