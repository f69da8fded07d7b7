// The page of `semobridge-ext serve`. Everything from the server enters the page as text, never as HTML.
"use strict";

const STEP = 24; // hits that "Show more" adds
const MOST = 1000; // hits of one answer, by the server
const byId = (id) => document.getElementById(id);
let asked = null; // the query on the page
let latest = 0; // number of the last request; older answers are dropped

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function nameOf(hit) {
  const known = hit.metadata;
  const file = (known.image_path || "").split("/").pop();
  return known.label || known.caption || file || `row ${hit.row}`;
}

function picture(hit) {
  const frame = make("div", undefined, "picture");
  const image = make("img");
  image.alt = nameOf(hit);
  image.loading = "lazy";
  image.addEventListener("error", () => frame.replaceChildren(make("span", `${nameOf(hit)}: image not available`)));
  image.src = hit.image;
  frame.append(image);
  return frame;
}

function score(hit) {
  const node = make("data", hit.score.toFixed(3));
  node.value = String(hit.score);
  return node;
}

function details(hit) {
  const box = make("details");
  box.append(make("summary", "Metadata"));
  const list = make("dl");
  for (const [name, value] of Object.entries({ row: String(hit.row), ...hit.metadata })) {
    list.append(make("dt", name), make("dd", value));
  }
  box.append(list);
  return box;
}

function duplicates(hits) {
  const box = make("details");
  box.append(make("summary", hits.length === 1 ? "1 duplicate" : `${hits.length} duplicates`));
  const list = make("ul", undefined, "duplicates");
  for (const hit of hits) {
    const item = make("li");
    item.append(picture(hit), score(hit));
    list.append(item);
  }
  box.append(list);
  return box;
}

function card(hit) {
  const item = make("li");
  const title = make("div", undefined, "title");
  title.append(make("span", nameOf(hit)), score(hit));
  item.append(picture(hit), title, details(hit));
  if (hit.duplicates && hit.duplicates.length) item.append(duplicates(hit.duplicates));
  return item;
}

function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

async function answerOf(response) {
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}

async function search() {
  const mine = (latest += 1);
  const more = byId("more");
  byId("status").textContent = "Searching …";
  more.disabled = true;
  showError("");
  try {
    const response = await fetch("/api/search", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
    });
    const found = await answerOf(response);
    if (mine !== latest) return;
    const shown = byId("hits");
    const had = asked.k > STEP ? shown.children.length : 0;
    shown.replaceChildren(...found.hits.map(card));
    const inGroups = asked.group === undefined ? "" : ` in ${found.hits.length} groups`;
    byId("status").textContent =
      `${found.found} of ${found.candidates} images${inGroups}, ${found.milliseconds.toFixed(1)} ms`;
    more.hidden = found.found >= Math.min(found.candidates, MOST);
    if (had && had < shown.children.length) { // "Show more" was pressed: go on where the new ones begin
      const first = shown.children[had].querySelector("summary");
      first.focus();
    }
  } catch (error) {
    if (mine !== latest) return;
    byId("status").textContent = "";
    byId("hits").replaceChildren();
    more.hidden = true;
    showError(error.message);
  } finally {
    if (mine === latest) more.disabled = false;
  }
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The image could not be read; choose another."));
    reader.readAsDataURL(file);
  });
}

async function submit(event) {
  event.preventDefault();
  const text = byId("text").value.trim();
  const file = byId("file").files[0];
  if (!text && !file) {
    showError("Write a text or choose an image.");
    byId(byId("text").disabled ? "file" : "text").focus();
    return;
  }
  const query = { k: STEP };
  try {
    if (text) query.text = text;
    if (file && file.size) query.image = await base64Of(file);
    else if (file) throw new Error("The image is empty; choose another.");
  } catch (error) {
    showError(error.message);
    return;
  }
  if (text && file) query.weight = Number(byId("weight").value);
  if (byId("group").checked) query.group = byId("cosine").valueAsNumber;
  const filters = {};
  for (const field of byId("columns").querySelectorAll("[data-column]")) {
    if (field.value) filters[field.dataset.column] = field.value;
  }
  if (Object.keys(filters).length) query.filters = filters;
  asked = query;
  await search();
}

function showMix() {
  const file = byId("file").files[0];
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = byId("clear").hidden = !file;
  if (file) {
    preview.src = URL.createObjectURL(file);
    preview.alt = `query image ${file.name}`;
  } else {
    preview.removeAttribute("src");
  }
  byId("mix").hidden = !(file && byId("text").value.trim());
}

function addFilter(column, number) {
  const box = make("div");
  const label = make("label", column.name);
  const field = make(column.values ? "select" : "input");
  field.id = label.htmlFor = `filter-${number}`;
  field.dataset.column = column.name;
  if (column.values) {
    field.append(new Option("any", ""));
    for (const value of column.values) if (value) field.append(new Option(value, value));
  } else {
    field.type = "text";
    field.placeholder = "any; else the exact value";
  }
  box.append(label, field);
  byId("columns").append(box);
}

async function begin() {
  byId("form").addEventListener("submit", submit);
  byId("file").addEventListener("change", showMix);
  byId("text").addEventListener("input", () => {
    byId("mix").hidden = !(byId("file").files[0] && byId("text").value.trim());
  });
  byId("clear").addEventListener("click", () => {
    byId("file").value = "";
    showMix();
    byId("file").focus();
  });
  byId("weight").addEventListener("input", () => {
    byId("weight-value").textContent = Number(byId("weight").value).toFixed(2);
  });
  byId("more").addEventListener("click", () => {
    asked.k = Math.min(asked.k + STEP, MOST);
    search();
  });
  try {
    const info = await answerOf(await fetch("/api/info"));
    byId("about").textContent =
      `${info.shards}: ${info.rows} images, ${info.width} numbers each, ${(info.bytes / 1e6).toPrecision(2)} MB`;
    if (!info.text) {
      byId("text").disabled = true;
      byId("refusal").textContent = info.text_refusal;
      byId("refusal").hidden = false;
    }
    info.columns.forEach(addFilter);
    byId("filters").hidden = !info.columns.length;
    const text = new URLSearchParams(location.search).get("text"); // a search that was kept as a link
    if (text && info.text) {
      byId("text").value = text;
      byId("form").requestSubmit();
    }
  } catch (error) {
    byId("about").textContent = "";
    showError(error.message);
  }
}

begin();
