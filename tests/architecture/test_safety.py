"""Nothing that is read from disk is executed, and nothing is imported that was not declared."""

import ast
import re
import sys
import tomllib

import pytest
from package_source import ROOT, modules

EXECUTES = {"eval", "exec", "compile", "__import__"}
RUNS_A_SHELL = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# Naming the exception of a reader that refuses pickles is no reading of one.
HARMLESS = {"pickle.UnpicklingError"}

IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml", "basemap-data": "mpl_toolkits"}


def keyword(call: ast.Call, name: str) -> object:
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def faults_of(call: ast.Call) -> list[str]:
    """What is dangerous about one call."""
    name = ast.unparse(call.func)
    faults = []
    if name in EXECUTES or name in RUNS_A_SHELL:
        faults.append(name)
    if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords):
        faults.append(f"{name}(shell=...)")
    if name == "torch.load" and keyword(call, "weights_only") is not True:
        faults.append("torch.load without weights_only=True")
    if name.endswith(".load") and any(
        k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords
    ):
        faults.append("allow_pickle")
    if name in {"np.load", "numpy.load"} and keyword(call, "allow_pickle") is not False:
        faults.append("np.load without allow_pickle=False")
    if name in {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.save", "torch.hub.load"}:
        faults.append(name)
    if name == "yaml.load" and keyword_name(call, "Loader") not in {"_Loader", "yaml.SafeLoader"}:
        faults.append("yaml.load without a safe loader")
    return faults


def keyword_name(call: ast.Call, name: str) -> str:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), "")


def test_nothing_is_executed():
    found = []
    for module in modules():
        for node in ast.walk(module.tree):
            faults: list[str] = []
            if isinstance(node, ast.Call):
                faults = faults_of(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in UNPICKLES:
                faults = [name for name in [ast.unparse(node)] if name not in HARMLESS]
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in UNPICKLES:
                faults = [str(node.module)]
            found += [f"{module}:{node.lineno}: {fault}" for fault in faults]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
    ],
)
def test_faults_are_seen(code: str):
    assert faults_of(ast.parse(code).body[0].value)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code", ["model.eval()", "re.compile('a')", "torch.load(p, weights_only=True)", "json.load(f)"]
)
def test_harmless_calls_are_none(code: str):
    assert not faults_of(ast.parse(code).body[0].value)  # type: ignore[attr-defined]


def declared() -> tuple[set[str], set[str]]:
    """Import names of the dependencies, and of those of the extras that the package itself may use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    return _import_names(project["dependencies"]), _import_names(extras)


def _import_names(requirements: list[str]) -> set[str]:
    names = (re.split(r"[<>=!~\[; ]", line)[0].lower() for line in requirements)
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_imports_only_what_is_declared():
    always, extra = declared()
    # torch's CUDA builds depend on triton; no other module may import it on its own.
    known = {*sys.stdlib_module_names, "titokctl", "triton", *always}
    assert not [
        f"{module}:{item.line} imports {item.module}"
        for module in modules()
        for item in module.imports
        if item.module.split(".")[0] not in (known | extra if item.is_late or item.is_typing else known)
    ]
