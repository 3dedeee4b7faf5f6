"use strict";
(() => {
  const data = JSON.parse(document.getElementById("figures").textContent);
  const LEFT = 48, RIGHT = 8, TOP = 20, BOTTOM = 20, HEIGHT = 190;
  const drawn = [];  // of each panel: how to redraw it and how to show a position
  let share = 1;  // how much of the run is shown, counted from its end
  let at = null;  // kimg that is pointed at

  function add(parent, name, attributes = {}, text = "") {
    const svg = parent.namespaceURI.endsWith("svg") || name === "svg";
    const node = document.createElementNS(svg ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return parent.appendChild(node);
  }

  function number(value) {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4));
  }

  function ticks(low, high, most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((k) => k * power >= raw * 0.999) * power;
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  }

  function logTicks(low, high) {
    const found = [], decades = Math.log10(high / low);
    const heads = decades > 3 ? [1] : decades > 1 ? [1, 3] : [1, 2, 3, 5, 7];
    const every = Math.max(1, Math.ceil(decades / 5));
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      if (power % every === 0) for (const head of heads) found.push(head * 10 ** power);
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }

  // The number of the point nearest to kimg x.
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
  }

  function range(panel, start, log) {
    const seen = [];
    for (const s of panel.series) {
      for (const values of [s.y, s.low || [], s.high || []])
        values.forEach((y, i) => { if (y !== null && s.x[i] >= start) seen.push(y); });
    }
    if (!log) seen.push(...panel.include);
    let low = seen.length ? Math.min(...seen) : 0, high = seen.length ? Math.max(...seen) : 1;
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) / 10 || 1), high + (Math.abs(high) / 10 || 1)];
    if (log) return [low / 1.1, high * 1.1];
    const margin = (high - low) * 0.05;
    return [low - (panel.include.includes(low) ? 0 : margin), high + margin];
  }

  function path(xs, ys, X, Y, split) {
    let text = "", up = true, group = null;
    xs.forEach((x, i) => {
      if (ys[i] === null) { up = true; return; }
      const stage = split ? stageAt(x) : null;
      text += (up || stage !== group ? "M" : "L") + X(x).toFixed(1) + " " + Y(ys[i]).toFixed(1);
      up = false;
      group = stage;
    });
    return text;
  }

  function stageAt(x) {
    const band = data.bands.find((b) => x <= b[1]);
    return band ? band[2] : "";
  }

  function backdrop(svg, X, start, width, plotHeight) {
    // Counted down: the last resolution, mostly the longest, has no shade.
    let level = new Set(data.bands.map((band) => band[2])).size, before = null, labelled = 0;
    for (const [from, to, resolution, fading] of data.bands) {
      if (resolution !== before) level--;
      const left = Math.max(X(from), LEFT), size = X(to) - left;
      if (to > start && size > 0) {
        const box = { x: left, y: TOP, width: size, height: plotHeight };
        add(svg, "rect", { ...box, class: level % 2 ? "band" : "frame" });
        if (fading) add(svg, "rect", { ...box, class: "fade" });
        const room = resolution !== before || from < start;
        if (room && left > labelled && width - left > resolution.length * 6.5) {
          add(svg, "text", { x: left + 2, y: TOP - 6 }, resolution);
          labelled = left + resolution.length * 6.5 + 6;
        }
      }
      before = resolution;
    }
  }

  function axes(svg, panel, X, Y, span, low, high, log, width, bottom) {
    for (const value of log ? logTicks(low, high) : ticks(low, high, 4)) {
      add(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: Y(value), y2: Y(value), class: "grid" });
      add(svg, "text", { x: LEFT - 6, y: Y(value) + 4, "text-anchor": "end" }, number(value));
    }
    for (const value of ticks(span[0], span[1], Math.max(2, Math.floor(width / 90)))) {
      const anchor = X(value) > width - 24 ? "end" : "middle";
      add(svg, "text", { x: X(value), y: bottom + 15, "text-anchor": anchor }, number(value));
    }
    add(svg, "text", { x: LEFT - 8, y: bottom + 15, "text-anchor": "end" }, "kimg");
    if (panel.guide !== null && !log && panel.guide >= low && panel.guide <= high)
      add(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: Y(panel.guide), y2: Y(panel.guide), class: "guide" });
  }

  function curve(svg, series, index, X, Y, start, split) {
    const colour = `stroke:var(--c${index % 4})`, many = series.sx.length > 0;
    const group = add(svg, "g", { "clip-path": "url(#plot)" });
    add(group, "path", { d: path(series.x, series.y, X, Y, split), class: many ? "raw thin" : "raw", style: colour });
    if (many) add(group, "path", { d: path(series.sx, series.sy, X, Y, split), class: "median", style: colour });
    series.x.forEach((x, i) => {
      if (x < start || series.y[i] === null) return;
      if (series.low && series.low[i] !== null && series.high[i] !== null)
        add(svg, "line", { x1: X(x), x2: X(x), y1: Y(series.low[i]), y2: Y(series.high[i]), class: "raw", style: colour });
      if (series.x.length <= 30) add(svg, "circle", { cx: X(x), cy: Y(series.y[i]), r: 2.5, style: `fill:var(--c${index % 4})` });
    });
  }

  function build(panel) {
    const box = add(document.getElementById("panels"), "article", { class: "panel" });
    const head = add(box, "header");
    add(head, "h3", {}, panel.title);
    let log = panel.log;
    if (panel.positive) {
      const label = add(head, "label");
      const check = add(label, "input", { type: "checkbox", "aria-label": `logarithmic axis: ${panel.title}` });
      label.append(" log");
      check.checked = log;
      check.addEventListener("change", () => { log = check.checked; draw(); });
    }
    add(box, "p", { class: "note" }, panel.note);
    const keys = add(box, "div", { class: "keys" });
    const svg = add(box, "svg", { role: "img", tabindex: "0", "aria-label": panel.label });
    const split = panel.series.some((s) => s.low);
    let X, Y, cross, start, span;

    function draw() {
      const width = svg.clientWidth || 400, bottom = HEIGHT - BOTTOM;
      start = data.last * (1 - share);
      span = [start, data.last || 1];
      const [low, high] = range(panel, start, log);
      const scale = log ? Math.log : (value) => value;
      X = (x) => LEFT + ((x - span[0]) / (span[1] - span[0])) * (width - LEFT - RIGHT);
      Y = (y) => bottom - ((scale(y) - scale(low)) / (scale(high) - scale(low))) * (bottom - TOP);
      svg.textContent = "";
      svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      backdrop(svg, X, start, width, bottom - TOP);
      axes(svg, panel, X, Y, span, low, high, log, width, bottom);
      panel.series.forEach((series, i) => curve(svg, series, i, X, Y, start, split));
      for (const [kimg] of data.alarms) {
        if (kimg < start) continue;
        const x = X(kimg);
        add(svg, "line", { x1: x, x2: x, y1: TOP, y2: bottom, class: "alarmline" });
        add(svg, "path", { d: `M${x - 5} ${TOP}L${x + 5} ${TOP}L${x} ${TOP + 8}Z`, class: "alarmhead" });
      }
      cross = add(svg, "g");
      show();
    }

    function show() {
      cross.textContent = "";
      keys.textContent = "";
      panel.series.forEach((series, i) => {
        const k = nearest(series.x, at === null ? data.last : at), y = series.y[k];
        const bounds = series.low && series.low[k] !== null ? ` (${number(series.low[k])} to ${number(series.high[k])})` : "";
        const key = add(keys, "span", { style: `--c:var(--c${i % 4})` }, `${series.name} `);
        add(key, "b", {}, number(y));
        key.append(bounds);
        if (at !== null && y !== null && series.x[k] >= start)
          add(cross, "circle", { cx: X(series.x[k]), cy: Y(y), r: 3.5, style: `fill:var(--c${i % 4})` });
      });
      if (at === null) return;
      add(cross, "line", { x1: X(at), x2: X(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "cross" });
      // Beside the line, on the side that has room; not among the keys, whose lines would move the chart.
      const left = X(at) > svg.clientWidth / 2;
      const place = { x: X(at) + (left ? -6 : 6), "text-anchor": left ? "end" : "start" };
      add(cross, "text", { ...place, y: TOP + 12 }, `${number(at)} kimg, ${stageAt(at)}`);
      data.alarms.filter(([kimg]) => Math.abs(X(kimg) - X(at)) < 6).forEach(([kimg, kind], i) => {
        add(cross, "text", { ...place, y: TOP + 26 + 14 * i, class: "alarm" }, `${kind} at ${number(kimg)} kimg`);
      });
    }

    function point(to) {
      at = to === null ? null : Math.min(Math.max(to, start), data.last);
      for (const other of drawn) other.show();
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      point(span[0] + ((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * (span[1] - span[0]));
    });
    svg.addEventListener("pointerleave", () => point(null));
    svg.addEventListener("blur", () => { keys.removeAttribute("aria-live"); point(null); });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (event.key === "Escape") point(null);
      if (!step) return;
      event.preventDefault();
      keys.setAttribute("aria-live", "polite");
      const xs = panel.series[0].x, now = at === null ? xs.length : nearest(xs, at);
      point(xs[Math.min(Math.max(now + step, 0), xs.length - 1)]);
    });
    drawn.push({ draw, show });
  }

  function player(figure) {
    const images = [...figure.querySelectorAll("img")], slider = figure.querySelector("input");
    const button = figure.querySelector("button"), output = figure.querySelector("output");
    let timer = null;
    function show() {
      images.forEach((image, i) => { image.hidden = i !== +slider.value; });
      output.textContent = images[slider.value].dataset.label;
      slider.setAttribute("aria-valuetext", output.textContent);
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    }
    slider.addEventListener("input", () => { stop(); show(); });
    button.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (slider.value === slider.max) slider.value = 0;
      button.textContent = "Pause";
      show();
      timer = setInterval(() => {
        slider.value = +slider.value + 1;
        show();
        if (slider.value === slider.max) stop();
      }, 500);
    });
    show();
  }

  if (data.panels.length) {
    // One pattern and one clip for all charts.
    const shared = add(document.body, "svg", { width: 0, height: 0, style: "position:absolute", "aria-hidden": "true" });
    const defs = add(shared, "defs");
    const hatch = add(defs, "pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" });
    add(hatch, "path", { d: "M-1 1L1 -1M0 6L6 0M5 7L7 5" });
    const clip = add(defs, "clipPath", { id: "plot" });
    add(clip, "rect", { x: LEFT, y: TOP - 2, width: 10000, height: HEIGHT - TOP - BOTTOM + 4 });
    data.panels.forEach(build);
    const redraw = () => drawn.forEach((panel) => panel.draw());
    redraw();
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width === width) return;
      width = entry.contentRect.width;
      redraw();
    }).observe(document.getElementById("panels"));
    for (const radio of document.getElementsByName("share"))
      radio.addEventListener("change", () => { share = +radio.value; at = null; redraw(); });
  }
  const previews = document.getElementById("previews");
  if (previews) player(previews);
})();
