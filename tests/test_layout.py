"""The shape of the project: who may import whom, and what a module may hold.

Read from the syntax trees; nothing is imported, so that a broken module is judged too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("shared", "edge", "node", "hearthlink")
OURS = (*PRODUCT, "bench", "tests")
# What each may import of the project. shared.contract is the ground that the rest of shared stands on.
ARROWS = {
    "shared.contract": {"shared.contract"},
    "shared": {"shared.contract", "shared"},
    "edge": {"shared.contract", "shared", "edge"},
    "node": {"shared.contract", "shared", "node"},
    "hearthlink": {"shared.contract", "shared", "edge", "node", "hearthlink"},
}
# Within a deployable an import goes down these floors or stays inside one part; parts on the floor of the leaves do not
# know each other. `services` is what app hands to api; the vocabulary is types that several leaves speak in.
FLOORS = ("__main__", "app", "api", "services", "leaf", "vocabulary")
VOCABULARY = {"edge": {"plans", "principals"}, "node": {"runtime"}}
# The contract describes bytes and meaning; whoever imports it must not get a socket or a file with it.
INPUT_AND_OUTPUT = set("asyncio http io logging os pathlib selectors socket ssl subprocess urllib".split())
# Their call at module level makes state that outlives every owner.
STATEFUL = set(
    "dict list set bytearray defaultdict deque OrderedDict WeakKeyDictionary WeakValueDictionary WeakSet "
    "Lock RLock Event Condition Semaphore Queue SimpleQueue ContextVar local count "
    "Counter Gauge Histogram Summary CollectorRegistry ClientSession AsyncClient Client Limiter".split()
)


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it the import stands, with its line."""
    for item in ast.walk(tree(path)):
        if isinstance(item, ast.Import):
            yield from ((item.lineno, alias.name) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert not item.level, f"{path}:{item.lineno}: a relative import; name the package"
            # `from edge import plans` imports edge.plans, `from edge.plans import Plan` only edge.plans.
            names = [f"{item.module}.{alias.name}" for alias in item.names]
            yield from ((item.lineno, name if is_module(name) else str(item.module)) for name in names)


def owner(module: str) -> str:
    """The key of ARROWS that a module of the project belongs to."""
    return "shared.contract" if f"{module}.".startswith("shared.contract.") else module.partition(".")[0]


def place(module: str) -> tuple[str, str]:
    """Floor and part of a module within its deployable: edge.store.keys is ("leaf", "store")."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    if part in FLOORS:
        return part, part
    return ("vocabulary" if part in VOCABULARY[package] else "leaf"), part


def test_imports_point_down_between_packages() -> None:
    wrong = []
    for path in sources(*PRODUCT):
        allowed = ARROWS[owner(module_name(path))]
        for line, name in imports(path):
            if name.partition(".")[0] in OURS and owner(name) not in allowed and name != "shared":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["edge", "node"])
def test_imports_point_down_within_a_deployable(package: str) -> None:
    wrong = []
    for path in sources(package):
        importer = module_name(path)
        if importer == package:
            continue
        floor, part = place(importer)
        for line, name in imports(path):
            if not name.startswith(f"{package}."):
                continue
            below, other = place(name)
            if other != part and FLOORS.index(below) <= FLOORS.index(floor):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({floor}) imports {name} ({below})")
    assert not wrong, "\n".join(wrong)


def test_the_contract_does_no_input_or_output() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("shared/contract")
        for line, name in imports(path)
        if name.partition(".")[0] in INPUT_AND_OUTPUT
    ]
    assert not wrong, "\n".join(wrong)


def called(value: ast.expr | None) -> str:
    """The bare name of what an expression calls, without its module: `asyncio.Lock()` and `Lock()` are "Lock"."""
    if not isinstance(value, ast.Call):
        return ""
    function = value.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_state(statement: ast.stmt) -> bool:
    """Whether a statement at module level makes something that is meant to change.

    A table in capitals is a constant; an empty container, one in lower case or a lock waits to be filled or taken.
    """
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    value = statement.value
    if "__all__" in names:
        return False
    if called(value) in STATEFUL:
        return True
    if not isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp):
        return False
    empty = not (value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", True))
    return empty or any(name != name.upper() for name in names)


def test_modules_hold_no_state() -> None:
    wrong = []
    for path in sources(*PRODUCT):
        module = tree(path)
        lines = [statement.lineno for statement in module.body if is_state(statement)]
        lines += [item.lineno for item in ast.walk(module) if isinstance(item, ast.Global)]
        wrong += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert not wrong, "module-level state, give it an owner:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("TABLE = {'a': 1}", False),
        ("NAMES: tuple[str, ...] = ('a',)", False),
        ("PATTERN = re.compile('a')", False),
        ("SEEN: set[str] = set()", True),
        ("CACHE = {}", True),
        ("cache = {'a': 1}", True),
        ("lock = asyncio.Lock()", True),
        ("requests = Counter('requests', 'all')", True),
    ],
)
def test_state_is_told_from_constants(code: str, state: bool) -> None:
    assert is_state(ast.parse(code).body[0]) is state


def test_streams_are_not_broken_by_middleware() -> None:
    # Both collect or re-chunk a response through a queue of their own: cancelling and flow control stop working.
    banned = {"BaseHTTPMiddleware", "SlowAPIMiddleware"}
    wrong = [
        f"{path.relative_to(ROOT)}:{item.lineno}"
        for path in sources(*PRODUCT)
        for item in ast.walk(tree(path))
        if (isinstance(item, ast.Name) and item.id in banned)
        or (isinstance(item, ast.Attribute) and item.attr in banned)
        or (isinstance(item, ast.alias) and item.name in banned)
    ]
    assert not wrong, "\n".join(wrong)
