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
    body.append(...keyed.map(([, , row]) => row));
    for (const head of sortable) {
      head.setAttribute("aria-sort", head.dataset.sort === what ? way : "none");
    }
  }

  function filter() {
    const set = controls.elements.set.value;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      // Cells of models that are not shown must not match.
      const text = [...row.cells].filter((c) => !c.hidden).map((c) => c.textContent).join(" ");
      const found = words.every((word) => text.toLowerCase().includes(word));
      row.hidden = !(found && (!set || row.dataset.set === set));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} questions`;
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
    });
  }
  controls.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", filter);
  controls.addEventListener("change", (event) => {
    if (event.target === model) choose();
    else if (event.target === order) sort();
    else filter();
  });
  controls.hidden = false;
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
