"""EleutherAI's evaluation harness over text completions: which of two endings is likelier, and what the model goes on with."""

import json
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp(), "TOKENIZERS_PARALLELISM": "false"}

from features import DECODER, DECODER_FOLDER, DECODER_URL, must, tried

ROWS = [
    {"question": "The capital of France is", "choices": [" Paris", " banana"], "answer": 0},
    {"question": "The sun rises in the", "choices": [" fridge", " east"], "answer": 1},
    {"question": "One, two, three,", "choices": [" four", " elephant"], "answer": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
CHOICE = 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n'
GENERATION = (
    'output_type: generate_until\ndoc_to_target: "{{choices[answer]}}"\n'
    'generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
)


def evaluated(name: str, kind: str) -> dict[str, object]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(tempfile.mkdtemp())
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in ROWS))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows) + kind)
    options = {
        "model": DECODER,
        "base_url": f"{DECODER_URL}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": DECODER_FOLDER,
        "num_concurrent": 2,
        "max_length": 2048,
    }
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model="local-completions", model_args=options, tasks=[name], task_manager=manager, log_samples=True)


@tried("log-likelihoods")
def _() -> str:
    made = evaluated("local_choice", CHOICE)["results"]["local_choice"]
    must(made["acc,none"] == 1, made)
    return f"accuracy {made['acc,none']:g} of {len(ROWS)} questions"


@tried("generation")
def _() -> None:
    samples = evaluated("local_generation", GENERATION)["samples"]["local_generation"]
    answers = [sample["resps"][0][0] for sample in samples]
    must(len(answers) == len(ROWS) and answers[0].startswith(" Paris"), answers)
