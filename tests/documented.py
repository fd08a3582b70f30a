"""The command lines of the documentation: where they are, how a test runs them, and which ones no test runs."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from command_line import ROOT

# Records of decisions, experiments and results name commands of other days and machines.
RECORDS = ("docs/decisions.md", "docs/experiments.md", "docs/results.md")
_PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/*/README.md")
PAGES = sorted(
    page
    for pattern in _PATTERNS
    for page in (path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    if page not in RECORDS
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_IN_PROSE = re.compile(r"`(titokctl\s[^`]+)`")
_COMMAND = re.compile(r"\btitokctl (?=[a-z-])")
_GROUPS = ("runs", "recipes", "weights")


@dataclass(frozen=True)
class Line:
    """A documented command line, as it stands on its page.

    Args:
        in_block: it stands in a code block; otherwise it is part of a sentence.
    """

    page: str
    text: str
    in_block: bool

    @property
    def is_plain(self) -> bool:
        """True if the line begins with `titokctl`."""
        return self.text.startswith("titokctl ")


def lines_of(page: str) -> list[Line]:
    """Return the command lines of a page in their order: all of code blocks, and whole ones in sentences.

    In a sentence, the name of a command alone (`titokctl fid`) is no command line.
    """
    prose_and_blocks = _BLOCK.split((ROOT / page).read_text(encoding="utf-8"))
    found = []
    for i, text in enumerate(prose_and_blocks):
        if i % 3 == 0:
            spans = (" ".join(span.split()) for span in _IN_PROSE.findall(text))
            found += [Line(page, span, False) for span in spans if has_arguments(span)]
        elif i % 3 == 2 and prose_and_blocks[i - 1] in ("", "sh", "bash", "console"):
            found += [Line(page, line, True) for line in _commands_in(text)]
    return found


def _commands_in(block: str) -> Iterator[str]:
    joined = re.sub(r"\\\n\s*", "", block)
    for line in joined.splitlines():
        line = re.sub(r"\s+#.*", "", line.strip()).removeprefix("$ ").removeprefix(".venv/bin/")
        if _COMMAND.search(line):
            yield line


def has_arguments(span: str) -> bool:
    """Return True if a text is more than the name of a command."""
    words = shlex.split(span)[1:]
    return len(words) > 1 + (words[0] in _GROUPS) or words[0].startswith("-")


@dataclass(frozen=True)
class Change:
    """A change that makes the lines of some pages run on small inputs on a CPU: `pattern` becomes `replacement`."""

    pages: str
    pattern: str
    replacement: str


SHORT = "--set training.steps=2 --set schedule.warmup_steps=1 --set training.global_batch_size=8"
# In this order; {samples} and {generator} are the names of the newest run of that kind, {server} is an address.
CHANGES = (
    # Released models are replaced by those that are part of the package.
    Change("*", r"\b(maskgit-vit-l-32|maskgit-uvit-s-128)\b", "maskgit-scenes-64"),
    Change("*", r"--recipe maskgit-scenes-64", "--recipe scenes-64"),
    Change("*", r"--recipe titok-(bl-64-vq|l-32-proxy)", "--recipe scenes-64"),
    Change("*", r"(?<=--init )titok-bl-64-vq|(?<=--tokenizer )titok-l-32", "scenes-64"),
    # Fewer images and steps.
    Change("*", r"(?<=-n )(50000|5000|480|420|300|64|16)\b", "8"),
    Change("*", r"--minutes 10", "--images 192 --candidates 2"),
    Change("*", r"training\.steps=\d+", "training.steps=2"),
    Change("*", r"schedule\.warmup_steps=\d+", "schedule.warmup_steps=1"),
    Change("*", r"training\.global_batch_size=\d+", "training.global_batch_size=8"),
    Change("*", r"^(titokctl train-\S+ .*)$", rf"\1 {SHORT}"),
    Change("*", r"^(titokctl train-tokenizer .*--recipe (tiny|mine\.yaml|examples/fsq/\S+|scenes-64)\b.*)$",
           r"\1 --set codebook.continuous_steps=0"),
    Change("docs/imagenet.md", r"width: 512, num_layers: 8, num_heads: 8", "width: 64, num_layers: 1, num_heads: 2"),
    Change("docs/sweeps.md", r"\$rate", "5e-4"),
    Change("docs/getting-started.md", r"scenes -o scenes/", "scenes -o scenes/ -n 20 --heldout 10"),
    # No GPU.
    Change("*", r" --gpus (all|4)\b", ""),
    # A feature network that comes with the extra `demo`; Inception's weights are not on every machine.
    Change("*", r"^(titokctl (fid|compare|stats)\b(?!.*(--features|--selftest)).*)$", r"\1 --features lite0"),
    Change("*", r"--fid REF", "--fid heldout/ --features lite0"),
    # What stands for a name.
    Change("*", r"samples/NAME", "samples/{samples}"),
    Change("docs/troubleshooting.md", r"recipes show NAME", "recipes show tokenizer/tiny"),
    Change("docs/troubleshooting.md", r"train-gen \.\.\.", "train-gen tokens.h5"),
    Change("docs/troubleshooting.md", r"COMMAND", "inspect tokens.h5"),
    Change("docs/troubleshooting.md docs/metrics.md", r"report RUN", "report gen -o report.html"),
    Change("docs/getting-started.md", r"runs show NAME", "runs show samples/{samples}"),
    Change("docs/fine-tuning.md", r"\bRUN\b", "{generator}"),
    Change("docs/generators.md docs/formats.md", r"\bTOKENS\b", "tokens.h5"),
    Change("docs/recipe-fields.md", r"\bFILE\b", "mine.yaml"),
    Change("docs/formats.md", r"--to jsonl", "--to jsonl -o rows.jsonl"),
    Change("docs/sweeps.md", r"diff A B", "diff generator/gen generator/other"),
    Change("docs/getting-started.md", r'"12 5 \.\.\."', '"' + " ".join(map(str, range(32))) + '"'),
    # Sources and products that lie elsewhere.
    Change("docs/imagenet.md", r"\{0000\.\.1023\}", "{0000..0001}"),
    Change("docs/imagenet.md", r"https://example\.org", "{server}"),
    # The tokenizer that is taken where none was trained, titok-l-32, is a released one.
    Change("docs/imagenet.md docs/clusters.md docs/formats.md", r"^(titokctl tokenize (?!.*--tokenizer).*)$",
           r"\1 --tokenizer scenes-64"),
    # The forms of a source are alternatives to each other.
    Change("docs/imagenet.md docs/clusters.md", r"^(titokctl \S+ .* -o tokens\.h5\b.*)$", r"\1 --overwrite"),
    Change("docs/sharing.md", r"^(titokctl (pull alice/\S+|sample)(?!.* -o ).*)$", r"\1 --runs-dir theirs"),
    Change("docs/clusters.md", r"(--nodes 2 .*global_batch_size=)8", r"\g<1>16"),
    Change("docs/clusters.md", r"s3://", ""),
    Change("docs/clusters.md", r" /shared/", " shared/"),
)  # fmt: skip
_CLUSTER = "needs several machines"
_RAY = "needs Ray; tests/jobs/test_tokenize_ray.py and test_sample_ray.py run such commands where it is installed"
_DOCKER = "needs Docker; tests/packaging/test_docker.py runs the commands of the Dockerfile"
_DEMO = "takes minutes; tests/end_to_end runs it where slow tests are wanted"
# Lines that are planned with --dry-run instead of run, with the reason.
DRY_RUN = {
    "titokctl train-gen tokens.h5 --gpus 8 --nodes 2 --node-rank 0 --rdzv-endpoint node0:29500": _CLUSTER,
    "titokctl train-gen tokens.h5 --gpus 8 --nodes 2 --node-rank 1 --rdzv-endpoint node0:29500": _CLUSTER,
}
# Lines that no page test runs, with the reason.
NOT_RUN = {
    "titokctl demo": _DEMO,
    "titokctl demo --images pictures/": _DEMO,
    "titokctl tokenize imagenet/ -o tokens.h5 --engine ray --max-workers 2": _RAY,
    "titokctl sample --cfg 4.0 -n 50000 --engine ray": _RAY,
    "titokctl tokenize /shared/imagenet -o tokens.h5 --engine ray --address auto --min-workers 1 --max-workers 16":
        _RAY,
    "titokctl tokenize imagenet/ -o s3://bucket/tokens/ --engine ray": _RAY,
    "docker run --rm titokctl make test": _DOCKER,
    'docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" -w /work titokctl titokctl tokenize images/ -o tokens.h5':
        _DOCKER,
    "sbatch --array=1-4 --wrap 'titokctl train-gen tokens.h5 "
    """--set "$(sed -n "${SLURM_ARRAY_TASK_ID}p" settings.txt)"'""":
        "needs SLURM; the line inside is run in the loop above it",
    "titokctl labels TOKENS": "a command that CONTRIBUTING.md adds as an example",
    "titokctl reproduce titok-l-32 --ref VIRTUAL_imagenet256_labeled.npz":
        "needs released weights; tests/jobs/test_reproduce.py runs it with small ones that a local server has",
    "titokctl runs finish RUN": "needs a stopped run; tests/training/test_runs_removed.py runs it",
    "titokctl fid --selftest": "names an option, which takes two files; tests/jobs/test_selftest.py runs it",
    "titokctl --install-completion": "changes the files of a shell; tests/cli/test_completion.py installs and uses it",
}  # fmt: skip


def executed(page: str) -> list[Line]:
    """Return the command lines of a page that its test runs, as they stand."""
    return [line for line in lines_of(page) if line.text not in NOT_RUN]


def as_run(line: Line, changes: tuple[Change, ...] = CHANGES) -> str:
    """Return the line with the changes of its page; {samples}, {generator} and {server} are left to be filled in."""
    text = line.text
    for change in changes:
        if any(fnmatch(line.page, one) for one in change.pages.split()):
            text = re.sub(change.pattern, change.replacement, text)
    return f"{text} --dry-run" if line.text in DRY_RUN else text
