// What stands there first: totals, accuracy, where the energy goes, passes, what is not known.

function figure(name, number, unit, below) {
  return h(
    "div",
    { class: "figure" },
    h("dt", {}, name),
    h(
      "dd",
      {},
      h("div", { class: "value" }, number, unit ? h("small", {}, ` ${unit}`) : null),
      below ? h("div", { class: "small muted" }, below) : null,
    ),
  );
}

function overview(app) {
  const { head } = app;
  const main = head.entry_points.inference;
  const made = [];
  const unknown = main.unknown.length;
  // Where no layer has a cost, the zeros of the totals would say what nobody knows.
  const known = (value) =>
    head.top_layers.some((layer) => layer.energy_pj !== null) ? value : null;
  const figures = [
    figure(
      "Energy per inference",
      ...scaled(known(main.energy_pj), "pJ"),
      unknown
        ? `${known(0) === null ? "" : "+ "}${plural(unknown, "op")} of unknown cost`
        : `${main.activity} activity`,
    ),
    figure("Latency", ...scaled(known(main.latency_ns), "ns"), "one input, B = 1"),
    figure(
      "Area",
      ...scaled(known(main.area_um2), "um2"),
      Object.entries(main.resources || {})
        .map(([name, number]) => `${count(number)} ${words(name)}`)
        .join(", "),
    ),
  ];
  if (head.accuracy) {
    const noisy = head.accuracy.noisy;
    const interval = noisy?.ci95 ? `95 % interval ${noisy.ci95.map(fixed).join(" to ")}; ` : "";
    figures.push(
      figure(
        capital(words(head.accuracy.metric || "metric")) +
          (noisy ? " under noise" : " without noise"),
        fixed(noisy ? noisy.mean : head.accuracy.noise_free),
        "",
        `${interval}float ${fixed(head.accuracy.float)}`,
      ),
    );
  }
  made.push(h("dl", { class: "figures", style: { margin: 0 } }, figures));
  for (const warning of head.warnings) {
    made.push(
      h(
        "div",
        { class: "note warning" },
        h("strong", {}, `${warning.severity} ${warning.code}: `),
        warning.message,
        warning.help ? h("div", { class: "small" }, warning.help) : null,
      ),
    );
  }
  made.push(h("div", { class: "columns" }, energyCard(app), passesCard(app)));
  made.push(provenance(app));
  return made;
}

// Equal texts once, with how often they occur.
function tally(items) {
  const times = new Map();
  for (const item of items) times.set(item, (times.get(item) || 0) + 1);
  return [...times].map(([item, number]) =>
    number > 1 ? `${item}, ${count(number)} times` : item,
  );
}

function fixed(value) {
  return value.toFixed(4);
}

function energyCard(app) {
  const { head } = app;
  const layers = head.top_layers.filter((layer) => layer.energy_pj !== null);
  const total = head.entry_points.inference.energy_pj;
  const colours = componentColours({ inference: layers });
  const most = Math.max(0, ...layers.map((layer) => layer.energy_pj));
  const names = [...colours.keys()];
  if (!layers.length) {
    return h(
      "section",
      { class: "card" },
      h("h2", {}, "Where the energy goes"),
      h("p", { class: "muted" }, "This target gives no cost."),
    );
  }
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Where the energy goes"),
    table(
      `The costliest ${layers.length} of ${plural(head.layers, "layer")}`,
      [
        { name: "Layer", class: "name" },
        { name: "By component", class: "bar" },
        { name: "Energy", right: true },
        { name: "Share", right: true },
      ],
      layers.map((layer) => [
        breakable(layer.name),
        stackedBar(
          names
            .map((name) => [name, layer.energy_by_component_pj?.[name] || 0])
            .filter(([, value]) => value > 0),
          most,
          colours,
          "pJ",
        ),
        quantity(layer.energy_pj, "pJ"),
        percent(layer.energy_pj, total),
      ]),
    ),
    legend(colours, names),
    h(
      "p",
      { class: "small", style: { "margin-top": "10px" } },
      h(
        "button",
        { type: "button", class: "link", onclick: () => app.open("cost") },
        "All layers and components, and where each number comes from",
      ),
    ),
  );
}

function passesCard(app) {
  const { head } = app;
  const changed = head.stages
    .map((stage, index) => ({ ...stage, index }))
    .filter((stage) => stage.index && stage.changed);
  if (!head.recorded) {
    return h(
      "section",
      { class: "card" },
      h("h2", {}, "Passes"),
      h(
        "p",
        { class: "muted" },
        "This artifact keeps no history. Compile the model again to see its passes.",
      ),
    );
  }
  const slowest = Math.max(0, ...changed.map((stage) => stage.seconds));
  if (!changed.length) {
    return h(
      "section",
      { class: "card" },
      h("h2", {}, "What the passes did"),
      h("p", { class: "muted" }, "No pass changed the program."),
    );
  }
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "What the passes did"),
    table(
      `${changed.length} of ${plural(head.stages.length - 1, "pass")} changed the program`,
      [
        { name: "Pass", class: "name" },
        { name: "Rewrites", right: true },
        { name: "Time", right: true },
        { name: "", class: "bar slim" },
      ],
      changed.map((stage) => [
        h(
          "button",
          {
            type: "button",
            class: "link",
            onclick: () => app.open("passes", { stage: stage.index }),
          },
          stage.pass.split("{")[0],
        ),
        count(stage.rewrites),
        quantity(stage.seconds * 1e9, "ns"),
        plainBar(stage.seconds, slowest, "var(--edge)"),
      ]),
    ),
  );
}

function provenance(app) {
  const { head } = app;
  const point = head.entry_points.inference;
  const held = point.provenance || {};
  const list = (items) => (items && items.length ? items.map(words).join(", ") : null);
  const unknown = tally(point.unknown || []);
  return h(
    "section",
    { class: "card" },
    h("h2", {}, "Provenance"),
    pairs([
      ["Model", [head.model.name, head.model.file ? ` (${head.model.file})` : ""]],
      ["Target", `${head.targets[0].name}, backend ${head.targets[0].backend}`],
      ["Target SHA-256", h("code", {}, head.targets[0].sha256)],
      ["Seed", String(head.seed)],
      ["imcc", head.imcc_version],
      ["Pipeline", head.pipeline ? h("code", {}, head.pipeline) : null],
      ["Cost model", held.cost_model],
      [
        "Activity",
        `${point.activity}${
          held.input_bit_density !== undefined
            ? `; ${Number(held.input_bit_density.toPrecision(4))} of the input bits are 1`
            : ""
        }`,
      ],
      ["Not modelled", list(held.not_modelled)],
      ["Area not known of", list(held.area_unknown)],
      ["Leakage not known of", list(held.leakage_unknown)],
      [
        "Cost not known of",
        unknown.length
          ? h(
              "ul",
              { class: "plain" },
              unknown.slice(0, 20).map((item) => h("li", {}, item)),
              unknown.length > 20 ? h("li", {}, `and ${unknown.length - 20} more`) : null,
            )
          : null,
      ],
    ]),
  );
}
