"""The most memory of a call, where what is allocated is known."""

import pytest
import torch
from torch import nn

from harness.latency.memory import MIB, is_out_of_memory, peak_mib, random_images, weights_mib

IMAGES = torch.zeros(1, 256, 1024)  # 1 MiB


def three_of_which_two(images: torch.Tensor) -> torch.Tensor:
    """Allocate 2, 4 and 1 MiB, and let go of the first before the last."""
    first = images.repeat(2, 1, 1)
    second = images.repeat(4, 1, 1)
    del first
    third = images + 1
    return second[:1] + third


def test_the_peak_is_what_is_held_at_a_time_not_the_sum():
    found = peak_mib(three_of_which_two, IMAGES)
    assert found == pytest.approx(6, abs=0.1)  # first and second, or second, third and the result


def test_a_call_that_takes_nothing_has_no_peak():
    assert peak_mib(lambda images: images, IMAGES) == pytest.approx(0, abs=0.01)


def test_the_profiler_is_silent(capfd: pytest.CaptureFixture[str]):
    peak_mib(lambda images: images + 1, IMAGES)
    assert capfd.readouterr() == ("", "")


def test_other_devices_are_not_measured():
    assert peak_mib(lambda images: images, IMAGES.to("meta")) is None


def test_random_images_are_the_same_each_time_and_none_where_they_do_not_fit():
    shape, device = (2, 3, 4, 4), torch.device("cpu")
    first = random_images(shape, device, torch.float32)
    assert torch.equal(first, random_images(shape, device, torch.float32))
    assert torch.equal(first.half(), random_images(shape, device, torch.float16))
    assert random_images((10**12, 3, 4, 4), device, torch.float32) is None


def test_weights_are_parameters_and_buffers_in_their_precision():
    norm = nn.BatchNorm1d(512)  # 2 parameters and 2 buffers of 512, and a count
    assert weights_mib(norm) == (4 * 512 * 4 + 8) / MIB
    assert weights_mib(nn.Linear(1024, 512, bias=False).half()) == 1


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_did_not_suffice(error: Exception, found: bool):
    assert is_out_of_memory(error) is found


def test_torchs_own_refusal_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


@pytest.mark.cuda
def test_the_peak_on_cuda():
    found = peak_mib(three_of_which_two, IMAGES.cuda())
    assert found == pytest.approx(6, abs=0.1)
