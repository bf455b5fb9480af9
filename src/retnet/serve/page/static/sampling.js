// The controls of how tokens are chosen; what they say is kept in this browser.

const KEY = "retnet.sampling";

const FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest", min: 0, max: 2, step: 0.05, value: 0.8, slide: true },
  { name: "top_p", label: "Top p", hint: "1 is off", min: 0.01, max: 1, step: 0.01, value: 0.95, slide: true },
  { name: "min_p", label: "Min p", hint: "0 is off", min: 0, max: 1, step: 0.01, value: 0, slide: true },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1 is off", min: 0.5, max: 2, step: 0.05, value: 1, slide: true },
  { name: "top_k", label: "Top k", hint: "0 is off", min: 0, max: 1000000, step: 1, value: 0 },
  { name: "max_tokens", label: "Most tokens", hint: "of an answer", min: 1, max: 1000000, step: 1, value: 256 },
  { name: "seed", label: "Seed", hint: "empty is random", min: -(2 ** 53), max: 2 ** 53, step: 1, value: "" },
];

export class Sampling {
  constructor(form) {
    this.form = form;
    const rows = FIELDS.map((field) => row(field));
    form.querySelector("#controls").replaceChildren(...rows);
    this.fill({ ...defaults(), ...stored() });
    form.addEventListener("input", () => {
      localStorage.setItem(KEY, JSON.stringify(this.texts()));
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.querySelector("#reset").addEventListener("click", () => {
      localStorage.removeItem(KEY);
      this.fill(defaults());
    });
  }

  /** No answer may have more tokens than the server writes. */
  limit(maxTokens) {
    const input = this.form.elements.max_tokens;
    input.max = maxTokens;
    if (Number(input.value) > maxTokens) input.value = maxTokens;
  }

  /** A field whose value cannot be used, or undefined. */
  wrong() {
    return [...this.form.elements].find((input) => input.name && !input.checkValidity());
  }

  /** What a request says. */
  values() {
    const said = Object.entries(this.texts()).filter(([, text]) => text !== "");
    return Object.fromEntries(said.map(([name, text]) => [name, Number(text)]));
  }

  texts() {
    return Object.fromEntries(FIELDS.map(({ name }) => [name, this.form.elements[name].value]));
  }

  fill(values) {
    for (const { name, slide } of FIELDS) {
      const input = this.form.elements[name];
      input.value = values[name];
      if (slide) input.closest(".control").querySelector("[type=range]").value = values[name];
    }
  }
}

const defaults = () => Object.fromEntries(FIELDS.map(({ name, value }) => [name, value]));

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

function row({ name, label, hint, min, max, step, value, slide }) {
  const control = document.createElement("div");
  control.className = "control";
  const text = document.createElement("label");
  text.htmlFor = `sampling-${name}`;
  const about = document.createElement("small");
  about.textContent = hint;
  text.append(`${label} `, about);
  const input = document.createElement("input");
  Object.assign(input, { type: "number", id: `sampling-${name}`, name, min, max, step, value });
  input.required = value !== "";
  input.inputMode = Number.isInteger(step) ? "numeric" : "decimal";
  control.append(text, input);
  if (slide) {
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min, max, step, value, tabIndex: -1 });
    range.setAttribute("aria-hidden", "true"); // the number beside it is the same control
    range.addEventListener("input", () => { input.value = range.value; });
    input.addEventListener("input", () => { range.value = input.value; });
    control.append(range);
  }
  return control;
}
