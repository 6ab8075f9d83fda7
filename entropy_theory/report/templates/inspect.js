"use strict";
// Reads the columns that Python wrote, colours tokens and adds numbers up. What a rule does is data: for a mask one score
// per token, to be compared with the threshold's setting; for any other rule one coefficient per token.
(async () => {
const $ = (id) => document.getElementById(id);
const LEVELS = 8, PAGE_COMPLETIONS = 20, SHORT = 48, PAGE_SHORT = 60, PAGE_TOKENS = 6000, TYPES = 12, BINS = 60;
const QUADRANTS = ["none", "q1", "q2", "q3", "q4"];
const WORDS = {
  q1: "Q1: A > 0, likely token. Entropy falls", q2: "Q2: A > 0, unlikely token. Entropy rises",
  q3: "Q3: A < 0, likely token. Entropy rises", q4: "Q4: A < 0, unlikely token. Entropy falls", none: "A or S_c is 0. No effect",
};

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && name !== "role") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);  // strings become text nodes: nothing in the data is read as markup
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const minus = (text) => text.replace(/-/g, "−");
function number(x, signed = false) {
  const size = Math.abs(x), sign = signed && x > 0 ? "+" : "";
  if (x === 0) return "0";
  if (size < 1e-4 || size >= 1e5) {
    const [digits, power] = x.toExponential(1).split("e");
    return minus(`${sign}${digits}e${Number(power)}`);
  }
  return minus(sign + String(Number(x.toPrecision(size >= 1 ? 4 : 3))));
}
const chance = (p) => (p > 0.9995 ? "> 0.999" : number(p));
const percent = (x) => `${(100 * x).toFixed(x > 0 && x < 0.001 ? 2 : 1)} %`;
const count = (n) => n.toLocaleString("en");

async function unpack(text, layout) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const buffer = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const kinds = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
  return Object.fromEntries(layout.map(([name, kind, start, length]) => [name, new kinds[kind](buffer, start, length)]));
}

const data = JSON.parse($("data").textContent);
const column = await unpack($("columns").textContent, data.columns);
const { starts, type, quadrant, centered, baseline, influence } = column;
const completions = data.completions, size = completions.length, tokens = starts[size];
const owner = new Uint32Array(tokens);
for (let c = 0; c < size; c++) owner.fill(c, starts[c], starts[c + 1]);
const rules = [{ spec: "none", none: true, totals: data.none }, ...data.rules];
for (const [i, rule] of data.rules.entries()) {
  Object.assign(rule, { scores: column[`scores${i}`], coefficients: column[`coefficients${i}`], extra: column[`extra${i}`] });
}
const state = { by: "tabular", rule: rules[Math.min(data.start, rules.length - 1)], setting: 0, order: [], pages: [], page: 0, token: -1, hovered: -1 };

// -- what a rule makes of a token ----------------------------------------------------------------------------------------
const advantage = (t) => completions[owner[t]].advantage;
function coefficient(t, rule = state.rule, setting = state.setting) {
  if (rule.scores) return rule.scores[t] > setting ? 0 : advantage(t);
  return rule.coefficients ? rule.coefficients[t] : advantage(t);
}
const effect = (t, rule = state.rule, setting = state.setting) =>
  -coefficient(t, rule, setting) * centered[t] + (rule.extra ? rule.extra[t] : 0);
const plain = (t) => -advantage(t) * centered[t];
// What the colours show: the effect on the position's own entropy by S_c, or on mean entropy by D, entropy terms left out.
const byInfluence = () => state.by === "influence";
const shownEffect = (t) => (byInfluence() ? coefficient(t) * influence[t] : effect(t));
const shownPlain = (t) => (byInfluence() ? advantage(t) * influence[t] : plain(t));
const dropped = (t, rule = state.rule, setting = state.setting) =>
  rule.scores ? rule.scores[t] > setting : !!rule.dropped && rule.coefficients[t] === 0 && advantage(t) !== 0;
