"""Settings that must hold before JAX starts: four devices on the CPU, and folders of the tests' own."""

import contextlib
import json
import logging
import os
import tempfile
from fnmatch import fnmatch
from pathlib import Path

_SHARED = Path(tempfile.gettempdir()) / f"gen_jax-tests-{os.getuid()}"
_SHARED.mkdir(mode=0o700, exist_ok=True)
# Most tests compile for longer than they run: without optimizations, by the older and quicker emitters, and what was
# compiled once is read from a folder that both workers share.
QUICK_COMPILATION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4 " + QUICK_COMPILATION
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TFDS_DATA_DIR", str(_SHARED / "data"))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_SHARED / "compiled")

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
_MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_mappings():
    """Lets go of compiled programs in time: each kernel of XLA on a CPU holds mappings of memory, of which Linux allows
    a process 65,530 (`vm.max_map_count`); the compiler dies of a segmentation fault at the next."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def optimizations(request):
    """Compiles with all optimizations where the mark `optimized` asks for it: tests of compiled programs, of speed, or
    of long trainings."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def same():
    """Asserts that two pytrees are equal bit for bit (or within `rtol`), PRNG keys included."""

    def check(a, b, rtol=0.0, atol=0.0):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
            x, y = (
                jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y)
            )
            x, y = np.asarray(x), np.asarray(y)
            assert x.dtype == y.dtype, jax.tree_util.keystr(path)
            if rtol or atol:
                np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
            else:
                np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))

    return check


@pytest.fixture
def compilations():
    """Counts what is compiled for a function: `with compilations("advance") as seen: ...; assert len(seen) == 1`."""

    @contextlib.contextmanager
    def watch(name):
        seen = []

        class Listen(logging.Handler):
            def emit(self, record):
                message = record.getMessage()
                if message.startswith("Compiling") and name in message.partition(" with ")[0]:
                    seen.append(message)

        handler, logger = Listen(), logging.getLogger("jax._src.interpreters.pxla")
        logger.addHandler(handler)
        try:
            with jax.log_compiles(True):
                yield seen
        finally:
            logger.removeHandler(handler)

    return watch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test with many cases, `make test` runs those that the mark `representatives` names (`fnmatch` patterns of
    their ids); the others are slow. Tests that wait for other processes start first: the other worker compiles."""
    for item in items:
        named = item.get_closest_marker("representatives")
        if named and not any(fnmatch(item.callspec.id, pattern) for pattern in named.args):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != "test_reliability.py")


# --- time: each file's seconds are printed, and held against what budgets.json records

BUDGETS = Path(__file__).parent / "budgets.json"
_SECONDS: dict[str, float] = {}


def pytest_addoption(parser):
    parser.addoption("--record-budgets", action="store_true", help="write the seconds of each file to budgets.json")


def pytest_runtest_logreport(report):
    _SECONDS[report.location[0]] = _SECONDS.get(report.location[0], 0.0) + report.duration


def pytest_terminal_summary(terminalreporter, config):
    whole = config.option.markexpr == "not slow" and not config.option.keyword and len(_SECONDS) > 10
    if not whole or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if config.option.record_budgets:
        rounded = {name: round(seconds, 1) for name, seconds in sorted(_SECONDS.items())}
        BUDGETS.write_text(json.dumps(rounded, indent=2) + "\n")
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    # Budgets are seconds on the machine that recorded them, stretched where all files take longer than there.
    shared = sum(budgets.get(name, 0.0) for name in _SECONDS)
    slower = max(1.0, sum(_SECONDS.values()) / shared) if shared else 1.0
    terminalreporter.section("seconds by file")
    late = []
    for name, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        allowed = 1.5 * slower * budgets.get(name, 20.0) + 60  # for what the first file in a worker compiles
        terminalreporter.line(f"{seconds:7.1f}  {name}  (budget {slower * budgets.get(name, 20.0):.1f})")
        late += [name] if seconds > allowed else []
    if late and budgets and os.environ.get("CI"):
        terminalreporter.line(f"over budget by half: {', '.join(late)}", red=True)
        terminalreporter._session.exitstatus = 1
