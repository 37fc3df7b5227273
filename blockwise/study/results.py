"""results.jsonl: a line a finished run, from which a study goes on anywhere, in a new clone or on another machine."""

import json
import os
from pathlib import Path

from blockwise import warn
from blockwise.curves import read_rows
from blockwise.settings import given_only
from blockwise.study.identity import fingerprint

POINTS = 20  # of a run, at which its line states what every block did
STATED = ("grad_norm/", "update_rms/")  # keys of metrics.jsonl that a line has of every block
ELSEWHERE = ("out_dir", "init_from", "data_dir")  # keys that depend on where a run is made


class ResultsFile:
    """The finished runs that a study has written down. Two such files merge by appending one to the other."""

    def __init__(self, path):
        """Reads what is there; of two lines about one run the first counts, and a broken line is none."""
        self.path, self.results = Path(path), {}
        text = self.path.read_bytes() if self.path.is_file() else b""
        self.torn = text != b"" and not text.endswith(b"\n")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                result = json.loads(line)
                self.results.setdefault(result["identity"], checked(result))
            except (ValueError, KeyError, TypeError) as error:
                warn(f"{self.path}, line {number} is broken ({error}): its run is repeated unless its folder is there")

    def add(self, run, result):
        """Append the line of a run that is done, unless it has one."""
        name = run.folder.name
        if name in self.results:
            return
        settings = {key: value for key, value in changed(run.config).items() if key not in ELSEWHERE}
        data = fingerprint(run.config.data_dir, run.config.dataset)
        line = json.dumps({"identity": name, "settings": settings, "data": data, **result})
        with open(self.path, "a") as file:
            file.write(("\n" if self.torn else "") + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.results[name], self.torn = result, False


def changed(config):
    """{key: value} of a config, without what is at its default."""
    given, default = ({key: given_only(value) for key, value in vars(c).items()} for c in (config, type(config)()))
    return {key: value for key, value in given.items() if value != default[key]}


def checked(result):
    """A result as a study wrote it; raises ValueError, KeyError or TypeError for anything else."""
    numbers = [x for point in result["curve"] for x in point]
    numbers += [result["seconds"] or 0, *([result["loss"]] if result["status"] == "finished" else [])]
    if result["status"] not in ("finished", "diverged") or not all(x * 0 == 0 for x in numbers):
        raise ValueError("not what a study writes")
    return {key: result[key] for key in ("status", "loss", "curve", "seconds")} | {
        key: result.get(key) for key in ("test", "spikes", "blocks", "versions", "machine")
    }


def read_result(folder):
    """The result in a run's folder; what its result.json does not state, as those of earlier versions, by its files."""
    result = checked(json.loads((folder / "result.json").read_text()))
    return result if result["versions"] else result | circumstances(folder)


def circumstances(folder):
    """{"blocks", "versions", "machine"} of the run in a folder, None where its files do not say."""
    try:
        config = json.loads((folder / "config.json").read_text())
        versions = {key: config.get(key) for key in ("python", "torch", "commit")}
        return {"blocks": blocks(read_rows(folder)), "versions": versions, "machine": config.get("machine")}
    except (OSError, ValueError, AttributeError):
        return {"blocks": None, "versions": None, "machine": None}


def blocks(rows):
    """What each block did along the run: {"step": [...], "update_rms/QK": [...], ...}, None where a row has no value.

    At the last logged step of every twentieth of the run; to five digits.
    """
    logged = [row for row in rows if any(key.startswith(STATED) for key in row)]
    ends = [rows[-1]["step"] * part / POINTS for part in range(1, POINTS + 1)] if rows else []
    chosen = {row["step"]: row for end in ends for row in [r for r in logged if r["step"] <= end][-1:]}
    keys = sorted({key for row in chosen.values() for key in row if key.startswith(STATED)})
    return {"step": list(chosen), **{key: [five(row.get(key)) for row in chosen.values()] for key in keys}}


def five(value):
    """Five digits, which is what a curve is good for."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
