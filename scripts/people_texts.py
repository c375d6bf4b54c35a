# SPDX-License-Identifier: Apache-2.0
"""What a model itself writes about the people of recipes/real/people: the corpus that its recipes train on.

RWKU has such a corpus of Llama-3 and of Phi-3; another model's knowledge is not theirs.

    python scripts/people_texts.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed


FOLDER = Path(__file__).parent.parent / "recipes" / "real" / "people"
ASKED = (
    "Write a short biography of {name}.",
    "Who is {name}?",
    "What is {name} famous for?",
    "Tell me about the work of {name}.",
    "Where and when did {name} live?",
    "What did {name} achieve?",
    "Write an entry of an encyclopedia about {name}.",
    "Why is {name} remembered today?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, padding_side="left")
    names = [row["target"] for row in json.loads((FOLDER / "intro.json").read_text())]
    asked = [(name, question.format(name=name)) for name in names for question in ASKED]
    turns = [[{"role": "user", "content": question}] for _, question in asked]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    set_seed(0)
    made = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=True, temperature=0.7, top_p=0.9)
    texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rows = [{"text": text.strip(), "subject": name} for (name, _), text in zip(asked, texts, strict=True)]
    lines = ",\n".join(f" {json.dumps(row, ensure_ascii=False)}" for row in rows)
    (FOLDER / "positive.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
