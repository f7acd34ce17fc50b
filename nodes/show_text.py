"""Show a text on the node."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .schema import MEDIA, Node, schema


class ShowText(Node):
    """Shows and hands on a STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CoDiShowText",
            display_name="CoDi Show Text",
            category=MEDIA,
            description="Shows a text on the node and hands it on.",
            search_aliases=["display text", "print", "preview text"],
            is_output_node=True,
            inputs=[io.String.Input("text", force_input=True, tooltip="Any text.")],
            outputs=[io.String.Output(display_name="text", tooltip="The same text.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(text, ui=ui.PreviewText(text))
