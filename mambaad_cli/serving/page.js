"use strict";
const byId = (id) => document.getElementById(id);

/** The headers of a request: the token, where one was typed. */
function headers() {
  const token = byId("token").value.trim();
  return token ? { Authorization: `Bearer ${token}`, Accept: "application/json" } : { Accept: "application/json" };
}

/** Show which model answers; ask for a token where one is needed. */
async function showModel() {
  let answer, facts;
  try {
    answer = await fetch("/model", { headers: headers() });
    facts = await answer.json();
  } catch (error) {
    byId("model").textContent = `the server does not answer: ${error.message}`;
    return;
  }
  byId("token-label").hidden = answer.status !== 401 && byId("token").value === "";
  if (!answer.ok) {
    byId("model").textContent = answer.status === 401 ? "Type the token of this server first." : facts.error;
    return;
  }
  const names = Object.keys(facts.products);
  byId("model").textContent = `model ${facts.model}: ${names.join(", ")}`;
  byId("product-label").hidden = names.length < 2;
  byId("product").replaceChildren(byId("product").options[0], ...names.map((name) => new Option(name, name)));
}

/** Score the photos, one after the other. */
async function score(files) {
  let number = 0;
  for (const file of files) {
    byId("status").textContent = `scoring ${file.name} (${++number} of ${files.length}) …`;
    const query = new URLSearchParams({ map: "png", regions: "1", name: file.name });
    if (byId("product").value) query.set("class", byId("product").value);
    try {
      const answer = await fetch(`/score?${query}`, { method: "POST", body: file, headers: headers() });
      const row = await answer.json();
      show(file.name, "verdict" in row ? row : { verdict: "error", error: row.error });
    } catch (error) {
      show(file.name, { verdict: "error", error: `the server does not answer: ${error.message}` });
    }
  }
  byId("status").textContent = "";
}

const digits = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4));

/** A card for a row, above those that are there. */
function show(name, row) {
  const card = byId("result").content.cloneNode(true).firstElementChild;
  card.classList.add(row.verdict);
  card.querySelector("h2").textContent = name;
  card.querySelector(".verdict").textContent = row.verdict;
  const facts = row.error
    ? [row.error]
    : [row.class, `score ${digits(row.score)}, threshold ${digits(row.threshold)}`, row.warning];
  card.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
  card.querySelector("figure").hidden = !row.map;
  if (row.map) {
    card.querySelector("img").src = `data:image/png;base64,${row.map}`;
    card.querySelector("img").alt = `Overlay of ${name}`;
  }
  const regions = row.regions || [];
  card.querySelector("table").hidden = regions.length === 0;
  regions.forEach((region, place) => {
    const line = card.querySelector("tbody").insertRow();
    const [x, y, width, height] = region.box;
    for (const text of [place + 1, `${x}, ${y}`, `${width} × ${height}`, region.area_px, digits(region.peak.value)]) {
      const cell = line.insertCell();
      cell.textContent = text;
      cell.className = "n";
    }
  });
  byId("results").prepend(card);
}

const drop = byId("drop");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  score([...event.dataTransfer.files]);
});
byId("file").addEventListener("change", () => { score([...byId("file").files]); byId("file").value = ""; });
byId("token").addEventListener("change", showModel);
byId("choices").addEventListener("submit", (event) => { event.preventDefault(); showModel(); });
showModel();
