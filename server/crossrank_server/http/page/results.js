// The ranking: rank against input order, scores as bars, what it took.

/** Returns a new element; text is only ever text. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
const list = document.getElementById("list");
const whole = (number) => number.toLocaleString("en");
const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

/**
 * Shows an answer of /v1/rerank.
 * @param answer its JSON
 * @param documents the passages as they were sent
 * @param timing {browserMs, serverTiming}: the header as it came, or null
 */
export function showRanking(answer, documents, { browserMs, serverTiming }) {
  const cut = new Set(answer.meta?.truncated_documents);
  list.replaceChildren(...answer.results.map((result, rank) =>
    row(result, rank, documents[result.index], cut.has(result.index))));
  document.getElementById("ranking").hidden = false;
  drawMoves(answer.results);
  const moved = answer.results.filter((result, rank) => result.index !== rank).length;
  document.getElementById("summary").textContent =
    `${whole(documents.length)} ${documents.length === 1 ? "passage" : "passages"} ranked, ${moved || "none"} moved. `
    + `Best: passage ${answer.results[0].index + 1}.`
    + (answer.meta?.query_truncated ? " The query is too long for the model; only its beginning was read." : "");
  showFacts(answer, browserMs, serverTiming);
}

function row(result, rank, text, truncated) {
  const change = result.index - rank;
  const item = element("li");
  item.dataset.index = result.index;
  item.dataset.move = change > 0 ? "up" : change < 0 ? "down" : "same";
  const score = result.relevance_score;
  const bar = element("div", "bar");
  bar.setAttribute("aria-hidden", "true");
  const fill = element("div");
  fill.style.inlineSize = `${100 * Math.min(1, Math.max(0, score))}%`;
  bar.append(fill);
  const move = element("span", "move",
    change ? `${change > 0 ? "up" : "down"} ${Math.abs(change)}` : "same place");
  const body = element("div", "body");
  const line = element("div", "line");
  line.append(bar, element("span", "score", score && score < 0.00005 ? score.toExponential(0) : score.toFixed(4)));
  const from = element("p", "from", `Input ${result.index + 1}, `);
  from.append(move);
  if (truncated) from.append(element("span", "cut", "too long for the model: only a part was read"));
  body.append(line, element("p", "text", text), from);
  item.append(element("span", "rank", `${rank + 1}`), body);
  return item;
}

/** Joins each passage's place in the input (left) to its rank (right). */
function drawMoves(results) {
  const draw = () => {
    const centres = [...list.children].map((item) => item.offsetTop + 14);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("height", list.offsetHeight);
    results.forEach(({ index }, rank) => {
      const [from, to] = [centres[index], centres[rank]];
      if (from === undefined) return;
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M24 ${from}C60 ${from} 60 ${to} 96 ${to}`);
      path.setAttribute("class", list.children[rank].dataset.move);
      const number = document.createElementNS(SVG, "text");
      number.setAttribute("x", 14);
      number.setAttribute("y", from + 4.5);
      number.textContent = index + 1;
      svg.append(path, number);
    });
    list.querySelector(":scope > svg")?.remove();
    list.append(svg);
  };
  observer?.disconnect();
  observer = new ResizeObserver(draw);
  observer.observe(list);
  draw();
}
let observer;

function showFacts(answer, browserMs, serverTiming) {
  const facts = [["In the browser", ms(browserMs)]];
  const stages = [...(serverTiming ?? "").matchAll(/([\w-]+)(?:;[^,;]*)*?;dur=([\d.]+)/g)]
    .map(([, name, dur]) => [name, Number(dur)]);
  if (stages.length) {
    const total = stages.find(([name]) => name === "total")?.[1] ?? stages.reduce((sum, [, dur]) => sum + dur, 0);
    facts.push(["In the server", ms(total)]);
    for (const [name, dur] of stages) if (name !== "total") facts.push([name, ms(dur)]);
  }
  if (answer.usage) facts.push(["Tokens", whole(answer.usage.total_tokens)]);
  facts.push(["Model", answer.model]);
  const shown = document.getElementById("facts");
  shown.replaceChildren(...facts.map(([term, value]) => {
    const pair = element("div");
    pair.append(element("dt", "", term), element("dd", "", value));
    return pair;
  }));
  shown.hidden = false;
}
