"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const orders = data.orders.map((entry) => entry.order);
  const SVG = "http://www.w3.org/2000/svg";

  // Elements

  const set = (node, attributes) => {
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    return node;
  };
  const el = (name, attributes = {}, ...children) => {
    const node = set(document.createElement(name), attributes);
    node.append(...children);
    return node;
  };
  const svg = (name, attributes = {}, ...children) => {
    const node = set(document.createElementNS(SVG, name), attributes);
    node.append(...children);
    return node;
  };
  const section = (id, title, ...children) => {
    document.getElementById("nav").append(el("a", { href: `#${id}`, text: title }));
    const node = el("section", { "aria-labelledby": id }, el("h2", { id, text: title }), ...children);
    main.append(node);
    return node;
  };
  const note = (text) => el("p", { class: "note", text });
  const choice = (name, options, change) => {
    const select = el("select", { onchange: () => change(Number(select.value)) });
    options.forEach((option, index) => select.append(el("option", { value: index, text: option })));
    return el("label", {}, `${name} `, select);
  };

  // Figures

  const digits = (value, places) => value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
  const fixed = (places, unit = "") => (value) => digits(value, places) + unit;
  const percent = (value) => digits(100 * value, 0) + " %";
  const signed = (places) => (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + digits(Math.abs(value), places);
  const short = (value) => (Math.abs(value) >= 100 ? digits(value, 0) : Number(value.toPrecision(3)).toLocaleString("en"));
  const chance = (value) => (value < 0.001 ? "< 0.001" : digits(value, 3));
  const unique = (values) => [...new Set(values)];

  // Colours: a few chosen orders stand out (Okabe and Ito's colours, and a shape each), the rest stays grey.

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "ink"];
  const SHAPES = ["circle", "square", "triangle", "diamond", "down", "cross", "circle"];
  const slots = new Array(HUES.length).fill(null);
  const listeners = [];
  const chosen = (order) => slots.indexOf(order);
  const hue = (slot) => (HUES[slot] === "ink" ? "var(--ink)" : slot === 0 && dark.matches ? "#4da6dd" : HUES[slot]);
  const toggle = (order) => {
    const slot = chosen(order);
    if (slot >= 0) slots[slot] = null;
    else {
      const free = slots.indexOf(null);
      slots[free >= 0 ? free : slots.length - 1] = order;
    }
    listeners.forEach((listener) => listener());
  };
  [data.baseline, "cross", "hilbert", "snake", "window"].filter((order) => orders.includes(order)).forEach((order, i) => (slots[i] = order));
  if (orders.length <= HUES.length) orders.forEach((order) => chosen(order) < 0 && (slots[slots.indexOf(null)] = order));
  else orders.slice(-1).forEach((order) => chosen(order) < 0 && (slots[slots.indexOf(null)] = order));

  const shape = (kind, x, y, r, attributes) => {
    const points = {
      square: [[-1, -1], [1, -1], [1, 1], [-1, 1]],
      triangle: [[0, -1.2], [1.15, 0.9], [-1.15, 0.9]],
      down: [[0, 1.2], [1.15, -0.9], [-1.15, -0.9]],
      diamond: [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]],
      cross: [[-0.4, -1.3], [0.4, -1.3], [0.4, -0.4], [1.3, -0.4], [1.3, 0.4], [0.4, 0.4], [0.4, 1.3], [-0.4, 1.3], [-0.4, 0.4], [-1.3, 0.4], [-1.3, -0.4], [-0.4, -0.4]],
    }[kind];
    if (!points) return svg("circle", { cx: x, cy: y, r, ...attributes });
    return svg("polygon", { points: points.map(([a, b]) => `${x + a * r},${y + b * r}`).join(" "), ...attributes });
  };

  const picker = () => {
    const box = el("div", { class: "chips", role: "group", "aria-label": "Orders that stand out in the plots" });
    const draw = () => {
      const focus = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.order : null;
      const inside = box.contains(document.activeElement);
      box.replaceChildren(
        ...orders.map((order) => {
          const slot = chosen(order);
          const chip = el("button", { class: "chip", type: "button", "aria-pressed": slot >= 0, "data-order": order, onclick: () => toggle(order) });
          if (slot >= 0) chip.append(svg("svg", { viewBox: "-2 -2 4 4", "aria-hidden": "true" }, shape(SHAPES[slot], 0, 0, 1.3, { fill: hue(slot) })));
          chip.append(order);
          return chip;
        }),
      );
      if (inside) [...box.children].find((chip) => chip.dataset.order === focus)?.focus();
    };
    listeners.push(draw);
    draw();
    return box;
  };

  const ramp = (stops) => (share) => {
    const place = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
    const low = stops[Math.floor(place)], high = stops[Math.floor(place) + 1];
    return low.map((value, i) => Math.round(value + (high[i] - value) * (place % 1)));
  };
  const viridis = ramp([[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]]);
  const cividis = ramp([[0, 34, 78], [59, 73, 108], [112, 113, 115], [165, 156, 116], [225, 204, 85], [254, 232, 56]]);
  const along = (share) => `rgb(${viridis(dark.matches ? 0.3 + 0.7 * share : 0.82 * share).join(" ")})`;

  // Tables

  // columns: {name, key (or function of the row), show, kind: "text", title, tone}
  const table = (caption, columns, rows) => {
    const body = el("tbody");
    const value = (row, column) => (typeof column.key === "function" ? column.key(row) : row[column.key]);
    const heads = columns.map((column, index) =>
      el("th", { scope: "col", "aria-sort": "none", class: column.kind, title: column.title }, el("button", { type: "button", text: column.name, onclick: () => sort(index) })),
    );
    const draw = (sorted) =>
      body.replaceChildren(
        ...sorted.map((row) =>
          el(
            "tr",
            { class: row.order === data.baseline ? "base" : null },
            ...columns.map((column, index) => {
              const item = value(row, column);
              const missing = item === null || item === undefined;
              const text = missing ? "\u2013" : column.show ? column.show(item, row) : String(item);
              return index ? el("td", { class: column.tone && !missing ? column.tone(item, row) : column.kind, text }) : el("th", { scope: "row", text });
            }),
          ),
        ),
      );
    const sort = (index) => {
      const next = heads[index].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === index ? next : "none"));
      const sign = next === "ascending" ? 1 : -1;
      draw(
        [...rows].sort((a, b) => {
          const [x, y] = [value(a, columns[index]), value(b, columns[index])];
          const [none, other] = [x ?? null, y ?? null].map((item) => item === null);
          if (none || other) return none - other; // what is missing comes last either way
          return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
        }),
      );
    };
    draw(rows);
    return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, el("table", { "aria-label": caption }, el("thead", {}, el("tr", {}, ...heads)), body));
  };

  // Plots

  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const marks = [];
    for (let mark = Math.ceil(low / step) * step; mark <= high + 1e-9 * step; mark += step) marks.push(Math.abs(mark) < 1e-12 ? 0 : mark);
    return marks;
  };
  const logTicks = (low, high, wanted) => {
    const marks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const m of [1, 2, 5]) if (m * 10 ** power >= low * 0.999 && m * 10 ** power <= high * 1.001) marks.push(m * 10 ** power);
    return marks.length > wanted ? marks.filter((mark) => Math.abs(Math.log10(mark) % 1) < 1e-9) : marks;
  };

  // spec: {series: [{order, points: [[x, y, text]]}], x, y, log, lines, describe}
  const plot = (host, spec) => {
    const narrow = host.clientWidth > 0 && host.clientWidth < 520;
    const [width, height] = narrow ? [480, 400] : [860, 400];
    const left = 64, right = 16, top = 14, bottom = 48;
    const all = spec.series.flatMap((one) => one.points);
    host.replaceChildren();
    if (!all.length) return host.append(note("Nothing was measured here."));
    const scale = (values, log, from, to) => {
      let low = Math.min(...values), high = Math.max(...values);
      if (log) [low, high] = [low / 1.15, high * 1.15];
      else {
        const room = 0.06 * (high - low || Math.abs(high) || 1);
        [low, high] = [low - room, high + room];
      }
      const f = log ? Math.log : (v) => v;
      const map = (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
      return Object.assign(map, { marks: log ? logTicks(low, high, 8) : ticks(low, high, narrow ? 4 : 7) });
    };
    const x = scale(all.map((p) => p[0]), spec.log, left, width - right);
    const y = scale(all.map((p) => p[1]), spec.log, height - bottom, top);
    const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.y} against ${spec.x}; the table has the same figures` });
    for (const mark of x.marks) {
      image.append(svg("line", { class: "grid", x1: x(mark), x2: x(mark), y1: top, y2: height - bottom }));
      image.append(svg("text", { x: x(mark), y: height - bottom + 18, "text-anchor": "middle", text: short(mark) }));
    }
    for (const mark of y.marks) {
      image.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
      image.append(svg("text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end", text: short(mark) }));
    }
    image.append(svg("text", { class: "strong", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle", text: spec.x }));
    image.append(svg("text", { class: "strong", x: 0, y: 0, transform: `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", text: spec.y }));
    const ordered = [...spec.series].sort((a, b) => chosen(b.order) < 0 ? 1 : chosen(a.order) < 0 ? -1 : 0);
    for (const one of ordered) {
      const slot = chosen(one.order);
      const path = one.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("");
      if (spec.lines) image.append(svg("path", slot < 0 ? { class: "rest", d: path, fill: "none" } : { d: path, fill: "none", stroke: hue(slot), "stroke-width": 2.2 }));
      if (!spec.lines || one.points.length < 12)
        for (const p of one.points) image.append(slot < 0 ? svg("circle", { class: "rest-dot", cx: x(p[0]), cy: y(p[1]), r: 3 }) : shape(SHAPES[slot], x(p[0]), y(p[1]), 4.5, { fill: hue(slot) }));
      if (!spec.lines && (slot >= 0 || !narrow)) {
        const p = one.points[0], end = x(p[0]) > width - 120;
        image.append(svg("text", { class: slot >= 0 ? "strong" : null, x: x(p[0]) + (end ? -9 : 9), y: y(p[1]) + 4, "text-anchor": end ? "end" : "start", text: one.order }));
      }
    }
    const readout = el("p", { class: "readout", text: "Point at the plot to read a value; choose orders above." });
    image.addEventListener("pointermove", (event) => {
      const box = image.getBoundingClientRect(), [px, py] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      let best = null, near = Infinity;
      for (const one of spec.series)
        for (const p of one.points) {
          const far = (x(p[0]) - px) ** 2 + (y(p[1]) - py) ** 2;
          if (far < near) [near, best] = [far, [one, p]];
        }
      readout.textContent = `${best[0].order}: ${spec.describe(best[1], best[0])}`;
    });
    host.append(image, readout);
  };
  const redraw = [];
  const plotted = (spec) => {
    const host = el("div", { class: "plot" });
    const draw = () => plot(host, spec());
    listeners.push(draw);
    redraw.push(draw);
    return { host, draw };
  };

  // Head

  const about = data.about;
  const runs = data.runs.length;
  document.getElementById("lead").textContent = data.summary[0];
  const tiles = { orders: orders.length, "trained models": runs, "time measurements": data.cost.length, "duration": about.seconds < 90 ? `${Math.round(about.seconds)} s` : `${Math.round(about.seconds / 60)} min`, "measured": about.created.slice(0, 10) };
  for (const [name, value] of Object.entries(tiles)) document.getElementById("tiles").append(el("div", {}, el("dt", { text: name }), el("dd", { text: value })));
  section("short", "In short", el("ul", {}, ...data.summary.slice(1).map((text) => el("li", { text }))));
  if (data.failures.length) main.append(el("div", { class: "failures" }, el("h3", { text: "Not measured" }), el("ul", {}, ...data.failures.map((row) => el("li", { text: `${row.stage}, ${row.order}: ${row.error}` })))));

  // Paths

  const paths = () => {
    const side = data.orders[0].side, cell = 10, span = side * cell;
    const point = (place) => [(place % side) * cell + cell / 2, Math.floor(place / side) * cell + cell / 2];
    const cards = [];
    const longest = side * side; // one clock for all: a route with padding runs a little faster
    const slider = el("input", { type: "range", min: 0, max: longest - 1, value: longest - 1, "aria-label": "Step" });
    const count = el("output", { text: "" });
    let step = longest - 1, playing = false, last = 0, speed = 1, carry = 0;

    const show = () => {
      slider.value = step;
      count.textContent = `${Math.round((100 * (step + 1)) / longest)} %`;
      cards.forEach((card) => card.show(step));
    };
    const tick = (now) => {
      if (!playing) return;
      carry += ((now - last) / 1000) * 16 * speed;
      last = now;
      const whole = Math.floor(carry);
      carry -= whole;
      if (whole) {
        step += whole;
        if (step >= longest - 1) {
          step = longest - 1;
          pause();
        }
        show();
      }
      requestAnimationFrame(tick);
    };
    const pause = () => {
      playing = false;
      play.textContent = "Play";
    };
    const play = el("button", {
      class: "primary", type: "button", id: "play", text: "Play",
      onclick: () => {
        if (playing) return pause();
        if (step >= longest - 1) step = 0;
        playing = true;
        play.textContent = "Pause";
        last = performance.now();
        requestAnimationFrame(tick);
      },
    });
    slider.addEventListener("input", () => {
      pause();
      step = Number(slider.value);
      show();
    });

    for (const entry of data.orders) {
      const image = svg("svg", { viewBox: `0 0 ${span} ${span}`, role: "img", "data-order": entry.order });
      const buttons = el("div", { class: "routes", role: "group", "aria-label": `Route of ${entry.order}` });
      let marks = [], head = null, visited = [];
      const choose = (index) => {
        const route = entry.paths[index];
        image.setAttribute("aria-label", `Route ${index + 1} of ${entry.order} over ${side} by ${side} cells`);
        image.replaceChildren();
        for (let place = 0; place < side * side; place++) {
          const [cx, cy] = point(place);
          image.append(svg("circle", { cx, cy, r: 0.9, fill: "var(--faint)" }));
        }
        const real = route.map((place, t) => [place, t]).filter(([place]) => place >= 0);
        marks = real.slice(1).map(([place, t], i) => {
          const [x1, y1] = point(real[i][0]), [x2, y2] = point(place);
          const far = Math.hypot(x1 - x2, y1 - y2) > 1.5 * cell;
          const line = svg("line", { x1, y1, x2, y2, stroke: along(t / route.length), "stroke-width": far ? 0.7 : 2.2, "stroke-linecap": "round" });
          image.append(line);
          return [t, line];
        });
        const [sx, sy] = point(real[0][0]), [ex, ey] = point(real[real.length - 1][0]);
        image.append(svg("circle", { cx: sx, cy: sy, r: 2.6, fill: "var(--card)", stroke: along(0), "stroke-width": 1.6 }));
        image.append(svg("rect", { x: ex - 2.3, y: ey - 2.3, width: 4.6, height: 4.6, fill: along(1) }));
        head = svg("circle", { r: 3.4, fill: "#d55e00", stroke: "var(--card)", "stroke-width": 1 });
        image.append(head);
        visited = real;
        [...buttons.children].forEach((button, i) => button.setAttribute("aria-pressed", i === index));
        card.show(step);
      };
      const card = {
        show: (now) => {
          const reached = ((now + 1) / longest) * entry.paths[0].length - 1;
          for (const [t, line] of marks) line.setAttribute("visibility", t <= reached ? "visible" : "hidden");
          const at = visited.filter(([, t]) => t <= reached).pop() || visited[0];
          const [cx, cy] = point(at[0]);
          set(head, { cx, cy, visibility: now >= longest - 1 ? "hidden" : "visible" });
          image.dataset.step = now;
        },
      };
      if (entry.paths.length > 1) entry.paths.forEach((_, i) => buttons.append(el("button", { type: "button", text: i + 1, "aria-label": `route ${i + 1}`, onclick: () => choose(i) })));
      cards.push(card);
      choose(entry.shown);
      const facts = [`${entry.routes} route${entry.routes > 1 ? "s" : ""}`];
      if (entry.scheduled) facts.push(`${entry.per_layer} per layer`);
      if (entry.groups > 1) facts.push(`${entry.groups} channel groups`);
      if (!entry.total) facts.push("each its share");
      if (entry.padded) facts.push("padded");
      if (entry.segmented) facts.push("starts anew");
      if (entry.content) facts.push("here of a photo");
      grid.append(el("article", { class: "card", title: entry.about }, el("h3", { text: entry.order }), el("p", { text: facts.join(", ") }), image, buttons));
    }
    const pace = choice("speed", ["slow", "normal", "fast"], (index) => (speed = [0.4, 1, 3][index]));
    pace.querySelector("select").value = 1;
    show();
    return el("div", { class: "bar" }, play, slider, count, pace);
  };
  const grid = el("div", { class: "cards", id: "paths-grid" });
  const controls = paths();
  section("paths", "Paths", note("A ring marks where a route starts, a square where it ends; colour runs with the steps, from dark to bright. Thin lines are jumps. Buttons below a picture choose the route. Orders that are read off the image are drawn as an untrained network reads them off a photograph."), controls, grid);

  // Learning

  const tasks = unique(data.learning.map((row) => row.task));
  if (tasks.length) {
    let task = 0;
    const host = el("div", { class: "plot" });
    const rowsOf = (index) => data.learning.filter((row) => row.task === tasks[index]);
    const places = (metric) => (metric.startsWith("PSNR") ? 2 : 3);
    const draw = () => {
      const rows = rowsOf(task).sort((a, b) => b.mean - a.mean);
      const narrow = host.clientWidth > 0 && host.clientWidth < 520, width = narrow ? 480 : 860;
      const left = narrow ? 150 : 170, right = 20, line = 26, height = rows.length * line + 56;
      const values = rows.flatMap((row) => [...row.scores, row.mean - row.std, row.mean + row.std]);
      const [low, high] = [Math.min(...values), Math.max(...values)], room = 0.04 * (high - low || 1);
      const x = (v) => left + ((v - low + room) / (high - low + 2 * room)) * (width - left - right);
      const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${rows[0].metric} of each order, best first; the table has the same figures` });
      for (const mark of ticks(low, high, narrow ? 4 : 6)) {
        image.append(svg("line", { class: "grid", x1: x(mark), x2: x(mark), y1: 4, y2: height - 46 }), svg("text", { x: x(mark), y: height - 28, "text-anchor": "middle", text: short(mark) }));
      }
      const base = rows.find((row) => row.order === data.baseline);
      image.append(svg("line", { x1: x(base.mean), x2: x(base.mean), y1: 4, y2: height - 46, stroke: "var(--soft)", "stroke-dasharray": "4 3" }));
      rows.forEach((row, i) => {
        const y = 18 + i * line, slot = chosen(row.order), colour = slot < 0 ? "var(--soft)" : hue(slot);
        image.append(svg("text", { class: slot < 0 ? null : "strong", x: left - 12, y: y + 4, "text-anchor": "end", text: row.order }));
        row.scores.forEach((score) => image.append(svg("circle", { cx: x(score), cy: y, r: 3, fill: colour, opacity: 0.35 })));
        image.append(svg("line", { x1: x(row.mean - row.std), x2: x(row.mean + row.std), y1: y, y2: y, stroke: colour, "stroke-width": 2 }));
        const mark = shape(slot < 0 ? "circle" : SHAPES[slot], x(row.mean), y, 5, { fill: colour });
        mark.append(svg("title", { text: `${row.order}: ${digits(row.mean, places(row.metric))} \u00b1 ${digits(row.std, places(row.metric))}` }));
        image.append(mark);
      });
      image.append(svg("text", { class: "strong", x: width / 2, y: height - 6, "text-anchor": "middle", text: narrow ? `${rows[0].metric}; dashed: ${data.baseline}` : `${rows[0].metric}: mean, standard deviation, each seed; dashed: ${data.baseline}` }));
      host.replaceChildren(image);
    };
    const tableHost = el("div");
    const fill = () => {
      const rows = rowsOf(task), n = places(rows[0].metric);
      const tone = (p, row) => (p < 0.05 ? (row.difference > 0 ? "good" : "bad") : null);
      tableHost.replaceChildren(
        table(`Learning, ${tasks[task]}`, [
          { name: "order", key: "order" },
          { name: `mean ${rows[0].metric}`, key: "mean", show: fixed(n) },
          { name: "std", key: "std", show: fixed(n) },
          { name: `difference to ${data.baseline}`, key: "difference", show: signed(n) },
          { name: "p, paired t-test", key: "p", show: chance, title: "two-sided, paired over seeds, uncorrected" },
          { name: "p, corrected", key: "p_holm", show: chance, tone, title: "Holm's correction for the number of orders" },
          { name: "seeds", key: "seeds" },
          { name: "parameters", key: "parameters", show: fixed(0) },
          { name: "s per run", key: "seconds", show: fixed(1) },
        ], rows),
      );
    };
    const select = choice("task", tasks, (index) => {
      task = index;
      draw();
      fill();
    });
    listeners.push(draw);
    redraw.push(draw);
    fill();
    section("learning", "Learning", note("The same small backbone trained with each order under one recipe, several seeds each. An order with more routes has more weights and does more work: compare cross with cross_unidirectional, which has the same number of routes and only one direction."), el("div", { class: "bar" }, select), picker(), host, tableHost);
  }

  // Cost

  const setting = (row) => [row.device, row.dtype, row.backend, `batch ${row.batch}`].join(", ");
  const settings = unique(data.cost.map(setting));

  if (data.cost.length) {
    const figures = [["both_s", "forward and backward, ms", 1e3, "both"], ["forward_s", "forward, ms", 1e3, "forward"], ["peak_bytes", "peak memory, MB", 1e-6, "memory"]];
    let which = 0, what = 0;
    const exponent = (order) => (data.growth.find((row) => row.order === order && setting(row) === settings[which]) || {})[figures[what][3]];
    const { host, draw } = plotted(() => ({
      log: true, lines: true, x: "tokens in the batch", y: figures[what][1],
      series: orders.map((order) => ({ order, points: data.cost.filter((row) => row.order === order && setting(row) === settings[which]).map((row) => [row.tokens, row[figures[what][0]] * figures[what][2]]) })).filter((one) => one.points.length),
      describe: (p, one) => `${short(p[1])} at ${short(p[0])} tokens` + (exponent(one.order) === undefined ? "" : `; grows as tokens to the power ${digits(exponent(one.order), 2)}`),
    }));
    const tables = el("div");
    const fill = () => {
      const mine = data.cost.filter((row) => setting(row) === settings[which]);
      const fits = data.growth.filter((row) => setting(row) === settings[which]);
      const power = (name) => (value, row) => digits(value, 2) + (row[`${name}_error`] === null ? "" : ` \u00b1 ${digits(row[`${name}_error`], 2)}`);
      tables.replaceChildren(
        table(`Cost, ${settings[which]}`, [
          { name: "order", key: "order" },
          { name: "tokens", key: "tokens", show: fixed(0) },
          { name: "routes", key: "routes" },
          { name: "steps", key: "steps", show: fixed(0) },
          { name: "forward, ms", key: (row) => 1e3 * row.forward_s, show: fixed(2) },
          { name: "forward and backward, ms", key: (row) => 1e3 * row.both_s, show: fixed(2) },
          { name: "shortest of both, ms", key: (row) => 1e3 * row.both_min_s, show: fixed(2) },
          { name: "peak memory, MB", key: (row) => row.peak_bytes / 1e6, show: fixed(2) },
        ], mine),
        ...(fits.length ? [el("h3", { text: "Exponents of the growth" }), note("p of figure = c \u00b7 tokens^p by least squares on the logarithms, \u00b1 its standard error; 1 is linear."),
          table("Exponents", [{ name: "order", key: "order" }, { name: "forward", key: "forward", show: power("forward") }, { name: "forward and backward", key: "both", show: power("both") }, { name: "memory", key: "memory", show: power("memory") }], fits)] : []),
      );
    };
    fill();
    section("cost", "Cost", note(`One image mixer of ${about.config.cost.channels} channels; medians of ${about.config.cost.repeats} runs on ${about.machine.processor}. Memory is what torch's allocator held at most.`),
      el("div", { class: "bar" }, choice("figure", figures.map((f) => f[1]), (index) => { what = index; draw(); }), choice("setting", settings, (index) => { which = index; draw(); fill(); })), picker(), host, tables);
  }

  // Geometry

  if (data.geometry.length) {
    const sizes = unique(data.geometry.map((row) => `${row.height} \u00d7 ${row.width}`));
    let size = sizes.length - 1;
    const mine = () => data.geometry.filter((row) => `${row.height} \u00d7 ${row.width}` === sizes[size]);
    const { host, draw } = plotted(() => ({
      lines: true, x: "steps apart on the route", y: "correlation of grey values",
      series: mine().map((row) => ({ order: row.order, points: row.autocorrelation.map((value, lag) => [lag, value]) })),
      describe: (p) => `${digits(p[1], 3)} at ${p[0]} steps`,
    }));
    const tableHost = el("div");
    const fill = () => {
      const rows = mine(), within = Object.keys(rows[0].within);
      tableHost.replaceChildren(
        table(`Geometry, ${sizes[size]}`, [
          { name: "order", key: "order" },
          { name: "routes", key: "routes" },
          { name: "mean step", key: "mean_step", show: fixed(2), title: "image distance of consecutive tokens, in tokens" },
          { name: "longest step", key: "max_step", show: fixed(1) },
          { name: "steps to a neighbour", key: "continuity", show: percent, title: "share of steps that go to a direct neighbour" },
          { name: "or a diagonal one", key: "continuity_corners", show: percent },
          ...within.map((t) => ({ name: `neighbours within ${t}`, key: (row) => row.within[t], show: percent, title: `share of 4-neighbours visited within ${t} steps, mean over routes` })),
          { name: `within ${within[within.length - 2] || within[0]}, best route`, key: (row) => row.within_any_route[within[within.length - 2] || within[0]], show: percent },
          { name: "correlation length", key: "correlation_length", show: fixed(1), title: "steps until the correlation of photographs falls below one half" },
          { name: "32 B sectors per step", key: "sectors_per_step_channels_first", show: fixed(2), title: "fetched per step where channels come first in memory, as in mamba_ssm" },
          { name: "64 B lines per step", key: "lines_per_step_channels_first", show: fixed(2) },
          { name: "4 KB pages per step", key: "pages_per_step_channels_last", show: fixed(2), title: "where channels come last, as here" },
          { name: "padding", key: "padding", show: percent },
        ], rows),
      );
    };
    fill();
    const select = choice("image", sizes, (index) => { size = index; draw(); fill(); });
    select.querySelector("select").value = size;
    section("geometry", "Geometry", note("What the routes do to an image, whatever is learned: how far apart neighbours end up, how alike the pixels of photographs are that a route reads one after the other, and what it fetches from memory."), el("div", { class: "bar" }, select), tableHost,
      el("h3", { text: "Autocorrelation of photographs along the routes" }), picker(), host);
  }

  // Why

  if (data.geometry.length && (tasks.length || data.cost.length)) {
    const biggest = Math.max(...data.geometry.map((row) => row.height * row.width));
    const times = settings.map((name) => {
      const rows = data.cost.filter((row) => setting(row) === name), most = Math.max(...rows.map((row) => row.tokens));
      const time = (order) => { const row = rows.find((one) => one.order === order && one.tokens === most); return row && 1e3 * row.both_s; };
      return [`ms, ${most} tokens` + (settings.length > 1 ? `, ${name}` : ""), time];
    });
    const shapes = data.geometry.filter((row) => row.height * row.width === biggest);
    const causes = [["mean step, tokens", (row) => row.mean_step], ["steps to a neighbour", (row) => row.continuity], ["correlation one step on", (row) => row.autocorrelation[1]], ["neighbours within 16, mean", (row) => row.within["16"]], ["neighbours within 16, best route", (row) => row.within_any_route["16"]], ["routes", (row) => row.routes], ["4 KB pages per step", (row) => row.pages_per_step_channels_last]]
      .filter((cause) => shapes.every((row) => Number.isFinite(cause[1](row))));
    const effects = [...tasks.map((task) => [`${task}: ${data.learning.find((row) => row.task === task).metric}`, (order) => (data.learning.find((row) => row.task === task && row.order === order) || {}).mean]), ...times];
    let cause = 0, effect = 0;
    const ranks = (values) => values.map((v) => values.filter((w) => w < v).length + (values.filter((w) => w === v).length - 1) / 2);
    const spearman = (points) => {
      const [a, b] = [0, 1].map((i) => ranks(points.map((p) => p[i])));
      const mean = (v) => v.reduce((s, w) => s + w, 0) / v.length, [ma, mb] = [mean(a), mean(b)];
      const cov = a.reduce((s, v, i) => s + (v - ma) * (b[i] - mb), 0), norm = Math.sqrt(a.reduce((s, v) => s + (v - ma) ** 2, 0) * b.reduce((s, v) => s + (v - mb) ** 2, 0));
      return norm ? cov / norm : null;
    };
    const word = el("p", { class: "note" });
    const { host, draw } = plotted(() => {
      const series = shapes.map((row) => ({ order: row.order, points: [[causes[cause][1](row), effects[effect][1](row.order)]] })).filter((one) => Number.isFinite(one.points[0][1]));
      const rho = series.length > 2 ? spearman(series.map((one) => one.points[0])) : null;
      word.textContent = rho === null ? "" : `Spearman's rank correlation over ${series.length} orders: ${signed(2)(rho)}. A correlation over so few orders explains nothing by itself.`;
      return { x: causes[cause][0], y: effects[effect][0], series, describe: (p) => `${causes[cause][0]} ${short(p[0])}, ${effects[effect][0]} ${short(p[1])}` };
    });
    section("why", "Geometry against results", el("div", { class: "bar" }, choice("across", causes.map((c) => c[0]), (index) => { cause = index; draw(); }), choice("up", effects.map((c) => c[0]), (index) => { effect = index; draw(); })), picker(), host, word);
  }

  // Seeing

  if (data.seeing.length) {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const maps = data.seeing.map((row) => ({ ...row, field: bytes(row.field), attention: bytes(row.attention) }));
    const side = maps[0].attention_side, photo = new Image(), word = el("p", { class: "readout", "aria-live": "polite" });
    let view = 0, query = Math.floor(side / 2) * side + Math.floor(side / 2);
    const canvases = maps.map((row) => {
      const canvas = el("canvas", { width: 192, height: 192, tabindex: "0", role: "img", "data-order": row.order });
      canvas.addEventListener("click", (event) => {
        const box = canvas.getBoundingClientRect();
        const place = (from, span, at) => Math.min(side - 1, Math.max(0, Math.floor(((at - from) / span) * side)));
        query = place(box.top, box.height, event.clientY) * side + place(box.left, box.width, event.clientX);
        view = 1;
        select.querySelector("select").value = 1;
        draw();
      });
      canvas.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!move) return;
        event.preventDefault();
        const [x, y] = [(query % side) + move[0], Math.floor(query / side) + move[1]];
        if (x < 0 || y < 0 || x >= side || y >= side) return;
        query = y * side + x;
        view = 1;
        select.querySelector("select").value = 1;
        draw();
      });
      return canvas;
    });
    const draw = () => {
      const [x, y] = [query % side, Math.floor(query / side)];
      maps.forEach((row, i) => {
        const canvas = canvases[i], pen = canvas.getContext("2d"), n = view ? side : row.field_side;
        const values = view ? row.attention.subarray(query * n * n, (query + 1) * n * n) : row.field;
        const heat = el("canvas", { width: n, height: n }), image = new ImageData(n, n);
        values.forEach((v, p) => image.data.set([...cividis(v / 255), Math.min(235, 1.1 * v)], 4 * p));
        heat.getContext("2d").putImageData(image, 0, 0);
        pen.filter = "grayscale(1)";
        pen.drawImage(photo, 0, 0, 192, 192);
        pen.filter = "none";
        pen.imageSmoothingEnabled = !view;
        pen.drawImage(heat, 0, 0, 192, 192);
        if (view) {
          const cell = 192 / n;
          pen.strokeStyle = "#fff";
          pen.lineWidth = 3;
          pen.strokeRect(x * cell, y * cell, cell, cell);
          pen.strokeStyle = "#d55e00";
          pen.lineWidth = 1.5;
          pen.strokeRect(x * cell, y * cell, cell, cell);
        }
        canvas.setAttribute("aria-label", view ? `Hidden attention of ${row.order} from the token in row ${y + 1}, column ${x + 1}` : `Effective receptive field of ${row.order}`);
      });
      word.textContent = view ? `From the token in row ${y + 1}, column ${x + 1} of ${side}: tap a picture or use the arrow keys on it to move.` : `Gradient of the central pixels, mean over ${about.config.seeing.photos} photographs. Tap a picture to see the attention from there.`;
    };
    const select = choice("view", ["effective receptive field", "hidden attention"], (index) => { view = index; draw(); });
    const cards = el("div", { class: "cards" }, ...maps.map((row, i) => el("article", { class: "card" }, el("h3", { text: row.order }), el("p", { text: `half of the field in ${percent(row.field_half)} of the pixels` }), canvases[i])));
    photo.onload = draw;
    photo.src = data.photo;
    const state = maps[0].trained ? "The backbone that was trained to denoise photographs with seed 0." : "An untrained backbone.";
    section("seeing", "Seeing", note(`${state} Square roots of the values are shown, relative to the largest. Hidden attention: the token-to-token weights that the scan of the first stage implies (arXiv 2403.01590), absolute, mean over channels, summed over routes.`), el("div", { class: "bar" }, select), word, cards,
      table("Seeing", [
        { name: "order", key: "order" },
        { name: "pixels with half of the field", key: "field_half", show: fixed(3), title: "as a share of all" },
        { name: "pixels with 90 % of it", key: "field_most", show: fixed(3) },
        { name: "mean distance of attention, tokens", key: "attention_distance", show: fixed(2) },
        { name: "tokens reached", key: "attention_reach", show: percent, title: "share of pairs with more than a hundredth of the row's largest weight" },
      ], data.seeing));
  }

  // Machine

  const facts = { ...about.machine, ...Object.fromEntries(Object.entries(about.versions).map(([k, v]) => [k, v])), created: about.created };
  const file = JSON.stringify(data);
  section("machine", "Machine and data",
    el("div", { class: "scroll" }, el("table", { "aria-label": "Machine and versions" }, el("tbody", {}, ...Object.entries(facts).map(([k, v]) => el("tr", {}, el("th", { scope: "row", text: k }), el("td", { class: "text", text: v })))))),
    el("p", {}, el("button", { type: "button", text: "Save the figures as JSON", onclick: () => {
      const link = el("a", { href: URL.createObjectURL(new Blob([file], { type: "application/json" })), download: "scan_benchmark.json" });
      link.click();
      URL.revokeObjectURL(link.href);
    } })),
    el("details", {}, el("summary", { text: "The grid that was run" }), el("pre", { tabindex: "0", text: JSON.stringify(about.config, null, 2) })));

  redraw.forEach((draw) => draw());
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => redraw.forEach((draw) => draw()), 150);
  });
  dark.addEventListener("change", () => listeners.forEach((listener) => listener()));
})();