const totals = (rule = state.rule, setting = state.setting) => rule.totals[rule.scores ? setting : 0];
const settingOf = (rule, k) => `${rule.symbol} = ${rule.values[k]}`;

function level(value) {
  const step = Math.min(LEVELS, Math.round(LEVELS * Math.sqrt(Math.abs(value) / (byInfluence() ? data.influence.cap : data.cap))));
  return step === 0 ? "" : (value < 0 ? "f" : "r") + step;
}
const direction = (value) => (value < 0 ? "falls" : value > 0 ? "rises" : "stays");

// -- controls ------------------------------------------------------------------------------------------------------------
for (const rule of rules) $("rule").append(el("option", { value: rule.spec }, rule.spec + (rule.same ? "  (changes nothing here)" : "")));

function choose(rule) {
  state.rule = rule;
  state.setting = rule.scores ? rule.own : 0;
  $("rule").value = rule.spec;
  $("dial").hidden = !rule.scores;
  if (rule.scores) {
    $("threshold").max = rule.values.length - 1;
    $("threshold").value = state.setting;
  }
  refresh();
}
function refresh() {
  const { rule } = state, now = totals(), before = data.none[0];
  if (rule.scores) {
    $("setting").textContent = settingOf(rule, state.setting) + (state.setting === rule.own ? " (its own)" : "");
    $("threshold").setAttribute("aria-valuetext", $("setting").textContent);
  }
  const parts = [`mean entropy ${direction(now.total)}: `, el("b", { id: "slope", className: `number ${direction(now.total)}`, "data-value": now.total }, number(now.total, true))];
  if (!rule.none) parts.push(` (none ${number(before.total, true)})`);
  if (rule.scores || rule.dropped) parts.push(el("span", { id: "dropped", "data-value": now.dropped }, `, drops ${percent(now.dropped / data.tokens)}`));
  $("outcome").replaceChildren(...parts);
  for (const row of document.querySelectorAll(".lens tbody tr")) row.classList.toggle("chosen", row.dataset.rule === rule.spec);
  drawMap(now, before);
  paint();
  showCard();
  cancelAnimationFrame(refresh.frame);
  refresh.frame = requestAnimationFrame(addUp);
}

// -- totals --------------------------------------------------------------------------------------------------------------
function drawMap(now, before) {
  const largest = Math.max(...QUADRANTS.flatMap((q) => [Math.abs(now[q]), Math.abs(before[q])])) || 1;
  const bar = (value, className) => {
    const fill = el("i", { className });
    fill.style.width = `${(100 * Math.abs(value)) / largest}%`;
    return fill;
  };
  const cell = (q, name, way) => el("div", { className: "cell", id: q },
    el("div", { className: "name" }, `${name} `, el("span", { className: way }, way === "falls" ? "▼ entropy falls" : "▲ entropy rises")),
    el("div", { className: `big number ${direction(now[q])}`, "data-value": now[q] }, number(now[q], true)),
    el("div", { className: `track ${way}` }, bar(before[q], "before"), bar(now[q], "now")),
    el("div", { className: "soft" }, `${percent(data.shares[q])} of the tokens`),
    el("div", { className: "soft" }, state.rule.none ? "\u00a0" : `without control ${number(before[q], true)}`));
  const head = (text, kind) => el("div", { className: `head ${kind}` }, text);
  $("map").replaceChildren(
    head("", "corner"), head("likely token", "column"), head("unlikely token", "column"),
    head("A > 0", "row"), cell("q1", "Q1", "falls"), cell("q2", "Q2", "rises"),
    head("A < 0", "row"), cell("q3", "Q3", "rises"), cell("q4", "Q4", "falls"));
  $("rest").hidden = !data.shares.none;
  $("rest").textContent = `${percent(data.shares.none)} of the tokens have A = 0 or S_c = 0` + (now.none ? `; the rule's share there: ${number(now.none, true)}.` : ".");
}

