"""What a study says: its plan before it runs; afterwards study.json and report.md, the verdict first.

The report follows from study.json alone: `again` makes that of an old study with today's words.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from blockwise import UserError, print0
from blockwise.curves import SPIKE_DEVIATIONS, SPIKE_HEIGHT, SPIKE_ROWS
from blockwise.files import write_text
from blockwise.study.plan import TWICE, shown_point, tokens_of
from blockwise.study.rules import middle
from blockwise.study.space import RATE
from blockwise.study.summary import facts, judged, losses_of
from blockwise.study.verdict import ALPHA, BAD_START, sentence, spread


def print_plan(study):
    config, runs = study.config, study.runs()
    for comparison in study.comparisons:
        print0(comparison)
        for arm in config.arms:
            print0(f"  {arm + ':':<20} {searched_by(study, comparison, arm)}")
    for key, values in config.tune.items():
        print0(f"  {key + ':':<20} {', '.join(f'{value:g}' for value in values)}, tuned from the arm's own")
    for axis in study.axes.values():
        print0(f"  {axis.key + ':':<20} {axis.low:g} to {axis.high:g}{' (log)' if axis.log else ''}")
    grows = f"; a grid whose best lies at an end {extended(asdict(config))}"
    if study.axes:
        rungs = [f"{share:g} of the steps with {n:g} seeds, the best {keep:g} go on" for share, n, keep in config.rungs]
        print0(f"the search, from seed {study.search_seed} on: {config.points} points of each arm, {'; '.join(rungs)}")
        grows = ""
    single = sorted({tokens_of(settings) for (_, arm), settings in study.settings.items() if not arm.endswith(TWICE)})
    twice = f"; {config.baseline} again with twice the steps" if config.twice else ""
    looks = f", a look after {', '.join(map(str, config.looks))}" if config.looks else ""
    sizes = " or ".join(f"{n:,}" for n in single)
    print0(f"a run: {sizes} tokens; {len(config.seeds)} seeds at each arm's best{looks}{twice}")
    left, done = study.tokens_left(), [run for run in runs if study.result(run)]
    print0(f"at least {left + sum(tokens_of(run.config) for run in done):,} tokens in all{grows}")
    if speed := study.speed():
        hours = left / speed / 3600
        print0(f"{len(done)} runs are done; the rest: {hours:.1f} h, divided by the number of runs side by side")
    else:
        print0("time: known once the first run is done (--max_iters=50 --out_dir=out/try gives a quick idea)")


def searched_by(study, comparison, arm):
    """What an arm's search covers: the keys of a Sobol search, or the first learning rates and their floors."""
    rates = sorted(study.config.learning_rates[arm])
    if study.axes:
        keys = "nothing" if arm in study.config.untuned else ", ".join((RATE, *study.keys(comparison, arm)))
        return f"{keys}, the rate around {middle(rates):g}"
    start, texts = study.start(comparison, arm), []
    for rate in rates:
        floor = study.run_of(comparison, arm, (rate, *start), study.search_seed).config.resolved().min_lr
        texts.append(f"{rate:g} (to {floor:g}{', above it' if floor > rate else ''})")
    return f"learning rate (to its floor) {', '.join(texts)}"


def extended(study):
    return f"is extended, by up to {study['extensions']} rates" if study["extensions"] else "is left as it is"


# ---------------------------------------------------------------------------------------------------------------------
# report.md


