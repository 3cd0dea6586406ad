"""The statistics of a run in one file of bounded size, for places that hold no job folder: numpy's .npz, compressed, nothing pickled.

    format                   int64, 1
    norms/layers             text (L,), network order
    norms/steps              int64 (S,), optimizer steps from 1 on
    norms/norms              float32 (S, L), of each layer's gradient before clipping
    norms/measured           int64, rows that there are in all; S of them are here
    probes/layers            text (L,)
    probes/activations       text (A,), modules
    probes/steps             int64 (P,)
    probes/cost_share        float64 (P,), what watching cost so far, over the steps' own time
    probes/weight_norms      float32 (P, L), and so each statistic of ``probe_rows.STATISTICS``; NaN where one does not apply
    probes/silent            float32 (P, A), and so each of ``probe_rows.ACTIVATION_STATISTICS``
    probes/histograms        uint16 (P, L, 48), in 65535ths: see workers/watch/probe_files.py
    probes/measured          int64
    ranks/steps              int64 (Q,)
    ranks/norms              float32 (Q, R), of each rank's own gradient, NaN where it was not measured; so are ranks/samples and ranks/losses
    ranks/checksums          uint64 (Q, R), of the parameters; 0 where none was taken
    ranks/measured           int64

Norms, probes and ranks are thinned to ``MOST_BYTES`` each, before compression: the first rows and the first that are not finite stay, then evenly
spaced ones and the last. What a job has nothing of is not in the file.
"""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.gradient_files import GradientReader, GradientWriter
from workers.watch import rank_files
from workers.watch.probe_files import ProbeWriter, count_records, read_records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.jobfolder import JobFolder

FORMAT = 1
MOST_BYTES = 8 << 20  # of the norms, of the probes, and of the ranks
FIRST_ROWS = 32  # against which later ones are judged
NONFINITE_ROWS = 32
RESTORED = 2  # attempt


def write(path: Path, folder: JobFolder, most_bytes: int = MOST_BYTES) -> None:
    """Reads no more of the job's folder than is kept, the index of its norms, and what its ranks had, which is small."""
    import numpy as np

    arrays: dict[str, Any] = {"format": np.int64(FORMAT)}
    arrays |= _norms(folder.gradients_path, most_bytes) | _probes(folder.probes_path, most_bytes)
    arrays |= _ranks(folder.ranks_path, most_bytes)
    np.savez_compressed(path, **arrays)


def restore(path: Path, folder: JobFolder) -> None:
    """Puts rows back into a job's folder, as a second attempt: norms that are there already are the same.

    Raises ValueError where ``path`` is no such file.
    """
    import numpy as np

    try:
        # Opened here: NumPy leaves what it cannot read open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is no file of statistics, or not all of it: {error}") from error
    if int(arrays.get("format", 0)) != FORMAT:
        raise ValueError(f"{path.name}: format {arrays.get('format')}; this version reads {FORMAT}.")
    if "norms/steps" in arrays:
        rows = zip(arrays["norms/steps"].tolist(), arrays["norms/norms"], strict=True)
        GradientWriter(folder.gradients_path, RESTORED).append(arrays["norms/layers"].tolist(), list(rows))
    if "probes/steps" in arrays:
        _restore_probes(arrays, folder.probes_path)
    if "ranks/steps" in arrays:
        _restore_ranks(arrays, folder.ranks_path)


