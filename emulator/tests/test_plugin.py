"""The pytest plugin, in runs of pytest of its own."""

import pytest

CONFTEST = "import cuda.core  # imported before any hook of a conftest runs"

USES_CUDA = """
import pytest
from cuda.core import Device

def test_devices(cuda_emulator):
    assert len(Device.get_all_devices()) == cuda_emulator.settings.devices == 3
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")


def test_it_starts_before_a_conftest_imports_cuda(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(USES_CUDA)
    result = pytester.runpytest_subprocess("--cuda-emulator", "--cuda-devices=3", "--cuda-seed=11")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cuda emulator: 3 devices of 256 MiB, peers all, seed 11, *"])


def test_the_ini_file_says_the_same(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncuda_emulator = true\ncuda_devices = 3\n")
    pytester.makepyfile(USES_CUDA)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_without_being_asked_it_does_nothing_and_its_fixture_says_what_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass\ndef test_two(cuda_emulator): pass")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the fixture cuda_emulator needs pytest --cuda-emulator*"])
    result.stdout.no_fnmatch_line("cuda emulator: *")


def test_a_setting_that_is_not_possible_ends_the_run(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--cuda-emulator", "--cuda-devices=99")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--cuda-emulator: devices: '99' is not a whole number from 1 to 16"])


def test_a_failure_names_its_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_bad(): assert False")
    result = pytester.runpytest_subprocess("--cuda-emulator", "--cuda-seed=random")
    result.stdout.re_match_lines([r"2 devices .*seed (\d+), .*; --cuda-seed=\1 draws the same"])


def test_faults_end_with_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
from cuda.bindings import driver

def test_one(cuda_emulator):
    cuda_emulator.faults = "cuInit:*:NO_DEVICE"
    assert driver.cuInit(0)[0] == driver.CUresult.CUDA_ERROR_NO_DEVICE

def test_two(cuda_emulator):
    assert cuda_emulator.faults == ()
    assert driver.cuInit(0)[0] == 0
""")
    pytester.runpytest_subprocess("--cuda-emulator").assert_outcomes(passed=2)


LEAKS = """
import pytest
from cuda_emulator import compile_kernels
from cuda.core import Device, LaunchConfig, ObjectCode, launch
from cuda.bindings import driver

def test_leaks():
    Device(0).set_current()
    assert driver.cuMemAlloc(1000)[0] == 0

def test_is_clean():
    Device(0).set_current()
    address = driver.cuMemAlloc(1000)[1]
    driver.cuMemFree(address)

def test_writes_too_far():
    Device(0).set_current()
    buffer = Device(0).allocate(1000, stream=Device(0).default_stream)
    image = compile_kernels('extern "C" __global__ void write(char *to) { to[1000] = 0; }')
    kernel = ObjectCode.from_cubin(image).get_kernel("write")
    launch(Device(0).default_stream, LaunchConfig(grid=1, block=1), kernel, buffer)
    with pytest.raises(Exception, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        Device(0).default_stream.sync()
"""


def test_what_a_test_leaves_behind_is_reported_when_asked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKS)
    pytester.runpytest_subprocess("--cuda-emulator").assert_outcomes(passed=3)
    result = pytester.runpytest_subprocess("--cuda-emulator", "--cuda-strict")
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(
        ["1000 bytes of device, pinned or managed memory were allocated and not freed", "out of bounds: *"]
    )
