"""The GPU backends, as far as they can be tested without a GPU: layouts, choice, and the Triton kernels interpreted.

Run as a script under TRITON_INTERPRET=1 it prints how far the kernels are off; Triton reads that variable on import.
"""

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import List  # noqa: UP035

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from mambaad_cli.model.kernels import plain_scan, triton_scan
from mambaad_cli.model.kernels import selective_scan as scan
from mambaad_cli.model.kernels import selective_scan_cuda as scan_cuda

NAMES = ("y", "u", "x", "dt_weight", "dt_bias", "A", "D")
CASES = {  # b, l, k, d, n, r, dt_bias
    "states no power of two, channels and positions beyond a block and a chunk": (2, 5, 2, 17, 3, 2, -2.0),
    "two blocks of channels in backward": (1, 4, 1, 33, 16, 1, 0.0),
    "one position, steps as large as they come": (1, 1, 2, 3, 1, 1, 100.0),
    "a short last chunk, three directions, three blocks of channels in forward": (1, 11, 3, 35, 5, 3, -1.0),
    "steps so small that 1 + e^x rounds them away": (1, 4, 1, 2, 2, 1, -12.0),
}


def inputs_of(b: int, l: int, k: int, d: int, n: int, r: int, bias: float) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((b, l, d), (b, l, k, r + 2 * n), (k, d, r), (k, d), (k, d, n), (k, d))
    u, x, weight, noise, A, D = (torch.randn(shape, generator=random) for shape in shapes)
    D = torch.zeros_like(D) if bias == -12 else D  # or the skip would hide what small steps add
    order = torch.stack([torch.randperm(l, generator=random) for _ in range(k)]).int()
    return [u, x, weight, 0.1 * noise + bias, -A.exp(), D, order]


