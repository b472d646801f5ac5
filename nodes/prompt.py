"""Help with wording an instruction."""

from comfy_api.latest import io

from ..kiwi_core.prompts import TASKS, guided_prompt


class KiwiEditPromptHelp(io.ComfyNode):
    """An instruction with a sentence of guidance for its kind of edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KiwiEditPromptHelp",
            display_name="Prompt Help (Kiwi-Edit)",
            category="model/conditioning/kiwi-edit",
            description="Adds a sentence to an instruction that says what an edit of this kind should leave alone. "
            "Connect it to the prompt of Encode Instruction.",
            search_aliases=["kiwi prompt", "prompt enhancer", "instruction template"],
            inputs=[
                io.Combo.Input("task", options=list(TASKS), default="change", tooltip="none passes on what you wrote."),
                io.String.Input(
                    "instruction", multiline=True, dynamic_prompts=True,
                    tooltip="What to change, in a sentence: Replace the dog with a red panda.",
                ),
                io.String.Input(
                    "keep", default="", optional=True,
                    tooltip="What must not change, in a few words: her face and the dress.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, instruction=None):
        if instruction is not None and not instruction.strip():
            return "The instruction is empty; say in a sentence what to change."
        return True

    @classmethod
    def execute(cls, task, instruction, keep="") -> io.NodeOutput:
        return io.NodeOutput(guided_prompt(task, instruction, keep))


NODES = [KiwiEditPromptHelp]
