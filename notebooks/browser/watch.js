// Say in one sentence, at the top of the page, what keeps its notebook from running.
// The page's kernel works out of sight and would only wait. So its files are fetched here too, into
// the cache that the kernel reads, and the kernel itself gets a minute to start after that.
"use strict";
(() => {
  const QUIET = 8_000; // milliseconds without a byte, after which a download counts as blocked
  const START = 60_000; // milliseconds that a kernel may take once all files are here
  const AGAIN = "Then load this page again.";

  function say(sentence) {
    const line = document.createElement("p");
    line.setAttribute("role", "alert");
    line.className = "lora-np-alert";
    line.style.cssText =
      "position: fixed; z-index: 100000; inset: 0 0 auto 0; margin: 0; padding: 0.75rem 1rem;" +
      "font: 1rem/1.4 system-ui, sans-serif; background: #7a1f00; color: white;";
    line.textContent = sentence;
    const show = () => document.querySelector(".lora-np-alert") ?? document.body.append(line);
    if (document.body) show();
    else addEventListener("DOMContentLoaded", show);
  }

  const blocked = (name) =>
    say(`${name} could not be downloaded. Look at the connection, or at what blocks it. ${AGAIN}`);

  async function fetchAll(files) {
    let last = performance.now();
    const waiting = new Set(files);
    const nameOf = (file) => file.split("/").pop();
    const watch = setInterval(() => {
      if (performance.now() - last < QUIET) return;
      clearInterval(watch);
      blocked(nameOf([...waiting][0]));
    }, 1000);
    async function fetchOne(file) {
      const answer = await fetch(file, { priority: "low" });
      if (!answer.ok) throw new Error(answer.status);
      for (const reader = answer.body.getReader(); ; last = performance.now())
        if ((await reader.read()).done) break;
      waiting.delete(file);
    }
    try {
      await Promise.all(files.map((file) => fetchOne(file).catch(() => Promise.reject(file))));
      document.querySelector(".lora-np-alert")?.remove(); // it was only slow
      return true;
    } catch (file) {
      blocked(nameOf(String(file)));
      return false;
    } finally {
      clearInterval(watch);
    }
  }

  function started() {
    const panel = window.jupyterapp?.shell?.currentWidget;
    return ["idle", "busy"].includes(panel?.sessionContext?.session?.kernel?.status);
  }

  async function main(files) {
    if (typeof WebAssembly !== "object")
      return say("This browser has no WebAssembly, which the notebooks need: use another browser.");
    if (!files.length || !(await fetchAll(files))) return;
    const since = performance.now();
    const watch = setInterval(() => {
      const late = performance.now() - since > START;
      if (!started() && !late) return;
      clearInterval(watch);
      if (!started())
        say(`Python has not started. It needs about 1 GB of memory: close other tabs. ${AGAIN}`);
    }, 1000);
  }

  main(window.LORA_NP_FILES ?? []);
})();
