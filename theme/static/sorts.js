/* Tables marked data-sorts: a click on a head sorts, and controls above show only some rows.
   Folds open for a printer. */
"use strict";

addEventListener("beforeprint", () => document.querySelectorAll(".fold").forEach((each) => each.open = true));

for (const table of document.querySelectorAll("table[data-sorts]")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent.trim();
  const value = (row, column) => row.cells[column].dataset.by ?? text(row, column);

  heads.forEach((head, column) => {
    head.innerHTML = `<button type="button">${head.textContent}</button>`;
    head.firstChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      };
      rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });

  const few = heads.map((_, column) => [...new Set(rows.map((row) => text(row, column)))])
    .map((values, column) => ({values: values.filter(Boolean).sort(), column}))
    .filter(({values}) => values.length > 1 && values.length <= 8);
  const form = document.createElement("form");
  form.className = "filters";
  form.innerHTML = `<label>search <input type="search" name="words"></label>` + few.map(({values, column}) =>
    `<label>${heads[column].textContent} <select data-column="${column}"><option value="">all</option>${
      values.map((each) => `<option>${each}</option>`).join("")}</select></label>`).join("") +
    `<output aria-live="polite"></output>`;
  const show = () => {
    const wanted = [...form.querySelectorAll("select")].filter((each) => each.value);
    const words = form.words.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !(wanted.every((each) => text(row, each.dataset.column) === each.value)
        && row.textContent.toLowerCase().includes(words));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  (table.closest(".scrolls") ?? table).before(form);
  show();
}
