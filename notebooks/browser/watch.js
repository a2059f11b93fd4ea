// Say in one sentence, at the top of the page, what keeps its notebook from running.
// The page's kernel works out of sight: if it cannot fetch a file, it waits without a word. So the
// page asks for the same files, for their heads alone, and looks at whether the kernel starts.
"use strict";
(() => {
  const QUIET = 8_000; // milliseconds without an answer, after which a file counts as blocked
  const START = 60_000; // milliseconds until the page wonders why the kernel has not started

  function say(sentence) {
    unsay();
    const line = document.createElement("p");
    line.setAttribute("role", "alert");
    line.className = "lora-np-alert";
    line.style.cssText =
      "position: fixed; z-index: 100000; inset: 0 0 auto 0; margin: 0; padding: 0.75rem 1rem;" +
      "font: 1rem/1.4 system-ui, sans-serif; background: #7a1f00; color: white;";
    line.textContent = sentence;
    if (document.body) document.body.append(line);
    else addEventListener("DOMContentLoaded", () => document.body.append(line));
  }

  const unsay = () => document.querySelector(".lora-np-alert")?.remove();

  // While the page is still white, and until the first cell can run.
  const line = document.createElement("p");
  line.setAttribute("role", "status");
  line.style.cssText =
    "position: fixed; z-index: 99999; right: 1rem; bottom: 1rem; margin: 0; padding: 0.5rem 1rem;" +
    "font: 0.875rem/1.4 system-ui, sans-serif; background: #222; color: white; border-radius: 4px;";

  function tell(sentence) {
    if (line.textContent !== sentence) line.textContent = sentence;
    if (!line.isConnected) document.body?.append(line);
  }

  async function answers(file) {
    try {
      const signal = AbortSignal.timeout(QUIET);
      return (await fetch(file, { method: "HEAD", priority: "low", signal })).ok;
    } catch {
      return false;
    }
  }

  const panel = () => window.jupyterapp?.shell?.currentWidget;

  function started() {
    return ["idle", "busy"].includes(panel()?.sessionContext?.session?.kernel?.status);
  }

  function tellUntilStarted() {
    if (started()) return line.remove();
    if (document.querySelector(".lora-np-alert")) line.remove();
    else tell(panel() ? "Python is starting: this takes a while." : "The notebook is loading ...");
    setTimeout(tellUntilStarted, 250);
  }

  async function main(files) {
    if (typeof WebAssembly !== "object")
      return say("This browser has no WebAssembly, which the notebooks need: use another browser.");
    if (!files.length) return; // not a page of notebooks
    tellUntilStarted();
    const found = await Promise.all(files.map(answers));
    for (const lost of files.filter((_, i) => !found[i])) {
      say(
        `${lost.split("/").pop()} could not be downloaded. Look at the connection, or at what ` +
          "blocks it. Then load this page again."
      );
      while (!(await answers(lost))) await new Promise((again) => setTimeout(again, QUIET));
      unsay(); // it was only late
    }
    const since = performance.now();
    let wondered = false;
    const watch = setInterval(() => {
      if (started()) {
        clearInterval(watch);
        unsay();
      } else if (!wondered && performance.now() - since > START) {
        wondered = true;
        say(
          "Python has not started yet. The connection may be slow or have been cut, or the memory " +
            "may be too small: it needs about 1 GB. Close other tabs, or load this page again."
        );
      }
    }, 1000);
  }

  main(window.LORA_NP_FILES ?? []);
})();
