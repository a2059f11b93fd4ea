// Stands for Pyodide where the page around it is tested: it does what a few texts ask for.
const DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";

export async function loadPyodide() {
  const bytes = new TextEncoder();
  let print;
  const did = [];
  const run = async (code) => {
    if (code === "loop") for (;;);
    if (code === "print") for (;;) print(bytes.encode("printed\n"));
    if (code === "raise") {
      const lines = ['  File "cell_worker.js", line 9', '  File "<exec>", line 1', "ZeroDivisionError"];
      throw Object.assign(Error(lines.join("\n")), { type: "ZeroDivisionError" });
    }
    if (code === "fatal") throw RangeError("WebAssembly.Memory(): could not allocate memory");
    print(bytes.encode("printed")); // without the end of a line
    return { toJs: () => (code === "html" ? ["html", "<b>bold</b>"] : ["text", `\n${did}\n`]) };
  };
  return {
    setStdout: ({ write }) => (print = write),
    setStderr: () => {},
    runPython: () => {},
    loadPackage: async (names) => did.push(...names),
    loadPackagesFromImports: async (code, { errorCallback }) => {
      if (code === "absent") ["While loading absent:", "404"].forEach((text) => errorCallback(text));
    },
    globals: { get: (name) => (name === "run" ? run : () => [DOT]) },
  };
}
