"""Notebooks of the course, opened in a browser and run."""

from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALL = [path.name for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))]
CHAPTERS = [name for name in ALL if not name.startswith("13_")]  # it needs the package tokenizers
MORE = ["write_here.ipynb", "zh/04_lora.ipynb"]
MOST_SECONDS = 900  # until a notebook has run, on a busy machine; 15 takes 240 on an idle one

PANEL = "window.jupyterapp?.shell?.currentWidget"
SHOWN = f"() => {PANEL}?.content?.model?.cells?.length > 0"
READY = f"() => ['idle', 'busy'].includes({PANEL}?.sessionContext?.session?.kernel?.status)"
RUN = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
OVER = f"""() => {{
  const code = {PANEL}.content.widgets.filter((cell) => cell.model.type === 'code');
  const outputs = (cell) => cell.model.outputs.toJSON();
  const errors = code.flatMap(outputs).filter((out) => out.output_type === 'error');
  if (errors.length) return errors.map((out) => out.traceback.join('\\n'));
  const run = code.every((cell) => cell.model.executionCount);
  return run && {PANEL}.sessionContext.session.kernel.status === 'idle' ? 'whole' : false;
}}"""


@contextmanager
def open_notebook(browser, address: str, name: str, prepare=lambda tab: None):
    """Open a notebook in a fresh profile, wait until Python has started, and give the tab."""
    context = browser.new_context()
    tab = context.new_page()
    prepare(tab)
    tab.set_default_timeout(1000 * MOST_SECONDS)
    tab.goto(f"{address}notebooks/index.html?path={name}")
    tab.wait_for_function(SHOWN)
    tab.wait_for_function(READY)
    yield tab
    context.close()


def run_all(tab) -> str | list[str]:
    """Run all cells; return "whole", or the tracebacks of the cells that failed."""
    tab.evaluate(RUN)
    return tab.wait_for_function(OVER, polling=500).json_value()
