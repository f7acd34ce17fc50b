"""Runs what CoDi borrows from other libraries on the lowest and the newest versions of all of them, in throw-away environments.

python benchmarks/libraries.py [--versions lowest newest] [--also transformers==4.57.1]

An environment has the packages of this interpreter, torch among them, and in front of them its own versions of the libraries that
requirements.txt and requirements-dev.txt give a lowest version of; the newest are what the package index offers. In each: parity with the
recorded outputs, and tests that reach every one of them without a host. Exits with 1 where anything fails.
"""

from __future__ import annotations

import argparse
import os
import re
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
TOOLS = ("pytest", "pytest-xdist", "ray")  # which no model needs
TESTS = (
    "test_autoencoders", "test_vocoder", "test_encoders", "test_audio_encoder",
    "test_text_tokenizers", "test_half_precision", "test_parity_beyond",  # networks, tokenizers
    "test_media", "test_media_damaged", "test_values", "test_cli",  # av, Pillow
    "test_checkpoints", "test_convert", "test_download", "test_download_known",  # safetensors, huggingface_hub
    "test_training_robust", "test_training_finetune",  # accelerate
)  # fmt: skip
_IMPORT = """
import time, torch
begin = time.process_time()
import diffusers, transformers
transformers.CLIPModel, transformers.ClapAudioModelWithProjection, transformers.BertModel, transformers.GPT2Model
transformers.SpeechT5HifiGan, diffusers.AutoencoderKL
print(transformers.__version__, diffusers.__version__, f"{time.process_time() - begin:.1f}")
"""


def lowest() -> list[str]:
    """`library==version` of every lowest version that our requirements name."""
    lines = "\n".join((PACK / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-dev.txt"))
    found = dict(re.findall(r"^([\w-]+)>=([\d.]+)", lines, flags=re.M))
    return [f"{library}=={version}" for library, version in found.items() if library not in TOOLS]


def environment(folder: Path, requirements: list[str]) -> Path:
    """Interpreter of a new environment that sees this one's packages behind `requirements`."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True)
    (Path(own.stdout.strip()) / "behind.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", *requirements], check=True)
    return python


def last_line(command: list[str | Path]) -> tuple[bool, str]:
    """Whether a command succeeded, and the last line that counts something."""
    done = subprocess.run(command, cwd=PACK, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\d+ (ok|passed|failed|error)|Error", line)]
    return done.returncode == 0, lines[-1].strip("= ") if lines else f"exit code {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="*", default=["lowest", "newest"], choices=["lowest", "newest"])
    parser.add_argument("--also", nargs="*", default=[], metavar="REQUIREMENT", help="one environment more, with these")
    args = parser.parse_args()
    wanted = {"lowest": lowest(), "newest": [requirement.partition("==")[0] for requirement in lowest()]}
    sets = {name: wanted[name] for name in args.versions} | ({"also": args.also} if args.also else {})
    good = True
    print("| versions | transformers | diffusers | import, processor s | parity | tests |\n| --- | --- | --- | ---: | --- | --- |")
    for name in args.versions:
        print(f"{name}: {' '.join(wanted[name])}", file=sys.stderr)
    for name, requirements in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            python = environment(Path(folder), requirements)
            imported = subprocess.run([python, "-c", _IMPORT], capture_output=True, text=True)
            versions = imported.stdout.split() or ["?", "?", imported.stderr.strip().splitlines()[-1]]
            exact, parity = last_line([python, "-m", "codi_models", "parity", "tests/parity"])
            tests = [f"tests/{test}.py" for test in TESTS]
            passed, counted = last_line([python, "-m", "pytest", *tests, "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"])
            print(f"| {name} | {' | '.join(versions)} | {parity} | {counted} |", flush=True)
            good = good and exact and passed
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
