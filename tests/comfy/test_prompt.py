"""The prompt helper and what it is connected to."""

import edit_graph
import pytest
import torch
from edit_graph import node

from kiwi_core.prompts import guided_prompt


@pytest.fixture(scope="module")
def graph(server, tmp_path_factory):
    return edit_graph.EditGraph(server, tmp_path_factory.mktemp("graph"))


def helped(prompt, **inputs):
    prompt["help"] = node("KiwiEditPromptHelp", **inputs)
    prompt["encoded"]["inputs"]["prompt"] = ["help", 0]
    return prompt


def test_the_prompt_goes_into_the_instruction(graph):
    found = graph.latents(helped(graph.prompt(), task="style", instruction="Make it snow", keep="the dog"))
    written = graph.prompt()
    written["encoded"]["inputs"]["prompt"] = guided_prompt("style", "Make it snow", "the dog")
    assert torch.equal(found, graph.latents(written))


def test_an_empty_instruction_is_refused_before_the_run(graph):
    with pytest.raises(RuntimeError, match="instruction is empty"):
        graph.server.queue(helped(graph.prompt(), task="style", instruction=" ") | end(graph))


def end(graph):
    return {"saved": node("SaveLatent", samples=["sampled", 0], filename_prefix="prompt")}
