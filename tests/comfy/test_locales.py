"""The locale files are in step with the nodes, and the Chinese one is whole."""

import json
import re

import comfyui
import pytest

import locales

# Names that stay as they are in Chinese.
SAME = {"VAE", "CFG", "Latent", "Sigmas"}


def read(language):
    return json.loads((comfyui.REPO / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_english_is_what_the_nodes_say(server):
    assert read("en") == locales.node_defs(server.object_info()), "run make locales, then bring locales/zh in step"


def test_help_pages_speak_of_what_the_nodes_have():
    found = 0
    for node, texts in read("en").items():
        slots = [slot["name"] for slot in ({**texts.get("inputs", {})} | texts.get("outputs", {})).values()]
        page = (comfyui.REPO / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
        for item in re.findall(r"^- (\*\*[^:]+):", page, re.MULTILINE):
            for name in re.findall(r"\*\*(.+?)\*\*", item):
                found += 1
                assert name in slots or name == "references", f"{node}: {name}"  # references: the input that grows
    assert found > 50


def test_chinese_has_every_text_that_english_has():
    assert {path for path, _ in leaves(read("zh"))} == {path for path, _ in leaves(read("en"))}


def test_chinese_is_chinese():
    for path, text in leaves(read("zh")):
        assert re.search("[\u4e00-\u9fff]", text) or text in SAME, f"{'.'.join(path)}: {text}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_trips_the_frontends_message_format(language):
    for path, text in leaves(read(language)):
        if path[-1] != "tooltip":  # those are shown as they are
            assert not re.search(r"[{}@|$]", re.sub(r"\{'.'\}", "", text)), f"{'.'.join(path)}: {text}"


def test_the_server_gives_both_to_the_frontend(server):
    served = server.get("/i18n")
    for language in ("en", "zh"):
        assert served[language]["nodeDefs"] == read(language)
