"""Compiles one program for TPUs with dumps: a process that is ended once these are whole.

    python -m rmas_jax.planning.without_code_worker FOLDER

FOLDER has the program and the request, and gets the dumps, and the compiler's error. The process
ends when its standard input is closed, as its parent's death does, and then removes FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compiler  # neither the compiler of a program's text nor its
from jax._src.interpreters import mlir  # options have a public name
from jax._src.lib import xla_client
from jax._src.lib.mlir import ir

from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.slices import slice_devices
from rmas_jax.planning.without_code import DUMPS, ERROR, PROGRAM, REQUEST


def compile_program() -> None:
    """Compiles the program of the folder in the arguments."""
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=[folder], daemon=True).start()
    request = json.loads((folder / REQUEST).read_text())
    by_number = {device.id: device for device in slice_devices(parse_slice(request["slice"]))}
    devices = tuple(by_number[number] for number in request["devices"])
    with mlir.make_ir_context():
        module = ir.Module.parse((folder / PROGRAM).read_bytes())
        main: Any = ir.SymbolTable(module.operation)["main"]
        wanted: dict[str, Any] = {
            "xla_dump_to": str(folder / DUMPS),
            "xla_syntax_sugar_async_ops": True,  # as in the text of an executable
        }
        options = compiler.get_compile_options(
            num_replicas=1,
            num_partitions=len(devices),
            device_assignment=np.array(devices, object)[None],
            env_options_overrides=wanted,
            backend=devices[0].client,
        )
        build = options.executable_build_options
        build.allow_spmd_sharding_propagation_to_parameters = [False] * len(main.arguments)
        build.allow_spmd_sharding_propagation_to_output = request["open_outputs"]
        try:
            compiler.backend_compile_and_load(
                devices[0].client, module, xla_client.DeviceList(devices), options, []
            )
        except jax.errors.JaxRuntimeError as error:
            (folder / ERROR).write_text(str(error))


def _end_with_parent(folder: Path) -> None:
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    compile_program()