// -- completions ---------------------------------------------------------------------------------------------------------
function addedUp(value) {
  return completions.map((_, c) => {
    let sum = 0;
    for (let t = starts[c]; t < starts[c + 1]; t++) sum += value(t);
    return sum;
  });
}
const sumsBy = { tabular: addedUp(plain), influence: influence && addedUp((t) => advantage(t) * influence[t]) };
const sumOf = (c) => sumsBy[state.by][c];
const longest = completions.reduce((most, _, c) => Math.max(most, starts[c + 1] - starts[c]), 0);
const promptText = (c) => data.prompts[completions[c].prompt];
const pieceOf = (t) => data.types[type[t]];
const isTouched = (c) => {
  for (let t = starts[c]; t < starts[c + 1]; t++) if (dropped(t) || coefficient(t) !== advantage(t)) return true;
  return false;
};
function arrange() {
  const which = $("which").value, words = $("find").value;
  const keep = {
    all: () => true, positive: (c) => completions[c].advantage > 0, negative: (c) => completions[c].advantage < 0, touched: isTouched,
  }[which];
  const text = (c) => { let out = ""; for (let t = starts[c]; t < starts[c + 1]; t++) out += pieceOf(t).text; return out; };
  const order = completions.map((_, c) => c).filter((c) => keep(c) && (!words || promptText(c).includes(words) || text(c).includes(words)));
  const key = { falls: sumOf, rises: (c) => -sumOf(c), moves: (c) => -Math.abs(sumOf(c)) }[$("order").value];
  if (key) order.sort((a, b) => key(a) - key(b) || a - b);
  const short = longest <= SHORT / 2 && order.every((c) => promptText(c).length + text(c).length <= SHORT);
  $("list").classList.toggle("short", short);
  state.pages = [];
  for (let i = 0, page = null, held = 0; i < order.length; i++) {
    const length = starts[order[i] + 1] - starts[order[i]];
    if (!page || page.length >= (short ? PAGE_SHORT : PAGE_COMPLETIONS) || held + length > PAGE_TOKENS) state.pages.push((page = [])), (held = 0);
    page.push(order[i]);
    held += length;
  }
  state.order = order;
  turn(0);
}
function turn(page) {
  state.page = Math.max(0, Math.min(page, state.pages.length - 1));
  const shown = state.pages[state.page] ?? [];
  $("list").replaceChildren(...shown.map(drawCompletion));
  if (!shown.length) $("list").append(el("p", {}, "No completion matches."));
  $("place").textContent = state.pages.length > 1
    ? `page ${state.page + 1} of ${count(state.pages.length)}, ${count(state.order.length)} completions` : `${count(state.order.length)} completions`;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page >= state.pages.length - 1;
  state.token = shown.length ? starts[shown[0]] : -1;
  state.hovered = -1;
  paint();
  showCard();
  const first = document.querySelector("#list .tok");
  if (first) first.tabIndex = 0;
}
// Characters that are invisible or turn the writing direction around are spelled out.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const shownText = (piece) => piece.text === "" ? "▫" : visible(piece.text).replace(/\t/g, "⇥\t").replace(/\n/g, "↵\n");
const spoken = (piece) => piece.text === "" ? "continued character" : visible(piece.text).replace(/\n/g, "newline").replace(/^ +$/, "space");

