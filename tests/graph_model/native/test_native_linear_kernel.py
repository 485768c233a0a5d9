"""The C++ kernel of linear layers with few rows: right for every shape, built once, kept apart by CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graph_model import ops
from graph_model.backends.inductor import cpp_compiler
from graph_model.native import NativeBuildError, build, load_kernels

needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="needs a C++ compiler")

ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


BUILD = """
import sys
from pathlib import Path
from graph_model.native import load_kernels
root = Path(sys.argv[1])
library = load_kernels(root, "g++", "some version")
assert load_kernels(root, "g++", "some version") is None
print(library.name)
"""


def build_in_another_process(root: Path) -> str:
    result = subprocess.run([sys.executable, "-c", BUILD, str(root)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that holds the library."""
    directory = tmp_path_factory.mktemp("kernels")
    build_in_another_process(directory)
    return directory


@pytest.fixture(scope="module")
def kernels(root: Path) -> None:
    load_kernels(root, "g++", "some version")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("gemma::few_rows_linear", "CPU")


def assert_rounded_once(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> None:
    """The exact result rounded to the dtype, give or take the error of float32 sums."""
    exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
    sums = (x.double().abs() @ w.double().abs().T) * 2.0**-23 * 8
    assert y.dtype == x.dtype
    assert ((y.double() - exact).abs() <= exact.abs() * ULP[x.dtype] + sums + 1e-7).all()


@needs_compiler
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_shape_is_rounded_once(dtype: torch.dtype) -> None:
    """Rows in and between the kernel's tiles of 4, 2 and 1 and beyond 16; sizes that fill no vector, group or block."""
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 3, 5, 8, 16, 21):
        for size in (1, 7, 16, 33, 1500):
            for out in (1, 3, 16, 70):
                x = torch.randn(rows, size, generator=generator).to(dtype)
                w = torch.randn(out, size, generator=generator).to(dtype)
                bias = torch.randn(out, generator=generator).to(dtype) if rows % 2 else None
                assert_rounded_once(ops.few_rows_linear(x, w, bias), x, w, bias)


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_leading_dimensions_strides_and_special_values() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 64, 3, generator=generator).bfloat16().transpose(1, 2)  # not contiguous
    w = torch.randn(64, 40, generator=generator).bfloat16().T
    y = ops.few_rows_linear(x, w, None)
    assert y.shape == (2, 3, 40)
    assert_rounded_once(y.view(6, 40), x.reshape(6, 64), w, None)
    for dtype in (torch.bfloat16, torch.float16):
        special = torch.tensor([[float("inf")], [float("nan")], [65504.0], [2.0**-24], [-0.0]]).to(dtype)
        one = torch.ones(1, 1, dtype=dtype)
        assert torch.equal(ops.few_rows_linear(one, special, None)[0].nan_to_num(7.0), special[:, 0].nan_to_num(7.0))
    assert ops.few_rows_linear(x[:0], w, None).shape == (0, 3, 40)


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_tensors_that_do_not_fit_are_refused() -> None:
    x, w = torch.zeros(2, 8).bfloat16(), torch.zeros(4, 8).bfloat16()
    for a, b, bias in [
        (x, w.float(), None),
        (x.half(), w, None),
        (x[:, :7], w, None),
        (x, w, torch.zeros(3).bfloat16()),
        (x, w, torch.zeros(4)),
    ]:
        with pytest.raises(RuntimeError, match="few_rows_linear"):
            ops.few_rows_linear(a, b, bias)


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_a_row_does_not_depend_on_the_others() -> None:
    x, w = torch.randn(16, 1000).bfloat16(), torch.randn(48, 1000).bfloat16()
    together = ops.few_rows_linear(x, w, None)
    for row in range(16):
        assert torch.equal(ops.few_rows_linear(x[row : row + 1], w, None)[0], together[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_of_many_rows_are_rounded_once(dtype: torch.dtype) -> None:
    x, w, bias = torch.randn(40, 4096).to(dtype), torch.randn(700, 4096).to(dtype), torch.randn(700).to(dtype)
    for b in (None, bias):
        assert_rounded_once(ops.tiled_linear(x, w, b), x, w, b)


@needs_compiler
def test_the_library_is_built_once_and_named_by_compiler_and_cpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [library] = root.iterdir()  # nothing else is left
    built = library.stat().st_mtime_ns
    assert build_in_another_process(root) == library.name
    assert library.stat().st_mtime_ns == built

    # Another CPU or compiler looks for another file: here its compiler does not exist, so that nothing is found.
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    with pytest.raises(NativeBuildError, match="no-such-compiler"):
        load_kernels(root, "no-such-compiler", "another version")
    monkeypatch.setattr(build, "_cpu", lambda: ["another CPU"])
    with pytest.raises(NativeBuildError, match="no-such-compiler"):
        load_kernels(root, "no-such-compiler", "some version")


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "linear.cpp"
    source.write_text("#error these headers are too old\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    with pytest.raises(NativeBuildError, match="these headers are too old"):
        load_kernels(tmp_path / "cache", "g++", "some version")
    assert list((tmp_path / "cache").iterdir()) == []
