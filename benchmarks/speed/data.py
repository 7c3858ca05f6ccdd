"""Input: images per second from files to the device, against PyTorch and tf.data; waiting, memory, start and packing.

python -m benchmarks.speed.data [--only files]          (needs the `bench` extra)

The data is made by the benchmark: 20,000 JPEGs of 128x128 pixels, 100,000 small ones, and a prepared set of 8 GB.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Report, in_turns, options, peak_megabytes  # before PyTorch: it keeps TensorFlow out

import jax  # isort: skip
import numpy as np
import optax
from PIL import Image

from benchmarks.rivals import Elsewhere, answer
from gen_jax.algorithms import descent
from gen_jax.data import load
from gen_jax.data.cache import open_arrays
from gen_jax.data.folders import index_folder
from gen_jax.data.shards import pack
from gen_jax.data.source import Streamed
from gen_jax.loop import program
from gen_jax.models.common.likelihoods import DiscretizedLogistic
from gen_jax.models.common.networks import ConvDecoder, ConvEncoder, pyramid
from gen_jax.models.vae import VAE

FILES, SIZE, BATCH, PART = 20_000, 128, 128, 16_000  # images per timed part
HOME = Path(os.environ.get("GEN_JAX_BENCH_DATA") or Path(tempfile.gettempdir()) / "gen_jax-bench-data")
WORKERS, AHEAD = 2, 8  # batches read ahead, by ours and by tf.data


def jpegs(folder: Path, count: int, size: int) -> Path:
    """A folder of smooth random images with noise, as large in bytes as photographs of this size."""
    if folder.is_dir():
        return folder
    rng, draft = np.random.default_rng(0), folder.with_name(f"{folder.name}-incomplete")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for i in range(count):
        base = rng.normal(size=(size // 8, size // 8, 3)).cumsum(0).cumsum(1)
        base = np.uint8((base - base.min()) / np.ptp(base) * 255)
        smooth = np.asarray(Image.fromarray(base).resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
        image = np.clip(smooth + rng.integers(-10, 11, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(draft / f"{i:06d}.jpg", quality=90)
    draft.rename(folder)
    return folder


def feed(arrays) -> Callable[[], None]:
    """Reads PART images of a source to the device, going on where the last call stopped."""
    source, at = Streamed.of({"x": arrays["x"]}, BATCH), [0]

    def run() -> None:
        for _ in range(PART // BATCH):
            window = source.window(at[0], 1)
            jax.block_until_ready(window.batches)
            at[0] += 1

    return run


def pytorch(files: Path) -> Callable[[], None]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    root = files.parent / "by_class"  # ImageFolder wants a folder of classes
    if not root.is_dir():
        root.mkdir()
        (root / "all").symlink_to(files)
    loader = DataLoader(ImageFolder(root, PILToTensor()), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    batches = iter(loader)

    def run() -> None:
        nonlocal batches
        for _ in range(PART // BATCH):
            try:
                next(batches)
            except StopIteration:
                batches = iter(loader)
                next(batches)

    return run


def tf_data(files: Path) -> Callable[[], None]:
    import tensorflow as tf

    names = [str(path) for path in sorted(files.iterdir())]
    read = lambda name: tf.io.decode_jpeg(tf.io.read_file(name), channels=3)
    data = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names)).repeat()
    data = data.map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(AHEAD)
    batches = iter(data)

    def run() -> None:
        for _ in range(PART // BATCH):
            next(batches)

    return run


RIVALS = {"PyTorch DataLoader": pytorch, "tf.data": tf_data}


def throughput(report: Report) -> None:
    files = jpegs(HOME / "files", FILES, SIZE)
    streamed = load(files, decode="stream")
    packed = HOME / "packed"
    if not (packed / "info.json").is_file():
        start = time.perf_counter()
        sizes = pack(streamed, packed)
        seconds = time.perf_counter() - start
        report.fact("data pack, from JPEGs of 128x128", FILES / seconds, "images/s")
        report.fact("size of the shards", sum(sizes.values()) / FILES / (SIZE * SIZE * 3), "bytes per value")
    ours = {"files": streamed, "ArrayRecord": load(packed), "prepared uint8": load(files, decode="once")}
    runs = {name: feed(data["train"]) for name, data in ours.items()}
    rivals = {name: Elsewhere(__spec__.name, name) for name in RIVALS}
    bare = reader(ours["ArrayRecord"]["train"]["x"].records.paths)
    times = in_turns({**runs, **rivals, "bare reader": bare}, rounds=5)
    for name, target in (("files", ">= 1"), ("ArrayRecord", ">= 3"), ("prepared uint8", ">= 3")):
        better = min(RIVALS, key=lambda rival: times[rival])
        for rival in RIVALS:
            what = f"{PART:,} images of {SIZE}x{SIZE} from {'JPEG ' if name == 'files' else ''}{name}"
            goal = target if rival == better else ""
            why = (
                "the reader of the ArrayRecord library is no faster with records of 48 kB"
                if name == "ArrayRecord"
                else ""
            )
            report.row(what, times[name], f"{rival}, JPEG files, {WORKERS} cores", times[rival], goal, why=why)

    report.fact("the ArrayRecord library's own reader, from those shards", PART / times["bare reader"], "images/s")


def reader(paths) -> Callable[[], None]:
    """The library's reader alone, which returns lists of bytes."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source, rng = ArrayRecordDataSource(paths), np.random.default_rng(0)

    def run() -> None:
        for _ in range(PART // BATCH):
            source.__getitems__(rng.integers(0, len(source), BATCH).tolist())

    return run


class Watched(Streamed):
    """A streamed source that notes how long the loop waits for it."""

    waited = 0.0

    def window(self, step: int, n: int):
        start = time.perf_counter()
        found = super().window(step, n)
        Watched.waited += time.perf_counter() - start
        return found


def waiting(report: Report) -> None:
    """The share of the time of `fit` that the loop spends in the source."""
    rng = np.random.default_rng(0)
    for what, side, channels, levels, batch, steps in (
        ("vae_digits", 8, 1, 17, 128, 600),
        ("a VAE of 64x64 RGB images", 64, 3, 256, 32, 40),
    ):
        path = HOME / f"x{side}.npy"
        if not path.exists():
            HOME.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.integers(0, levels, (4000, side, side, channels), np.uint8))
        widths, pixel = pyramid((side, side), 32), DiscretizedLogistic(levels)
        decoder = ConvDecoder((side, side), widths[:1] * len(widths), pixel.channels * channels)
        model = VAE(ConvEncoder(widths, 128, 32), decoder, pixel, 16)
        x = {"x": np.load(path, mmap_mode="r")}
        ready = program(descent(model, {"vae": optax.adam(1e-3)}), Watched.of(x, batch))
        state = ready.run(5)
        Watched.waited, start = 0.0, time.perf_counter()
        jax.block_until_ready(ready.run(5 + steps, state=state))
        share = 100 * Watched.waited / (time.perf_counter() - start)
        report.fact(f"time of fit spent waiting for data, {what}", share, "%", "< 2")


