// What the page does. Run once, when the document is ready, with the models and the data of the page
// as arguments (see page.py); what changes afterwards is one call of `scbjaxExplorer`.

const about = JSON.parse(meta)
const frames = about.steps.length

// float16, as the dataset's numbers are kept here, to a number.
const half = (() => {
  const values = new Float32Array(65536)
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023
    if (exponent == 31) values[bits] = fraction ? NaN : sign * Infinity
    else if (exponent == 0) values[bits] = sign * fraction * 2 ** -24
    else values[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
  }
  return values
})()

// Bokeh hands arrays over as kinds of its own, of which parts can't be taken.
const plain = array =>
  new (Object.getPrototypeOf(Object.getPrototypeOf(array)).constructor)(array.buffer, array.byteOffset, array.length)
const parts = arrays.map(plain), curve_values = plain(curves)

const worded = value => {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "none" : value > 0 ? "infinite" : "−infinite"
  const size = Math.abs(value)
  const text = size == 0 ? "0" : size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)))
  return text.replace("-", "−")
}
const grouped = value => Number.isFinite(value) ? value.toLocaleString("en").replaceAll(",", " ") : "?"
const put = (id, text) => { document.getElementById(id).textContent = text }

// Widgets stand in shadow trees, which a query from outside does not see.
const within = (root, what) => {
  const found = root.querySelector(what)
  if (found) return found
  for (const node of root.querySelectorAll("*")) {
    const inner = node.shadowRoot && within(node.shadowRoot, what)
    if (inner) return inner
  }
  return null
}
const handle = within(document, ".noUi-handle")

// The place of the chosen trajectory among all that are kept: the last axis changes fastest.
const chosen = () => {
  let place = 0
  about.axes.forEach((axis, n) => { place = place * axis.points.length + Number(selects[n].value) })
  return place
}
const label = () =>
  about.axes.map((axis, n) => `${axis.name} ${axis.points[Number(selects[n].value)]}`).join(", ")

const cellsOf = own => own.rows * own.columns

// What does not change with the step: rows, the truth and where it is, the colour scale.
const choose = () => {
  const trajectory = chosen()
  about.matrices.forEach((own, n) => {
    const { truth, rows, scale } = data(n), { cells, marks, names, mapper } = models(n)
    const size = cellsOf(own), places = rows.subarray(trajectory * own.rows, (trajectory + 1) * own.rows)
    const labels = Array.from(places, place => own.row_names[place] ?? String(place))
    const right = Float32Array.from(
      truth.subarray(trajectory * size, (trajectory + 1) * size), bits => half[bits])
    cells.data.truth = right
    cells.data.row_name = Array.from({ length: size }, (_, cell) => labels[Math.floor(cell / own.columns)])
    names.data = { name: labels }
    const support = own.mark ? Array.from(right.keys()).filter(cell => right[cell] > 0) : []
    marks.data = { x: support.map(cell => cell % own.columns), y: support.map(cell => Math.floor(cell / own.columns)) }
    mapper.setv({ low: scale[2 * trajectory], high: scale[2 * trajectory + 1] })
  })
  about.curves.forEach((panel, n) => {
    const found = { step: Float64Array.from(about.record_steps) }
    for (const name of panel) found[name] = curveOf(trajectory, name)
    curve_sources[n].data = found
  })
  stages.data = { step: beginnings(trajectory) }
  show()
}

// The first records of all stages but the first.
const beginnings = trajectory => {
  if (!about.names.includes("stage")) return []
  const stage = curveOf(trajectory, "stage")
  return about.record_steps.filter((_, n) => n > 0 && stage[n] > stage[n - 1])
}

const curveOf = (trajectory, name) => {
  const count = about.record_steps.length
  const start = (trajectory * about.names.length + about.names.indexOf(name)) * count
  return curve_values.slice(start, start + count)
}

// What is at a step.
const show = () => {
  const trajectory = chosen(), frame = slider.value, step = about.steps[frame]
  about.matrices.forEach((own, n) => {
    const { learned } = data(n), { cells, title } = models(n), size = cellsOf(own)
    const start = (trajectory * frames + frame) * size
    cells.data.learned = Float32Array.from(learned.subarray(start, start + size), bits => half[bits])
    cells.change.emit()
    title.text = `${own.symbols[0]} at step ${step}`
  })
  for (const cursor of cursors) cursor.location = step
  slider.title = `Step ${step} of ${about.last_step}`
  handle?.setAttribute("aria-label", slider.title)
  tell(trajectory, frame, step)
}

