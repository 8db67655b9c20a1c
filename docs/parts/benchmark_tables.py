"""What the programs of benchmarks/ leave -> tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from parts.noted import Data, noted_table
from psvit.arch.arch import Arch
from psvit.report.tables import Table, to_markdown
from psvit.studies.study_tables import mean


def ranking(data: Data) -> str:
    """How supernets rank members, beside the ceiling of seed noise (benchmarks/ranking.py report)."""
    lines, groups = [], data["groups"]
    for row in data["supernets"]:
        options = row["options"]
        tried = (options[name] for name in ("entangle", "sampling") if name in options)  # in older files
        how = ", ".join([*tried, f"{options['draws']} a step"])
        how += ", sandwich" * options["sandwich"] + ", distilled" * options["distill"]
        lines.append((how, str(row["epochs"]), *(f"{row[f'tau_loss_{group}']:.2f}" for group in groups)))
    if "params" in data:
        lines.append(("the number of parameters", "", *(f"{data['params'][group]:.2f}" for group in groups)))
    lines.append(("one seed alone against the other", "", *(f"{data['ceiling'][group]:.2f}" for group in groups)))
    older = "Drawn: evenly from the feasible set; pooled: of two or three stages. " if "drawn" in groups else ""
    note = (
        f"Kendall's tau between the supernet's loss and the mean validation top-1 of {len(data['alone'])} trainings "
        f"alone; in brackets how many members. {older}"
        f"Standard deviation between seeds: {data['seed_noise']:.2f} points."
    )
    return noted_table(("supernet", "epochs", *(f"{name} ({count})" for name, count in groups.items())), lines, 1, note)


def worth(data: Data) -> str:
    """The searched network beside the default one at equal latency (benchmarks/search_worth.py)."""
    lines, pilot = [], data["pilot"]
    for row in data["rows"]:
        top1 = " ".join(f"{value:.2f}" for value in row["top1"])
        costs = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}", f"{row['ms']:.2f}"
        lines.append((row["name"], f"`{Arch.from_dict(row['arch'])}`", *costs, top1, f"{row['mean']:.2f}"))
    note = (
        f"Validation top-1, trained alone with seeds {', '.join(map(str, data['seeds']))}. ms: a batch of "
        f"{data['latency']['latency_batch']}, measured in turns. The gain is {data['gain']:+.2f} points, "
        f"{data['gain_in_seed_noises']:.1f} standard deviations between seeds ({data['seed_noise']:.2f}). The pilot "
        f"had found a gain of {pilot['gain']:.4f} nats and {pilot['noise']:.4f} between seeds: a search "
        f"{'can' if pilot['pays'] else 'cannot'} pay."
    )
    return noted_table(("network", "", "M MACs", "M params", "ms", "top-1 % by seed", "mean"), lines, 2, note)


def drawn(data: Data) -> str:
    """The searched network beside drawn members and the default one; made by an earlier benchmark."""
    lines = []
    for row in data["rows"]:
        top1 = " ".join(f"{value:.2f}" for value in row["top1"])
        network, macs = f"`{Arch.from_dict(row['arch'])}`", f"{row['macs'] / 1e6:.2f}"
        lines.append((row["name"], network, macs, top1, f"{row['mean']:.2f}", f"{row['fresh']:.2f}"))
    lines.append(("ten drawn members, mean", "", "", "", f"{data['drawn_mean']:.2f}", ""))
    seconds = data["train_seconds"] + data["score_seconds"]
    note = (
        "Validation top-1, trained alone. The best drawn one was chosen by seeds 1 and 2; 3 and 4 are fresh for all. "
        f"Standard deviation between seeds: {data['seed_noise_of_rows']:.2f} points over these three. The search took "
        f"as long as {seconds / data['alone_seconds']:.1f} trainings."
    )
    headings = "network", "", "M MACs", "top-1 % with seeds 1 to 4", "mean", "seeds 3 and 4"
    return noted_table(headings, lines, 2, note)


def scoring(data: Data) -> str:
    """The tree against members alone (benchmarks/scoring.py)."""
    lines = [
        ("on the tree", f"{data['tree_layers']:,}", f"{data['tree_seconds']:.0f}"),
        ("alone", f"{data['alone_layers']:,}", f"{data['alone_seconds']:.0f}"),
        ("ratio", f"{data['alone_layers'] / data['tree_layers']:.2f}", f"{data['times_faster']:.2f}"),
    ]
    note = (
        f"{data['members']:,} members on {data['images']} images. Alone: {data['sample']} members, scaled up to all; "
        f"{data['equal']} of {data['compared']} had the same score, bitwise."
    )
    return noted_table(("scoring", "layers", "seconds"), lines, 1, note)


def latency(data: Data) -> str:
    """Searches within budgets of latency, and what their networks took (benchmarks/latency.py)."""
    lines = []
    for row in data["searches"]:
        times = (f"{row[f'{what}_ms']:.2f}" for what in ("predicted", "measured", "again"))
        fit = f"{row['table']['kendall']:.2f}", f"{row['table']['median_error']:.1%}"
        network = f"`{row['genotype']} {'-'.join(map(str, row['widths']))}`"
        lines.append((f"{row['budget_ms']:g}", network, *times, f"{row['over']:+.1%}", *fit))
    headings = "budget ms", "network found", "predicted ms", "measured ms", "once more", "over", "tau", "median error"
    note = (
        f"Batch {data['config']['latency_batch']}, {data['config']['latency_dtype']}, {data['machine']['threads']} "
        "threads, digits. Once more: after all searches. Tau, median error: of the table of parts, on other networks."
    )
    return noted_table(headings, lines, 2, note)


def interrupted(data: Data) -> str:
    """A command killed again and again, or its disk filled (benchmarks/kills.py)."""
    kind, rows = ("times killed", data["killed"]) if "killed" in data else ("times full", data["full"])
    lines = [
        (f"`{row['command'].partition(' --')[0]}`{', evolution' * ('evolution' in row['command'])}", str(row["kills"]),
         ", ".join(row["differing"]) or "nothing") for row in rows
    ]  # fmt: skip
    return to_markdown(Table(("command", kind, "differs from the uninterrupted"), lines, 1))


def dense(data: Data) -> str:
    """Several backbones under one detector or segmenter, and which is ahead (benchmarks/dense.py)."""
    task, config = data["task"], data["config"]
    names, (whole, including) = task["figures"], task["whole"]
    lines = []
    for row in data["summary"]:
        halves = {name: "" if row[f"{name}_half"] is None else f" ± {row[f'{name}_half']:.2f}" for name in names}
        cost = f"{row['macs'] / 1e6:.1f}", f"{row['backbone_params'] / 1e6:.2f}", f"{row[whole] / 1e6:.0f}"
        lines.append((row["title"], *cost, *(f"{row[name]:.2f}{half}" for name, half in halves.items())))
    note = (
        f"{task['title']} on digits-scenes, {config['scenes']:,} scenes, {config['epochs']} epochs from scratch, alike "
        f"for all; {data['rows'][0]['images']} {config['split']} scenes. MACs are of one scene."
    )
    found = noted_table(("backbone", "M MACs", "M params", including, *names.values()), lines, 1, note)
    return f"{found}\n\n{_ahead(data, names)}" if data["comparisons"] else found


def _ahead(data: Data, names: Mapping[str, str]) -> str:
    *_, last = names
    lines = []
    for row in data["comparisons"]:
        spans = [f"{row[name]['delta']:+.2f} [{row[name]['low']:+.2f}, {row[name]['high']:+.2f}]" for name in names]
        lines.append((row["name"], *spans, f"**{row[last]['verdict']}**"))
    titles = [title.removesuffix(", %") for title in names.values()]
    headings = "comparison", *(f"{title}, points [95 %]" for title in titles), titles[-1]
    return to_markdown(Table(headings, lines, 1))


def memory(data: Data) -> str:
    """Peak memory of a detector's forward and backward pass over one large image (benchmarks/memory.py)."""
    kinds = [(precision, checkpointing) for precision in ("float32", "bfloat16") for checkpointing in (False, True)]
    found: dict[tuple[str, str], dict[tuple[str, bool], str]] = {}
    for case in data["cases"]:
        peak = f"over {case['over_gb']:.0f}" if case.get("peak_gb") is None else f"{case['peak_gb']:.1f}"
        row = found.setdefault((case["model"], " ".join(map(str, case["windows"])) or "none"), {})
        row[case["precision"], case["checkpointing"]] = peak
    lines = [(f"`{name}`", windows, *(row.get(kind, "") for kind in kinds)) for (name, windows), row in found.items()]
    headings = "backbone", "windows", *(f"{precision}{', checkpointing' * again}" for precision, again in kinds)
    height, width = data["image"]
    note = (
        f"Peak GB of {data['detector']}, forward and backward of one image of {height} x {width} pixels on a CPU, "
        "torch and weights included. Over: stopped there, or not begun because an estimate said so."
    )
    return noted_table(headings, lines, 2, note)


