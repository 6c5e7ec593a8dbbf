// What assistive technology needs, as far as a page like ours can lack it.
const bad = [];
const named = (e) => (e.getAttribute("aria-label") || (e.getAttribute("aria-labelledby") || "")
  .split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("") ||
  e.textContent).trim();
const every = (selector) => [...document.querySelectorAll(selector)];
if (!document.documentElement.lang) bad.push("no language");
if (!document.title) bad.push("no title");
if (every("main").length !== 1 || every("h1").length !== 1) bad.push("not one main and one h1");
const ids = every("[id]").map((e) => e.id);
if (new Set(ids).size !== ids.length) bad.push("an id twice");
for (const e of every("a, button, summary, [role=region], [role=img], section, nav"))
  if (!named(e)) bad.push("without a name: " + e.outerHTML.slice(0, 80));
for (const e of every("svg:not([aria-hidden])")) if (e.getAttribute("role") !== "img") bad.push("a drawing, no picture");
for (const e of every("th")) if (!e.scope) bad.push("a head without scope: " + e.textContent);
for (const e of every("[tabindex]")) if (e.tabIndex > 0) bad.push("an order of its own");
for (const e of every("a[href^='#']"))
  if (!document.getElementById(e.hash.slice(1))) bad.push("leads nowhere: " + e.hash);
let level = 0;
for (const e of every("h1, h2, h3, h4, h5, h6")) {
  if (Number(e.tagName[1]) > level + 1) bad.push("a level left out: " + e.textContent);
  level = Number(e.tagName[1]);
}
for (const e of every("button, summary")) {
  const box = e.getBoundingClientRect();
  if (e.checkVisibility() && (box.height < 24 || box.width < 24))
    bad.push(`small for a finger, ${box.width} x ${box.height}: ` + e.textContent);
}
for (const e of every("*")) if (e.scrollWidth > e.clientWidth + 1 &&
    ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.tabIndex !== 0)
  bad.push("scrolls, but not by keyboard: " + e.className);
return bad;
