"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const storageKey = `iounet-tighten ${content.labels} ${content.proposals}`;
const element = (id) => document.getElementById(id);

/** Label key → "accept" or "keep": decisions made by hand on this page, including those before a reload. */
const byHand = new Map(Object.entries(remembered()));
/** Label key → decision of every card. The command's decision holds for cards that were not decided by hand. */
const decisions = new Map(content.cards.map((card) => [card.key, byHand.get(card.key) ?? card.decision]));

// A browser may refuse storage to pages from files. Decisions then last until the page is closed.
function remembered() {
  try {
    return JSON.parse(localStorage.getItem(storageKey)) ?? {};
  } catch {
    return {};
  }
}

function remember() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(Object.fromEntries(byHand)));
  } catch {}
}

function place(rectangles, [x, y, width, height]) {
  for (const rectangle of rectangles) {
    for (const [name, value] of Object.entries({ x, y, width, height })) rectangle.setAttribute(name, value);
  }
}

function articleOf(card) {
  const article = element("card").content.firstElementChild.cloneNode(true);
  article.dataset.key = card.key;
  article.dataset.class = card.class;
  article.dataset.gain = card.gain;
  const name = `${card.class} in ${card.image}`;
  article.setAttribute("aria-label", name);
  const image = article.querySelector("img");
  image.src = `data:image/jpeg;base64,${card.jpeg}`;
  image.alt = `${name}, the label's box and the proposed box`;
  const [halo, before, secondHalo, after] = article.querySelectorAll("rect");
  place([halo, before], card.before);
  place([secondHalo, after], card.after);
  article.querySelector("h2").textContent = card.class;
  const gain = article.querySelector(".gain");
  gain.textContent = (card.gain < 0 ? "−" : "+") + Math.abs(card.gain).toFixed(2);
  gain.classList.toggle("loss", card.gain <= 0);
  article.querySelector(".ious").textContent =
    `predicted IoU ${card.iou_before.toFixed(2)} → ${card.iou_after.toFixed(2)}`;
  article.querySelector(".image").textContent = card.image;
  article.title = `${card.key}\nmove: ${card.move.toFixed(2)}; the command decided: ${card.decision} (${card.reason})`;
  return article;
}

function show(article) {
  const decision = decisions.get(article.dataset.key);
  article.classList.toggle("accept", decision === "accept");
  for (const button of article.querySelectorAll("[data-decision]")) {
    button.setAttribute("aria-pressed", String(button.dataset.decision === decision));
  }
}

function count() {
  const accepted = [...decisions.values()].filter((decision) => decision === "accept").length;
  element("num-accepted").textContent = accepted;
  element("num-kept").textContent = decisions.size - accepted;
}

function decide(articles, decision) {
  for (const article of articles) {
    decisions.set(article.dataset.key, decision);
    byHand.set(article.dataset.key, decision);
    show(article);
  }
  count();
  remember();
}

const articles = content.cards.map(articleOf);
element("cards").append(...articles);
articles.forEach(show);
count();

const shown = () => articles.filter((article) => !article.hidden);
const current = () => document.activeElement.closest?.("article");

/** Moves the focus by `by` cards, or to the first card if none has the focus. */
function step(by) {
  const visible = shown();
  const position = visible.indexOf(current());
  const next = visible[position < 0 ? 0 : Math.min(Math.max(position + by, 0), visible.length - 1)];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "nearest" });
}

/** The number of cards in a row, by which the up and down keys move. */
function columns() {
  const visible = shown();
  const wrap = visible.findIndex((article) => article.offsetTop > visible[0].offsetTop);
  return wrap < 0 ? visible.length : wrap;
}

const steps = {
  ArrowRight: () => 1,
  ArrowLeft: () => -1,
  ArrowDown: columns,
  ArrowUp: () => -columns(),
  j: () => 1,
  k: () => -1,
};
const keys = { a: "accept", x: "keep" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (event.key in steps) {
    event.preventDefault();
    step(steps[event.key]());
  } else if (event.key in keys && current()) {
    decide([current()], keys[event.key]);
    step(1);
  }
});

element("cards").addEventListener("click", (event) => {
  const article = event.target.closest("article");
  const button = event.target.closest("[data-decision]");
  if (button) decide([article], button.dataset.decision);
  article?.focus({ preventScroll: true });
});

const classes = new Map();
for (const card of content.cards) classes.set(card.class, (classes.get(card.class) ?? 0) + 1);
element("class").append(
  new Option(`all (${content.cards.length})`, ""),
  ...[...classes.keys()].sort().map((name) => new Option(`${name} (${classes.get(name)})`, name)),
);
element("class").addEventListener("change", (event) => {
  for (const article of articles) {
    article.hidden = event.target.selectedIndex > 0 && article.dataset.class !== event.target.value;
  }
});

element("accept-above").addEventListener("submit", (event) => {
  event.preventDefault();
  const minimum = element("min-gain").valueAsNumber;
  decide(shown().filter((article) => Number(article.dataset.gain) >= minimum), "accept");
});

element("save").addEventListener("click", () => {
  const saved = {
    format: content.format,
    labels: content.labels,
    proposals: content.proposals,
    decisions: Object.fromEntries(decisions),
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 1) + "\n"], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
});
