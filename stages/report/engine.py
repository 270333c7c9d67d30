"""Papermill runs a notebook's cells in this process: a kernel of its own takes seconds to start, and loads every library anew."""

from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from traitlets.config import Config

NAME = "in-process"
QUIET = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})


class InProcess(Engine):
    """The cells in IPython, one after the other; the first that fails is the last."""

    @classmethod
    def execute_managed_notebook(cls, manager: NotebookExecutionManager, kernel_name: str, **_: Any) -> None:
        shell = InteractiveShell.instance(config=QUIET)  # what captures outputs asks for the one instance
        try:
            cls.run(manager, shell)
        finally:
            shell.restore_sys_module_state()  # a module of the shell's stands for `__main__` until then
            InteractiveShell.clear_instance()

    @classmethod
    def run(cls, manager: NotebookExecutionManager, shell: InteractiveShell) -> None:
        """All cells, up to the first that fails."""
        for index, cell in enumerate(manager.nb.cells):
            manager.cell_start(cell, index)
            error = None
            if cell.cell_type == "code":
                cell.outputs, error = outputs(shell, cell.source)
            if error is not None:
                manager.cell_exception(cell, index, exception=error)
                return
            manager.cell_complete(cell, index)


def outputs(shell: InteractiveShell, source: str) -> tuple[list[nbformat.NotebookNode], BaseException | None]:
    """What a cell prints and shows, as a notebook keeps it, and the error that it ends in."""
    with shell.display_trap, capture_output() as captured:  # within the trap, or the shell shows results itself
        done = shell.run_cell(source)
    found = [nbformat.v4.new_output("stream", name="stdout", text=captured.stdout)] if captured.stdout else []
    found += [nbformat.v4.new_output("display_data", data=one.data, metadata=one.metadata or {}) for one in captured.outputs]
    error = done.error_before_exec or done.error_in_exec
    if error is None:
        return found, None
    lines = shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
    return [nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error), traceback=lines)], error


papermill_engines.register(NAME, InProcess)