const tell = (trajectory, frame, step) => {
  const place = about.record_steps.indexOf(step)
  const now = name => place < 0 ? NaN : curveOf(trajectory, name)[place]
  const told = about.told.map(([name, words]) => `${words} ${worded(now(name))}`)
  if (about.names.includes("samples")) told.unshift(`${grouped(now("samples"))} samples`)
  const stage = about.names.includes("stage") ? now("stage") : NaN
  if (stage > 0) told.unshift(`stage ${stage}`)
  put("state", [label(), `step ${step}`, ...told].filter(part => part).join(" · "))
  put("warning", warning(trajectory, step))
  put("elsewhere", about.matrices.map((own, n) => elsewhere(own, n, trajectory, frame)).filter(part => part).join(" "))
  document.title = [about.title, label(), `step ${step}`].filter(part => part).join(" · ")
}

const warning = (trajectory, step) => {
  if (records[trajectory] == 0) return "This trajectory has not been computed yet."
  const told = []
  if (diverged[trajectory] >= 0)
    told.push(`This trajectory diverged: at step ${diverged[trajectory]} its parameters were no longer finite.`)
  if (records[trajectory] < about.all_records) {
    const last = (records[trajectory] - 1) * about.last_step / (about.all_records - 1)
    told.push(`This trajectory is not complete: it has been computed up to step ${Math.round(last)}.`)
  }
  return told.join(" ")
}

const elsewhere = (own, n, trajectory, frame) => {
  if (own.rows >= own.all_rows) return ""
  const start = 2 * (trajectory * frames + frame), [largest, sum] = data(n).elsewhere.subarray(start, start + 2)
  return `In the ${own.all_rows - own.rows} rows of ${own.symbols[0]} that are not shown, the largest ` +
    `weight at this step is ${worded(largest)}; their weights sum up, in size, to ${worded(sum)} a column.`
}

const data = n => ({
  learned: parts[5 * n], truth: parts[5 * n + 1], rows: parts[5 * n + 2],
  scale: parts[5 * n + 3], elsewhere: parts[5 * n + 4],
})
const models = n => ({
  cells: pictures[5 * n], marks: pictures[5 * n + 1], names: pictures[5 * n + 2],
  mapper: pictures[5 * n + 3], title: pictures[5 * n + 4],
})

// Playing: from the first step again where it had come to the last; it stops there.
let timer = null
const stop = () => {
  clearInterval(timer)
  timer = null
  play.setv({ active: false, label: "▶ Play" })
}
const start = () => {
  if (timer !== null) return
  if (slider.value >= frames - 1) slider.value = 0
  play.setv({ active: true, label: "❚❚ Stop" })
  timer = setInterval(() => {
    if (slider.value >= frames - 1) stop()
    else slider.value += 1
  }, Math.min(500, Math.max(60, 8000 / frames)))
}
const go = frame => { slider.value = Math.min(frames - 1, Math.max(0, frame)) }

const near = step => {
  let best = 0
  about.steps.forEach((other, n) => { if (Math.abs(other - step) < Math.abs(about.steps[best] - step)) best = n })
  go(best)
}

// The keys work wherever the focus is, but for what has a use of its own for them.
document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return
  const target = event.composedPath()[0], tag = target.tagName
  const on_slider = target.classList?.contains("noUi-handle")
  const typing = ["SELECT", "INPUT", "TEXTAREA"].includes(tag)
  const moves = {
    ArrowLeft: () => go(slider.value - 1), ArrowRight: () => go(slider.value + 1),
    Home: () => go(0), End: () => go(frames - 1),
  }
  if (event.key == " " && !typing && !["BUTTON", "SUMMARY"].includes(tag)) {
    event.preventDefault()
    timer === null ? start() : stop()
  } else if (event.key in moves && !typing && !(on_slider && event.key.startsWith("Arrow"))) {
    event.preventDefault()
    moves[event.key]()
  }
})

window.scbjaxExplorer = { choose, show, near, toggle: active => active ? start() : stop() }
choose()
