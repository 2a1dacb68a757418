// The metric over write noise, with intervals, where it was measured.

function accuracyView(app) {
  const held = app.head.accuracy;
  if (!held) {
    return [
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Accuracy over noise"),
        h(
          "p",
          { class: "muted" },
          "Not measured. A model file with evaluation_data() and metric() has it measured: ",
          h("code", {}, "imcc compile model.py --trials 25"),
          ".",
        ),
      ),
    ];
  }
  const rows = [
    ["Float model", held.float, held.float_ci95, null],
    ["Compiled, no noise", held.noise_free, held.noise_free_ci95, null],
  ];
  if (held.noisy)
    rows.push([
      "Compiled, write and read noise of the target",
      held.noisy.mean,
      held.noisy.ci95,
      held.noisy.trials,
    ]);
  for (const level of held.write_noise_sweep) {
    rows.push([
      `Write noise ${level.sigma_fraction} of the range`,
      level.mean,
      level.ci95,
      level.trials,
    ]);
  }
  return [
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Accuracy over noise"),
      h(
        "p",
        { class: "small muted" },
        `${held.metric || "metric"} on ${plural(held.samples, "sample")}; `,
        "intervals are 95 % of the mean: with trials over simulated devices on the fixed set, ",
        "without over its samples.",
      ),
      held.write_noise_sweep.length
        ? noiseChart(held)
        : h("p", { class: "muted" }, "No sweep over write noise was made."),
    ),
    h(
      "section",
      { class: "card" },
      table(
        "Values",
        [
          { name: "" },
          { name: "Value", right: true },
          { name: "95 % interval", right: true },
          { name: "Trials", right: true },
        ],
        rows.map(([name, value, interval, trials]) => [
          name,
          fixed(value),
          interval ? interval.map(fixed).join(" to ") : "-",
          trials === null ? "-" : count(trials),
        ]),
      ),
    ),
    held.noisy?.per_trial?.length
      ? h(
          "section",
          { class: "card" },
          h("h3", {}, "Each trial under the target's noise"),
          trialStrip(held),
        )
      : null,
  ];
}

// Charts are drawn for the width they have, so that their text keeps its size.
function chartWidth() {
  return Math.max(260, Math.min(820, document.documentElement.clientWidth - 74));
}

