"use strict";
// Filter, search and sort the table of answers. Without this script the page shows all of it.
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const controls = document.getElementById("controls");
  const search = document.getElementById("search");
  const model = document.getElementById("model");
  const order = document.getElementById("order");
  const count = document.getElementById("count");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const modelCells = [...table.querySelectorAll("[data-model]")];
  const more = document.getElementById("more");
  const step = window.matchMedia("(max-width: 50rem)").matches ? 5 : 25;
  let limit = step;
  const sortable = [...table.querySelectorAll("th[data-sort]")];

  const chosen = () => (model ? model.value : "0");

  function cell(row, what) {
    return row.querySelector(`[data-model="${chosen()}"][data-${what}]`);
  }

  function value(row, what) {
    if (what === "place") return Number(row.dataset.place);
    const text = cell(row, what).dataset[what];
    return text === "" ? NaN : Number(text);
  }

  function sort() {
    const [what, way] = order.value.split(" ");
    const sign = way === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [value(row, what), Number(row.dataset.place), row]);
    keyed.sort(([a, i], [b, j]) => {
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || i - j;
      return sign * (a - b) || i - j;
    });
    rows.splice(0, rows.length, ...keyed.map(([, , row]) => row));
    body.append(...rows);
    for (const head of sortable) {
      head.setAttribute("aria-sort", head.dataset.sort === what ? way : "none");
    }
  }

  function filter() {
    const set = controls.elements.set.value;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matching = 0;
    for (const row of rows) {
      // Cells of models that are not shown must not match.
      const text = [...row.cells].filter((c) => !c.hidden).map((c) => c.textContent).join(" ");
      const found = words.every((word) => text.toLowerCase().includes(word));
      const wanted = found && (!set || row.dataset.set === set);
      matching += wanted;
      row.hidden = !wanted || matching > limit;
    }
    const shown = Math.min(limit, matching);
    more.hidden = shown === matching;
    const all = shown === matching ? "" : `, the first ${shown} shown`;
    count.textContent = `${matching} of ${rows.length} questions${all}`;
  }

  function choose() {
    for (const each of modelCells) each.hidden = each.dataset.model !== chosen();
    sort();
    filter();
  }

  for (const head of sortable) {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => {
      const what = head.dataset.sort;
      const other = order.value === `${what} ascending` && what !== "place";
      order.value = `${what} ${other ? "descending" : "ascending"}`;
      sort();
      filter();
    });
  }
  more.addEventListener("click", () => {
    limit += step;
    filter();
  });
  // Paper has no button to show more with.
  let before = limit;
  window.addEventListener("beforeprint", () => {
    before = limit;
    limit = Infinity;
    filter();
  });
  window.addEventListener("afterprint", () => {
    limit = before;
    filter();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", filter);
  controls.addEventListener("change", (event) => {
    if (event.target === model) choose();
    else {
      if (event.target === order) sort();
      filter();
    }
  });
  controls.hidden = false;
  document.getElementById("all-answers").open = true;
  choose();
})();

// Paper has nothing to open a closed part with.
(() => {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
})();
