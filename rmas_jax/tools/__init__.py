"""What an agent that calls tools may call: python in a sandbox."""

from rmas_jax.tools.protocol import CLOSING_TAGS, Call, limit_text, next_call, result_text
from rmas_jax.tools.python import run_python
from rmas_jax.tools.sandbox import PythonLimits, SandboxError, check_sandbox

__all__ = [
    "CLOSING_TAGS",
    "Call",
    "PythonLimits",
    "SandboxError",
    "check_sandbox",
    "limit_text",
    "next_call",
    "result_text",
    "run_python",
]
