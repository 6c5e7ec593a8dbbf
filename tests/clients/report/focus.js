// Where the focus is: noted, and whether it shows, is in sight and nothing covers it.
const element = document.activeElement;
window.seen.add(element);
const style = getComputedStyle(element);
const box = element.getBoundingClientRect();
const x = Math.min(Math.max(box.left + Math.min(box.width, 40) / 2, 0), innerWidth - 1);
const y = Math.min(Math.max(box.top + Math.min(box.height, 40) / 2, 0), innerHeight - 1);
const on = document.elementFromPoint(x, y);
const sight = box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight;
return {
  outline: parseFloat(style.outlineWidth) >= 2 && style.outlineStyle === "solid",
  sight,
  free: element.contains(on) || on?.contains(element),
  text: element.textContent.trim().slice(0, 40),
};
