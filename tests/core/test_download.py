"""``kiwi-edit download`` against a stand-in for the hub on this machine."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from kiwi_core.checkpoints.download import INDEX, MODELS, STATE, download

NAME = "somebody/tiny-model"
COMMIT = "c0ffee" + "0" * 34
SECRET = "hf_thisisnotatoken"  # noqa: S105
LARGE = "transformer/diffusion_pytorch_model.safetensors"
FILES = {
    INDEX: b'{"_class_name": "KiwiEditPipeline"}',
    LARGE: bytes(range(256)) * 1000,
    "transformer/config.json": b'{"num_layers": 2}',
    "vae/diffusion_pytorch_model.safetensors": bytes(range(250)) * 20,
    "processor/merges.txt": b"a b\n",
    "processor/chat_template.jinja": b"{{ messages }}",
}
UNWANTED = {"pipeline.py": b"import os", "vae/model.bin": b"\x80\x04.", "README.md": b"# Tiny", ".gitattributes": b""}


class Hub(http.server.ThreadingHTTPServer):
    """The two endpoints that a download uses; ``sent`` counts the bytes of each file, ``requests`` all paths."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = FILES | UNWANTED
        self.large = {LARGE, "vae/diffusion_pytorch_model.safetensors", "vae/model.bin"}
        self.listing = None  # in place of that of the files
        self.answer = None  # (status, headers) in place of all answers
        self.damage = {}  # file name: how many more times it is sent with a wrong byte
        self.cut = {}  # file name: how many more times it is sent only half
        self.stall = threading.Event()  # while it is clear, LARGE stops after two thirds
        self.stall.set()
        self.ignores_range = False
        self.forget()

    def forget(self):
        self.requests, self.sent, self.tokens = [], {}, set()

    def handle_error(self, request, client_address):
        pass  # a client that is killed breaks its connection

    def siblings(self):
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            large = {"lfs": lfs} if name in self.large else {}
            yield {"rfilename": name, "size": len(content), "blobId": blob, **large}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        hub.tokens.add(self.headers["Authorization"])
        resolve = f"/{NAME}/resolve/{COMMIT}/"
        if hub.answer:
            self.reply(*hub.answer)
        elif path in (f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/v2"):
            siblings = list(hub.siblings()) if hub.listing is None else hub.listing
            self.reply(200, {}, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/{NAME}/revision/"):
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
            self.send_file(path.removeprefix(resolve))
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"})

    def reply(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_file(self, name):
        hub, content, start, headers = self.server, self.server.files[name], 0, {}
        if self.headers["Range"] and not hub.ignores_range:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        part = bytearray(content[start:])
        if hub.damage.get(name):
            hub.damage[name] -= 1
            part[len(part) // 2] ^= 1
        if hub.cut.get(name):
            hub.cut[name] -= 1
            part = part[: len(part) // 2]
        if name == LARGE and not hub.stall.is_set():
            self.reply(200, {"Content-Length": str(len(part))}, part[: len(part) * 2 // 3])
            hub.stall.wait(60)
            self.close_connection = True
            return
        hub.sent[name] = hub.sent.get(name, 0) + len(part)
        self.reply(206 if headers else 200, headers, part)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.stall.set()
        hub.shutdown()


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a model's folder but for the download's own."""
    paths = [path for path in folder.rglob("*") if path.is_file() and STATE not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def partial_of(content: bytes, models: Path) -> Path:
    """Where a large file with this content grows."""
    folder = models / "diffusers" / "tiny-model" / STATE
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"sha256-{hashlib.sha256(content).hexdigest()}.partial"


def test_weights_and_settings_arrive_and_no_code(hub, models):
    folder = download(NAME, models, endpoint=hub.url)
    assert folder == models / "diffusers" / "tiny-model"
    assert contents(folder) == FILES
    assert hub.tokens == {None}
    manifest = json.loads((folder / STATE / "manifest.json").read_text())
    assert manifest["commit"] == COMMIT and manifest["files"].keys() == FILES.keys()
    assert manifest["files"][LARGE]["digest"] == "sha256:" + hashlib.sha256(FILES[LARGE]).hexdigest()
    assert [path.name for path in (folder / STATE).iterdir()] == ["manifest.json"]
    assert hub.requests[-1].endswith(INDEX)  # so that a half folder is never taken for a model


def test_a_complete_folder_needs_no_network(hub, models):
    folder = download(NAME, models, endpoint=hub.url)
    hub.forget()
    assert download(NAME, models, endpoint=hub.url) == folder
    assert download(NAME, models, endpoint=hub.url, verify=True) == folder
    assert hub.requests == []


def test_a_short_name_is_one_of_the_published_models(hub, models):
    for short, name in MODELS.items():
        hub.forget()
        with pytest.raises(FileNotFoundError, match=f"{name} is not at {hub.url}.*check the name"):
            download(short, models, endpoint=hub.url)
        assert hub.requests == [f"/api/models/{name}/revision/main"]


def test_a_second_download_waits_its_turn(hub, models):
    with ThreadPoolExecutor(1) as pool:
        hub.stall.clear()
        first = pool.submit(download, NAME, models, endpoint=hub.url)
        deadline = time.monotonic() + 60
        while not any(path.endswith(LARGE) for path in hub.requests):
            assert not first.done() and time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(OSError, match=r"Another download into .* is running"):
            download(NAME, models, endpoint=hub.url)
        hub.stall.set()
        with contextlib.suppress(OSError):  # older hub libraries do not go on within one call
            first.result(60)
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES


def test_only_chosen_files_are_fetched(hub, models):
    folder = download(NAME, models, files=["transformer/*", "*.py"], endpoint=hub.url)
    assert contents(folder).keys() == {name for name in FILES if name.startswith("transformer/")}
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES
    assert hub.sent[LARGE] == len(FILES[LARGE])
    with pytest.raises(FileNotFoundError, match="no weights or settings to fetch"):
        download(NAME, models, files=["*.py"], endpoint=hub.url)


def test_a_killed_download_goes_on_where_it_stopped(hub, models):
    content = bytes(range(256)) * (24 << 12)  # 24 MB; the hub's library reads 10 MB at a time
    hub.files = hub.files | {LARGE: content}
    hub.stall.clear()
    call = f"from kiwi_core.checkpoints.download import download; download({NAME!r}, {str(models)!r})"
    process = subprocess.Popen([sys.executable, "-c", call], env=os.environ | {"HF_ENDPOINT": hub.url})
    folder, deadline = models / "diffusers" / "tiny-model", time.monotonic() + 120
    partial = partial_of(content, models)
    try:
        while not partial.exists() or partial.stat().st_size < 10 << 20:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    arrived = partial.stat().st_size
    assert INDEX not in contents(folder) and LARGE not in contents(folder)

    hub.stall.set()
    hub.forget()
    download(NAME, models, endpoint=hub.url)
    assert contents(folder) == FILES | {LARGE: content}
    assert hub.sent[LARGE] == len(content) - arrived


def test_a_server_that_cannot_go_on_sends_all_again(hub, models):
    partial = partial_of(FILES[LARGE], models)
    partial.write_bytes(FILES[LARGE][:1000])
    hub.ignores_range = True
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES


@pytest.mark.parametrize("name", [LARGE, "transformer/config.json"])
def test_a_file_damaged_on_the_way_is_fetched_again_once(hub, models, name):
    hub.damage[name] = 1
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES
    assert hub.sent[name] == 2 * len(FILES[name])


@pytest.mark.parametrize("name", [LARGE, "transformer/config.json"])
def test_a_file_damaged_twice_is_an_error_and_leaves_no_model(hub, models, name):
    hub.damage[name] = 2
    with pytest.raises(OSError, match=f"{name} arrives damaged from {hub.url}; try again later"):
        download(NAME, models, endpoint=hub.url)
    assert not {name, INDEX} & contents(models / "diffusers" / "tiny-model").keys()
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES


def test_a_partial_file_of_wrong_bytes_does_not_survive(hub, models):
    partial = partial_of(FILES[LARGE], models)
    partial.write_bytes(b"\0" * 1000)
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES
    assert hub.sent[LARGE] == 2 * len(FILES[LARGE]) - 1000


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_a_missing_or_short_file_is_replaced(hub, models, harm):
    folder = download(NAME, models, endpoint=hub.url)
    harm(folder / LARGE)
    hub.forget()
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES
    assert hub.sent == {LARGE: len(FILES[LARGE])}


def test_verify_finds_a_changed_byte(hub, models):
    folder = download(NAME, models, endpoint=hub.url)
    (folder / LARGE).write_bytes(FILES[LARGE][:-1] + bytes([FILES[LARGE][-1] ^ 1]))
    hub.forget()
    assert contents(download(NAME, models, endpoint=hub.url)) != FILES
    assert contents(download(NAME, models, endpoint=hub.url, verify=True)) == FILES
    assert hub.sent == {LARGE: len(FILES[LARGE])}


def test_files_that_another_tool_has_fetched_are_kept(hub, models):
    folder = models / "diffusers" / "tiny-model"
    for name in (LARGE, "transformer/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES[name])
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES
    assert LARGE not in hub.sent and "transformer/config.json" not in hub.sent


def test_an_update_that_fails_leaves_no_mixed_model(hub, models):
    folder = download(NAME, models, endpoint=hub.url)
    hub.files = hub.files | {LARGE: b"new weights", "transformer/config.json": b"{}"}
    (folder / "processor/merges.txt").unlink()  # else nothing is looked up
    hub.damage["transformer/config.json"] = 2
    with pytest.raises(OSError, match="arrives damaged"):
        download(NAME, models, endpoint=hub.url)
    assert INDEX not in contents(folder)
    hub.forget()
    assert contents(download(NAME, models, endpoint=hub.url)) == {name: hub.files[name] for name in FILES}
    assert INDEX not in hub.sent  # it was kept aside


def test_an_update_removes_what_the_model_has_no_more(hub, models):
    """A shard of another number of shards beside the new ones would spoil the model."""
    folder = download(NAME, models, endpoint=hub.url)
    (folder / "notes.txt").write_text("mine")
    (folder / "processor/merges.txt").unlink()
    hub.files = {name: content for name, content in hub.files.items() if not name.startswith("vae/")}
    found = contents(download(NAME, models, endpoint=hub.url))
    assert found.keys() == {name for name in FILES if not name.startswith("vae/")} | {"notes.txt"}


def test_another_revision_fetches_only_what_differs(hub, models):
    folder = download(NAME, models, endpoint=hub.url)
    hub.files = hub.files | {"transformer/config.json": b"{}"}
    hub.forget()
    download(NAME, models, revision="v2", endpoint=hub.url)
    assert hub.sent == {"transformer/config.json": 2}
    assert contents(folder) == FILES | {"transformer/config.json": b"{}"}


def test_a_small_disk_is_refused_before_anything_is_fetched(hub, models, monkeypatch):
    usage = shutil.disk_usage(models)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(OSError, match=r"needs 0\.26 MB more and the disk has 0\.20 MB free; make room"):
        download(NAME, models, endpoint=hub.url)
    assert hub.sent == {} and not (models / "diffusers").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", [LARGE, "vae/diffusion_pytorch_model.safetensors"])
def test_a_disk_that_fills_up_is_named(hub, models, name):
    partial = partial_of(FILES[name], models)
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="The disk is full; make room and start again"):
        download(NAME, models, endpoint=hub.url)


ANSWERS = {
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}, FileNotFoundError, "not at .*check the name"),
    "hidden": (401, {"X-Error-Code": "RepoNotFound"}, FileNotFoundError, "not for everyone .*HF_TOKEN"),
    "gated": (403, {"X-Error-Code": "GatedRepo"}, PermissionError, "needs a permission .*ask for it on its page"),
    "forbidden": (403, {}, PermissionError, "needs a permission .*HF_TOKEN"),
    "bad token": (
        401, {"X-Error-Message": "Invalid credentials in Authorization header"}, PermissionError,
        "does not accept the token in HF_TOKEN",
    ),
    "broken": (500, {}, OSError, "has a problem .*500.*start again later"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "error", "match"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_refusal_becomes_one_sentence_without_the_token(hub, models, monkeypatch, status, headers, error, match):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.answer = (status, headers)
    with pytest.raises(error, match=match) as caught:
        download(NAME, models, endpoint=hub.url)
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in str(caught.value)
    assert not (models / "diffusers").exists()


def test_an_unknown_revision_is_named(hub, models):
    with pytest.raises(FileNotFoundError, match="has no revision v9; use main, a tag or a commit"):
        download(NAME, models, revision="v9", endpoint=hub.url)


def test_without_a_network_one_sentence_says_so(hub, models):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ConnectionError, match=f"{hub.url} cannot be reached .*check the connection"):
        download(NAME, models, endpoint=hub.url)


def test_a_connection_that_is_cut_is_taken_up_again(hub, models):
    hub.cut[LARGE] = 1
    assert contents(download(NAME, models, endpoint=hub.url)) == FILES


OUTSIDE = ("../a.json", "/etc/a.json", "vae/../../a.json", "vae//a.json", "C:\\a.json", f"{STATE}/a.json")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_listed_file_cannot_leave_the_folder(hub, models, name):
    hub.listing = [*hub.siblings(), {"rfilename": name, "size": 2, "blobId": "0" * 40}]
    with pytest.raises(ValueError, match="which is no path; do not use this model"):
        download(NAME, models, endpoint=hub.url)
    assert hub.sent == {} and not any(models.iterdir())


def test_a_file_that_could_not_be_checked_is_not_fetched(hub, models):
    hub.listing = [*hub.siblings(), {"rfilename": "vae/config.json", "size": 2, "blobId": None}]
    with pytest.raises(OSError, match=r"no size or hash for vae/config\.json"):
        download(NAME, models, endpoint=hub.url)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "somebody/..", "../diffusers", "https://hub/a/b", ""])
def test_what_is_no_name_is_refused(models, name):
    with pytest.raises(ValueError, match="is no model's name; use owner/name, or one of instruct-reference"):
        download(name, models)


def test_models_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder; name ComfyUI's models folder"):
        download(NAME, tmp_path / "modles")


def test_a_folder_of_another_model_is_not_overwritten(hub, models):
    download(NAME, models, endpoint=hub.url)
    with pytest.raises(ValueError, match=f"holds {NAME}; move it away to download else/tiny-model"):
        download("else/tiny-model", models, endpoint=hub.url)