def _norms(folder: Path, most_bytes: int) -> dict[str, Any]:
    import numpy as np

    reader = GradientReader(folder)
    if not len(reader.steps):
        return {}
    positions = chosen(len(reader.steps), most_bytes // (4 * len(reader.layers) + 8), ~np.isfinite(reader.norms))
    matrix = reader.read(positions)
    return {
        "norms/layers": np.array(matrix.layers),
        "norms/steps": matrix.steps,
        "norms/norms": matrix.norms,
        "norms/measured": np.int64(len(reader.steps)),
    }


def _probes(folder: Path, most_bytes: int) -> dict[str, Any]:
    import numpy as np

    from workers.watch.probe_rows import ACTIVATION_STATISTICS, STATISTICS

    rows, row_bytes = count_records(folder)
    found = read_records(folder, chosen(rows, most_bytes // row_bytes)) if rows else None
    if found is None:
        return {}
    names, records = found
    return {
        "probes/layers": np.array(names.layers),
        "probes/activations": np.array(names.activations, dtype=str),
        "probes/steps": records["step"],
        "probes/cost_share": records["cost_share"],
        "probes/histograms": records["histograms"],
        "probes/measured": np.int64(rows),
        **{f"probes/{name}": records["statistics"][:, index] for index, name in enumerate(STATISTICS)},
        **{f"probes/{name}": records["activations"][:, index] for index, name in enumerate(ACTIVATION_STATISTICS)},
    }


def _restore_probes(arrays: dict[str, NDArray[Any]], folder: Path) -> None:
    import numpy as np

    from workers.watch.probe_rows import ACTIVATION_STATISTICS, STATISTICS, Names, record_type

    names = Names(tuple(arrays["probes/layers"].tolist()), tuple(arrays["probes/activations"].tolist()))
    records = np.zeros(len(arrays["probes/steps"]), dtype=record_type(names))
    records["step"], records["cost_share"] = arrays["probes/steps"], arrays["probes/cost_share"]
    records["histograms"] = arrays["probes/histograms"]
    for index, name in enumerate(STATISTICS):
        records["statistics"][:, index] = arrays[f"probes/{name}"]
    for index, name in enumerate(ACTIVATION_STATISTICS):
        records["activations"][:, index] = arrays[f"probes/{name}"]
    rows = [base64.b64encode(record.tobytes()).decode() for record in records]
    ProbeWriter(folder, RESTORED).append(names.layers, names.activations, rows)


def _ranks(folder: Path, most_bytes: int) -> dict[str, Any]:
    import numpy as np

    from workers.watch.rank_rows import FIELDS

    records = rank_files.read_records(folder)
    if records is None:
        return {}
    finite = np.isfinite(records["norms"])
    off = (finite.any(axis=1) & ~finite.all(axis=1)) | ~np.isfinite(records["losses"]).all(axis=1)
    kept = records[chosen(len(records), most_bytes // records.dtype.itemsize, off)]
    columns = {f"ranks/{name}": kept[name] for name in FIELDS}
    return {"ranks/steps": kept["step"], "ranks/measured": np.int64(len(records)), **columns}


def _restore_ranks(arrays: dict[str, NDArray[Any]], folder: Path) -> None:
    import numpy as np

    from workers.watch.rank_rows import FIELDS, record_type

    steps = arrays["ranks/steps"]
    records = np.zeros(len(steps), dtype=record_type(arrays["ranks/norms"].shape[1]))
    records["step"] = steps
    for name in FIELDS:
        records[name] = arrays[f"ranks/{name}"]
    rows = [base64.b64encode(record.tobytes()).decode() for record in records]
    rank_files.RankWriter(folder, RESTORED).append(rows, after=-1)


def chosen(rows: int, most: int, always: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Which of ``rows`` rows to keep, ascending: all, if they are no more than ``most``. At least one.

    Not the largest of each stretch, as for a heat map: who judges the rows needs them as they usually are.
    """
    import numpy as np

    most = max(1, most)
    if rows <= most:
        return np.arange(rows)
    first = np.arange(min(FIRST_ROWS, most // 4))
    special = np.flatnonzero(always)[: min(NONFINITE_ROWS, most // 4)] if always is not None else np.arange(0)
    kept = np.union1d(first, special)
    spread = np.linspace(len(first), rows - 1, most - len(kept)).astype(np.int64)
    spread[-1] = rows - 1
    return np.union1d(kept, spread)
