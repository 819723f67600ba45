// A line chart as SVG. Text is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 26;

function make(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Round steps of 1, 2 or 5 times a power of ten; whole ones where values are counts.
function ticks(low, high, most, whole) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-6; at++) found.push(at * step);
  return { step, found };
}

function extent(series, index) {
  let low = Infinity, high = -Infinity;
  for (const each of series) {
    for (const point of each.points) {
      if (point[1] === null) continue;
      if (point[index] < low) low = point[index];
      if (point[index] > high) high = point[index];
    }
  }
  return [low, high];
}

// series: [{name, kind, dots, points: [[x, y or null], …] by rising x}]; the x axis goes on to `until`, if that is more
export function draw(svg, series, { formatX, formatY, wholeX = true, fromZero = false, until = -Infinity }) {
  const width = Math.max(svg.clientWidth, 200), height = Math.max(svg.clientHeight, 120);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  let [left, right] = extent(series, 0), [low, high] = extent(series, 1);
  const parts = [];
  if (left > right) {
    parts.push(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, "nothing measured yet"));
    svg.replaceChildren(...parts);
    return;
  }
  right = Math.max(right, until);
  if (fromZero) low = Math.min(0, low);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  high += room;
  if (!fromZero) low -= room;
  if (left === right) { left -= 1; right += 1; }
  const x = (value) => LEFT + ((value - left) / (right - left)) * (width - LEFT - RIGHT);
  const y = (value) => height - BOTTOM - ((value - low) / (high - low)) * (height - TOP - BOTTOM);
  const across = ticks(left, right, Math.max(2, Math.floor(width / 80)), wholeX);
  const up = ticks(low, high, Math.max(2, Math.floor(height / 45)), false);
  for (const value of up.found) {
    parts.push(make("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(make("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, formatY(value, up.step)));
  }
  for (const value of across.found) {
    const anchor = x(value) > width - 40 ? "end" : "middle";
    parts.push(make("text", { x: x(value), y: height - 8, "text-anchor": anchor }, formatX(value, across.step)));
  }
  parts.push(make("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
  for (const each of series) {
    let path = "", pen = "M";
    for (const [at, value] of each.points) {
      if (value === null) { pen = "M"; continue; }
      path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
    if (path) parts.push(make("path", { class: each.kind, d: path }));
    if (!each.dots) continue;
    for (const [at, value] of each.points.slice(-200)) {
      if (value !== null) parts.push(make("circle", { class: each.kind, cx: x(at), cy: y(value), r: 3 }));
    }
  }
  svg.replaceChildren(...parts);
}
