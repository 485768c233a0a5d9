"""The settings of runners/evaluate.py."""

from __future__ import annotations

from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.schema import setting


class EvaluateSettings(InferSettings):
    """Measure accuracy and perplexity. Without arguments: the demo model on its held-out comprehension items. The
    settings of the model are those of graph-gemma infer; its prompts and sampling have no meaning here."""

    tasks: tuple[str, ...] = setting(
        [],
        "Tasks of lm-evaluation-harness by name or by the path of their YAML file, [boolq,lambada_openai]; needs the "
        "extra 'evaluate'. Two come along: demo_comprehension and demo_stories.",
        must="a list of names of lm-evaluation-harness, [boolq,lambada]",
    )
    dataset: str | None = setting(
        None,
        'A JSONL file of yes/no questions, per line {"title", "passage", "question", "answer": true or false}: the '
        'answer that is more probable after "{title} -- {passage}\\nQuestion: {question}?\\nAnswer:" counts.',
        reads=True,
    )
    perplexity: str | None = setting(None, "A text file whose perplexity is measured.", reads=True)
    limit: int | None = setting(None, "Most items of a task or of the dataset.", least=1)
    results_dir: str = setting(
        "evaluation_results",
        "Directory for results.json (as lm-evaluation-harness writes it), summary.csv and samples_TASK.csv.",
    )