function drawCompletion(c) {
  const one = completions[c];
  const facts = [`#${one.number}`, `group ${one.group}`, `reward ${one.reward === null ? "none" : number(one.reward)}`, `A ${number(one.advantage, true)}`];
  const tokensOf = [];
  for (let t = starts[c]; t < starts[c + 1]; t++) {
    const piece = pieceOf(t);
    tokensOf.push(el("span", { id: `t${t}`, role: "option", tabIndex: -1, className: `tok${piece.special ? " special" : ""}` }, shownText(piece)));
  }
  return el("article", { className: "completion", "data-completion": c },
    el("h3", {}, el("b", {}, facts[0]), ...facts.slice(1).map((f) => el("span", {}, f)),
      el("span", {}, "effect ", el("span", { className: "own" }), el("span", { className: "with-rule" }))),
    el("p", { className: "prompt" }, visible(promptText(c))),
    el("div", { className: "text", role: "listbox", dir: "auto", "aria-orientation": "horizontal", "aria-label": `Completion ${facts.join(", ")}` }, ...tokensOf));
}
function paint() {
  const many = state.rule.none;
  for (const article of document.querySelectorAll(".completion")) {
    const c = Number(article.dataset.completion);
    let sum = 0;
    for (let t = starts[c]; t < starts[c + 1]; t++) {
      const node = $(`t${t}`), value = shownEffect(t), q = QUADRANTS[quadrant[t]], out = dropped(t);
      sum += value;
      node.className = `tok ${q} ${level(value)}${level(shownPlain(t)) ? "" : " weak"}${out ? " dropped" : ""}${pieceOf(t).special ? " special" : ""}${t === state.hovered ? " shown" : ""}`;
      node.setAttribute("aria-label", `${spoken(pieceOf(t))}: ${WORDS[q]}${byInfluence() ? " by S_c" : ""}${out ? ", dropped by the rule" : `, ${byInfluence() ? "by D " : ""}${number(value, true)}`}`);
    }
    article.querySelector(".own").replaceChildren(el("span", { className: `number ${direction(sumOf(c))}` }, number(sumOf(c), true)));
    const place = article.querySelector(".with-rule");
    place.dataset.value = sum;
    place.replaceChildren(...(many ? [] : [" → ", el("span", { className: `number ${direction(sum)}` }, number(sum, true))]));
  }
}

const named = (name) => (name.includes("S_c") ? [name.split("S_c")[0] + "S", el("sub", {}, "c"), name.split("S_c")[1]] : [name]);

