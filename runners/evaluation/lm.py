"""The engine as a model of lm-evaluation-harness, registered as `graph_gemma`."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine import SamplingParams, TokenEvent, raise_errors
from graph_gemma.runners.evaluation.likelihood import Pair, loglikelihoods, windows
from graph_gemma.runners.io.tokenizer import chat_prompt
from graph_gemma.runners.llm import LLM


@register_model("graph_gemma")
class GraphGemmaLM(TemplateLM):
    """Every request goes through the engine: batched, prefixes shared, in static buckets.

    llm: a loaded model with a tokenizer. Without it one is made from `settings`, which are those of runners/infer.py
    (``model.path=DIR,dtype=float32`` as the harness's --model_args). batch_size and device are the harness's own:
    the engine batches by max_batch_size, the backend decides the device.
    """

    def __init__(self, llm: LLM | None = None, batch_size: Any = None, device: Any = None, **settings: Any) -> None:
        super().__init__()
        self.llm = llm or LLM([f"{name}={_text(value)}" for name, value in settings.items()])
        if self.llm.tokenizer is None:
            raise UserError("The tasks of lm-evaluation-harness are texts, and this checkpoint has no tokenizer.")
        self.tokenizer = self.llm.tokenizer
        self.batch_size = self.llm.settings.max_batch_size
        self.max_length = self.llm.settings.max_seq_len

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """<bos> where the tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_prompt(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        found = self._score([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs: list[Pair] = []
        ends = []
        for request in requests:
            token_ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            pairs += windows(token_ids, self.max_length - 1)
            ends.append(len(pairs))
        found = self._score(pairs)
        totals = [sum(x for x, _ in found[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, sampling, stops = [], [], []
        for request in requests:
            context, options = request.args
            options = normalize_gen_kwargs(options)
            room = min(options["max_gen_toks"], self.max_length - 1)
            stops.append([text for text in options["until"] if text])
            usual = 1.0 if options.get("do_sample") else 0.0
            prompts.append(self.tok_encode(context)[-(self.max_length - room) :])
            sampling.append(
                SamplingParams(
                    temperature=float(options.get("temperature", usual) or 0.0),
                    top_k=int(options.get("top_k") or 0),
                    top_p=float(options.get("top_p") or 1.0),
                    seed=len(prompts),
                    max_new_tokens=room,
                    stop=tuple(stops[-1]),
                )
            )
        with tqdm(total=len(prompts), desc="generate", unit="answer", disable=disable_tqdm) as bar:

            def follow(index: int, event: TokenEvent) -> None:
                if event.result is not None:
                    bar.update()

            results = self.llm.generate(prompts, sampling, follow)
        raise_errors(results)
        # The engine says where an answer stops. The harness cuts its text, without special tokens, at the stop texts:
        # of ".<end_of_turn>" the full stop stays.
        decoded = [self.tokenizer.decode(result.token_ids, skip_special_tokens=True) for result in results]
        texts = [postprocess_generated_text(text, stop, None) for text, stop in zip(decoded, stops, strict=True)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _score(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        found = loglikelihoods(self.llm, pairs, "score", self.max_length)
        return [(one.logprob, one.is_greedy) for one in found]


def _text(value: Any) -> str:
    """A value as an override on the command line is written."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
