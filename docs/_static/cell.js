// A cell that runs: the first Python block in <div class="runs-here"> becomes a text area with a
// button. The work is done by cell_worker.js in a thread of its own, so that the page stays
// responsive and Stop can end it. Without this script the block is code to read and to copy.

const WORKER = new URL("cell_worker.js", import.meta.url);
const AGAIN = "Press Run to try again.";
const ENGLISH = {
  run: "Run",
  stop: "Stop",
  first: "Ctrl-Enter runs it too. Nothing is installed: Python is fetched once, some 30 MB.",
  starting: "Starting Python ...",
  fetched: (megabytes) => `Starting Python: ${megabytes} MB fetched`,
  running: "Running ...",
  done: "Done. Change the code and run it again.",
  erred: "The code ended in an error. Change it and run it again.",
  cut: "[More was printed, which is not shown.]",
  stopped: "Stopped.",
  unable: (what) => `Python cannot run here: this browser has no ${what}.`,
  memory: `There is not enough memory. ${AGAIN}`,
  stalled: `The download of Python has come to a halt. ${AGAIN}`,
  failed: (why) => `Python could not be started: ${why}. ${AGAIN}`,
};
const CHINESE = {
  run: "运行",
  stop: "停止",
  first: "也可以按 Ctrl-Enter 运行。什么都不用安装：Python 只下载一次，约 30 MB。",
  starting: "正在启动 Python……",
  fetched: (megabytes) => `正在启动 Python：已下载 ${megabytes} MB`,
  running: "正在运行……",
  done: "运行完毕。可以修改代码，再运行一次。",
  erred: "代码出错了，见下方。可以修改代码，再运行一次。",
  cut: "[打印的内容太多，其余的不显示。]",
  stopped: "已停止。",
  unable: (what) => `这里不能运行 Python：这个浏览器没有 ${what}。`,
  memory: "内存不够。请再按一次“运行”。",
  stalled: "Python 的下载停住了。请再按一次“运行”。",
  failed: (why) => `Python 没能启动：${why}。请再按一次“运行”。`,
};
const SAY = document.documentElement.lang.startsWith("zh") ? CHINESE : ENGLISH;

/** Make an element with these properties. */
function made(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
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
    this.button.onclick = () => (this.busy ? this.end(SAY.stopped) : this.run());
    this.status = made("span", { role: "status" });
    this.output = made("div", { className: "cell-said" });
    const bar = made("p", {});
    bar.append(this.button, " ", this.status);
    block.closest("[class^=highlight-]").replaceWith(this.code, bar, this.output);
    this.rest(SAY.first);
  }

  /** Send the code to the worker, which is started if there is none. */
  run() {
    this.output.replaceChildren();
    for (const needed of ["WebAssembly", "Worker"]) {
      if (!(needed in window)) return this.rest(SAY.unable(needed));
    }
    this.busy = true;
    this.button.textContent = SAY.stop;
    this.status.textContent = SAY.starting;
    this.worker ??= this.started();
    this.worker.postMessage(this.code.value);
  }

  started() {
    const worker = new Worker(WORKER, { type: "module" });
    worker.onmessage = ({ data: [kind, value] }) => this.hear(kind, value);
    worker.onerror = (error) => this.end(SAY.failed(error.message ?? "no worker"));
    return worker;
  }

  /** Show what the worker says. */
  hear(kind, value) {
    if (kind === "fetched") this.status.textContent = SAY.fetched(value);
    else if (kind === "running") this.status.textContent = SAY.running;
    else if (kind === "done" || kind === "erred") this.rest(SAY[kind]);
    else if (kind === "cut") this.write("text", `\n${SAY.cut}\n`);
    else if (kind === "memory" || kind === "stalled") this.end(SAY[kind]);
    else if (kind === "failed") this.end(SAY.failed(value));
    else if (kind === "html") this.output.append(made("div", { innerHTML: value }));
    else if (kind === "picture") this.output.append(made("img", { src: value, alt: "The figure drawn" }));
    else this.write(kind, value);
  }

  /** Add text to what is printed, or to an error. */
  write(kind, text) {
    if (!text) return;
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
    this.button.textContent = SAY.run;
    this.status.textContent = why;
  }
}

for (const place of document.querySelectorAll(".runs-here")) new Cell(place);
