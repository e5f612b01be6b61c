"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const number = (text) => (text === "" || text === undefined ? null : Number(text));
  const three = (value) => (value === null ? "" : String(Number(value.toPrecision(4))));
  const share = (count, total) => `${count} of ${total} (${(100 * count / total).toFixed(1)}%)`;

  const table = find("table.images");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((line) => {
    const data = line.dataset;
    const score = number(data.score), threshold = number(data.threshold);
    return {
      line, score, threshold, product: data.product, day: data.day, verdict: data.verdict, reference: data.reference,
      name: data.name, p: number(data.p), time: data.time, regions: number(data.regions),
      margin: -Number(data.order),  // the rows come worst first
      changed: false,
    };
  });
  for (const [name, has] of [
    ["p", (row) => row.p !== null], ["time", (row) => row.time], ["regions", (row) => row.regions !== null],
    ["shots", (row) => find("img", row.line)],
  ]) table.classList.toggle(`without-${name}`, !rows.some(has));

  // ---- pictures: put in place when they come near the window, and all that is shown when it is printed ----

  const place = (line) => {
    for (const image of all("img[data-src]", line)) {
      image.src = image.dataset.src;
      delete image.dataset.src;
    }
  };
  const near = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      if (!entry.isIntersecting) continue;
      place(entry.target);
      near.unobserve(entry.target);
    }
  }, { rootMargin: "800px" });
  for (const row of rows) near.observe(row.line);
  addEventListener("beforeprint", () => {
    filter(Infinity);
    for (const row of rows) if (!row.line.hidden) place(row.line);
  });
  addEventListener("afterprint", () => filter());

  // ---- filters and sorting ----

  const chosen = (id, value) => !find(id) || find(id).value === "" || find(id).value === `=${value}`;
  const STEP = 300;  // rows that are laid out at first, and each time that the end of the table comes near
  let most = STEP;
  const filter = (limit = most) => {
    const text = find("#find").value.trim().toLowerCase();
    const verdicts = new Set(all("input[name=verdict]:checked").map((box) => box.value));
    const onlyChanged = find("#changed").checked;
    let fitting = 0;
    for (const row of rows) {
      row.fits = verdicts.has(row.verdict) && chosen("#product", row.product) && chosen("#day", row.day)
        && (!text || row.name.toLowerCase().includes(text)) && (!onlyChanged || row.changed);
      fitting += row.fits;
      row.line.hidden = !row.fits || fitting > limit;
    }
    find("#count").value = fitting === rows.length ? `${fitting} images` : `${fitting} of ${rows.length} images`;
    find("#rest").hidden = fitting <= limit;
  };
  const afresh = () => {
    most = STEP;
    filter();
  };
  find(".filters").addEventListener("input", afresh);
  const further = () => {
    most += STEP;
    filter();
  };
  find("#rest").addEventListener("click", further);
  new IntersectionObserver(([seen]) => { if (seen.isIntersecting) further(); }, { rootMargin: "1200px" }).observe(find("#rest"));

  const natural = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => (typeof a === "string" ? natural.compare(a, b) : a - b);
  const sort = (head) => {
    const key = head.dataset.sort;
    const first = key === "name" || key === "p" || key === "verdict" ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = head.getAttribute("aria-sort") === first ? other : first;
    for (const each of all("th[aria-sort]", table)) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const missing = (row) => row[key] === null || row[key] === "";
    rows.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a[key], b[key])));
    body.append(...rows.map((row) => row.line));
    afresh();
  };
  for (const head of all("th[data-sort]", table)) find("button", head).addEventListener("click", () => sort(head));

  // ---- verdicts that a person corrects, for `mambaad learn --corrections` ----

  const save = find("#save");
  const wrong = () => rows.filter((row) => row.wrong);
  for (const row of rows) {
    const button = find("button.wrong", row.line);
    if (!button) continue;
    button.hidden = false;
    button.addEventListener("click", () => {
      row.wrong = !row.wrong;
      button.setAttribute("aria-pressed", row.wrong);
      const count = wrong().length;
      save.hidden = !count;
      save.textContent = `Save ${count} correction${count > 1 ? "s" : ""}`;
    });
  }
  save.addEventListener("click", () => {
    const corrections = wrong().map((row) => ({
      path: row.name, product: row.product, verdict: row.verdict, digest: row.line.dataset.digest,
      correct: row.verdict === "anomalous" ? "good" : "bad",
    }));
    const text = JSON.stringify({ schema: 1, corrections }, null, 1);
    const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    Object.assign(document.createElement("a"), { href, download: "corrections.json" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  });

  // ---- a picture large ----

  const large = find("#large");
  let at = null;
  const open = (row) => {
    at = row;
    place(row.line);
    find("#large-title").textContent = find(".name b, .name a", row.line).textContent;
    const { width, height } = row.line.dataset;
    const regions = find(".regions ol", row.line);
    find(".shots", large).replaceChildren(...all(".pictures img", row.line).map((image, i) => {
      const frame = document.createElement("div");
      frame.className = "frame";
      frame.style.setProperty("--aspect", width / height);
      frame.append(image.cloneNode(), ...(i === 0 && regions ? all("li", regions).map((region, j) => {
        const [x, y, wide, high] = region.dataset.box.split(" ");
        const why = find("button.why", region);
        const box = document.createElement(why ? "button" : "i");
        box.className = "box";
        box.dataset.number = j + 1;
        if (why) Object.assign(box, { type: "button", ariaLabel: `Why is region ${j + 1} anomalous?` });
        Object.assign(box.style, { left: `${100 * x / width}%`, top: `${100 * y / height}%`,
          width: `${100 * wide / width}%`, height: `${100 * high / height}%` });
        return box;
      }) : []));
      return frame;
    }));
    const facts = [row.verdict, row.score === null ? "" : `score ${three(row.score)}`,
      row.threshold === null ? "" : `threshold ${three(row.threshold)}`, `photo ${width}×${height} px`];
    find(".facts", large).textContent = facts.filter(Boolean).join(" · ");
    find(".regions", large).replaceChildren(...(regions ? [regions.cloneNode(true)] : []));
    find(".explanation", large).replaceChildren();
    if (!large.open) large.showModal();
  };
  /** Show why a region of the large picture is anomalous, where the report tells. */
  const explain = (place) => {
    const why = find("button.why", all(".regions li", large)[place]);
    if (!why) return;
    const image = Object.assign(document.createElement("img"), { src: why.dataset.why, alt: `Why region ${place + 1} is anomalous` });
    image.addEventListener("load", () => image.scrollIntoView({ block: "nearest" }));
    find(".explanation", large).replaceChildren(image);
  };
  const placeOf = (why) => [...why.closest("ol").children].indexOf(why.closest("li"));
  const step = (by) => {
    const shown = rows.filter((row) => row.fits && find(".pictures", row.line));
    const next = shown[shown.indexOf(at) + by];
    if (next) open(next);
  };
  body.addEventListener("click", (event) => {
    const button = event.target.closest(".pictures");
    if (button) open(rows.find((row) => row.line.contains(button)));
    const why = event.target.closest("button.why");
    if (!why) return;
    open(rows.find((row) => row.line.contains(why)));
    explain(placeOf(why));
  });
  find("#previous").addEventListener("click", () => step(-1));
  find("#next").addEventListener("click", () => step(1));
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  large.addEventListener("click", (event) => {
    if (event.target === large) large.close();
    const box = event.target.closest("button.box"), why = event.target.closest("button.why");
    if (box) explain(box.dataset.number - 1);
    if (why) explain(placeOf(why));
  });
  large.addEventListener("close", () => find(".pictures", at.line)?.focus());

  // ---- the histogram, and what another threshold would do ----

  const HEIGHT = 200, EDGE = 8, TOP = 26, BOTTOM = 22;  // EDGE: half of a slider's thumb
  const section = find("#what-if"), svg = find("#histogram"), slider = find("#slider"), field = find("#threshold");
  const select = find("#scored");
  let drawn = null;  // of the product that is shown: its rows, the range, the model's threshold, the one that is tried

  const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  const load = () => {
    const shownRows = rows.filter((row) => row.score !== null && (!select || row.product === select.value));
    const scores = shownRows.map((row) => row.score).sort((a, b) => a - b);
    const model = shownRows.map((row) => row.threshold).filter((value) => value !== null).pop() ?? null;
    const low = Math.min(scores[0], model ?? Infinity);
    let high = Math.max(scores[scores.length - 1], model ?? -Infinity);
    if (model !== null && scores.length) {  // far outliers share the last bin, so that there is space for the threshold
      const far = model + 6 * (model - quantile(scores, 0.05));
      if (far > model) high = Math.min(high, Math.max(far, quantile(scores, 0.9)));
    }
    const margin = (high - low || Math.abs(high) || 1) * 0.02;
    drawn = { shownRows, model, low: low - margin, high: high + margin, tried: model ?? high + margin };
    const bins = Math.min(60, Math.max(12, Math.round(3 * Math.sqrt(scores.length))));
    drawn.bins = Array.from({ length: bins }, () => 0);
    for (const score of scores) drawn.bins[Math.min(bins - 1, Math.floor(bins * place01(score)))] += 1;
    show();
  };
  const place01 = (score) => Math.min(1, Math.max(0, (score - drawn.low) / (drawn.high - drawn.low)));

  const rejects = (row, threshold) => row.score > threshold || row.verdict === "unknown";
  const passes = (row) => row.verdict !== "anomalous" && row.verdict !== "unknown";
  const show = () => {
    const { shownRows, model, low, high, tried } = drawn;
    slider.value = Math.round(1000 * place01(tried));
    slider.setAttribute("aria-valuetext", three(tried));
    if (document.activeElement !== field) field.value = three(tried);
    find("#reset").disabled = tried === model;
    let rejected = 0, now = 0;
    for (const row of shownRows) {
      const out = rejects(row, tried);
      rejected += out;
      now += !passes(row);
      row.changed = tried !== model && out === passes(row);
      find(".would-be", row.line).textContent = row.changed ? (out ? "→ rejected" : "→ passes") : "";
    }
    const lines = [`At ${three(tried)}, ${share(rejected, shownRows.length)} images would be rejected`];
    if (tried !== model && model !== null) lines.push(`; at the model’s ${three(model)} it is ${now}`);
    const labelled = shownRows.filter((row) => row.reference);
    if (labelled.length) {
      const bad = labelled.filter((row) => row.reference !== "good"), good = labelled.filter((row) => row.reference === "good");
      if (bad.length) lines.push(`. Misses ${share(bad.filter((row) => !rejects(row, tried)).length, bad.length)} bad parts`);
      if (good.length) lines.push(`. Rejects ${share(good.filter((row) => rejects(row, tried)).length, good.length)} good parts`);
    }
    find("#would").textContent = `${lines.join("")}.`;
    draw(low, high, tried, model);
    if (find("#changed").checked) filter();
  };

  const make = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  /** Round values within a range, five to ten of them. */
  const ticks = (low, high) => {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [5, 2, 1].find((factor) => factor * power <= rough);
    const values = [];
    for (let i = Math.ceil(low / step); i * step <= high - step / 4; i++) values.push(i * step);
    return values;
  };
  const draw = (low, high, tried, model) => {
    const width = svg.clientWidth || 1000, floor = HEIGHT - BOTTOM, bins = drawn.bins.length;
    const x = (share) => EDGE + share * (width - 2 * EDGE);
    const most = Math.max(1, ...drawn.bins);
    const parts = [];
    const cut = x(place01(tried));
    drawn.bins.forEach((count, i) => {
      if (!count) return;
      const left = x(i / bins) + 0.75, right = x((i + 1) / bins) - 0.75;
      const tall = Math.max(3, (count / most) * (floor - TOP));
      for (const [from, to, side] of [[left, Math.min(right, cut), "below"], [Math.max(left, cut), right, "above"]]) {
        if (to > from) parts.push(make("rect", { class: `bin ${side}`, x: from, y: floor - tall, width: to - from, height: tall, rx: 1 }));
      }
    });
    for (const count of new Set([most, Math.round(most / 2)])) {
      const y = Math.round(floor - (count / most) * (floor - TOP)) + 0.5;
      parts.unshift(make("line", { class: "axis", x1: x(0), x2: x(1), y1: y, y2: y }));
      parts.push(make("text", { class: "tick", x: x(1), y: y - 4, "text-anchor": "end" }, `${count} images`));
    }
    parts.push(make("line", { class: "axis", x1: x(0), x2: x(1), y1: floor + 0.5, y2: floor + 0.5 }));
    for (const value of ticks(low, high)) {
      parts.push(make("text", { class: "tick", x: x(place01(value)), y: HEIGHT - 6, "text-anchor": "middle" }, three(value)));
    }
    if (drawn.shownRows.some((row) => row.score > high)) {
      parts.push(make("text", { class: "tick", x: x(1), y: HEIGHT - 6, "text-anchor": "end" }, "and above"));
    }
    if (model !== null && tried !== model) parts.push(make("line", { class: "model", x1: x(place01(model)), x2: x(place01(model)), y1: TOP - 6, y2: floor }));
    parts.push(make("line", { class: "cut", x1: cut, x2: cut, y1: TOP - 8, y2: floor }));
    const anchor = cut > width - 130 ? "end" : cut < 130 ? "start" : "middle";
    parts.push(make("text", { class: "cut-label", x: cut, y: 12, "text-anchor": anchor }, `threshold ${three(tried)}`));
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren(...parts);
  };

  const attempt = (value) => { drawn.tried = value; show(); };
  const from01 = (share) => drawn.low + share * (drawn.high - drawn.low);
  const drag = (event) => {
    const box = svg.getBoundingClientRect();
    attempt(from01(Math.min(1, Math.max(0, (event.clientX - box.left - EDGE) / (box.width - 2 * EDGE)))));
  };
  if (rows.some((row) => row.score !== null)) {
    section.hidden = false;
    const most = new Map();
    for (const row of rows) if (row.score !== null) most.set(row.product, (most.get(row.product) ?? 0) + 1);
    if (select) {
      for (const option of [...select.options]) if (!most.has(option.value)) option.remove();
      select.value = [...most].sort((a, b) => b[1] - a[1])[0][0];
      select.addEventListener("change", () => {
        for (const row of drawn.shownRows) {
          row.changed = false;
          find(".would-be", row.line).textContent = "";
        }
        load();
      });
    }
    slider.addEventListener("input", () => attempt(from01(slider.value / 1000)));
    field.addEventListener("input", () => { if (Number.isFinite(field.valueAsNumber)) attempt(field.valueAsNumber); });
    field.addEventListener("blur", () => show());
    find("#reset").addEventListener("click", () => attempt(drawn.model ?? drawn.high));
    svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); drag(event); });
    svg.addEventListener("pointermove", (event) => { if (svg.hasPointerCapture(event.pointerId)) drag(event); });
    new ResizeObserver(() => show()).observe(svg);
    load();
  }
  filter();
  table.classList.add("ready");
})();