function noiseChart(held) {
  const wide = chartWidth();
  const high = 300;
  const [left, right, top, bottom] = [52, 18, 14, 46];
  const levels = held.write_noise_sweep;
  const xs = levels.map((level) => level.sigma_fraction);
  const values = levels
    .flatMap((level) => [level.mean, ...(level.ci95 || [])])
    .concat(held.float, held.noise_free);
  const span = Math.max(...values) - Math.min(...values) || 0.01;
  const low = Math.min(...values) - span * 0.12;
  const most = Math.max(...values) + span * 0.12;
  const limit = Math.max(...xs) || 1;
  const x = (value) => left + ((wide - left - right) * value) / limit;
  const y = (value) => top + (high - top - bottom) * (1 - (value - low) / (most - low));
  const line = (value, name, dash) =>
    s(
      "g",
      {},
      s("line", {
        x1: left,
        x2: wide - right,
        y1: y(value),
        y2: y(value),
        class: "reference",
        "stroke-dasharray": dash,
      }),
      s("title", {}, `${name} ${fixed(value)}`),
    );
  const described = levels
    .map((level) => `${level.sigma_fraction}: ${fixed(level.mean)}`)
    .join("; ");
  return h(
    "figure",
    { class: "chart" },
    s(
      "svg",
      {
        viewBox: `0 0 ${wide} ${high}`,
        width: wide,
        height: high,
        role: "img",
        "aria-label": `Metric over write noise. ${described}`,
      },
      ticks(low, most, 5)
        .filter((value) => value >= low && value <= most)
        .map((value) =>
          s(
            "g",
            {},
            s("line", { x1: left, x2: wide - right, y1: y(value), y2: y(value), class: "grid" }),
            s("text", { x: left - 8, y: y(value) + 4, class: "axis end" }, trimmed(value, 4)),
          ),
        ),
      xs.map((value) =>
        s("text", { x: x(value), y: high - bottom + 20, class: "axis middle-text" }, String(value)),
      ),
      s(
        "text",
        { x: (left + wide - right) / 2, y: high - 6, class: "axis middle-text" },
        wide < 520
          ? "write noise, fraction of the range"
          : "write noise: standard deviation as a fraction of the conductance range",
      ),
      line(held.float, "float", "2 4"),
      line(held.noise_free, "no noise", "8 4"),
      s("path", {
        class: "curve",
        d: levels
          .map((level, i) => `${i ? "L" : "M"}${x(level.sigma_fraction)} ${y(level.mean)}`)
          .join(""),
      }),
      levels.map((level) =>
        s(
          "g",
          { class: "point" },
          s(
            "title",
            {},
            `${level.sigma_fraction}: ${fixed(level.mean)}`,
            level.ci95 ? `, ${level.ci95.map(fixed).join(" to ")}` : "",
          ),
          level.ci95
            ? s("path", {
                d: whisker(x(level.sigma_fraction), ...level.ci95.map(y)),
              })
            : null,
          s("circle", { cx: x(level.sigma_fraction), cy: y(level.mean), r: 4.5 }),
        ),
      ),
    ),
    h(
      "figcaption",
      {},
      h(
        "ul",
        { class: "legend" },
        h("li", {}, h("i", { style: { background: "var(--c0)" } }), "mean and 95 % interval"),
        h(
          "li",
          {},
          s(
            "svg",
            { width: 26, height: 10, "aria-hidden": "true" },
            s("line", {
              x1: 0,
              x2: 24,
              y1: 5,
              y2: 5,
              class: "reference",
              "stroke-dasharray": "2 4",
            }),
          ),
          ` float, ${fixed(held.float)}`,
        ),
        h(
          "li",
          {},
          s(
            "svg",
            { width: 26, height: 10, "aria-hidden": "true" },
            s("line", {
              x1: 0,
              x2: 24,
              y1: 5,
              y2: 5,
              class: "reference",
              "stroke-dasharray": "8 4",
            }),
          ),
          ` compiled, no noise, ${fixed(held.noise_free)}`,
        ),
      ),
    ),
  );
}

function whisker(x, low, high) {
  return `M${x} ${low}V${high}M${x - 6} ${low}h12M${x - 6} ${high}h12`;
}

function trialStrip(held) {
  const values = held.noisy.per_trial;
  const wide = chartWidth();
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1e-6;
  const x = (value) => 20 + ((wide - 40) * (value - low)) / span;
  const stacks = new Map();
  const tallest = Math.max(
    ...values.map((value) => values.filter((other) => other === value).length),
  );
  const high = 34 + tallest * 11;
  return s(
    "svg",
    {
      viewBox: `0 0 ${wide} ${high}`,
      width: wide,
      height: high,
      class: "chart",
      role: "img",
      "aria-label": `${values.length} trials from ${fixed(low)} to ${fixed(low + span)}`,
    },
    s("line", { x1: 20, x2: wide - 20, y1: high - 24, y2: high - 24, class: "grid" }),
    values.map((value, index) => {
      const level = stacks.get(value) || 0;
      stacks.set(value, level + 1);
      return s(
        "circle",
        { class: "trial", cx: x(value), cy: high - 32 - level * 11, r: 4.5 },
        s("title", {}, `trial ${index}: ${fixed(value)}`),
      );
    }),
    s("text", { x: 20, y: high - 6, class: "axis" }, fixed(low)),
    s("text", { x: wide - 20, y: high - 6, class: "axis end" }, fixed(Math.max(...values))),
  );
}
