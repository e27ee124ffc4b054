"""tests/ mirrors src/: who changes a module finds its tests under the module's name."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# Tested together: one row of a table per file, or parts of one module's promise.
TOGETHER = {
    "lobs/calibration/calling": "lobs/calibration/test_batches",
    **{
        f"lobs/layers/{name}": "lobs/layers/test_parts"
        for name in ("attention", "composite", "recurrent", "window_attention")
    },
    "lobs/layers/view": "lobs/layers/test_views",
    **{f"lobs/solvers/{name}": "lobs/solvers/test_contract" for name in ("magnitude", "random", "sparsegpt", "wanda")},
    **{
        f"lobs_paper/networks/{name}": "lobs_paper/networks/test_networks"
        for name in (
            "cifarnet",
            "efficientnet_lite0",
            "lenet300",
            "lenet5",
            "mlpnet",
            "resnet18_cifar",
            "resnet20",
            "vgg16_cifar",
            "vit",
        )
    },
    **{
        f"lobs_paper/config/{name}": "lobs_paper/config/test_schema"
        for name in ("checks", "choices", "compose", "errors", "folder", "requested", "stage_parts")
    },
    **{f"lobs_paper/stages/{name}": "lobs_paper/stages/test_stages" for name in ("report", "run", "same_budget")},
    "lobs_paper/data/sources": "lobs_paper/stages/test_fetch",
    "lobs_paper/results": "lobs_paper/stages/test_provenance",
    "lobs_paper/stages/track": "lobs_paper/tracking/test_runs",
    "lobs_paper/targets": "lobs_paper/config/test_adding",
}


def test_every_module_has_its_tests_where_one_looks_for_them():
    # The report's tests stand by page and figure.
    modules = [
        file.relative_to(ROOT / "src").with_suffix("")
        for file in sorted((ROOT / "src").rglob("*.py"))
        if file.name != "__init__.py" and "report" not in file.parts[-2:-1] and "interactive" not in file.parts
    ]
    own = {str(module): str(module.with_name(f"test_{module.name}")) for module in modules}
    tests = {name: ROOT / "tests" / f"{TOGETHER.get(name, test)}.py" for name, test in own.items()}
    missing = [name for name, test in tests.items() if not test.exists()]
    assert not missing
    assert TOGETHER.keys() <= own.keys()
