/**
 * The settings of a chat as a form has them: what each is called, what it takes, how its text becomes a value.
 * Whether a value makes sense is the server's business; here only what cannot be read is refused.
 */

export const SAMPLING = [
  number("temperature", "Temperature", "0 takes the most probable token; higher varies more.", 0.05),
  number("min_p", "Min p", "Keeps tokens with at least this share of the best one's probability.", 0.01),
  number("top_p", "Top p", "Keeps the most probable tokens that reach this probability together; 1 keeps all.", 0.01),
  number("top_k", "Top k", "Keeps this many of the most probable tokens; 0 keeps all.", 1),
  number("repetition_penalty", "Repetition penalty", "Above 1, tokens of the whole context get less likely.", 0.05),
  number("presence_penalty", "Presence penalty", "Taken from tokens that the reply already has, once.", 0.1),
  number("frequency_penalty", "Frequency penalty", "The same for every time that it has them.", 0.1),
  number("seed", "Seed", "The same seed gives the same reply.", 1),
];

export const LENGTH = [
  number("max_tokens", "Longest reply", "Tokens after which a reply ends; it can be continued.", 1),
  {
    name: "endless",
    label: "When the context is full",
    help: "Going on, the model no longer sees the oldest of it.",
    choices: [[true, "Go on without the oldest"], [false, "Refuse"]],
    shown: String,
    read: (text) => text === "true",
  },
  {
    name: "stop",
    label: "Stop texts",
    help: "A reply ends before any of these. One a line; \\n is a line break.",
    lines: true,
    shown: (value) => value.map((each) => each.replaceAll("\n", "\\n").replaceAll("\t", "\\t")).join("\n"),
    read: (text) => text.split("\n").filter(Boolean).map((each) => each.replaceAll("\\n", "\n").replaceAll("\\t", "\t")),
  },
  {
    name: "template_var",
    label: "Template variables",
    help: "For the model's chat template, one a line: enable_thinking=false",
    lines: true,
    shown: (value) => Object.entries(value).map(([key, each]) => `${key}=${JSON.stringify(each)}`).join("\n"),
    read: variables,
  },
];

export const FIELDS = [...SAMPLING, ...LENGTH];

/** A setting's default as a person reads it. */
export function shownDefault(field, value) {
  if (value === null || value === undefined) return field.name === "seed" ? "drawn for each reply" : "none";
  if (field.choices) return field.choices.find(([each]) => each === value)[1].toLowerCase();
  if (Array.isArray(value) || typeof value === "object") return field.shown(value).replaceAll("\n", ", ") || "none";
  return String(value);
}

function number(name, label, help, step) {
  return { name, label, help, step, lines: false, shown: String, read: (text) => readNumber(label, text) };
}

function readNumber(label, text) {
  const value = Number(text.trim().replace(",", "."));
  if (!Number.isFinite(value)) throw new Error(`${label} must be a number, got ${text.trim()}`);
  return value;
}

/** Lines `name=value`; a value is JSON where it reads as such, else text. */
function variables(text) {
  const found = {};
  for (const line of text.split("\n").filter((each) => each.trim())) {
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`Template variables are written name=value, got ${line.trim()}`);
    found[line.slice(0, at).trim()] = json(line.slice(at + 1).trim());
  }
  return found;
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
