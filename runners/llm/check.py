"""check=true: compare passes before and after, lowered graphs with what was lowered, answers with the plain model."""

from __future__ import annotations

import torch

from graph_gemma.graph_model.capture import plain_weight
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.numerics import FEW_TIES, is_finite, most_ties
from graph_gemma.graph_model.weights import evaluate
from graph_gemma.passes.check import check_passes
from graph_gemma.passes.framework.contract import PassError
from graph_gemma.runners.backends.torchair import TorchairBackend
from graph_gemma.runners.distributed.leader import LeadingModel, Message
from graph_gemma.runners.engine.result import RequestResult
from graph_gemma.runners.io.inputs import Inputs
from graph_gemma.runners.llm.load import LoadedModel


def check_model_passes(loaded: LoadedModel) -> None:
    """Compare the graphs before and after every pass, with the model's own weights. Raises UserError at the first."""
    recipe = loaded.model.recipe
    if isinstance(loaded.model, LeadingModel):
        loaded.model.announce(Message.CHECK)
    try:
        comparisons = check_passes(
            recipe.config, recipe.dtype, recipe.passes, loaded.read, quantization=recipe.quantization
        )
    except PassError as error:
        raise UserError(f"check: {error}") from error
    narrow = str(recipe.dtype).removeprefix("torch.")
    for graph_pass in recipe.passes:
        reasons = [c.skipped for c in comparisons if c.graph_pass is graph_pass and c.skipped]
        for reason in dict.fromkeys(reasons):
            print(f"check: {graph_pass.name} is skipped on {reasons.count(reason)} graphs: {reason}")
        errors = [c.error for c in comparisons if c.graph_pass is graph_pass and not c.skipped]
        if not errors:
            continue
        integers = [c.integers for c in comparisons if c.graph_pass is graph_pass and c.integers is not None]
        steps = max((found.max_lsb for found in integers), default=0)
        share = max((found.share for found in integers), default=0.0)
        widened = sum(c.in_float32 for c in comparisons if c.graph_pass is graph_pass)
        print(
            f"check: {graph_pass.name} ({graph_pass.tier.value}) holds on {len(errors)} graphs, "
            f"largest difference {max(errors):.1e}"
            + (f"; {share:.2%} of the int8 activations differ, by at most {steps}" if steps else "")
            + (f"; {widened} of them compared in float32, as {narrow} overflows there" if widened else "")
        )


def report_checked_steps(loaded: LoadedModel) -> None:
    """Print the comparison of each lowered graph with the graph that was lowered, over all its runs."""
    backend = loaded.model.recipe.backend
    if not isinstance(backend, TorchairBackend):
        return
    for step in backend.checked_steps:
        found = step.findings
        if found.runs:
            print(
                f"check: lowered graph of {step.bucket} equals the graph that was lowered in {found.runs} runs: "
                f"{found.nodes} nodes, largest difference {found.error:.1e} at {found.node}; "
                f"{found.tokens} tokens, {found.ties} of them within rounding"
            )


def check_answers(loaded: LoadedModel, inputs: Inputs, results: list[RequestResult]) -> None:
    """Check greedy answers by the token rule: after each prefix the plain model must choose the same token.

    In 16 bit a token may differ if the plain model's logit of it is within two spacings of the dtype of the best one:
    steps add in another order than whole sequences do, which may move each of the two logits by one spacing. At most
    1 % of the tokens may differ so, or three in a short run. Where the plain model overflows in 16 bit, as Gemma 3's
    residual stream does in float16, it chooses in float32. Raises UserError.
    """
    if not all(sampling.greedy for sampling in inputs.sampling):
        print("check: sampled answers are not compared with the plain model; their passes were")
        return
    total = equal = 0
    model = _PlainModel(loaded)
    quantized = loaded.model.recipe.quantization is not None
    for result in results:
        verdicts = model.verdicts(result.prompt_token_ids, result.token_ids)
        if "wrong" in verdicts and not quantized:
            raise UserError(
                f"check: token {verdicts.index('wrong')} of an answer differs from the plain model's choice, by more "
                f"than rounding. The prompt's ids are {result.prompt_token_ids}."
            )
        total += len(verdicts)
        equal += verdicts.count("equal")
    if quantized:
        print(f"check: {equal} of {total} tokens equal the plain model's, which computes in floating point")
        return
    rounded = total - equal
    if rounded > most_ties(total):
        raise UserError(
            f"check: {rounded} of {total} tokens differ from the plain model's within rounding; at most 1 %, or "
            f"{FEW_TIES}, may."
        )
    print(f"check: {total} tokens equal the plain model's, {rounded} of them within rounding")


class _PlainModel:
    """The plain model with the weights that steps run with, in their dtype and, once that overflows, in float32."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._dtype = loaded.model.recipe.dtype
        self._model = self._load()

    def verdicts(self, prompt: list[int], answer: list[int]) -> list[str]:
        """'equal', 'within rounding' or 'wrong' for each token of a greedy answer, by the plain model's logits."""
        logits = self._logits(prompt + answer)[len(prompt) - 1 : -1]
        best, choices = logits.max(-1)
        chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        _, exponent = torch.frexp(best.float())
        spacing = torch.finfo(self._dtype).eps * torch.exp2(exponent - 1.0)
        near = (best - chosen).float() <= (0.0 if self._dtype == torch.float32 else 2 * spacing)
        return [
            "equal" if token == choice else "within rounding" if close else "wrong"
            for token, choice, close in zip(answer, choices.tolist(), near.tolist(), strict=True)
        ]

    def _logits(self, ids: list[int]) -> torch.Tensor:
        """[tokens, vocab_size]"""
        inputs = torch.tensor([ids]), torch.arange(len(ids))[None]
        with torch.no_grad():
            logits: torch.Tensor = self._model(*inputs)[0]
            if not is_finite(logits):
                self._model = self._model.float()
                logits = self._model(*inputs)[0]
        return logits

    def _load(self) -> torch.nn.Module:
        recipe = self._loaded.model.recipe
        with torch.device("meta"):
            model = family_of(recipe.config).model()
        plan = {
            name: plain_weight(name, tuple(p.shape), recipe.dtype, recipe.config, recipe.quantization)
            for name, p in model.named_parameters(remove_duplicate=False)
        }
        tensors = evaluate(plan.values(), self._loaded.read, torch.device("cpu"))
        model.load_state_dict({name: tensors[expression] for name, expression in plan.items()}, assign=True)
        return model.eval()