// -- the card ------------------------------------------------------------------------------------------------------------
function verdict(t, rule) {
  if (rule.none) return `g = A = ${number(advantage(t), true)}`;
  const g = coefficient(t, rule, rule === state.rule ? state.setting : rule.own), A = advantage(t);
  const extra = rule.extra && rule.extra[t] ? `, entropy term ${number(rule.extra[t], true)}` : "";
  if (rule.scores) {
    const k = rule.scores[t], all = rule.values.length, rising = rule.values[0] < rule.values[all - 1];
    const range = `${rule.symbol} ${rising ? "≤" : "≥"} ${rule.values[k - 1]}`, out = dropped(t, rule, rule === state.rule ? state.setting : rule.own);
    if (k === 0 || k === all) return `${k ? "drops" : "keeps"} it at any ${rule.symbol}`;
    return out ? `drops it (${range})` : `keeps it (drops at ${range})`;
  }
  if (dropped(t, rule)) return "drops it" + extra;
  if (!rule.coefficients || g === A) return (rule.live ? "unchanged at ratio 1" : "unchanged") + extra;
  return (A ? `× ${number(g / A)}` : `g = ${number(g, true)}`) + extra;
}
function showCard() {
  const held = document.activeElement === $("card") || document.activeElement?.classList.contains("tok");
  const t = state.hovered >= 0 ? state.hovered : held ? state.token : -1;
  $("card").classList.toggle("idle", t < 0);
  if (t < 0) return;
  const piece = pieceOf(t), p = Math.exp(column.log_prob[t]), q = QUADRANTS[quadrant[t]], c = owner[t];
  const facts = {
    p: p > 0.999 ? `1 − ${number(-Math.expm1(column.log_prob[t]))}` : number(p), H: number(column.entropy[t]), S: number(centered[t] + baseline[t], true), N: number(baseline[t]),
    S_c: number(centered[t], true), A: number(advantage(t), true), ...(influence ? { "−S_c/n": number(-centered[t] / data.tokens, true), D: number(influence[t], true) } : {}),
  };
  const ids = { "−S_c/n": "card-tabular" };
  const through = (value) => el("span", { className: `number ${direction(value)}` }, number(value, true));
  const rows = rules.map((rule) => el("tr", { className: rule === state.rule ? "chosen" : "" }, el("td", {}, el("code", {}, rule.spec)), el("td", {}, verdict(t, rule))));
  $("card").replaceChildren(
    el("h3", {}, `Token ${t - starts[c] + 1} of ${starts[c + 1] - starts[c]}, completion #${completions[c].number}`),
    el("p", { className: "quote" }, `“${shownText(piece)}”`, el("span", { className: "soft" }, `  id ${piece.id}`)),
    el("p", {}, `${WORDS[q]}. `, el("span", { className: `number ${direction(effect(t))}` }, `Effect ${number(effect(t), true)}`),
      state.rule.none ? "" : ` (none ${number(plain(t), true)})`),
    el("dl", {}, ...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, ...named(name)), el("dd", { className: "number", id: ids[name] ?? `card-${name}` }, value)])),
    influence ? el("p", { id: "card-influence" }, "On mean entropy: g D ", through(coefficient(t) * influence[t]), ", by the tabular theory ", through((-coefficient(t) * centered[t]) / data.tokens), ".") : "",
    el("table", {}, el("tbody", {}, ...rows)));
}
function focusToken(t) {
  const node = $(`t${t}`);
  if (!node) return;
  const old = document.querySelector('#list .tok[tabindex="0"]');
  if (old) old.tabIndex = -1;
  node.tabIndex = 0;
  state.token = t;
  state.hovered = -1;
  node.focus();
}
$("list").addEventListener("keydown", (event) => {
  if (!event.target.classList.contains("tok") || event.altKey || event.ctrlKey || event.metaKey) return;
  const page = state.pages[state.page].filter((c) => starts[c + 1] > starts[c]);
  const t = Number(event.target.id.slice(1)), c = owner[t], place = page.indexOf(c);
  const other = (step) => page[place + step];
  const go = {
    ArrowRight: () => (t + 1 < starts[c + 1] ? t + 1 : starts[other(1)]),
    ArrowLeft: () => (t > starts[c] ? t - 1 : starts[other(-1) + 1] - 1),
    ArrowDown: () => Math.min(starts[other(1)] + t - starts[c], starts[other(1) + 1] - 1),
    ArrowUp: () => Math.min(starts[other(-1)] + t - starts[c], starts[other(-1) + 1] - 1),
    Home: () => starts[c], End: () => starts[c + 1] - 1,
  }[event.key];
  if (event.key === "Escape") { event.target.blur(); hover(-1); showCard(); }
  if (event.key === "Enter") $("card").focus();
  if (!go) return;
  event.preventDefault();
  focusToken(go());
});
$("card").addEventListener("keydown", (event) => { if (event.key === "Escape") focusToken(state.token); });
$("list").addEventListener("focusin", (event) => {
  if (!event.target.classList.contains("tok")) return;
  state.token = Number(event.target.id.slice(1));
  showCard();
});
$("list").addEventListener("click", (event) => { if (event.target.classList.contains("tok")) focusToken(Number(event.target.id.slice(1))); });
function hover(t) {
  if (t === state.hovered) return;
  $(`t${state.hovered}`)?.classList.remove("shown");
  state.hovered = t;
  $(`t${t}`)?.classList.add("shown");
  showCard();
}
$("list").addEventListener("pointerover", (event) => { if (event.pointerType !== "touch" && event.target.classList.contains("tok")) hover(Number(event.target.id.slice(1))); });
$("list").addEventListener("pointerleave", () => hover(-1));

