"""What only POSIX systems have is imported by no module of ours: Windows imports all of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")
ROOMS = ("fedta_app", "experiments/reporting", "experiments/pretraining")  # none needs Flower

SCRIPT = f"""
import importlib, sys
for name in {POSIX_ONLY}:
    sys.modules[name] = None  # an import of it raises ImportError
import warnings
warnings.simplefilter("ignore")
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def modules() -> list[str]:
    paths = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)


def test_every_module_is_imported_without_posix() -> None:
    assert len(modules()) > 60
    subprocess.run([sys.executable, "-c", SCRIPT, *modules()], cwd=ROOT, check=True)
