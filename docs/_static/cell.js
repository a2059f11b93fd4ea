// A cell that runs: the first Python block in <div class="runs-here"> becomes a text area with a
// button. The work is done by cell_worker.js in a thread of its own, so that the page stays
// responsive and Stop can end it. Without this script the block is code to read and to copy.

const WORKER = new URL("cell_worker.js", import.meta.url);
const FIRST = "Ctrl-Enter runs it too. Nothing is installed: Python is fetched once, some 30 MB.";

/** Make an element with these properties. */
function made(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

/** Return why Python cannot run in this browser; undefined if it can. */
function obstacle() {
  if (typeof WebAssembly !== "object") return "Python cannot run here: this browser has no WebAssembly.";
  if (typeof Worker !== "function") return "Python cannot run here: this browser has no workers.";
}

class Cell {
  constructor(place) {
    const block = place.querySelector("pre");
    const text = block.innerText.trimEnd();
    const rows = text.split("\n").length + 1;
    this.code = made("textarea", { value: text, rows, spellcheck: false, ariaLabel: "Python code" });
    this.code.onkeydown = (key) => {
      if (key.key === "Enter" && (key.ctrlKey || key.metaKey) && !this.busy) this.run();
    };
    this.button = made("button", { type: "button" });
    this.button.onclick = () => (this.busy ? this.end("Stopped.") : this.run());
    this.status = made("span", { role: "status" });
    this.output = made("div", { className: "cell-said" });
    const bar = made("p", {});
    bar.append(this.button, " ", this.status);
    block.closest("[class^=highlight-]").replaceWith(this.code, bar, this.output);
    this.rest(FIRST);
  }

  /** Send the code to the worker, which is started if there is none. */
  run() {
    this.output.replaceChildren();
    const problem = obstacle();
    if (problem) return this.rest(problem);
    this.busy = true;
    this.button.textContent = "Stop";
    this.status.textContent = "Starting Python ...";
    this.worker ??= this.started();
    this.worker.postMessage(this.code.value);
  }

  started() {
    const worker = new Worker(WORKER, { type: "module" });
    worker.onmessage = ({ data: [kind, value] }) => this.hear(kind, value);
    worker.onerror = (error) => this.end(`Python could not start: ${error.message ?? "no worker"}.`);
    return worker;
  }

  /** Show what the worker says. */
  hear(kind, value) {
    if (kind === "status") this.status.textContent = value;
    else if (kind === "failed") this.end(value);
    else if (kind === "done") this.rest("Done. Change the code and run it again.");
    else if (kind === "html") this.output.append(made("div", { innerHTML: value }));
    else if (kind === "picture") this.output.append(made("img", { src: value, alt: "The figure drawn" }));
    else this.write(kind, value);
  }

  /** Add text to what is printed, or to an error. */
  write(kind, text) {
    if (this.output.lastElementChild?.className !== kind) {
      this.output.append(made("pre", { className: kind }));
    }
    this.output.lastElementChild.textContent += text;
  }

  /** End the worker, with all that its Python holds. */
  end(why) {
    this.worker?.terminate();
    this.worker = undefined;
    this.rest(why);
  }

  /** Wait for the reader, and say why. */
  rest(why) {
    this.busy = false;
    this.button.textContent = "Run";
    this.status.textContent = why;
  }
}

for (const place of document.querySelectorAll(".runs-here")) new Cell(place);