// -- sums over all tokens ------------------------------------------------------------------------------------------------
const width = Math.ceil(longest / BINS), bins = Math.ceil(longest / width);
function addUp() {
  const n = totals().denominator || 1;
  const perType = new Float64Array(data.types.length), uses = new Float64Array(data.types.length), probs = new Float64Array(data.types.length);
  const fall = new Float64Array(bins), rise = new Float64Array(bins), oldFall = new Float64Array(bins), oldRise = new Float64Array(bins);
  for (let c = 0; c < size; c++) {
    for (let t = starts[c]; t < starts[c + 1]; t++) {
      const e = effect(t) / n, before = plain(t) / data.tokens, bin = Math.floor((t - starts[c]) / width);
      perType[type[t]] += e;
      uses[type[t]]++;
      probs[type[t]] += Math.exp(column.log_prob[t]);
      (e < 0 ? fall : rise)[bin] += e;
      (before < 0 ? oldFall : oldRise)[bin] += before;
    }
  }
  drawTypes(perType, uses, probs);
  drawPositions(fall, rise, oldFall, oldRise);
}
function drawTypes(perType, uses, probs) {
  const order = [...perType.keys()].sort((a, b) => perType[a] - perType[b] || a - b);
  const falls = order.filter((i) => perType[i] < 0).slice(0, TYPES), rises = order.filter((i) => perType[i] > 0).reverse().slice(0, TYPES);
  const largest = Math.max(0, ...[...falls, ...rises].map((i) => Math.abs(perType[i]))) || 1;
  const fill = (table, chosen, way) => {
    const row = (i) => {
      const bar = el("i");
      bar.style.width = `${(100 * Math.abs(perType[i])) / largest}%`;
      return el("tr", {}, el("td", {}, shownText(data.types[i]).trimEnd() || "␣".repeat(data.types[i].text.length)), el("td", { className: "number" }, count(uses[i])),
        el("td", { className: "number" }, chance(probs[i] / uses[i])), el("td", { className: `number ${way}`, "data-value": perType[i] }, number(perType[i], true)),
        el("td", { className: "weight", "aria-hidden": "true" }, el("div", { className: `track ${way}` }, bar)));
    };
    const head = ["token", "times", "mean p", "sum"].map((text, i) => el("th", { scope: "col", className: i ? "number" : "" }, text));
    table.replaceChildren(el("caption", {}, way === "falls" ? "Lower entropy most" : "Raise entropy most"), el("thead", {}, el("tr", {}, ...head, el("td"))),
      el("tbody", {}, ...(chosen.length ? chosen.map(row) : [el("tr", {}, el("td", { colSpan: 5 }, "none"))])));
  };
  fill($("fallers"), falls, "falls");
  fill($("risers"), rises, "rises");
}
function drawPositions(fall, rise, oldFall, oldRise) {
  const W = 640, H = 250, left = 70, top = 12, bottom = 36, inner = H - top - bottom;
  const high = Math.max(...rise, ...oldRise), low = Math.min(...fall, ...oldFall), span = high - low || 1;
  const y = (value) => top + ((high - value) / span) * inner, step = (W - left) / bins;
  const label = (b) => (width === 1 ? `${b + 1}` : `${b * width + 1}–${Math.min((b + 1) * width, longest)}`);
  const bars = [];
  for (let b = 0; b < bins; b++) {
    const x = left + b * step, w = Math.max(1, step * 0.84);
    for (const [value, name] of [[oldRise[b], "rise ghost"], [oldFall[b], "fall ghost"], [rise[b], "rise"], [fall[b], "fall"]]) {
      if (!value) continue;
      const bar = svg("rect", { x, width: w, y: Math.min(y(0), y(value)), height: Math.max(0.5, Math.abs(y(value) - y(0))), class: name });
      if (!name.includes("ghost")) bar.append(svg("title", {}, `position ${label(b)}: ${number(value, true)}`));
      bars.push(bar);
    }
  }
  const points = [...fall].map((value, b) => `${left + (b + 0.42) * step},${y(value + rise[b])}`).join(" ");
  const every = Math.ceil(bins / 10), marks = [];
  for (let b = 0; b < bins; b += every) marks.push(svg("text", { x: left + (b + 0.42) * step, y: H - bottom + 16, "text-anchor": "middle" }, width === 1 ? label(b) : String(b * width + 1)));
  for (const value of [high, 0, low]) if (value || high === 0 || low === 0 || value === 0) marks.push(svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value, true)));
  $("positions").replaceChildren(svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Falls and rises of entropy by position in the completion; the table below has the numbers." },
    ...bars, svg("line", { x1: left, x2: W, y1: y(0), y2: y(0), class: "axis" }), svg("polyline", { points, class: "net" }), ...marks,
    svg("text", { x: left + (W - left) / 2, y: H - 2, "text-anchor": "middle" }, "position (token)")));
  const head = ["position", "falls", "rises", "net"].map((text, i) => el("th", { scope: "col", className: i ? "number" : "" }, text));
  const rows = [...fall].map((value, b) => el("tr", {}, el("th", { scope: "row" }, label(b)),
    ...[value, rise[b], value + rise[b]].map((x) => el("td", { className: "number", "data-value": x }, number(x, true)))));
  $("positions-table").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