def reference(inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """y and the six gradients."""
    parts = [tensor.detach().requires_grad_() for tensor in inputs[:-1]]
    y = plain_scan.reference_scan(*parts, inputs[-1])
    return [y.detach(), *torch.autograd.grad(y, parts, dy)]


def errors(actual: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """The largest difference of y and of each gradient, as a share of its largest value."""
    assert [a.shape for a in actual] == [e.shape for e in expected]
    assert all(a.is_contiguous() for a in actual)
    return {
        name: float((a - e).abs().max() / e.abs().max().clamp_min(1e-30))
        for name, a, e in zip(NAMES, actual, expected, strict=True)
    }


def gradient_of_y(inputs: list[Tensor]) -> Tensor:
    return torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def choose_anew() -> Iterator[None]:
    scan_cuda.chosen.cache_clear()
    yield
    scan_cuda.chosen.cache_clear()


@pytest.fixture
def no_fast_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    monkeypatch.setitem(sys.modules, "triton", None)


# mamba-ssm


def stand_in(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> Tensor:  # fmt: skip
    """What mamba-ssm documents of `selective_scan_fn`: u, delta (b, c, l), A (c, n), B, C (b, groups, n, l), D (c)."""
    assert all(tensor.is_contiguous() for tensor in (u, delta, A, B, C))
    assert D is not None
    assert delta_bias is not None
    assert z is None
    assert delta_softplus
    groups = A.shape[0] // B.shape[1]
    B, C = B.repeat_interleave(groups, 1), C.repeat_interleave(groups, 1)  # (b, c, n, l)
    dt = F.softplus(delta + delta_bias[:, None])
    h, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt * u)[:, :, t, None] * B[..., t]
        outputs.append((h * C[..., t]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, 2)


def install(monkeypatch: pytest.MonkeyPatch, selective_scan_fn: object) -> None:
    for name in ("selective_scan_cuda", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules["mamba_ssm.ops.selective_scan_interface"], "selective_scan_fn", selective_scan_fn, raising=False
    )


@pytest.mark.parametrize("case", CASES)
def test_by_mamba_ssms_layout_values_and_gradients_are_the_references(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, stand_in)
    inputs = inputs_of(*CASES[case])
    dy = gradient_of_y(inputs)
    actual = [scan_cuda.mamba_scan(*inputs), *scan_cuda.mamba_backward(dy, *inputs)]
    assert max(errors(actual, reference(inputs, dy)).values()) < 1e-5


def test_mamba_ssm_is_used_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, stand_in)
    assert scan_cuda.chosen(torch.device("cpu")) == "mamba-ssm"
    assert scan_cuda.backends()["mamba-ssm"] == "available"


def test_mamba_ssm_without_its_cuda_scan_is_not_used(monkeypatch: pytest.MonkeyPatch, no_fast_backend: None) -> None:
    install(monkeypatch, stand_in)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    with pytest.warns(UserWarning, match="mamba-ssm: .*selective_scan_cuda"):
        assert scan_cuda.chosen(torch.device("cpu")) == "chunked PyTorch"


def test_a_backend_with_wrong_numbers_is_passed_over(monkeypatch: pytest.MonkeyPatch, no_fast_backend: None) -> None:
    install(monkeypatch, lambda *a, **b: 1.01 * stand_in(*a, **b))
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    with pytest.warns(UserWarning, match=r"mamba-ssm: wrong numbers on cpu: off by 1\.0e-02"):
        y = scan_cuda.selective_scan(*inputs)
    torch.testing.assert_close(y, plain_scan.reference_scan(*inputs))


def test_a_backend_with_wrong_gradients_is_passed_over(monkeypatch: pytest.MonkeyPatch, no_fast_backend: None) -> None:
    install(monkeypatch, lambda u, *a, **b: stand_in(u, *a, **b) + 0.1 * (u - u.detach()))
    with pytest.warns(UserWarning, match="mamba-ssm: wrong numbers"):
        assert scan_cuda.chosen(torch.device("cpu")) == "chunked PyTorch"


# The choice


def test_for_a_score_alone_no_backward_pass_is_tried_or_compiled(
    monkeypatch: pytest.MonkeyPatch, no_fast_backend: None
) -> None:
    """The first image of a run would wait for it."""
    install(monkeypatch, stand_in)
    modules, forward, _ = scan_cuda.BACKENDS["mamba-ssm"]
    broken = (modules, forward, lambda *args: pytest.fail("the backward pass was run"))
    monkeypatch.setitem(scan_cuda.BACKENDS, "mamba-ssm", broken)
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    y = scan_cuda.selective_scan(*inputs, gradients=False)
    assert scan_cuda.chosen(torch.device("cpu"), False) == "mamba-ssm"
    torch.testing.assert_close(y, plain_scan.reference_scan(*inputs))


def test_training_does_not_take_the_backend_of_a_score_whose_gradients_are_wrong(
    monkeypatch: pytest.MonkeyPatch, no_fast_backend: None
) -> None:
    install(monkeypatch, lambda u, *a, **b: stand_in(u, *a, **b) + 0.1 * (u - u.detach()))
    assert scan_cuda.chosen(torch.device("cpu"), gradients=False) == "mamba-ssm"
    with pytest.warns(UserWarning, match="mamba-ssm: wrong numbers"):
        assert scan_cuda.chosen(torch.device("cpu"), gradients=True) == "chunked PyTorch"


class OnGpu(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("keep", [True, False])
def test_the_operator_tells_the_gpu_whether_gradients_are_wanted(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    monkeypatch.setattr(scan_cuda, "selective_scan", lambda *inputs: wanted.append(inputs[7]) or inputs[0])
    u, *others = inputs_of(1, 4, 1, 3, 2, 1, 0.0)
    scan._scan(u.as_subclass(OnGpu), *others, keep)
    assert wanted == [keep]


def test_without_a_fast_backend_plain_pytorch_scans_and_says_so_once(no_fast_backend: None) -> None:
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    dy = gradient_of_y(inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = [scan_cuda.selective_scan(*inputs), *scan_cuda.selective_scan_backward(dy, *inputs)]
    assert max(errors(actual, reference(inputs, dy)).values()) < 1e-5
    (warning,) = caught
    assert "mamba-ssm: " in str(warning.message)
    assert "triton: " in str(warning.message)


@library.custom_op("mambaad_test::forward", mutates_args=())
def forward_op(inputs: List[Tensor]) -> Tensor:  # noqa: UP006 (older torch does not know list[Tensor] here)
    return scan_cuda.selective_scan(*inputs)


@library.custom_op("mambaad_test::backward", mutates_args=())
def backward_op(dy: Tensor, inputs: List[Tensor]) -> List[Tensor]:  # noqa: UP006
    return list(scan_cuda.selective_scan_backward(dy, *inputs))


@pytest.mark.parametrize("name", ["mamba-ssm", "chunked PyTorch"])
@pytest.mark.filterwarnings("ignore:the scan runs in plain PyTorch")
def test_gradients_are_found_inside_a_custom_operator(
    name: str, monkeypatch: pytest.MonkeyPatch, no_fast_backend: None
) -> None:
    if name == "mamba-ssm":
        install(monkeypatch, stand_in)
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    dy = gradient_of_y(inputs)
    needy = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    actual = [forward_op(needy).detach(), *(grad.detach() for grad in backward_op(dy, needy))]
    assert scan_cuda.chosen(torch.device("cpu")) == name
    assert max(errors(actual, reference(inputs, dy)).values()) < 1e-5


def test_a_torch_without_its_own_functions_for_autograds_key_still_finds_gradients(
    monkeypatch: pytest.MonkeyPatch, no_fast_backend: None
) -> None:
    """A later version may lack them. Only the bodies of custom operators need them."""
    monkeypatch.delattr(torch._C, "_dispatch_tls_set_dispatch_key_excluded")
    install(monkeypatch, stand_in)
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    dy = gradient_of_y(inputs)
    with torch.no_grad():
        actual = [scan_cuda.selective_scan(*inputs), *scan_cuda.selective_scan_backward(dy, *inputs)]
    assert scan_cuda.chosen(torch.device("cpu")) == "mamba-ssm"
    assert max(errors(actual, reference(inputs, dy)).values()) < 1e-5


def test_a_first_scan_in_inference_mode_and_under_autocast_is_as_exact_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, stand_in)
    inputs = inputs_of(2, 9, 2, 5, 3, 2, -1.0)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = forward_op(inputs)
    assert scan_cuda.chosen(torch.device("cpu")) == "mamba-ssm"
    torch.testing.assert_close(y, plain_scan.reference_scan(*inputs))


def test_every_backend_is_reported_in_one_line_however_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError(f"{name}:\n  undefined symbol")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert scan_cuda.backends() == {
        "mamba-ssm": "selective_scan_cuda: undefined symbol",
        "triton": "triton: undefined symbol",
        "chunked PyTorch": "available",
    }


# Triton


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """How far the kernels are off in Triton's interpreter, by case."""
    pytest.importorskip("triton")
    return json.loads(run_python(__file__, TRITON_INTERPRET="1"))


def run_python(*arguments: str, **environment: str) -> str:
    paths = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", [*triton_scan.FORMS, *NAMES[1:]])
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_agree_with_the_reference(
    case: str, name: str, interpreted: dict[str, dict[str, float]]
) -> None:
    assert interpreted[case][name] < 1e-5


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mambaad_cli.model.kernels import triton_scan

def compiled(kernel, **constants):
    sizes = dict.fromkeys(("l", "k", "d", "n", "r", "chunk", "chunks"), "i32")
    types = {"order": "*i32"} | sizes
    types = {name: types.get(name, "*fp32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constexprs=constants)
    return compile(source, target=GPUTarget("cuda", 80, 32), options=triton_scan.COMPILED)

blocks = {"BLOCK_D": 16, "BLOCK_N": 16}
ones = dict.fromkeys(("l", "k", "n", "r", "chunk"), 1)  # sizes of one, as if they were compiled in
kernels = [
    compiled(triton_scan._ends_kernel, **blocks),
    compiled(triton_scan._ends_kernel, **blocks, **ones),
    compiled(triton_scan._carry_kernel, BLOCK=32),
    compiled(triton_scan._forward_kernel, **blocks),
    compiled(triton_scan._forward_kernel, **blocks, **ones),
    compiled(triton_scan._backward_kernel, **blocks | {"BLOCK_D": 32}),
]
print(sum(len(kernel.asm["cubin"]) > 0 for kernel in kernels))
"""


def test_kernels_compile_for_an_nvidia_gpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("triton")
    cache = tmp_path_factory.mktemp("triton")
    assert run_python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache)).split() == ["6"]


VARIANTS = """
import json, math, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from mambaad_cli.model.kernels import selective_scan_cuda as scan_cuda
from mambaad_cli.model.kernels import triton_scan

backend = make_backend(GPUTarget("cuda", 80, 32))
seen = []

class Launched:
    def __init__(self, kernel):
        self.kernel = kernel
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **settings):
        bound, variant, _ = self.bind(*args, **settings)
        seen.append([self.kernel.fn.__name__, str(variant)])

for name in ("_ends_kernel", "_carry_kernel", "_forward_kernel", "_backward_kernel"):
    setattr(triton_scan, name, Launched(getattr(triton_scan, name)))
triton_scan.multiprocessor_count = lambda device: 132

def variants(work):
    seen.clear()
    work()
    return sorted(set(map(tuple, seen)))

def inputs_of(b, l, k, d, n, r):
    shapes = ((b, l, d), (b, l, k, r + 2 * n), (k, d, r), (k, d), (k, d, n), (k, d))
    return [*(torch.zeros(shape) for shape in shapes), torch.zeros(k, l, dtype=torch.int32)]

def run(gradients, *sizes):
    inputs = inputs_of(*sizes)
    for scan in triton_scan.FORMS.values():
        scan(*inputs)
    if gradients:
        triton_scan.triton_backward(inputs[0], *inputs)

def tried(gradients):
    try:
        scan_cuda._try_out("triton", torch.device("cpu"), gradients)
    except RuntimeError:  # wrong numbers: nothing was computed
        pass

sizes = [(1, 64 * 64, 2, 48, 16, 2), (8, 35 * 45, 2, 96, 16, 3), (8, 16, 8, 480, 16, 15), (1, 1, 6, 1024, 16, 32)]
print(json.dumps([
    [variants(lambda: tried(gradients)), *(variants(lambda: run(gradients, *size)) for size in sizes)]
    for gradients in (False, True)
]))
"""


def test_the_networks_use_the_kernels_that_were_compiled_to_try_them_out() -> None:
    """At each stage, size of image and batch; otherwise Triton compiles again before the first score."""
    pytest.importorskip("triton")
    try:
        from triton.runtime.jit import create_function_from_signature  # noqa: F401 (Triton's own)
    except ImportError:
        pytest.skip("this Triton does not show how it tells variants apart")
    for kernels, (tried, *used) in zip(
        (3, 4), json.loads(run_python("-c", VARIANTS, TRITON_INTERPRET="0")), strict=True
    ):
        assert len(tried) == kernels
        assert used == [tried] * len(used)


@pytest.mark.parametrize(("b", "form"), [(1, "three passes"), (8, "three passes"), (128, "one pass")])
def test_one_photo_is_scanned_in_three_passes_and_a_large_batch_in_one(
    b: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of 132 multiprocessors, at the first stage of the default network but for the number of positions."""
    taken = []
    monkeypatch.setattr(triton_scan, "multiprocessor_count", lambda device: 132)
    monkeypatch.setattr(triton_scan, "one_pass_scan", lambda *inputs: taken.append("one pass"))
    monkeypatch.setattr(triton_scan, "three_pass_scan", lambda *inputs: taken.append("three passes"))
    triton_scan.triton_scan(*inputs_of(b, 4, 2, 48, 16, 2, 0.0))
    assert taken == [form]


# A GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", scan_cuda.BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_each_backend_that_is_there_agrees_with_the_reference(name: str, case: str) -> None:
    if any(importlib.util.find_spec(module.split(".")[0]) is None for module in scan_cuda.BACKENDS[name][0]):
        pytest.skip(f"{name} is not installed")
    inputs = inputs_of(*CASES[case])
    dy = gradient_of_y(inputs)
    _, forward, backward = scan_cuda.BACKENDS[name]
    there = [tensor.cuda() for tensor in inputs]
    actual = [tensor.cpu() for tensor in (forward(*there), *backward(dy.cuda(), *there))]
    assert max(errors(actual, reference(inputs, dy)).values()) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", triton_scan.FORMS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_both_forms_of_the_triton_scan_agree_with_the_reference(form: str, case: str) -> None:
    pytest.importorskip("triton")
    inputs = inputs_of(*CASES[case])
    y = triton_scan.FORMS[form](*(tensor.cuda() for tensor in inputs)).cpu()
    expected = plain_scan.reference_scan(*inputs)
    assert float((y - expected).abs().max() / expected.abs().max()) < 1e-4


def main() -> None:
    """Every case through the Triton kernels, whatever device they run on."""
    gc.freeze()  # the interpreter makes objects by the million
    found = {}
    for case, sizes in CASES.items():
        inputs = inputs_of(*sizes)
        dy = gradient_of_y(inputs)
        expected = reference(inputs, dy)
        grads = triton_scan.triton_backward(dy, *inputs)
        ys = {name: scan(*inputs) for name, scan in triton_scan.FORMS.items()}
        found[case] = {name: errors([y, *grads], expected)["y"] for name, y in ys.items()}
        found[case] |= errors([ys["one pass"], *grads], expected)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
