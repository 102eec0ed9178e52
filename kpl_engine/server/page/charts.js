// Small line charts as SVG, with their last value in words for those who do not see them.

const POINTS = 120; // one a second
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  // `names` of the lines; `unit` and `digits` of the spoken value.
  constructor(place, output, names, unit, digits = 0) {
    this.output = output;
    this.names = names;
    this.unit = unit;
    this.digits = digits;
    this.values = names.map(() => []);
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 100`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.scale = document.createElement("span");
    this.scale.className = "scale";
    this.lines = names.map((_, index) => {
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("class", index ? "line second" : "line");
      this.svg.append(line);
      return line;
    });
    place.className = "chart";
    place.append(this.svg, this.scale);
    this.say("no figures yet");
  }

  // One value a line, or null where there is none.
  add(...latest) {
    latest.forEach((value, index) => {
      this.values[index].push(value);
      if (this.values[index].length > POINTS) this.values[index].shift();
    });
    const most = Math.max(0, ...this.values.flat().map((value) => value ?? 0));
    this.scale.textContent = `max ${most.toFixed(this.digits)} ${this.unit}`;
    this.values.forEach((row, index) => this.lines[index].setAttribute("d", outline(row, most || 1)));
    const told = latest.map((value, index) => {
      const text = value === null ? "–" : value.toFixed(this.digits);
      return this.names.length > 1 ? `${this.names[index]} ${text}` : text;
    });
    this.output.textContent = `${told.join(", ")} ${this.unit}`;
    this.say(`${this.names.join(" and ")} over two minutes, ${this.scale.textContent}, now ${this.output.textContent}`);
  }

  say(text) {
    this.svg.setAttribute("aria-label", text);
  }
}

// Seconds without a value are gaps, and one alone is a dot.
function outline(row, most) {
  const from = POINTS - row.length;
  return row
    .map((value, i) => {
      if (value === null) return "";
      const point = `${from + i},${(100 - (92 * value) / most).toFixed(2)}`;
      return i && row[i - 1] !== null ? `L${point}` : `M${point}h0`;
    })
    .join(" ")
    .trim();
}
