"""Object storage on the disk, for `fake://BUCKET/...`: no appends, no renames, whole objects."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import fsspec

ROOT = "FAKE_STORAGE"  # environment variable: the folder that holds the buckets
READY: list[str] = []  # names of uploads, in order, in this process


class FakeStorage(fsspec.AbstractFileSystem):
    """Objects as files below the folder that the environment names."""

    protocol = "fake"
    cachable = False

    def _file(self, path: str) -> Path:
        return Path(os.environ[ROOT]) / self._strip_protocol(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder, path = self._file(path), self._strip_protocol(path)
        if folder.is_file():
            found = [self.info(path)]
        elif folder.is_dir():
            found = [self.info(f"{path}/{entry.name}") for entry in folder.iterdir()]
        else:
            raise FileNotFoundError(path)
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file, path = self._file(path), self._strip_protocol(path)
        if not file.exists():
            raise FileNotFoundError(path)
        stat = file.stat()
        kind = "directory" if file.is_dir() else "file"
        etag = f"{stat.st_ino} {stat.st_mtime_ns}"
        return {"name": path, "type": kind, "size": stat.st_size, "etag": etag}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        file = self._file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_name(f"{file.name}.{os.getpid()}")
        half.write_bytes(value)
        try:
            if mode == "create":
                os.link(half, file)  # atomic; raises FileExistsError
                half.unlink()
            else:
                os.replace(half, file)
        finally:
            half.unlink(missing_ok=True)
        READY.append(self._strip_protocol(path))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cat_file(self, path: str, **_: Any) -> bytes:
        return self._file(path).read_bytes()

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm_file(self, path: str) -> None:
        self._file(path).unlink()

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb", mode  # nothing opens an object for writing
        return io.BytesIO(self.cat_file(path))


fsspec.register_implementation("fake", FakeStorage, clobber=True)
