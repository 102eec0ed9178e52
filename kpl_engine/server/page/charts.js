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
    this.lines = names.map((_, index) => {
      const line = document.createElementNS(SVG, "polyline");
      line.setAttribute("class", index ? "line second" : "line");
      this.svg.append(line);
      return line;
    });
    place.append(this.svg);
    this.say("no figures yet");
  }

  // One value a line, or null where there is none.
  add(...latest) {
    latest.forEach((value, index) => {
      this.values[index].push(value);
      if (this.values[index].length > POINTS) this.values[index].shift();
    });
    const top = Math.max(1e-9, ...this.values.flat().map((value) => value ?? 0)) * 1.1;
    this.values.forEach((row, index) => {
      const from = POINTS - row.length;
      const points = row.map((value, i) => (value === null ? null : `${from + i},${(100 - (100 * value) / top).toFixed(2)}`));
      this.lines[index].setAttribute("points", points.filter((point) => point !== null).join(" "));
    });
    const told = latest.map((value, index) => {
      const text = value === null ? "–" : value.toFixed(this.digits);
      return this.names.length > 1 ? `${this.names[index]} ${text}` : text;
    });
    this.output.textContent = `${told.join(", ")} ${this.unit}`;
    this.say(`${this.names.join(" and ")} over two minutes, now ${this.output.textContent}`);
  }

  say(text) {
    this.svg.setAttribute("aria-label", text);
  }
}