def reading(data: Data) -> str:
    """Two epochs of reading a folder, the second from the cache (benchmarks/reading.py)."""
    lines = []
    for found in data["sets"]:
        size = f"{found['files']:,} {found['name']} of {found['width']} x {found['height']}, {found['mean_kb']:,.0f} kB"
        for one in found["read"]:
            settings = f"{one['img_size']} pixels, `{one['recipe']}`", str(one["workers"])
            spent = (f"{1000 * seconds / one['images']:.1f}" for seconds in one["cpu_seconds"])
            faster = (f"{one[name]:.1f}" for name in ("times_less_cpu", "times_faster"))
            lines.append((size, *settings, *spent, *faster, f"{one['cache_kb_per_image']:,.0f}"))
    headings = "images", "training", "workers", "1st epoch", "2nd epoch", "ratio", "ratio of seconds", "kB kept"
    note = (
        "Milliseconds of processor time for reading and augmenting an image, the start of the workers included. "
        f"{data['machine']['cpu']}; other work ran beside it, which disturbs the seconds."
    )
    return noted_table(headings, lines, 2, note)


def exports(data: Data) -> str:
    """Exported files beside the network in torch: size, difference, accuracy, speed (benchmarks/export.py)."""
    lines = []
    for found in data["exports"]:
        name = f"`{found['network']}`, " + ("28 px, trained" if found["trained"] else "224 px")
        for file, over in (("float32", "torch"), ("int8", "float32")):
            timings = [one for one in found["timings"] if one["name"] == file]
            faster = "; ".join(f"{one['batch_size']}: {one['speed_over'][over][1]:.2f}" for one in timings)
            top1 = (found.get("top1") or {}).get(file)
            size, largest = f"{found['bytes'][file] / 1e6:.2f}", f"{found['largest_difference'][file]:.0e}"
            lines.append((name, file, size, largest, f"{top1:.2f}" if top1 is not None else "", f"{over}, {faster}"))
    machine = data["machine"]
    note = (
        f"ONNX Runtime {machine['onnxruntime']} beside torch {machine['torch'].partition('+')[0]} in eager mode, "
        f"{data['config']['threads']} thread, {machine['cpu']}; medians of {data['config']['rounds']} rounds."
    )
    headings = "network", "file", "MB", "largest difference", "test top-1 %", "times as fast as, by batch size"
    return noted_table(headings, lines, 2, note)


def equal_accuracy(data: Data) -> str:
    """Accuracy of a study's networks beside their milliseconds in two runtimes (benchmarks/equal_accuracy.py)."""
    lines, config = [], data["config"]
    batches = [str(batch) for batch in config["batch_sizes"]]
    for row in data["runtimes"]:
        cost = f"{row['macs'] / 1e6:.2f}", f"{row['params'] / 1e6:.3f}", mean(row)
        timed = (f"{row['ms'][runtime][batch]:.2f}" for runtime in ("eager", "onnx") for batch in batches)
        lines.append((row["label"], f"`{row['network']}`", *cost, *timed))
    columns = [f"{runtime}, {batch}" for runtime in ("eager", "ONNX") for batch in batches]
    note = (
        f"Milliseconds of a batch of {', '.join(batches)} images in torch's eager mode and in ONNX Runtime, float32, "
        f"{config['threads']} thread, batch norms folded, {data['machine']['cpu']}; medians of "
        f"{config['rounds']} rounds."
    )
    return noted_table(("", "network", "M MACs", "M params", "test %, mean", *columns), lines, 2, note)
