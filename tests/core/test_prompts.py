"""Instructions with guidance."""

import pytest

from kiwi_core.prompts import GUIDANCE, TASKS, guided_prompt


def test_a_task_adds_one_or_two_sentences():
    for task in TASKS:
        prompt = guided_prompt(task, "Make it snow.")
        assert prompt.startswith("Make it snow.")
        assert GUIDANCE[task] in prompt
        assert prompt.count(".") <= 2
        assert len(prompt.split()) <= 40
    assert len({guided_prompt(task, "Go.") for task in TASKS}) == len(TASKS)


def test_no_task_passes_the_instruction_on():
    assert guided_prompt("none", "  Make it snow ") == "Make it snow"


@pytest.mark.parametrize("instruction", ["Make it snow", "Make it snow."])
def test_sentences_end_with_one_stop(instruction):
    assert guided_prompt("none", instruction, "the two dogs.") == "Make it snow. Keep the two dogs unchanged."


@pytest.mark.parametrize("instruction", ["让天空变红。", "Really?", "Run!"])
def test_other_ends_are_left(instruction):
    assert guided_prompt("style", instruction) == f"{instruction} {GUIDANCE['style']}"


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="no task 'paint'; use one of none, style"):
        guided_prompt("paint", "Go.")
    with pytest.raises(ValueError, match="instruction is empty; say"):
        guided_prompt("style", " \n")
