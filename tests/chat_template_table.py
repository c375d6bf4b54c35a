# SPDX-License-Identifier: Apache-2.0
"""What is trained under every chat template that TRL ships, spelled out.

`turn` is an assistant turn of `messages` (`earlier`: one that is not the last, where that differs), `completion` the
completion of `prompt` and `completion`; `{}` is the assistant's text. The other cases are whole rows of
`test_chat_templates.py`; turns are parted by `|`. Turns begin and end where TRL's `assistant_only_loss` has them: some
of its training templates train the cue of the turn as well. A `Refusal` is what the error says.
"""


class Refusal(str):
    """A part of the one line that says why a row is refused."""


NO_CALLS, NO_REASONING = Refusal("leaves out the tool calls"), Refusal("leaves out the reasoning")
REFUSED = Refusal("The chat template refuses a conversation")

EXPECTED = {
    ("cohere",): {
        "turn": "{}<|END_OF_TURN_TOKEN|>",
        "tools": REFUSED,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
        "assistant_first": REFUSED,
    },
    ("cohere2",): {
        "turn": "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "tools": REFUSED,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
        "assistant_first": REFUSED,
    },
    ("deepseek_r1_distill",): {
        "turn": "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
        "completion": "{}<｜end▁of▁sentence｜>",
        "tools": NO_CALLS,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("deepseekv3",): {
        "turn": "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
        "completion": "{}<｜end▁of▁sentence｜>",
        "tools": (
            '<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{"x":'
            ' "y"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>|<｜tool▁outputs▁end｜>A1.<｜e'
            "nd▁of▁sentence｜>"
        ),
        "tools_completion": (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{"x": "y"}\n```<｜to'
            "ol▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        ),
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("diffusion_gemma",): {
        "turn": "{}<turn|>\n",
        "tools": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|>|A1.<turn|>\n',
        "tools_completion": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><|tool_response>',
        "thinking": "<|channel>thought\nT1\n<channel|>A1.<turn|>\n",
        "thinking_completion": "<|channel>thought\nT1\n<channel|>A1.<turn|>\n",
    },
    ("gemma",): {
        "turn": "{}<end_of_turn>\n",
        "system": REFUSED,
        "tools": REFUSED,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
        "assistant_first": REFUSED,
    },
    ("gemma3",): {
        "turn": "{}<end_of_turn>\n",
        "tools": REFUSED,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
        "assistant_first": REFUSED,
    },
    ("gemma4", "gemma4_v3", "gemma4_v4"): {
        "turn": "{}<turn|>\n",
        "tools": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><|tool_response>|A1.<turn|>\n',
        "tools_completion": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><|tool_response>',
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("gemma4_v2",): {
        "turn": "{}<turn|>\n",
        "tools": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><turn|>\n|A1.<turn|>\n',
        "tools_completion": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><turn|>\n',
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("gemma4_v5",): {
        "turn": "{}<turn|>\n",
        "tools": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><|tool_response>|A1.<turn|>\n',
        "tools_completion": '<|tool_call>call:look{x:<|"|>y<|"|>}<tool_call|><|tool_response>',
        "thinking": "<|channel>thought\nT1\n<channel|>A1.<turn|>\n",
        "thinking_completion": "<|channel>thought\nT1\n<channel|>A1.<turn|>\n",
    },
    ("glm4moe",): {
        "turn": "\n<think></think>\n{}<|user|>",
        "completion": "\n<think></think>\n{}",
        "tools": (
            "\n<think></think>\n<tool_call>look\n<arg_key>x</arg_key>\n<arg_value>y</arg_value>\n</tool_call"
            "><|observation|>|\n<think></think>\nA1.<|user|>"
        ),
        "tools_completion": (
            "\n<think></think>\n<tool_call>look\n<arg_key>x</arg_key>\n<arg_value>y</arg_value>\n</tool_call>"
        ),
        "thinking": "\n<think>T1</think>\nA1.<|user|>",
        "thinking_completion": "\n<think>T1</think>\nA1.",
    },
    ("gptoss",): {
        "turn": "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
        "earlier": "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
        "completion": "<|channel|>final<|message|>{}<|return|>",
        "tools": (
            '<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{"x": "y"}<|call|'
            ">|<|start|>assistant<|channel|>final<|message|>A1.<|return|>"
        ),
        "tools_completion": ' to=functions.look<|channel|>commentary json<|message|>{"x": "y"}<|call|>',
        "thinking": (
            "<|start|>assistant<|channel|>analysis<|message|>T1<|end|><|start|>assistant<|channel|>fina"
            "l<|message|>A1.<|return|>"
        ),
        "thinking_completion": (
            "<|channel|>analysis<|message|>T1<|end|><|start|>assistant<|channel|>final<|message|>A1.<|return|>"
        ),
    },
    ("idefics3", "smolvlm"): {
        "turn": " {}<end_of_utterance>\n",
        "tools": NO_CALLS,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("lfm2", "qwen2_5_vl"): {
        "turn": "{}<|im_end|>\n",
        "tools": NO_CALLS,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"): {
        "turn": "{}<|im_end|>\n",
        "tools": "<|tool_call_start|>[look(x='y')]<|tool_call_end|><|im_end|>\n|A1.<|im_end|>\n",
        "tools_completion": "<|tool_call_start|>[look(x='y')]<|tool_call_end|><|im_end|>\n",
        "thinking": "<think>T1</think>A1.<|im_end|>\n",
        "thinking_completion": "<think>T1</think>A1.<|im_end|>\n",
    },
    ("lfm2_v2",): {
        "turn": "{}<|im_end|>\n",
        "tools": "<|tool_call_start|>[look(x='y')]<|tool_call_end|><|im_end|>\n|A1.<|im_end|>\n",
        "tools_completion": "<|tool_call_start|>[look(x='y')]<|tool_call_end|><|im_end|>\n",
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("llama3",): {
        "turn": "{}<|eot_id|>",
        "tools": NO_CALLS,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("llama3_1", "llama3_2"): {
        "turn": "{}<|eot_id|>",
        "tools": '{"name": "look", "parameters": {"x": "y"}}<|eot_id|>|A1.<|eot_id|>',
        "tools_completion": '{"name": "look", "parameters": {"x": "y"}}<|eot_id|>',
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("llava_next",): {
        "turn": " {}</s>",
        "completion": " {}</s> ",
        "tools": REFUSED,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("muse_glimmer",): {
        "turn": "<|start|>assistant to=user<|message|>{}<|eot|>",
        "completion": " to=user<|message|>{}<|eot|>",
        "tools": (
            '<|start|>assistant to=look<|message|><atem:function_calls>\n<atem:invoke name="look">\n<atem'
            ':parameter name="x">y</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>|<|star'
            "t|>assistant to=user<|message|>A1.<|eot|>"
        ),
        "tools_completion": (
            ' to=look<|message|><atem:function_calls>\n<atem:invoke name="look">\n<atem:parameter name="x'
            '">y</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
        ),
        "thinking": "<|start|>assistant to=self<|message|>T1<|eom|><|start|>assistant to=user<|message|>A1.<|eot|>",
        "thinking_completion": " to=self<|message|>T1<|eom|><|start|>assistant to=user<|message|>A1.<|eot|>",
    },
    ("nemotron_3_5_lightning", "nemotron_3_ultra"): {
        "turn": "<think></think>{}<|im_end|>\n",
        "completion": "</think>{}<|im_end|>\n",
        "tools": (
            "<think></think>\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</too"
            "l_call>\n<|im_end|>\n|<think></think>A1.<|im_end|>\n"
        ),
        "tools_completion": (
            "</think>\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</tool_call>"
            "\n<|im_end|>\n"
        ),
        "thinking": "<think>\nT1</think>A1.<|im_end|>\n",
        "thinking_completion": "T1</think>A1.<|im_end|>\n",
    },
    ("nemotron_3_nano", "nemotron_3_super"): {
        "turn": "<think></think>{}<|im_end|>\n",
        "completion": "</think>{}<|im_end|>\n",
        "tools": (
            "<think></think>\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</too"
            "l_call>\n<|im_end|>\n|<think></think>A1.<|im_end|>\n"
        ),
        "tools_completion": (
            "</think>\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</tool_call>"
            "\n<|im_end|>\n"
        ),
        "thinking": "<think>\nT1\n</think>\nA1.<|im_end|>\n",
        "thinking_completion": "T1\n</think>\nA1.<|im_end|>\n",
    },
    ("phi3", "phi3_5"): {
        "turn": "{}<|end|>\n<eos>",
        "earlier": "{}<|end|>\n",
        "tools": NO_CALLS,
        "tools_completion": NO_CALLS,
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("qwen2_5",): {
        "turn": "\n{}<|im_end|>\n",
        "completion": "{}<|im_end|>\n",
        "tools": (
            '\n<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_end|>\n|\nA1.<|im_end|>\n'
        ),
        "tools_completion": '<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_end|>\n',
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
    ("qwen3",): {
        "turn": "<think>\n\n</think>\n\n{}<|im_end|>\n",
        "tools": (
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_'
            "end|>\n|<think>\n\n</think>\n\nA1.<|im_end|>\n"
        ),
        "tools_completion": (
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_end|>\n'
        ),
        "thinking": "<think>\nT1\n</think>\n\nA1.<|im_end|>\n",
        "thinking_completion": "<think>\nT1\n</think>\n\nA1.<|im_end|>\n",
    },
    ("qwen3_5_nothink",): {
        "turn": "<think>\n\n</think>\n\n{}<|im_end|>\n",
        "completion": "{}<|im_end|>\n",
        "tools": (
            "<think>\n\n</think>\n\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</"
            "tool_call><|im_end|>\n|<think>\n\n</think>\n\nA1.<|im_end|>\n"
        ),
        "tools_completion": (
            "<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        ),
        "thinking": "<think>\nT1\n</think>\n\nA1.<|im_end|>\n",
        "thinking_completion": "T1\n</think>\n\nA1.<|im_end|>\n",
    },
    ("qwen3_5_think", "qwen3_6", "qwen3_8"): {
        "turn": "<think>\n\n</think>\n\n{}<|im_end|>\n",
        "completion": "\n</think>\n\n{}<|im_end|>\n",
        "tools": (
            "<think>\n\n</think>\n\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</"
            "tool_call><|im_end|>\n|<think>\n\n</think>\n\nA1.<|im_end|>\n"
        ),
        "tools_completion": (
            "\n</think>\n\n<tool_call>\n<function=look>\n<parameter=x>\ny\n</parameter>\n</function>\n</tool_cal"
            "l><|im_end|>\n"
        ),
        "thinking": "<think>\nT1\n</think>\n\nA1.<|im_end|>\n",
        "thinking_completion": "T1\n</think>\n\nA1.<|im_end|>\n",
    },
    ("qwen3_instruct_2507", "qwen3_vl"): {
        "turn": "{}<|im_end|>\n",
        "tools": '<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_end|>\n|A1.<|im_end|>\n',
        "tools_completion": '<tool_call>\n{"name": "look", "arguments": {"x": "y"}}\n</tool_call><|im_end|>\n',
        "thinking": NO_REASONING,
        "thinking_completion": NO_REASONING,
    },
}
TEMPLATES = {name: case for names, case in EXPECTED.items() for name in names}
