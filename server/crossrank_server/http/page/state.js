// What the server says of itself: its status and the cards of its models.

import { element } from "./results.js";

const POLL_MS = 10_000;
const SLOWEST_POLL_MS = 60_000;
const DOTS = { ready: "ready", "not ready": "waiting", warming: "waiting" };

let shown = "";
let timer;
let delay = POLL_MS;

/**
 * Shows the state now and keeps it current while the page is seen.
 * @param onModels called with the models when they have changed
 */
export function watch(onModels) {
  const poll = async () => {
    clearTimeout(timer);
    delay = (await show(onModels)) ? POLL_MS : Math.min(2 * delay, SLOWEST_POLL_MS);
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(poll, delay);
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
  poll();
  return poll;
}

async function show(onModels) {
  let text;
  try {
    const response = await fetch("page/state.json");
    if (!response.ok) throw new Error(`${response.status}`);
    text = await response.text();
  } catch {
    shown = "";
    showStatus("down", "Not reachable");
    return false;
  }
  if (text === shown) return true;
  shown = text;
  const state = JSON.parse(text);
  document.getElementById("version").textContent = state.version;
  showStatus(state.ready ? "ready" : "waiting", state.ready ? "Ready" : "Not ready");
  document.getElementById("models-title").textContent = state.models.length > 1 ? "Models" : "Model";
  document.getElementById("cards").replaceChildren(...state.models.map(card));
  document.getElementById("notes").replaceChildren(...notes(state.models));
  onModels(state.models);
  return true;
}

function showStatus(state, text) {
  const status = document.getElementById("status");
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
}

function card(model) {
  const name = model.id.split("/");
  const title = element("h3", "", name.pop());
  if (name.length) title.prepend(element("span", "owner", `${name.join("/")}/`));
  const runs = element("p", "runs");
  const status = element("span", "state", model.status);
  status.dataset.state = DOTS[model.status] ?? "unknown";
  // A model that was never loaded has no engine yet.
  const parts = [model.engine, model.precision, `${model.max_length} tokens`].filter(Boolean);
  runs.append(status, ...parts.map((part) => element("span", "", part)));
  const head = element("div", "head");
  head.append(title, runs);
  const article = element("article", "card");
  article.append(head, figures(model));
  return article;
}

function figures({ card: known, usd_per_1000_docs: price }) {
  const list = element("dl", "figures");
  const decimals = (value) => value?.toFixed(2);
  const usd = (value) => value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 6 });
  const published = !known ? [] : [
    ["Layers / hidden", `${known.layers} / ${known.hidden}`],
    ["NDCG@10", decimals(known.ndcg_at_10)],
    ["MRR@10", decimals(known.mrr_at_10)],
    ["Docs/s, V100", known.docs_per_s_v100?.toLocaleString("en")],
  ];
  for (const [label, value] of [
    ...published,
    ["USD / 1,000 docs", usd(price.realtime)],
    ["Tier batch", usd(price.batch)],
    ["Licence", known?.licence],
  ]) {
    const pair = element("div");
    const detail = element("dd", "", value ?? "–");
    if (value == null) detail.setAttribute("aria-label", "not published");
    pair.append(element("dt", "", label), detail);
    list.append(pair);
  }
  return list;
}

/** Returns what the figures mean: each sentence once, under the names of the models it is true of. */
function notes(models) {
  const names = new Map();
  for (const { id, card: known, price_basis: basis } of models) {
    const sentences = known
      ? [known.note, known.terms && `Licence: ${known.terms}`, `NDCG@10: ${known.protocol}.`]
      : ["Not in the catalogue: nothing is published of it here."];
    sentences.push(`Price: ${basis}.`);
    if (known?.mrr_at_10 != null) sentences.push("MRR@10 (MS MARCO dev) and docs/s: published by its authors.");
    const name = id.split("/").pop();
    for (const sentence of sentences) if (sentence) names.set(sentence, [...(names.get(sentence) ?? []), name]);
  }
  const groups = new Map();
  for (const [sentence, of] of names) groups.set(of.join(", "), [...(groups.get(of.join(", ")) ?? []), sentence]);
  return [...groups].map(([of, sentences]) => {
    const item = element("li");
    if (models.length > 1) item.append(element("b", "", of));
    const special = models.map(({ card: known }) => known?.note);
    item.append(...sentences.map((sentence) => element("p", special.includes(sentence) ? "note" : "", sentence)));
    return item;
  });
}