// -- legend and beginning ------------------------------------------------------------------------------------------------
for (let i = LEVELS; i >= 1; i--) $("scale").append(el("span", { className: `swatch f${i}` }, "\u00a0"));
$("scale").append(el("span", { className: "swatch" }, "0"));
for (let i = 1; i <= LEVELS; i++) $("scale").append(el("span", { className: `swatch r${i}` }, "\u00a0"));
function nameScale() {
  $("ends").textContent = `darkest from ${number(byInfluence() ? data.influence.cap : data.cap)} nats ${byInfluence() ? "per unit of (η/n)" : "per unit step"}, square-root scale`;
}
nameScale();
if (influence) {
  $("by").addEventListener("change", () => {
    state.by = $("by").value;
    nameScale();
    if ($("order").value === "file") { paint(); showCard(); } else arrange();
  });
  drawDisagreements();
}
function drawDisagreements() {
  if (!$("disagreements")) return;
  const head = ["token", "after", "g", "−g S_c/n", "g D", "place"].map((text, i) => el("th", { scope: "col", className: i > 1 && i < 5 ? "number" : "" }, ...named(text)));
  const row = (token) => {
    const c = completions.findIndex((completion) => completion.number === token.completion), name = `token ${token.position + 1} of #${token.completion}`;
    const show = c < 0 ? name : el("button", { type: "button" }, name);
    if (c >= 0) show.addEventListener("click", () => goTo(c, starts[c] + token.position));
    const cells = [token.advantage, token.tabular, token.influence].map((x, i) => el("td", { className: `number ${i ? direction(x) : ""}`, "data-value": x }, number(x, true)));
    return el("tr", {}, el("td", {}, shownText(token)), el("td", { className: "after" }, visible(token.before)), ...cells, el("td", {}, show));
  };
  $("disagreements").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...data.influence.disagreements.map(row)));
}
function goTo(c, t) {
  if (!state.order.includes(c)) {
    $("which").value = "all";
    $("find").value = "";
    arrange();
  }
  turn(state.pages.findIndex((page) => page.includes(c)));
  focusToken(t);
}
for (const [q, text] of [["q1", "likely, A>0"], ["q4", "unlikely, A<0"], ["q3", "likely, A<0"], ["q2", "unlikely, A>0"]]) {
  $("marks").append(el("span", { className: `tok ${q}` }, `${q.toUpperCase()} ${text}`), " ");
}
$("marks").append(el("span", { className: "tok dropped" }, "dropped"));
$("types-note").textContent = $("positions-note").textContent = "Sums under the chosen rule, in nats of mean entropy per unit step" +
  (data.drawn ? `, over the ${count(size)} completions drawn in this page.` : ", over all tokens.");
$("positions-note").textContent += " Faint: without control. The line is the net.";
$("rule").addEventListener("change", () => choose(rules.find((rule) => rule.spec === $("rule").value)));
$("threshold").addEventListener("input", () => { state.setting = Number($("threshold").value); refresh(); });
for (const id of ["order", "which"]) $(id).addEventListener("change", arrange);
$("find").addEventListener("input", () => { clearTimeout(arrange.timer); arrange.timer = setTimeout(arrange, 200); });
$("previous").addEventListener("click", () => turn(state.page - 1));
$("next").addEventListener("click", () => turn(state.page + 1));
new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${$("controls").offsetHeight}px`)).observe($("controls"));
arrange();
choose(state.rule);
document.documentElement.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("outcome").textContent = `This page could not be drawn (${error.message}); it needs a browser of 2023 or later.`;
  throw error;
});
