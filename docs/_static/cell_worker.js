// The thread that runs a cell's Python: it gets code, and posts [kind, value] to the page. Python
// (Pyodide) and its packages come from the course in the folder browser/ of this site, and from
// nowhere else.

const PYODIDE = new URL("../browser/static/pyodide/", import.meta.url);
const PATIENCE = 12; // seconds without a byte after which a download is given up
const MOST = 100_000; // characters that one run may print: a loop that prints would choke the page
const OFTEN = 100; // milliseconds between two posts of what is printed
const HELPERS = `
import base64, io, os, sys, warnings
from pyodide.code import eval_code_async

os.environ["MPLBACKEND"] = "agg"  # there are no windows: figures are drawn into memory
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")

async def run(code):
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")  # what a run left that ended in an error
    try:
        value = await eval_code_async(code, {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    html = getattr(value, "_repr_html_", None)
    if html:
        return "html", html()
    return "text", "" if value is None else f"{value!r}\\n"

def pictures():
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot else ():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, dpi=110, bbox_inches="tight")
        yield "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    if pyplot:
        pyplot.close("all")
`;

let quiet = 0; // seconds since the last byte arrived
let bytes = 0; // that have arrived
let python; // once it has started

function post(kind, value) {
  self.postMessage([kind, value]);
}

const fetched = self.fetch.bind(self);
/** Fetch, and count the bytes as they arrive. */
self.fetch = async (...request) => {
  const answer = await fetched(...request);
  if (!answer.ok || !answer.body) return answer;
  const transform = (part, stream) => {
    quiet = 0;
    bytes += part.length;
    post("fetched", (bytes / 1e6).toFixed(1));
    stream.enqueue(part);
  };
  return new Response(answer.body.pipeThrough(new TransformStream({ transform })), answer);
};

/** Wait for what is fetched; throw once no byte has arrived for PATIENCE seconds. */
async function patiently(promise) {
  let clock;
  const stalled = new Promise((_, reject) => {
    // Counted second by second: while this thread computes, none is counted.
    clock = setInterval(() => (quiet += 1) > PATIENCE && reject(Error("stalled")), 1000);
  });
  quiet = 0;
  try {
    return await Promise.race([promise, stalled]);
  } finally {
    clearInterval(clock);
  }
}

const printed = { kept: "", posted: 0, length: 0 }; // by this run: not posted yet; when; characters

/** Post what was printed since the last post. */
function flush() {
  if (printed.kept) post("text", printed.kept);
  Object.assign(printed, { kept: "", posted: performance.now() });
}

/** Return a function that takes the bytes of a stream, for Pyodide. */
function writer() {
  const decoder = new TextDecoder();
  return (part) => {
    const before = printed.length;
    const text = decoder.decode(part, { stream: true });
    printed.length += text.length;
    printed.kept += text.slice(0, Math.max(0, MOST - before));
    if (performance.now() - printed.posted > OFTEN) flush();
    if (before <= MOST && printed.length > MOST) {
      flush();
      post("cut");
    }
    return part.length;
  };
}

/** Start Python, with what every cell may use. */
async function start() {
  const { loadPyodide } = await import(new URL("pyodide.mjs", PYODIDE));
  const found = await loadPyodide({ indexURL: PYODIDE.href });
  found.setStdout({ write: writer() });
  found.setStderr({ write: writer() });
  found.runPython(HELPERS, { filename: "cell_worker.js" });
  return found;
}

/** Fetch lora_np, matplotlib, the packages that the code imports, and all that these need. */
async function fetchPackages(code) {
  const problems = []; // they are not thrown
  const options = { messageCallback: () => {}, errorCallback: (text) => problems.push(text) };
  await python.loadPackage(["lora-np", "matplotlib"], options);
  await python.loadPackagesFromImports(code, options);
  if (problems.length) throw Error(problems.join(" ").trim());
}

/** Say why Python did not start, or ended. */
function fail({ message }) {
  if (message === "stalled") post("stalled");
  else if (/memory/i.test(message)) post("memory");
  else post("failed", message);
}

/** Run code, and post what it prints, its value or error, and its figures. */
async function run(code) {
  printed.length = 0;
  try {
    const shown = (await python.globals.get("run")(code)).toJs();
    flush();
    post(...shown);
    for (const picture of python.globals.get("pictures")()) post("picture", picture);
    post("done");
  } catch (error) {
    flush();
    if (error.type === undefined) throw error; // not Python's
    const own = error.message.indexOf('  File "<exec>"'); // above are lines of Pyodide
    post("error", own < 0 ? error.message : error.message.slice(own));
    post("erred");
  }
}

self.onmessage = async ({ data: code }) => {
  try {
    python ??= await patiently(start());
    await patiently(fetchPackages(code));
    post("running");
    await run(code);
  } catch (error) {
    fail(error);
  }
};
