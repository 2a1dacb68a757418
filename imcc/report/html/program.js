// Programs: their stages out of the table of lines, and what a line of text says.

class Stages {
  constructor(history) {
    this.lines = history.lines;
    this.stages = history.stages;
    this.sources = history.sources;
    this.parsed = new Map();
    this.programs = new Map();
  }

  // The stage whose program stands after stage `number`: itself, or the last that changed it.
  holder(number) {
    while (number > 0 && !this.stages[number].program) number -= 1;
    return number;
  }

  numbers(number) {
    const made = [];
    for (const [first, size] of this.stages[this.holder(number)].program) {
      for (let line = first; line < first + size; line += 1) made.push(line);
    }
    return made;
  }

  line(number) {
    if (!this.parsed.has(number)) this.parsed.set(number, parseLine(this.lines[number]));
    return this.parsed.get(number);
  }

  // Functions of a stage with their ops in order.
  program(number) {
    const held = this.holder(number);
    if (!this.programs.has(held)) {
      const functions = [];
      for (const id of this.numbers(held)) {
        const line = this.line(id);
        if (line.kind === "func") functions.push({ name: line.name, head: line, ops: [] });
        else if (line.kind === "op") functions[functions.length - 1]?.ops.push({ id, ...line });
      }
      this.programs.set(held, functions);
    }
    return this.programs.get(held);
  }

  source(place) {
    return this.sources[place.file]?.[place.line];
  }
}

const QUOTED = /"(?:[^"\\]|\\.)*"/y;

// End of a stretch that starts at `from`: the first of `stops` outside of strings and brackets.
function until(text, from, stops) {
  let depth = 0;
  for (let at = from; at < text.length; at += 1) {
    if (text[at] === '"') {
      QUOTED.lastIndex = at;
      const found = QUOTED.exec(text);
      if (!found) return text.length;
      at += found[0].length - 1;
      continue;
    }
    if (depth === 0 && stops.some((stop) => text.startsWith(stop, at))) return at;
    if ("{[(<".includes(text[at])) depth += 1;
    else if ("}])>".includes(text[at]) && text[at - 1] !== "-") depth -= 1;
  }
  return text.length;
}

function split(text) {
  const parts = [];
  let from = 0;
  while (from < text.length) {
    const end = until(text, from, [", "]);
    parts.push(text.slice(from, end));
    from = end + 2;
  }
  return parts;
}

function unquoted(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function parseLine(text) {
  const func = /^func @([\w./-]+)\(/.exec(text);
  if (func) return parseFunction(text, func);
  const declared = /^(resource|state) @([\w./-]+) : /.exec(text);
  if (declared) return { kind: declared[1], key: `${declared[1]} @${declared[2]}`, text };
  const op = /^(?:(%[\w.]+(?:, %[\w.]+)*) = )?([a-z]\w*\.[a-z]\w*)/.exec(text);
  if (!op) {
    const module = text.startsWith("module ");
    return { kind: module ? "module" : "other", key: module ? "module" : `other ${text}`, text };
  }
  return parseOp(text, op);
}

function parseOp(text, found) {
  const results = found[1] ? found[1].split(", ").map((name) => name.slice(1)) : [];
  let at = found[0].length;
  const operandsEnd = until(text, at, [" {", " : ", " loc("]);
  const operands = split(text.slice(at, operandsEnd).trim())
    .filter(Boolean)
    .map((part) => {
      const named = part.indexOf("=%");
      return named < 0
        ? { value: part.slice(1) }
        : { label: part.slice(0, named), value: part.slice(named + 2) };
    });
  at = operandsEnd;
  const attributes = [];
  if (text.startsWith(" {", at)) {
    const end = until(text, at + 2, ["}"]);
    for (const pair of split(text.slice(at + 2, end))) {
      const equal = pair.indexOf(" = ");
      attributes.push([pair.slice(0, equal), pair.slice(equal + 3)]);
    }
    at = end + 1;
  }
  let types = [];
  if (text.startsWith(" : ", at)) {
    const end = until(text, at + 3, [" loc("]);
    types = split(text.slice(at + 3, end));
    at = end;
  }
  const loc = [];
  const places = /"((?:[^"\\]|\\.)*)":(\d+)/g;
  for (let place = places.exec(text.slice(at)); place; place = places.exec(text.slice(at))) {
    loc.push({ file: unquoted(`"${place[1]}"`), line: Number(place[2]) });
  }
  const scope = attributes.find(([name]) => name === "scope");
  return {
    kind: "op",
    text,
    results,
    op: found[2],
    operands,
    types,
    loc,
    attributes: attributes.filter(([name]) => name !== "scope"),
    scope: scope ? unquoted(scope[1]) : "",
    key: results.length ? `%${results[0]}` : found[2],
  };
}

function parseFunction(text, found) {
  const end = until(text, found[0].length, [")"]);
  const args = split(text.slice(found[0].length, end)).map((part) => {
    const colon = part.indexOf(": ");
    const state = / state\(@([\w./-]+)\)$/.exec(part);
    return {
      name: part.slice(1, colon),
      type: part.slice(colon + 2, state ? state.index : undefined),
      state: state ? state[1] : null,
    };
  });
  return { kind: "func", key: `func @${found[1]}`, name: found[1], text, args };
}

