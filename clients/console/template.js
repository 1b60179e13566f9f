// What a template asks for.

/** Named fields of a template but `{prompt}`; a doubled brace is a brace. */
export function fieldsOf(template) {
  return named(template).filter((name) => name !== "prompt");
}

/** Whether a prompt is part of the request: always without a template. */
export function takesPrompt(template) {
  return !template || named(template).includes("prompt");
}

function named(template) {
  const names = (template ?? "").replaceAll(/\{\{|\}\}/g, "").matchAll(/\{(\w+)\}/g);
  return [...new Set([...names].map(([, name]) => name))];
}
