"""The python tool: runs a model's code and returns the result as text."""

from __future__ import annotations

import signal

from rmas_jax.tools.sandbox import PythonLimits, run_program
from rmas_jax.tools.snippets import code_of

OUT_OF_CPU = 128 + signal.SIGXCPU  # exit code


def run_python(
    code: str, limits: PythonLimits | None = None, *, unsafe_without_sandbox: bool = False
) -> str:
    """Runs code in the sandbox and returns its output, errors and ending as text.

    Standard output comes first; then `[stderr]` with its content; then one of `[exit_code] n`
    unless it is 0 (128 + signal after a signal), `[timeout] ...` at a limit on time, and
    `[memory] ...` at the limit on the memory of all processes; `[no output]` if there is nothing
    else. Some mathematical modules are already imported (`inside.PRELUDE`, sympy also as sp).

    Args:
      code: Python; may be indented as a whole, in Markdown fences, or a session with prompts
        (`snippets`).
      limits: resource limits.
      unsafe_without_sandbox: runs the code with the caller's rights to files, network and
        processes.

    Raises:
      SandboxError: no secure sandbox is available; nothing was run.
    """
    limits = limits or PythonLimits()
    ended = run_program(code_of(code), limits, sandboxed=not unsafe_without_sandbox)
    parts = [ended.stdout.rstrip()]
    if ended.stderr.strip():
        parts.append(f"[stderr]\n{ended.stderr.rstrip()}")
    if ended.out_of_memory:
        limit = f"{limits.total_bytes / (1 << 20):g} MiB"
        parts.append(f"[memory] ended: its processes together held more than {limit}")
    elif ended.exit_code is None:
        parts.append(f"[timeout] ended after {limits.wall_s:g} s")
    elif ended.exit_code == OUT_OF_CPU:
        parts.append(f"[timeout] ended after {limits.cpu_s} s of computing")
    elif ended.exit_code != 0:
        parts.append(f"[exit_code] {ended.exit_code}")
    return "\n".join(part for part in parts if part) or "[no output]"
