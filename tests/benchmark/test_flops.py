"""FLOP counts beside products worked by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mambaad_cli.benchmark import detectors
from mambaad_cli.benchmark.flops import count_flops
from mambaad_cli.benchmark.passes import Maps, scoring_pass
from tests.benchmark.rows import MAMBAAD, RD4AD, SIZE, UNIAD


def flops_of(maps: Maps, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    return count_flops(scoring_pass(maps, size))


def test_scan_flops_are_nine_a_position_direction_channel_and_state() -> None:
    _, scanned = flops_of(detectors.build(MAMBAAD).maps)
    # test_resnet's 32, 48, 192 channels at strides 4, 8, 16, and 384 at stride 32; d is twice that, 2 directions
    by_hand = sum(9 * l * 2 * (2 * c) * 16 for l, c in ((2 * 2, 384), (4 * 4, 192), (8 * 8, 48), (16 * 16, 32)))
    assert scanned == by_hand


def test_a_block_more_adds_its_products_and_its_scan() -> None:
    """The finest stage's module with two blocks instead of one: an HSS block of 32 channels on 16 × 16 positions."""
    deeper = MAMBAAD._replace(options=MAMBAAD.options | {"depths": (1, 1, 1, 2)})
    more, less = (flops_of(detectors.build(row).maps) for row in (deeper, MAMBAAD))
    l, c, d, k, n, r = 256, 32, 64, 2, 16, 2
    macs = l * (c * 2 * d + 9 * d + k * d * (r + 2 * n) + k * d * r + d * c)  # in, depth-wise, x, dt, out
    assert more[0] - less[0] == 2 * macs
    assert more[1] - less[1] == 9 * l * k * d * n


def test_counts_do_not_depend_on_what_was_counted_before() -> None:
    maps = detectors.build(RD4AD).maps
    size = (72, 40)  # no other test's: its upsampling matrices are not made yet
    assert flops_of(maps, size) == flops_of(maps, size)


def test_attention_is_counted() -> None:
    one, two = (detectors.build(UNIAD._replace(options=UNIAD.options | {"layers": layers})).maps for layers in (1, 2))
    l, d = 16, 32
    linear = 4 * l * d * d  # query, key, value and output of one attention
    attention = 2 * l * l * d  # query by key, weights by value
    feed_forward = 2 * l * d * 64
    assert flops_of(two)[0] - flops_of(one)[0] == 2 * (3 * (linear + attention) + 2 * feed_forward)


def test_the_papers_size_and_cost() -> None:
    """Its figures at 256 × 256: 25.6 M parameters, 17.4 M trained, 4.45 GFLOP of scan."""
    one = detectors.build(detectors.SPECS[0])
    assert one.parameters == pytest.approx(25.6e6, rel=0.003)
    assert one.trained == pytest.approx(17.4e6, rel=0.003)
    dense, scanned = flops_of(one.maps, (256, 256))
    assert scanned == 4_454_350_848
    assert dense / 2 == pytest.approx(8.30e9, rel=0.01)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_the_same_whichever_kernel_computes_it(kernel: SDPBackend, masked: bool) -> None:
    l, heads, d = 48, 4, 16
    query, key, value = torch.randn(3, 1, heads, l, d)
    mask = torch.zeros(l, l) if masked else None

    def attend() -> None:
        with torch.inference_mode(), sdpa_kernel(kernel):
            scaled_dot_product_attention(query, key, value, attn_mask=mask)

    assert count_flops(attend) == (2 * heads * (l * d * l + l * l * d), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (SDPBackend.MATH, torch.float32),
        (SDPBackend.EFFICIENT_ATTENTION, torch.float32),
        (SDPBackend.FLASH_ATTENTION, torch.bfloat16),
        (SDPBackend.CUDNN_ATTENTION, torch.bfloat16),
    ],
)
def test_attention_counts_the_same_on_a_gpu(kernel: SDPBackend, dtype: torch.dtype) -> None:
    l, heads, d = 64, 4, 32
    query, key, value = torch.randn(3, 1, heads, l, d, device="cuda", dtype=dtype)

    def attend() -> None:
        with torch.inference_mode(), sdpa_kernel(kernel):
            scaled_dot_product_attention(query, key, value)

    assert count_flops(attend) == (2 * heads * (l * d * l + l * l * d), 0)
