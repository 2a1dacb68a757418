// Bars, axes and legends that several views share.

const COLOURS = 12;

function colour(index) {
  return `var(--c${((index % COLOURS) + COLOURS) % COLOURS})`;
}

// Colours of components: the costliest first, so that neighbours in a bar differ.
function componentColours(points) {
  const totals = new Map();
  for (const point of Object.values(points)) {
    for (const layer of point.layers || point) {
      for (const [name, energy] of Object.entries(layer.energy_by_component_pj || {})) {
        totals.set(name, (totals.get(name) || 0) + energy);
      }
    }
  }
  const order = [...totals.keys()].sort(
    (a, b) => totals.get(b) - totals.get(a) || (a < b ? -1 : 1),
  );
  return new Map(order.map((name, index) => [name, colour(index)]));
}

function legend(colours, names) {
  return h(
    "ul",
    { class: "legend", "aria-label": "Colours" },
    names.map((name) =>
      h("li", {}, h("i", { style: { background: colours.get(name) } }), words(name)),
    ),
  );
}

const SHORT = { pe: "PE", pes: "PEs", adc: "ADC", adcs: "ADCs", dac: "DAC", alu: "ALU" };

function words(name) {
  return name
    .split(/[_ ]/)
    .map((part) => SHORT[part] || part)
    .join(" ");
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// A bar of parts, as long as its share of `most`.
function stackedBar(parts, most, colours, unit) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  const named = [...parts]
    .sort((a, b) => b[1] - a[1])
    .slice(0, 4)
    .map(([name, value]) => `${words(name)} ${quantity(value, unit)}`)
    .join(", ");
  return h(
    "div",
    {
      class: "bars",
      role: "img",
      title: named,
      "aria-label": `${quantity(total, unit)}: ${named}`,
    },
    parts.map(([name, value]) =>
      h("span", {
        style: {
          width: `${most ? (100 * value) / most : 0}%`,
          background: colours.get(name) || colour(0),
        },
      }),
    ),
  );
}

function plainBar(value, most, fill) {
  return h(
    "div",
    { class: "bars", "aria-hidden": "true" },
    h("span", {
      style: {
        width: `${most && value ? (100 * value) / most : 0}%`,
        background: fill || colour(0),
      },
    }),
  );
}

// Round numbers that divide a range in about `about` steps.
function ticks(low, high, about) {
  const raw = (high - low) / Math.max(1, about);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const made = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) {
    made.push(Number((at * step).toPrecision(12)));
  }
  return made;
}

function table(caption, columns, rows) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      caption ? h("caption", {}, caption) : null,
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map((column) =>
            h(
              "th",
              {
                scope: "col",
                class: column.right ? "right" : null,
              },
              column.name,
            ),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell, index) =>
              h(
                "td",
                {
                  class:
                    [columns[index].right && "right", columns[index].class]
                      .filter(Boolean)
                      .join(" ") || null,
                },
                cell,
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

function pairs(items) {
  return h(
    "dl",
    { class: "pairs" },
    items
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}
