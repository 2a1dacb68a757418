// Building elements. Text only ever goes in as text nodes and attributes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style")
      for (const [name, held] of Object.entries(value)) {
        made.style.setProperty(name, held);
      }
    else made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(4)) {
    if (child !== null && child !== undefined && child !== false) made.append(child);
  }
  return made;
}

function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function s(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function clear(element, ...children) {
  element.replaceChildren(...children.flat(4).filter((child) => child));
  return element;
}

function say(text) {
  document.getElementById("status").textContent = text;
}

// A number with the SI prefix that leaves one to three digits before the point.
const SCALES = {
  pJ: [
    [1e12, "J"],
    [1e9, "mJ"],
    [1e6, "µJ"],
    [1e3, "nJ"],
    [1, "pJ"],
    [1e-3, "fJ"],
  ],
  ns: [
    [1e9, "s"],
    [1e6, "ms"],
    [1e3, "µs"],
    [1, "ns"],
    [1e-3, "ps"],
  ],
  um2: [
    [1e4, "mm²", 1e6],
    [1, "µm²"],
  ],
};

function scaled(value, unit) {
  if (value === null || value === undefined) return ["unknown", ""];
  for (const [least, name, divisor] of SCALES[unit]) {
    if (Math.abs(value) >= least) return [trimmed(value / (divisor || least), 4), name];
  }
  return [trimmed(value, 4), unit === "um2" ? "µm²" : unit];
}

function quantity(value, unit) {
  const [number, name] = scaled(value, unit);
  return name ? `${number} ${name}` : number;
}

function trimmed(value, digits) {
  const text = value.toPrecision(digits);
  if (text.includes("e")) return String(Number(text));
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function count(value) {
  return Number.isInteger(value) ? value.toLocaleString("en-US") : trimmed(value, 6);
}

function percent(part, total) {
  if (part === null || part === undefined || !total) return "-";
  const share = (100 * part) / total;
  return share > 0 && share < 0.05 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}

// Dotted names may break behind a dot.
function breakable(text) {
  return text.split(/(?<=[._])/).flatMap((part, index) => (index ? [h("wbr"), part] : [part]));
}

function plural(number, word) {
  const ending = /(s|ch)$/.test(word) ? "es" : "s";
  return `${count(number)} ${word}${number === 1 ? "" : ending}`;
}

function field(label, control) {
  return h("label", { class: "field" }, label, control);
}

function choice(label, options, value, change) {
  const select = h(
    "select",
    { onchange: () => change(select.value) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return field(label, select);
}

function segments(label, options, value, change) {
  const buttons = options.map(([key, text]) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(key === value),
        "data-key": key,
        onclick: (event) => {
          for (const other of buttons)
            other.setAttribute("aria-pressed", String(other === event.currentTarget));
          change(key);
        },
      },
      text,
    ),
  );
  return h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
}

// Appends rows in portions as the reader comes near the end: thousands stay quick.
function portions(container, rows, make, portion = 200) {
  let next = 0;
  const more = h("button", { type: "button", class: "more" });
  const watch = new IntersectionObserver(
    (seen) => {
      if (seen.some((entry) => entry.isIntersecting)) add();
    },
    { rootMargin: "600px" },
  );
  function add() {
    const upto = Math.min(rows.length, next + portion);
    const made = [];
    for (; next < upto; next += 1) made.push(make(rows[next], next));
    container.append(...made.flat());
    if (next < rows.length) {
      more.textContent = `${count(rows.length - next)} more`;
      more.onclick = add;
      (more.isConnected ? more.parentNode : container.parentNode)?.append(more);
      watch.disconnect();
      watch.observe(more);
    } else {
      watch.disconnect();
      more.remove();
    }
  }
  // The container must stand in the page before its sentinel can.
  queueMicrotask(add);
  return container;
}