def many_files(report: Report) -> None:
    files = jpegs(HOME / "many", 100_000, 16)
    cold = HOME / "cold"
    shutil.rmtree(cold, ignore_errors=True)
    for what, where in (("for the first time", cold), ("again", cold)):
        start = time.perf_counter()
        index_folder(files, where)
        report.fact(f"indexing 100,000 files, {what}", time.perf_counter() - start, "s")
    start = time.perf_counter()
    source = Streamed.of(load(files, cold, decode="stream")["train"], BATCH)
    jax.block_until_ready(source.window(0, 1).batches)
    report.fact("first batch of 100,000 indexed files", time.perf_counter() - start, "s")
    start = time.perf_counter()
    jax.block_until_ready(source.window(10**6, 1).batches)
    report.fact("resuming at step 1,000,000", time.perf_counter() - start, "s", "< 1")
    source.close()
    report.fact("peak memory of reading 100,000 files", peak_megabytes(__spec__.name, "many") / 1000, "GB")


def large(report: Report) -> None:
    path = HOME / "large" / "train"
    if not (path / "x.npy").exists():
        path.mkdir(parents=True, exist_ok=True)
        rng, rows = np.random.default_rng(0), 8 * 2**30 // (64 * 64 * 3)
        with open(path / "x.tmp", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 64, 64, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            block = rng.integers(0, 256, (4096, 64, 64, 3), np.uint8)
            for start in range(0, rows, 4096):
                file.write(np.roll(block, start, axis=0)[: rows - start].data)
        (path / "x.tmp").rename(path / "x.npy")
    report.fact("peak memory of training on 8.6 GB", peak_megabytes(__spec__.name, "large") / 1000, "GB", "< 1.5")


def train_on_large() -> None:
    """Trains on the large set and evaluates on it, as `train.py` would."""
    from gen_jax.evaluation import elbo, sample_quality
    from gen_jax.evaluation.metric import Split
    from gen_jax.evaluation.samples.features import raw

    data = open_arrays("large", HOME / "large")
    model = VAE(ConvEncoder((8, 8), 16, 8), ConvDecoder((64, 64), (8, 8), 6), DiscretizedLogistic(256), 4)
    ready = program(descent(model, {"vae": optax.adam(1e-3)}), Streamed.of(data["train"], 128))
    state = ready.run(200)
    split = Split("train", data["train"], batch=256, training=data["train"], levels=256)
    few = split.part(0, 20_000)
    for metric in (elbo, sample_quality(raw, 2000)):
        print(metric(model)(state, few._replace(training=data["train"]), jax.random.key(0)))


def read_many() -> None:
    source = Streamed.of(load(HOME / "many", HOME / "cold", decode="stream")["train"], BATCH)
    for step in range(200):
        source.window(step, 1)
    source.close()


CASES = {"large": train_on_large, "many": read_many}


def main() -> None:
    os.environ["TFDS_DATA_DIR"] = str(HOME / "data")
    case = options().case
    if case in CASES:
        CASES[case]()
        status = Path("/proc/self/status").read_text().splitlines()  # rusage would include the parent before exec
        print(int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1000)
        return
    if case:
        run = RIVALS[case.partition("/")[0]](HOME / "files")

        def timed(line: str) -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        answer(timed)
        return
    report = Report("data")
    for part in (throughput, waiting, many_files, large):
        if report.options.only in part.__name__:
            part(report)
    report.note(f"Each of {FILES:,} JPEGs has {SIZE}x{SIZE} pixels; batches of {BATCH}; shuffled; files in memory.")
    report.finish()


if __name__ == "__main__":
    main()
