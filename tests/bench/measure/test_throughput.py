import pytest

from bench.errors import BenchError
from bench.measure.latency import latency
from bench.measure.throughput import throughput
from bench.protocol import LatencySamples


def samples(*nanoseconds: int) -> LatencySamples:
    return LatencySamples(
        samples_ns=nanoseconds,
        untimed_between=0,
        warmup_inferences=2,
        warmup_stable=True,
        loaded_first=True,
        load_ns=1,
        first_inference_ns=1,
    )


def test_the_rate_is_that_of_the_mean_time() -> None:
    model = [samples(1_000_000, 1_000_000, 4_000_000)] * 6
    found = throughput(4, model, [samples(4_000_000)] * 6)
    # Twelve images in six milliseconds: slow inferences cost throughput as well.
    assert found.model.images_per_second == pytest.approx(2000)
    assert (found.model.images_per_second_low, found.model.images_per_second_high) == pytest.approx((2000, 2000))
    assert found.model.p50_ms == 1.0
    assert found.baseline is not None
    assert found.baseline.images_per_second == pytest.approx(1000)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.25)


def test_batches_that_make_no_sense_are_refused(make_convs) -> None:
    model = make_convs("a.onnx")
    with pytest.raises(BenchError, match="batch is 2 and batches are 1,4: give one of them"):
        latency(model, batch=2, batches=(1, 4))
    for batches in ((1, 1), (0, 2)):
        with pytest.raises(BenchError, match="expected different sizes of 1 or more"):
            latency(model, batches=batches)
    with pytest.raises(BenchError, match="no input can take batch 4"):
        latency(make_convs("fixed.onnx", batch=1), batches=(1, 4), runs=6, samples=6, min_seconds=0.0)