def report(found, name):
    """The text of report.md: the verdict first, then each comparison, then every run that did not end well."""
    study = found["study"]
    lines = [f"# {name}", "", *[f"**{line}**\n" for line in found["verdicts"]], *about(found), ""]
    for comparison, arms in found["places"].items():
        heads = ["arm", "best learning rate", "floor", "mean loss", "deviation", "bad starts", "spikes"]
        heads += ["gap", "95 % interval", "p", "verdict", "speedup"]
        lines += [f"## {comparison}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [table_row(arm, one) for arm, one in arms.items()]
        lines += [""]
        if len(found["places"]) > 1:
            lines += [f"{sentence(a, study['baseline'], one['test'])}.\n" for a, one in arms.items() if "test" in one]
        lines += ["Learning rate (its floor): loss" + (", of the first rung" if study.get("space") else ""), ""]
        lines += [f"- {arm}: {'; '.join(map(shown_loss, one['sweep']))}" for arm, one in arms.items()]
        tuned = {arm: one for arm, one in arms.items() if one.get("tuned")}
        if tuned:
            lines += ["", "The whole search: learning rate and what follows it in the table: loss", ""]
            lines += [search_line(arm, one) for arm, one in tuned.items()]
        if any(len(one["best_of"]) > 1 for one in arms.values()):
            lines += ["", "The luck of each search: the best of k of its points, as their median over all draws", ""]
            lines += [luck_line(arm, one) for arm, one in arms.items() if len(one["best_of"]) > 1]
        lines += [""]
    lines += ["![loss against learning rate](learning_rates.png)", "", "![validation loss](curves.png)", ""]
    bad = [run for run in found["runs"] if run["status"] != "finished"]
    lines += ["## Runs that diverged or failed", ""]
    lines += [f"- {run['run']}: {run['status']}" for run in bad] or ["None."]
    arms = [f"{arm} (`{args.strip()}`)" if args.strip() else arm for arm, args in study["arms"].items()]
    lines += ["", f"Arms: {', '.join(arms)}. Runs made by commit {', '.join(found['commits']) or 'unknown'}."]
    lines += ["Every key is in study.json; out_dir/runs has each run, with the job.py that repeats it.", ""]
    return "\n".join(lines)


def about(found):
    """How the study was made and how to read its tables."""
    study = found["study"]
    seeds, first = study["seeds"], study.get("search_seed", study["seeds"][0])
    tokens = " or ".join(f"{n:,}" for n in found["tokens"])
    judged_by = "the same validation sequences as the result"
    if study.get("test_loss"):
        judged_by = "the first half of the validation text, of which the result is the second"
    if study.get("search") == "sobol":
        search = (
            f"the best of {study['points']} quasi-random points, the same for all arms, halved over budgets and seeds"
        )
    else:
        keys = f", and with it {', '.join(study['tune'])}, one after the other," if study.get("tune") else ""
        search = f"the best of its own sweep{keys}; a grid whose best lies at an end {extended(study)}"
    fresh = f"The search began with seed {first}; none of its seeds is in the verdict."
    if set(study.get("untuned", ())) >= set(study["arms"]):
        fresh = "Nothing was searched: every arm is taken as it is."
    elif first in seeds:
        fresh = f"The search was made with seed {first}, which counts in the verdict too and favours every arm there."
    yield (
        f"Final validation loss, in nats per token, of runs of {tokens} tokens. An arm's learning rate (that of Norm) "
        f"is {search}; judged by {judged_by}. {fresh} The floor is what the rate falls to."
    )
    yield ""
    runners_up = (
        "A lead must hold against each of the other's runners-up too, which ran with the same seeds. "
        if any("runners_up" in one for arms in found["places"].values() for one in arms.values())
        else ""
    )
    yield (
        f"Gap: arm minus {study['baseline']}, paired by seed ({', '.join(map(str, seeds))}), so below zero the arm is "
        "better. p is of a paired t-test, by Holm's method over the arms. Lower or higher: p below 0.05; by more than "
        f"{study.get('margin', 0.01):g}: the same against a gap of that size; equivalent: the 90 % interval is inside; "
        f"undecided: anything may be true. {runners_up}Bad starts: seeds more than {BAD_START} above the arm's median."
    )
    yield ""
    yield (
        f"Spikes, one number a seed: how often the training loss stood more than {SPIKE_HEIGHT} nats, and more than "
        f"{SPIKE_DEVIATIONS} standard deviations, above the median of the {SPIKE_ROWS} logged steps before it; "
        "steps in a row are one spike."
    )


def search_line(arm, one):
    budgets = {row.get("budget", 1) for row in one["search"]}
    texts = []
    for row in one["search"]:
        remark = f" ({row['budget']:g} of the steps, seed {row['seed']})" if len(budgets) > 1 else ""
        texts.append(f"{' '.join(f'{n:g}' for n in row['point'])}{remark}: {shown(row['loss'])}")
    return f"- {arm}: {'; '.join(texts)}"


def luck_line(arm, one):
    text = "; ".join(f"{k}: {shown(loss) if math.isfinite(loss) else 'diverged'}" for k, loss in one["best_of"].items())
    for other, losses in zip(one.get("runners_up", ()), losses_of(one)[1:], strict=True):
        text += f". Runner-up: {shown_point(other['point'], one['tuned'])}, mean loss {shown(spread(losses)[0])}"
    return f"- {arm}: {text}"


def shown_loss(p):
    return f"{p['learning_rate']:g} ({p['floor']:g}): {p['status'] if p['loss'] is None else shown(p['loss'])}"


def table_row(arm, one):
    test, speed, tuned = one.get("test"), one.get("speedup"), one.get("tuned", {})
    at_end = f" (near an end: {', '.join(one['ends'])})" if one["ends"] else ""
    cells = [arm, "-" if one["best"] is None else shown_point((one["best"], *tuned.values()), tuned) + at_end]
    floor = next((p["floor"] for p in one["sweep"] if p["learning_rate"] == one["best"]), None)
    lost = sum(loss is None for loss in one["losses"].values())
    cells += ["-" if floor is None else f"{floor:g}", shown(one["mean"]) + (f" ({lost} diverged)" if lost else "")]
    spikes = one.get("spikes", {}).values()
    cells += [shown(one["deviation"]), f"{one['bad_starts']} of {len(one['losses'])}" if one["losses"] else "-"]
    cells += [", ".join("-" if n is None else str(n) for n in spikes)]
    cells += ["", "", "", ""] if not test or test["gap"] is None else shown_test(test)
    return f"| {' | '.join([*cells, shown_speedup(speed) if one['role'] == 'arm' else ''])} |"


def shown_test(test):
    """Gap, interval, p and verdict."""
    if test["low"] is None:
        return [shown(test["gap"], "+"), "-", "-", test["word"]]
    remark = "" if test["alpha"] == ALPHA else f" ({100 * (1 - test['alpha']):.3g} %)"
    interval = f"{test['low']:+.4f} to {test['high']:+.4f}{remark}"
    return [shown(test["gap"], "+"), interval, f"{test['p']:.2g}", test["word"]]


def shown_speedup(speed):
    if speed is None:
        return "not measured"
    seeds = "one seed" if speed["low"] is None else f"{speed['low']:.2f} to {speed['high']:.2f}"
    return f"{speed['ratio']:.2f}x ({seeds}" + (f", {speed['unread']} unread)" if speed.get("unread") else ")")


def shown(number, sign=""):
    return "-" if number is None else f"{number:{sign}.4f}"


# ---------------------------------------------------------------------------------------------------------------------


def compact(value, indent=0):
    """JSON with a line for each run, curve and point: an object is broken up only where it holds others."""
    line = json.dumps(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(x, dict) or (isinstance(x, list) and x and isinstance(x[0], list)) for x in inner):
        return line
    pad, named = "\n" + " " * (indent + 1), isinstance(value, dict)
    items = [compact(x, indent + 1) for x in inner]
    if named:
        items = [f"{json.dumps(key)}: {item}" for key, item in zip(value, items, strict=True)]
    return line[0] + pad + f",{pad}".join(items) + pad[:-1] + line[-1]


def save(found, folder):
    write_text(folder / "study.json", compact(found) + "\n")
    write_text(folder / "report.md", report(found, folder.name))


def write(study):
    """study.json and report.md; returns what study.json holds."""
    found = judged(facts(study))
    save(found, study.folder)
    return found


def again(folder):
    """study.json and report.md of a study that is done, with today's words; nothing is run."""
    folder = Path(folder)
    try:
        save(judged(json.loads((folder / "study.json").read_text())), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: expected the folder of a finished study ({cause})") from None
