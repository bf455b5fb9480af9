// One dialog for all questions.

const el = (id) => document.getElementById(id);

/**
 * Ask something.
 *
 * With `label` there is a field, and `check` takes its text: a message says what is wrong with it.
 * With `body` there is a long text to read. Resolves to the field's text, or true, or null if
 * the user turned away.
 */
export function ask({ title, text = "", label, value = "", secret, body, ok, danger, check }) {
  const dialog = el("dialog");
  const input = el("dialog-input");
  el("dialog-title").textContent = title;
  el("dialog-text").textContent = text;
  el("dialog-body").hidden = body === undefined;
  el("dialog-body").textContent = body ?? "";
  el("dialog-label").hidden = label === undefined;
  el("dialog-label").firstElementChild.textContent = label ?? "";
  el("dialog-wrong").textContent = "";
  el("dialog-cancel").hidden = body !== undefined;
  el("dialog-ok").textContent = ok;
  el("dialog-ok").classList.toggle("danger", Boolean(danger));
  dialog.classList.toggle("large", body !== undefined);
  input.type = secret ? "password" : "text";
  input.value = value;
  dialog.returnValue = "";
  dialog.showModal();
  if (label !== undefined) input.select();
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const answer = () => (label === undefined ? true : input.value.trim());
    form.onsubmit = async (event) => {
      event.preventDefault();
      const wrong = check ? await check(answer()) : "";
      if (wrong) {
        el("dialog-wrong").textContent = wrong;
        input.focus();
      } else {
        dialog.close("ok");
      }
    };
    el("dialog-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue === "ok" ? answer() : null);
  });
}
