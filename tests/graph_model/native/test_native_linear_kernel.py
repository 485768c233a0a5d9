"""The C++ kernels of linear layers: right for every shape, built once, kept apart by CPU."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from graph_gemma.graph_model import ops
from graph_gemma.graph_model.native import NativeBuildError, build, load_kernels
from graph_gemma.runners.backends.inductor import cpp_compiler

needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="needs a C++ compiler")

ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
# Rows in and between the kernel's tiles of 4, 2 and 1 and beyond 16; sizes that fill no vector, group or block.
SHAPES = tuple(product((1, 2, 3, 5, 8, 16, 21), (1, 7, 16, 33, 1500), (1, 3, 16, 70)))


BUILD = """
import sys
from pathlib import Path
from graph_gemma.graph_model.native import load_kernels
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
    for name in ("skinny_linear", "skinny_int8_weight_linear", "native_int8_linear", "native_int_linear"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gemma::{name}", "CPU")


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def int8(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def assert_rounded_once(
    y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None
) -> None:
    """The exact result rounded to the dtype, x's where none is given, give or take the error of float32 sums."""
    dtype = dtype or x.dtype
    exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
    sums = (x.double().abs() @ w.double().abs().T) * 2.0**-23 * 8
    assert y.dtype == dtype
    assert ((y.double() - exact).abs() <= exact.abs() * ULP[dtype] + sums + 1e-7).all()


@needs_compiler
@pytest.mark.usefixtures("kernels", "threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_shape_is_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, size, out in SHAPES:
        x = torch.randn(rows, size, generator=generator).to(dtype)
        w = torch.randn(out, size, generator=generator).to(dtype)
        bias = torch.randn(out, generator=generator).to(dtype) if rows % 2 else None
        for result in (dtype, torch.float32):
            assert_rounded_once(ops.skinny_linear(x, w, bias, result), x, w, bias, result)


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_leading_dimensions_strides_and_special_values() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 64, 3, generator=generator).bfloat16().transpose(1, 2)  # not contiguous
    w = torch.randn(64, 40, generator=generator).bfloat16().T
    y = ops.skinny_linear(x, w, None, x.dtype)
    assert y.shape == (2, 3, 40)
    assert_rounded_once(y.view(6, 40), x.reshape(6, 64), w, None)
    for dtype in (torch.bfloat16, torch.float16):
        special = torch.tensor([[float("inf")], [float("nan")], [65504.0], [2.0**-24], [-0.0]]).to(dtype)
        one = torch.ones(1, 1, dtype=dtype)
        found = ops.skinny_linear(one, special, None, dtype)[0]
        assert torch.equal(found.nan_to_num(7.0), special[:, 0].nan_to_num(7.0))
    assert ops.skinny_linear(x[:0], w, None, x.dtype).shape == (0, 3, 40)


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_tensors_that_do_not_fit_are_refused() -> None:
    x, w = torch.zeros(2, 8).bfloat16(), torch.zeros(4, 8).bfloat16()
    for a, b, bias, dtype in [
        (x, w.float(), None, x.dtype),
        (x.half(), w, None, x.dtype),
        (x[:, :7], w, None, x.dtype),
        (x, w, torch.zeros(3).bfloat16(), x.dtype),
        (x, w, torch.zeros(4), x.dtype),
        (x, w, None, torch.float16),
    ]:
        with pytest.raises(RuntimeError, match="skinny_linear"):
            ops.skinny_linear(a, b, bias, dtype)


@needs_compiler
@pytest.mark.usefixtures("kernels", "threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int8_weights_meet_every_shape_and_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, size, out in SHAPES:
        x = torch.randn(rows, size, generator=generator).to(dtype)
        w, scale = int8(generator, out, size), torch.rand(out, generator=generator)
        bias = torch.randn(out, generator=generator).to(dtype) if rows % 2 else None
        exact = (x.double() @ w.double().T) * scale.double() + (0 if bias is None else bias.double())
        sums = (x.double().abs() @ w.double().abs().T) * scale.double() * 2.0**-23 * 8
        y = ops.skinny_int8_weight_linear(x, w, scale, bias)
        assert y.dtype == dtype
        assert ((y.double() - exact).abs() <= exact.abs() * ULP[dtype] + sums + 1e-6).all()


@needs_compiler
@pytest.mark.usefixtures("kernels", "threads")
def test_int8_products_are_exact_integers_scaled_in_float32() -> None:
    """Against numpy's int64, bit by bit; 4,100 times -128 * -128 is beyond int16 and float32."""
    generator = torch.Generator().manual_seed(0)
    for rows, size, out in [*SHAPES, (2, 4100, 13)]:
        q, w = int8(generator, rows, size), int8(generator, out, size)
        if size == 4100:
            q[0], w[0] = -128, -128
        int_bias = torch.randint(-(2**20), 2**20, (out,), generator=generator, dtype=torch.int32)
        total = q.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T
        assert torch.equal(ops.native_int_linear(q, w, None), torch.from_numpy(total).int())
        with_bias = torch.from_numpy(total + int_bias.numpy()).int()
        assert torch.equal(ops.native_int_linear(q, w, int_bias), with_bias)
        scale, row_scale = torch.rand(out, generator=generator), torch.rand(rows, generator=generator)
        bias = torch.randn(out, generator=generator)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            static = (total + int_bias.numpy()).astype(np.float32) * scale.numpy()
            found = ops.native_int8_linear(q, w, int_bias, scale, None, None, dtype)
            assert torch.equal(found, torch.from_numpy(static).to(dtype))
            dynamic = total.astype(np.float32) * scale.numpy() * row_scale.numpy()[:, None]
            found = ops.native_int8_linear(q, w, None, scale, row_scale, bias.to(dtype), dtype)
            assert torch.equal(found, torch.from_numpy(dynamic + bias.to(dtype).float().numpy()).to(dtype))


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_int8_kernels_take_strides_and_refuse_other_shapes() -> None:
    generator = torch.Generator().manual_seed(1)
    q, w = int8(generator, 2, 40, 3).transpose(1, 2), int8(generator, 40, 16).T
    scale, rows = torch.rand(16), torch.rand(3, 2).T
    expected = ops.int8_linear(q, w, None, scale, rows, None, torch.bfloat16)
    assert torch.equal(ops.native_int8_linear(q, w, None, scale, rows, None, torch.bfloat16), expected)
    assert ops.native_int8_linear(q[:0], w, None, scale, rows[:0], None, torch.half).shape == (0, 3, 16)
    wide = ops.skinny_int8_weight_linear(q.float(), w, scale, None)
    assert torch.allclose(wide.double(), (q.double() @ w.double().T) * scale, rtol=1e-5)
    for wrong in (
        (q.float(), w, None, scale, rows, None, torch.half),
        (q[..., :7], w, None, scale, rows, None, torch.half),
        (q, w, None, scale.half(), rows, None, torch.half),
        (q, w, scale, scale, rows, None, torch.half),
        (q, w, None, scale, rows[:1], None, torch.half),
        (q, w, None, scale, rows, None, torch.int32),
    ):
        with pytest.raises(RuntimeError, match="native_int8_linear"):
            ops.native_int8_linear(*wrong)
    for x, weight, s in (
        (q, w, scale),
        (q.half(), w.half(), scale),
        (q.half(), w, scale[:3]),
        (q.half(), w, scale.half()),
    ):
        with pytest.raises(RuntimeError, match="skinny_int8_weight_linear"):
            ops.skinny_int8_weight_linear(x, weight, s, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_of_int8_weights_are_scaled_sums(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(40, 4096, generator=generator).to(dtype), int8(generator, 700, 4096)
    scale, bias = torch.rand(700, generator=generator) / 4096, torch.randn(700, generator=generator).to(dtype)
    for b in (None, bias):
        scaled = (x.double() @ w.double().T) * scale.double()
        exact = scaled + (0 if b is None else b.double())
        y = ops.tiled_int8_weight_linear(x, w, scale, b)
        assert y.dtype == dtype
        # Where the CPU multiplies in 16 bit the product is rounded before it is scaled.
        assert ((y.double() - exact).abs() <= (scaled.abs() + exact.abs()) * ULP[dtype] + 1e-4).all()


@needs_compiler
@pytest.mark.usefixtures("kernels")
def test_a_row_does_not_depend_on_the_others() -> None:
    x, w = torch.randn(16, 1000).bfloat16(), torch.randn(48, 1000).bfloat16()
    together = ops.skinny_linear(x, w, None, x.dtype)
    for row in range(16):
        assert torch.equal(ops.skinny_linear(x[row : row + 1], w, None, x.dtype)[0], together[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_of_many_rows_are_rounded_once(dtype: torch.dtype) -> None:
    x, w, bias = torch.randn(40, 4096).to(dtype), torch.randn(700, 4096).to(dtype), torch.randn(700).to(dtype)
    for b in (None, bias):
        for result in (dtype, torch.float32):
            assert_rounded_once(ops.tiled_linear(x, w, b, result), x, w, b, result)


OTHER_CPUS = """
import sys
from pathlib import Path
import pytest
from graph_gemma.graph_model.native import build
build._OPTIONS = tuple("-march=x86-64" if option == "-march=native" else option for option in build._OPTIONS)
build.load_kernels(Path(sys.argv[1]), "g++", "some version")
sys.exit(pytest.main(["-q", sys.argv[2], "-k", "every_shape or exact_integers or strides"]))
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 CPU")
def test_kernels_are_right_without_instructions_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER_CPUS, str(tmp_path), __file__]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


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
    monkeypatch.setattr(build, "SOURCES", (source,))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    with pytest.raises(NativeBuildError, match="these headers are too old"):
        load_kernels(tmp_path / "cache", "g++", "some version")
    assert list((tmp_path / "cache").iterdir()) == []
