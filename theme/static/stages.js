/* Growth against the stage, with data sets to choose: draws what exhibits/look_at_stages.py has put into the page. */
"use strict";

for (const place of document.querySelectorAll("[data-stages]")) {
  const sets = JSON.parse(place.querySelector("script").textContent);
  const orders = Object.keys(sets[0].ratios), all = sets.flatMap((each) => Object.values(each.ratios).flat());
  if (!all.length) continue;
  const stages = [...new Set(all.map(([left]) => left))].sort((a, b) => b - a);
  place.insertAdjacentHTML("beforeend", `
    <form class="look-controls">
      <label>to <select name="order">${orders.map((each) => `<option>${each}</option>`).join("")}</select></label>
      ${sets.map(({name, colour}, i) => `<label><input type="checkbox" name="sets" value="${i}" checked style="accent-color:${colour}"> ${name}</label>`).join("")}
      <label class="look-k">stage <input type="range" name="stage" min="0" max="${stages.length - 1}" value="0"></label>
    </form>
    <svg viewBox="0 0 720 300" role="img"></svg><p class="look-words" role="status" aria-live="polite"></p>`);
  const form = place.querySelector("form"), svg = place.querySelector("svg"), words = place.querySelector(".look-words");
  const ends = all.flatMap(([, ...values]) => values).filter((value) => value > 0);
  const low = Math.log(Math.max(0.05, Math.min(...ends))), high = Math.log(Math.min(5, Math.max(...ends)));
  const x = (left) => 50 + (650 * Math.log(left)) / Math.log(stages.at(-1));
  const y = (value) => 260 - 250 * Math.min(1, Math.max(0, (Math.log(value) - low) / (high - low)));
  const percent = (left) => `${Math.round(100 * left)} %`;
  const text = (at, across, anchor, what) => `<text x="${at}" y="${across}" text-anchor="${anchor}">${what}</text>`;

  const draw = () => {
    const stage = stages[form.stage.value], told = [];
    const lines = [...form.querySelectorAll(":checked[name=sets]")].map((box) => {
      const {name, colour, ratios} = sets[box.value], points = ratios[form.order.value];
      const here = points.find(([left]) => left === stage);
      told.push(`${name}: ${here ? `${here[1].toFixed(2)} (${here[2].toFixed(2)} to ${here[3].toFixed(2)})` : "no ratio"}`);
      const path = points.map(([left, value], i) => `${i ? "L" : "M"}${x(left).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      const bars = points.map(([left, , from, to]) => `M${x(left)} ${y(from)}V${y(to)}`).join("");
      return `<g style="fill:none;stroke:${colour};stroke-width:2"><path d="${path}"/><path d="${bars}"/></g>`
        + (here ? `<circle cx="${x(stage)}" cy="${y(here[1])}" r="5" fill="${colour}"/>` : "");
    });
    svg.innerHTML = `<path class="look-axis" d="M50 10V260H700M50 ${y(1)}H700M${x(stage)} 10V260"/>${lines.join("")}`
      + stages.map((each) => text(x(each), 280, "middle", percent(each))).join("")
      + [0.1, 0.2, 0.5, 1, 2].filter((each) => Math.log(each) >= low && Math.log(each) <= high).map((each) => text(44, y(each) + 4, "end", each)).join("");
    words.textContent = `${percent(stage)} of the loss still to be gained. ${told.join("; ").replaceAll("-", "−")}.`;
    svg.setAttribute("aria-label", `Growth as a ratio to the order ${form.order.value}, against the share of the loss still to be gained. ${words.textContent}`);
    form.stage.setAttribute("aria-valuetext", percent(stage));
  };
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  draw();
}
