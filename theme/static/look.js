/* The figure "look inside": draws what exhibits/look_inside.py has put into the page. Controls are the
   browser's own, so that keyboard and screen reader know them. */
"use strict";

for (const place of document.querySelectorAll("[data-look]")) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const names = Object.keys(data.orders), last = data.k.length - 1;
  const options = names.map((name) => `<option>${name}</option>`).join("");
  place.insertAdjacentHTML("beforeend", `
    <form class="look-controls">
      <label>order <select name="order">${options}</select></label>
      <label>of <select name="runs"><option value="1">the mean of ${data.runs} runs</option><option value="0">one run</option></select></label>
      <label class="look-k">frozen <input type="range" name="k" min="0" max="${last}" value="${Math.round(last / 2)}"></label>
    </form>
    <div class="look-panels">
      <figure><canvas width="28" height="28" role="img"></canvas><figcaption>frozen weights of each pixel: <i class="look-scale"></i> none to all</figcaption></figure>
      <figure><svg viewBox="0 0 440 300" role="img"></svg><figcaption>test loss against the share of frozen parameters</figcaption></figure>
    </div>
    <p class="look-words" role="status" aria-live="polite"></p>`);
  const form = place.querySelector("form"), canvas = place.querySelector("canvas");
  const svg = place.querySelector("svg"), words = place.querySelector(".look-words");
  const ramp = data.palette.map((colour) => `rgb(${colour})`).join(",");
  place.querySelector(".look-scale").style.background = `linear-gradient(to right,${ramp})`;

  const all = names.flatMap((name) => data.orders[name].loss.flatMap((each) => each[0]));
  const high = Math.max(...all) * 1.05;
  const x = (i) => 44 + (data.k[i] / data.p) * 366, y = (loss) => 262 - (loss / high) * 252;
  const percent = (i) => `${Math.round((100 * data.k[i]) / data.p)} %`;

  const path = (loss) => loss.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const ticks = (most) => {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100].find((each) => most / each <= 6) || most;
    return Array.from({length: Math.floor(most / step) + 1}, (_, n) => +(n * step).toFixed(2));
  };

  const draw = () => {
    const name = form.order.value, mean = +form.runs.value, i = +form.k.value;
    const order = data.orders[name], shares = order.shares[mean * data.k.length + i];
    const context = canvas.getContext("2d"), image = context.createImageData(28, 28);
    let whole = 0, none = 0;
    for (let pixel = 0; pixel < 784; pixel++) {
      const step = parseInt(shares[pixel], 36);
      whole += step === 35;
      none += step === 0;
      image.data.set([...data.palette[step], 255], 4 * pixel);
    }
    context.putImageData(image, 0, 0);
    const lines = names.map((each) => {
      const {colour, dash, loss} = data.orders[each];
      const look = each === name ? "stroke-width:3" : "stroke-width:1.2;opacity:.55";
      return `<path d="${path(loss[mean][0])}" style="fill:none;stroke:${colour};stroke-dasharray:${dash.map((d) => 2 * d)};${look}"/>`;
    }).join("");
    const axis = [
      ...ticks(high).map((each) => `<text x="38" y="${y(each) + 4}" text-anchor="end">${each}</text>`),
      ...[0, 0.25, 0.5, 0.75, 1].map((each) => `<text x="${44 + 366 * each}" y="280" text-anchor="middle">${100 * each} %</text>`),
    ].join("");
    const loss = order.loss[mean][0][i];
    svg.innerHTML = `<path class="look-axis" d="M44 10V262H410"/>${axis}${lines}
      <path class="look-mark" d="M${x(i)} 10V262"/><circle cx="${x(i)}" cy="${y(loss)}" r="6" fill="${order.colour}"/>`;
    const others = names.filter((each) => each !== name).slice(0, 1).map((each) => `, ${each} ${data.orders[each].loss[mean][0][i].toPrecision(3)}`);
    const text = `${percent(i)} of the parameters frozen, k = ${data.k[i].toLocaleString("en")}. ` +
      `All weights of ${whole} of 784 pixels are frozen, none of ${none}. Test loss: ${name} ${loss.toPrecision(3)}${others}.`;
    words.textContent = text;
    form.k.setAttribute("aria-valuetext", percent(i));
    canvas.setAttribute("aria-label", `Frozen share of each pixel's weights in the order ${name}, ${percent(i)} of all parameters frozen: ${whole} pixels wholly, ${none} not at all`);
    svg.setAttribute("aria-label", `Test loss of ${names.length} orders against the share of frozen parameters, marked at ${percent(i)}: ${loss.toPrecision(3)}`);
  };
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  draw();
}
