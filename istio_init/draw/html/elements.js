// Elements of the page: found, and made. Texts are set as text, never as markup.

const LEGS = 4; // connections that have a colour of their own
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const colour = (leg) => `on-${(leg % LEGS) + 1}`;

/** An element with a class and what is in it: elements, and texts as texts. */
function make(tag, name, ...content) {
  const element = document.createElement(tag);
  element.className = name;
  element.append(...content.map((each) => (typeof each === "string" ? visible(each) : each)));
  return element;
}

/** A text with what can't be seen, or would turn its direction around, spelled out. */
function visible(text) {
  return text.replace(/[\p{C}\p{Z}]/gu, (each) => (each === " " ? " " : `\\u{${each.codePointAt(0).toString(16)}}`));
}