// Coloured text of a line; `marked` holds tokens that differ from the other side.
const TOKEN = new RegExp(
  [
    '"(?:[^"\\\\]|\\\\.)*"',
    "%[\\w.]+",
    "@[\\w./-]+",
    "[a-z_]\\w*\\.[a-z_]\\w*",
    "[A-Za-z_]\\w*",
    "-?\\d[\\w.+]*",
    "\\s+",
    '[^\\s\\w"%@]+',
    ".",
  ].join("|"),
  "g",
);

function tokens(text) {
  return text.match(TOKEN) || [];
}

function tokenClass(token, index, all) {
  if (token[0] === '"') return "t-string";
  if (token[0] === "%") return "t-value";
  if (token[0] === "@") return "t-symbol";
  if (/^-?\d/.test(token)) return "t-number";
  if (/^[a-z]\w*\.[a-z]\w*$/.test(token) && !all.slice(0, index).includes("{")) return "t-op";
  return null;
}

function code(text, marked) {
  const all = tokens(text);
  const made = h("code");
  all.forEach((token, index) => {
    const kind = tokenClass(token, index, all);
    const mark = marked && marked[index] && token.trim();
    const digest = /^"[0-9a-f]{64}"$/.test(token);
    made.append(
      kind || mark
        ? h(
            "span",
            {
              class: [kind, mark && "t-changed"].filter(Boolean).join(" "),
              title: digest ? token : null,
            },
            digest ? `${token.slice(0, 9)}…"` : token,
          )
        : token,
    );
  });
  return made;
}

// Which tokens of two lines are not common to both (longest common subsequence).
function tokenMarks(before, after) {
  const left = tokens(before);
  const right = tokens(after);
  const wide = right.length + 1;
  const table = new Uint16Array((left.length + 1) * wide);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      table[i * wide + j] =
        left[i] === right[j]
          ? table[(i + 1) * wide + j + 1] + 1
          : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
    }
  }
  const marks = [left.map(() => true), right.map(() => true)];
  for (let i = 0, j = 0; i < left.length && j < right.length;) {
    if (left[i] === right[j]) {
      marks[0][i] = false;
      marks[1][j] = false;
      i += 1;
      j += 1;
    } else if (table[(i + 1) * wide + j] >= table[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return marks;
}

// Rows of two programs beside each other: lines of the same name face each other.
function diffRows(stages, before, after) {
  const keyed = (numbers) => {
    let inside = "";
    return numbers.map((number) => {
      const line = stages.line(number);
      if (line.kind === "func") inside = line.name;
      const own = line.kind === "op" || line.text === "}";
      return { number, line, key: own ? `${inside} ${line.key}` : line.key };
    });
  };
  const left = keyed(before);
  const right = keyed(after);
  const where = new Map(right.map((item, index) => [item.key, index]));
  const pairs = left
    .map((item, index) => [index, where.get(item.key)])
    .filter(([, other]) => other !== undefined);
  const kept = increasing(pairs.map(([, other]) => other)).map((index) => pairs[index]);
  const rows = [];
  let i = 0;
  let j = 0;
  for (const [a, b] of [...kept, [left.length, right.length]]) {
    while (i < a) {
      rows.push({ before: left[i] });
      i += 1;
    }
    while (j < b) {
      rows.push({ after: right[j] });
      j += 1;
    }
    if (a < left.length) rows.push({ before: left[a], after: right[b] });
    i = a + 1;
    j = b + 1;
  }
  for (const row of rows) row.same = row.before?.number === row.after?.number;
  return rows;
}

// Indices of a longest increasing subsequence.
function increasing(values) {
  const tails = [];
  const previous = new Array(values.length).fill(-1);
  values.forEach((value, index) => {
    let low = 0;
    let high = tails.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[tails[middle]] < value) low = middle + 1;
      else high = middle;
    }
    if (low > 0) previous[index] = tails[low - 1];
    tails[low] = index;
  });
  const made = [];
  for (let at = tails.length ? tails[tails.length - 1] : -1; at >= 0; at = previous[at])
    made.push(at);
  return made.reverse();
}

// Names that a text of a rewrite speaks of, as keys of lines.
function keysOf(rewrite, line) {
  const within = (key) => (line.kind === "op" ? `${rewrite.function} ${key}` : key);
  if (line.kind === "op") return [within(line.key)];
  const named = /@([\w./-]+)/.exec(line.text);
  if (rewrite.kind === "resource" && named) return [`resource @${named[1]}`];
  if (rewrite.kind === "state" && named) return [`state @${named[1]}`];
  if (rewrite.kind === "phase") return ["module"];
  if (["argument", "results", "target", "function"].includes(rewrite.kind)) {
    return [`func @${rewrite.function}`];
  }
  return [];
}

// Rewrites of a stage by the keys of the lines that they took and made.
function rewritesByKey(stages, stage) {
  const found = new Map();
  for (const rewrite of stages.stages[stage].rewrites) {
    const keys = new Set(
      [...rewrite.before, ...rewrite.after].flatMap((number) =>
        keysOf(rewrite, stages.line(number)),
      ),
    );
    for (const key of keys) {
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(rewrite);
    }
  }
  return found;
}

function shortRule(rule) {
  return rule.split("/").pop();
}
