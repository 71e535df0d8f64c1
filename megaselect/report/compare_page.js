// Draws the figures in the page's own colours, and again when the scheme or the width changes.
"use strict";
const NARROW_PIXELS = 600;
const DASH_LENGTHS = { solid: "", dash: "5 3", dot: "1.5 2.5" };
const SHAPES = {
  circle: '<circle cx="11" cy="6" r="5"/>',
  square: '<rect x="6" y="1" width="10" height="10"/>',
  diamond: '<path d="M11 0 17 6 11 12 5 6z"/>',
  "line-ns-open": '<rect x="9.5" y="0" width="3" height="12"/>',
};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(figure, width) {
  const layout = structuredClone(figure.layout);
  const narrow = width < NARROW_PIXELS;
  Object.assign(layout, {
    autosize: true,
    height: figure.pixels,
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13, color: colour("--ink") },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    dragmode: false,
    margin: { l: 8, r: 16, t: 10, b: 8 },
  });
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    Object.assign(layout[name], {
      automargin: true, fixedrange: true,
      gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
    });
    layout[name].title = Object.assign({ standoff: 10 }, layout[name].title);
    if (narrow && name.startsWith("x") && !layout[name].tickvals) {
      layout[name].nticks = 5;
    }
  }
  return layout;
}

function inked(data) {
  return data.map((trace) => {
    const copy = structuredClone(trace);
    if (copy.meta === "ink") {
      copy.marker.color = colour("--ink");
    }
    return copy;
  });
}

function sample(trace) {
  const line = trace.line && trace.mode !== "markers";
  const paint = trace.meta === "ink" ? "currentColor" : line ? trace.line.color : trace.marker.color;
  const shape = SHAPES[(trace.marker && trace.marker.symbol) || "square"];
  const stroke = line
    ? `<path d="M0 6H22" stroke="${paint}" stroke-width="3" stroke-dasharray="${DASH_LENGTHS[trace.line.dash]}"/>`
    : shape;
  const box = line ? 'viewBox="0 0 22 12" width="22"' : 'viewBox="5 0 12 12" width="12"';
  return `<svg ${box} height="12" fill="${paint}" aria-hidden="true">${stroke}</svg>`;
}

// A legend of our own below the plot: plotly's covers the plot where the page is narrow.
function addLegend(plot, data) {
  const legend = document.createElement("div");
  legend.className = "legend";
  for (const trace of data.filter((one) => one.showlegend !== false)) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = sample(trace);
    button.append(trace.name);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      const places = data.flatMap((one, place) => (one.name === trace.name ? [place] : []));
      Plotly.restyle(plot, { visible: shown }, places);
    });
    legend.append(button);
  }
  plot.after(legend);
}

function figureOf(plot) {
  return JSON.parse(document.getElementById(plot.dataset.figure).textContent);
}

function draw(plot) {
  const figure = figureOf(plot);
  const options = { responsive: true, displayModeBar: false };
  return Plotly.newPlot(plot, inked(figure.data), themed(figure, plot.clientWidth), options);
}

function recolour(plot) {
  const figure = figureOf(plot);
  const shown = plot.data.map((trace) => trace.visible);
  const data = inked(figure.data).map((trace, place) => Object.assign(trace, { visible: shown[place] }));
  return Plotly.react(plot, data, themed(figure, plot.clientWidth));
}

const plots = [...document.querySelectorAll(".plot")];
plots.forEach((plot) => addLegend(plot, figureOf(plot).data));
Promise.all(plots.map(draw)).then(() => document.body.setAttribute("data-drawn", plots.length));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(recolour));
