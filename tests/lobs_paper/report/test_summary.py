from __future__ import annotations

import json
from pathlib import Path

from helpers.runs import METHODS, Method, write_csv, write_every, write_json, write_runs
from lobs_paper.report import summary, write_report
from lobs_paper.report.findings import findings
from lobs_paper.report.results import Experiment, load_results
from lobs_paper.report.summary import Line
from lobs_paper.report.why import NO_WORDS


def load(folder: Path, methods: dict[str, Method] = METHODS) -> list[Experiment]:
    return load_results(write_runs(folder / "runs", methods=methods))


def line_of(lines: list[Line], method: str, experiment: str = "lenet300") -> Line:
    return next(line for line in lines if (line.row.experiment, line.row.method) == (experiment, method))


def test_every_row_of_the_paper_has_a_line_with_a_verdict(tmp_path: Path) -> None:
    lines = summary.lines(load(tmp_path))
    assert [line.row.experiment for line in lines] == ["lenet300"] * 6 + ["lenet5"] * 5 + ["cifarnet"] * 2 + [
        *("alexnet",) * 3,
        *("vgg16",) * 2,
    ]
    assert line_of(lines, "lobs").word == "reproduced" and line_of(lines, "lobs").reason == ""
    assert line_of(lines, "magnitude").word == "not reproduced", "57% is better, 2.6% after retraining is not"
    assert line_of(lines, "dns").word == "not run"
    assert line_of(lines, "lobs", "alexnet").reason == "needs the ImageNet data set"
    assert summary.counts(lines) == {"reproduced": 1, "not reproduced": 1, "not run": 16}


def test_a_reason_in_short_belongs_to_the_error_that_decides(tmp_path: Path) -> None:
    methods = {"random": Method("random", 0.08, 88.0, 3.6, 4000, None), "obd": Method("obd", 0.3, 9, 2, 10, None)}
    lines = summary.lines(load(tmp_path, methods))
    assert line_of(lines, "random").reason == "both no better than guessing before retraining"
    assert (line_of(lines, "obd").word, line_of(lines, "obd").reason) == ("not judged", "density 30% against 8%")
    better = {"dns": Method("magnitude", 0.018, 9.0, 1.2, 7000, None)}
    assert line_of(summary.lines(load(tmp_path / "b", better)), "dns").reason == (
        "dense network 1.70% here, 1.76% there; another retraining, 7,000 iterations against 34,000"
    )
    worse = {"dns": Method("magnitude", 0.018, 9.0, 3.2, 34000, None)}
    reason = line_of(summary.lines(load(tmp_path / "c", worse)), "dns").reason
    assert reason == "dense network 1.70% here, 1.76% there"
    guess = {"random": Method("random", 0.08, 40.0, 1.5, 4000, None)}
    assert line_of(summary.lines(load(tmp_path / "d", guess)), "random").reason == NO_WORDS


def test_the_table_prints_the_papers_figures_ours_and_the_difference(tmp_path: Path) -> None:
    text = summary.table(summary.lines(load(tmp_path))).markdown()
    assert "| LeNet-300-100 | L-OBS | 7 | 3.10 | 3.30 | +0.20 | 1.82 | 1.85 | +0.03 | r | **reproduced** | - |" in text
    assert "| LeNet-5 | L-OBS | 7 | 3.21 | - | - | 1.27 | - | - | r, v | not run | - |" in text


def test_what_came_out_is_said_in_sentences(tmp_path: Path) -> None:
    experiments = load_results(write_every(tmp_path / "runs"))
    found = findings(experiments, summary.lines(experiments))
    assert found[0].startswith("Of 7 rows beside the paper's Table 1, ")
    assert found[1] == (
        "LeNet-300-100, MNIST at 7%: L-OBS leaves 4.30 ± 1.00% right after pruning (paper 3.10%) and 1.85% after "
        "520 ± 10 iterations (paper 1.82%, 510); without any retraining exact OBS leaves 1.90%."
    )
    assert found[2].startswith("Not reproduced: Random on LeNet-300-100 (after pruning +2.28 points), ")
    assert found[-1] == "Theorem 3.2's bound holds in all 26 runs; it is 66.7 to 100 times the measured error."


def test_of_a_network_that_the_paper_does_not_have_best_and_worst_are_named(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "own", methods={"lobs": METHODS["lobs"], "magnitude": METHODS["magnitude"]})
    columns = ("density", "test_error_percent", "output_error")
    for method, errors in (("lobs", (18.0, 40.0)), ("magnitude", (30.0, 95.0))):
        points = [(0.5, errors[0], 1.0), (0.4, 25.0, 1.0), (0.3, errors[1], 2.0)]
        write_csv(runs / f"own/seed0/{method}/prune/density_curve.csv", columns, points)
    found = findings(load_results(runs), [])
    assert found[0].endswith(
        ", dense 1.70%, without retraining: at 50% L-OBS 18.00% and LWC (magnitude, one shot) 30.00%; "
        "at 30% L-OBS 40.00% and LWC (magnitude, one shot) 95.00%."
    )
    for path in runs.rglob("density_curve.csv"):
        path.unlink()
    assert not any("without retraining" in text for text in findings(load_results(runs), []))


def test_a_bound_that_fails_is_said_to(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["bound"] = 1.0
    write_json(path, data)
    experiments = load_results(runs)
    assert "fails in 1 of 2 runs" in findings(experiments, [])[-1]


def test_the_first_page_is_short_and_names_data_that_is_not_what_it_seems(tmp_path: Path) -> None:
    runs = write_every(tmp_path / "runs")
    write_every(runs, "cifarnet")
    train = runs / "cifarnet/seed0/train/metrics.json"
    write_json(train, {**json.loads(train.read_text()), "data": "CIFAR-10 (JPEG)"})
    for path in [*runs.rglob("paths.csv"), *runs.rglob("retrain/curve.csv"), *runs.rglob("first_layer_curve.csv")]:
        path.unlink()
    write_report(runs, tmp_path / "reports")
    page = (tmp_path / "reports/README.md").read_text()
    assert len(page.splitlines()) < 75
    assert "- CIFAR-Net, CIFAR-10 (JPEG): 14 methods, 1 to 3 seeds each, dense error 1.70%." in page
    assert "- CIFAR-10 (JPEG): CIFAR-10 from a JPEG re-encoding" in page
    assert "![Pruned without retraining](overview.svg)" in page
    assert "[page](cifarnet.md)" in page and "[Table 5: its layers](table5.md)" in page
    assert (
        "# Table 5: layers of CIFAR-Net, CIFAR-10 (JPEG) (`cifarnet`)" in (tmp_path / "reports/table5.md").read_text()
    )


def test_data_is_called_what_the_metrics_call_it(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "cifarnet")
    train = runs / "cifarnet/seed0/train/metrics.json"
    names = []
    for data in (None, "cifar-10", "CIFAR-10 (JPEG)"):
        write_json(train, {**json.loads(train.read_text()), "data": data})
        names.append(summary.title(load_results(runs)[0]))
    assert names == ["CIFAR-Net, CIFAR-10", "CIFAR-Net, CIFAR-10", "CIFAR-Net, CIFAR-10 (JPEG)"]
