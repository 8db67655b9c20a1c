"""Evolution: genes and members, the same result however often it is killed, several workers, storages that fail."""

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from refusals import refuses

from psvit import Arch, UserError
from psvit.search.budget import Budget
from psvit.search.evolution import DATABASE, WORKER, EvolutionConfig, cost_used, evolve, narrowed
from psvit.search.feasible_set import FeasibleSet
from psvit.search.genome import Genome
from psvit.search.scores import Score, name_of
from psvit.search.space import Space

LIKE = Arch("A", widths=(8,), head_dim=8, patch_size=4)
SPACE = Space((5, 6), (1, 3), widths=((16, 24, 32), (32, 48), (48, 64)), like=LIKE, img_size=32, num_classes=10)
FEASIBLE = FeasibleSet(SPACE, Budget(macs=2.5e6), least=0.5)
TARGET = "ASAA-AS"


def score(arch: Arch) -> Score:
    """Low for wide networks that look like the target: wide costs, so there is a front."""
    letters = zip(arch.genotype.ljust(len(TARGET)), TARGET, strict=False)
    loss = sum(own != wished for own, wished in letters) + 100 / sum(arch.widths)
    return Score(arch.genotype, arch.widths, loss, 100 / (1 + loss), 64)


def silent(line: str) -> None: ...


def run(
    folder: Path,
    evaluations: int = 24,
    seed: int = 0,
    feasible: FeasibleSet = FEASIBLE,
    evaluate: Callable[[Arch], Score] = score,
    storage: str | None = "",
    **options: Any,
) -> list[Score]:
    """A small evolution, in a journal file of the folder: SQLite is slower."""
    storage = str(folder / "journal") if storage == "" else storage
    folder.mkdir(exist_ok=True)
    config = EvolutionConfig(options.pop("population", 6), evaluations, storage, options.pop("study_name", None))
    return evolve(feasible, evaluate, config, folder, seed, options.pop("say", silent), **options)


def names(scores: list[Score]) -> list[tuple[str, tuple[int, ...]]]:
    return [(one.genotype, one.widths) for one in scores]


def never(arch: Arch) -> Score:
    raise AssertionError(f"{arch} is evaluated")


# Genes and members.


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    low = draw(st.integers(3, 6))
    stages = draw(st.integers(1, 3))
    return Space(
        depth=(low, low + draw(st.integers(0, 3))),
        stages=(draw(st.integers(1, stages)), stages),
        max_share=draw(st.integers(0, 3)),
        earliest_pool=draw(st.integers(1, low - 2)),
        widths=tuple((*draw(st.sets(st.sampled_from((16, 24, 32)))), 48) for _ in range(stages)),
        like=LIKE,
        img_size=32,
    )


@effort(max_examples=40)
@given(spaces(), st.randoms(use_true_random=False))
def test_genes_make_a_member_and_a_member_has_genes(space: Space, rng: random.Random) -> None:
    genome = Genome(space)
    for _ in range(3):
        genes = genome.random(rng)
        arch = genome.decode(genes)
        assert arch in space
        assert genome.decode(genes) == arch
        assert genome.decode(genes | genome.encode(arch)) == arch
        drawn = space.sample(rng)
        assert genome.decode(genes | genome.encode(drawn)) == drawn


def test_the_elastic_is_a_gene_and_the_fixed_is_none() -> None:
    assert list(Genome(SPACE).choices) == ["depth", *(f"gap {i}" for i in range(1, 6)), "width 1", "width 2", "width 3"]
    assert Genome(SPACE).choices["gap 1"] == ("A", "S", "-")
    fixed = replace(SPACE, depth=4, stages=2, max_share=0, widths=((16,), (32, 48)))
    assert Genome(fixed).choices == {"gap 1": ("A", "-"), "gap 2": ("A", "-"), "gap 3": ("A", "-"), "width 2": (0, 1)}
    assert Genome(replace(SPACE, depth=(1, 4), stages=3)).choices["depth"] == (3, 4)  # fewer are too few for 3 stages


def test_what_cannot_be_becomes_what_is_nearest() -> None:
    space = replace(SPACE, depth=6, stages=(1, 3), max_share=2, earliest_pool=2)
    for wish, made in (
        ("AASAA", "AAASAA"),
        ("SSSSA", "ASSASA"),  # a third S in a row
        ("-AAAA", "AAAAAA"),  # before the earliest pooling
        ("A-A-A", "AA-AA-AA"),
        ("A----", "AA-A-AAA"),  # a fourth stage
        ("A-SAS", "AA-ASAS"),
    ):
        genes = {f"gap {i}": letter for i, letter in enumerate(wish, start=1)}
        assert Genome(space).decode(genes).genotype == made


def test_a_pooling_that_must_come_comes() -> None:
    space = replace(SPACE, depth=4, stages=3)
    assert Genome(space).decode({"gap 1": "A", "gap 2": "A", "gap 3": "A"}).genotype == "AA-A-A"
    genes = {"gap 1": "-", "gap 2": "-", "gap 3": "A", "width 1": 2, "width 2": 0, "width 3": 0}
    assert Genome(space).decode(genes).widths == (32, 32, 48)
    narrow = replace(space, widths=((16, 64), (24, 48, 64), (48, 64)))
    assert Genome(narrow).decode(genes | {"width 1": 1}).widths == (64, 64, 64)  # never narrower than before


def test_members_are_narrowed_until_they_fit() -> None:
    rng = random.Random(0)
    fits = 0
    for _ in range(50):
        arch = SPACE.sample(rng)
        made = narrowed(FEASIBLE, arch)
        assert made in SPACE
        assert made.genotype == arch.genotype
        narrowest = not any(
            replace(made, widths=widths) in SPACE
            for stage, width in enumerate(made.widths)
            for less in SPACE.widths[stage]
            if less < width
            for widths in [(*made.widths[:stage], less, *made.widths[stage + 1 :])]
        )
        assert cost_used(FEASIBLE, made) <= 1 or narrowest
        assert made == arch or cost_used(FEASIBLE, arch) > 1
        fits += made != arch and cost_used(FEASIBLE, made) <= 1
    assert fits


# What is evaluated.


def test_each_member_once_and_none_beyond_the_budget(tmp_path: Path) -> None:
    feasible = FeasibleSet(SPACE, Budget(macs=1.8e6), least=0.7)  # a quarter of the children cannot be made to fit
    seen: list[Arch] = []

    def evaluate(arch: Arch) -> Score:
        assert arch in feasible
        seen.append(arch)
        return score(arch)

    scores = run(tmp_path, 40, feasible=feasible, evaluate=evaluate)
    assert scores == [score(arch) for arch in seen]
    assert len(set(names(scores))) == len(scores) == 40


def test_few_members_are_found_all(tmp_path: Path) -> None:
    space = replace(SPACE, depth=(3, 4), widths=((16, 24), (32,), (48,)))
    feasible = FeasibleSet(space, Budget(macs=1.5e6))
    assert 20 < feasible.count() < space.count()
    said: list[str] = []
    scores = run(tmp_path, 1000, feasible=feasible, say=said.append)
    assert sorted(names(scores)) == sorted(map(name_of, feasible))
    assert f"ends after {feasible.count()} members" in said[-1]


def test_the_storage_holds_loss_and_cost(tmp_path: Path) -> None:
    def broken(arch: Arch) -> Score:
        return replace(score(arch), loss=math.nan) if arch.depth == 5 else score(arch)

    for budget in (Budget(macs=3e6, params=2e5), Budget()):
        feasible = FeasibleSet(SPACE, budget)
        folder = tmp_path / str(bool(budget))
        scores = run(folder, 8, feasible=feasible, evaluate=broken, storage=None, study_name="mine")
        study = optuna.load_study(study_name="mine", storage=f"sqlite:///{folder / DATABASE}")
        assert len(study.trials) == 8
        assert any(math.isnan(one.loss) for one in scores)
        for trial, one in zip(study.trials, scores, strict=True):
            arch = replace(LIKE, genotype=one.genotype, widths=one.widths)
            macs, params = feasible.costs(arch)
            used = max(macs / 3e6, params / 2e5) if budget else macs
            assert trial.values == [math.inf if math.isnan(one.loss) else one.loss, used]
            assert Genome(SPACE).decode(trial.params) == arch


def hypervolume(scores: list[Score]) -> float:
    """The area of what is dominated, up to a loss of 12 and the whole budget."""
    area, reach = 0.0, 12.0
    points = [
        (cost_used(FEASIBLE, replace(LIKE, genotype=one.genotype, widths=one.widths)), one.loss) for one in scores
    ]
    for cost, loss in sorted(points):
        area += (1 - cost) * max(0.0, reach - loss)
        reach = min(reach, loss)
    return area


def test_generations_advance_the_front(tmp_path: Path) -> None:
    scores = run(tmp_path, 80, population=10)
    rng = random.Random(0)
    drawn = hypervolume([score(FEASIBLE.sample(rng)) for _ in range(80)])
    assert hypervolume(scores) > 1.05 * hypervolume(scores[:10])
    assert hypervolume(scores) > drawn


# The same result.


def test_the_seed_decides(tmp_path: Path) -> None:
    first = run(tmp_path / "a", 15)
    assert run(tmp_path / "b", 15) == first
    assert run(tmp_path / "d", 15, seed=1) != first
    assert run(tmp_path / "a", 15, evaluate=never) == first  # it is finished


def test_more_evaluations_go_on_where_fewer_ended(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", 24)
    assert run(tmp_path / "b", 9) == whole[:9]
    assert run(tmp_path / "b", 24) == whole
    assert run(tmp_path / "b", 9) == whole


def test_stop_leaves_nothing_under_way(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    answers = iter([False] * 10 + [True])
    assert run(tmp_path / "b", stop=lambda: next(answers)) == whole[:10]
    assert run(tmp_path / "b") == whole


def test_an_error_while_scoring_passes_and_its_member_comes_first(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    for error in (OSError("disk full"), KeyboardInterrupt()):  # even one that a storage might raise

        def failing(arch: Arch, error: BaseException = error) -> Score:
            if name_of(arch) == names(whole)[8]:
                raise error
            return score(arch)

        with pytest.raises(type(error)):
            run(tmp_path / "b", evaluate=failing)
    assert run(tmp_path / "b") == whole


def test_killed_after_any_write(tmp_path: Path) -> None:
    """A journal is only appended to: what a process that is killed leaves is the beginning of the whole one's."""
    whole = run(tmp_path / "whole", 10, 1, population=3)
    lines = (tmp_path / "whole" / "journal").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 3 * 10 + 3  # study, signature; of each trial entry, score, end; parents of 3 generations
    for kept in range(len(lines)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / WORKER).write_bytes((tmp_path / "whole" / WORKER).read_bytes())
        torn = lines[kept][: kept * len(lines[kept]) // len(lines)]  # and of a line that the kill cut off
        (folder / "journal").write_bytes(b"".join(lines[:kept]) + torn)
        assert run(folder, 10, 1, population=3) == whole, f"killed after {kept} writes"


def start(*workers: tuple[object, ...]) -> list[subprocess.Popen[str]]:
    """Workers in processes of their own (see `child`), which begin at the same moment."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = [subprocess.Popen([sys.executable, __file__, *map(str, w)], text=True, **pipes) for w in workers]
    for worker in started:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    for worker in started:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return started


@pytest.mark.slow
def test_killed_and_resumed_in_sqlite(tmp_path: Path) -> None:
    whole, folder = run(tmp_path / "whole", 16), tmp_path / "killed"
    [exits] = start((folder, 16, "none", 4))  # dies in its fourth evaluation
    assert exits.communicate() == ("".join(f"{one.genotype} {one.widths}\n" for one in whole[:3]), None)
    [killed] = start((folder, 16, "none"))
    assert killed.stdout
    assert killed.stdout.readline() == f"{whole[3].genotype} {whole[3].widths}\n"
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left: list[Score] = []
    assert run(folder, 16, storage=None, evaluate=lambda arch: left.append(score(arch)) or left[-1]) == whole
    assert left == whole[-len(left) :]


def test_killed_while_the_tables_were_made(tmp_path: Path) -> None:
    whole, folder = run(tmp_path / "whole", 8), tmp_path / "killed"
    folder.mkdir()
    optuna.storages.RDBStorage(f"sqlite:///{folder / DATABASE}")
    with sqlite3.connect(folder / DATABASE) as database:  # a table's index is made after it
        database.execute("DROP INDEX ix_studies_study_name")
    run(folder, 4, storage=None)
    assert run(folder, 8, storage=None) == whole


# Several workers.


@pytest.mark.parametrize("storage", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_two_workers_share_the_evaluations(tmp_path: Path, storage: str) -> None:
    url = str(tmp_path / "shared") if storage == "journal" else f"sqlite:///{tmp_path / 'shared'}"
    workers = start(*((tmp_path / name, 12, url, 0, 0.1) for name in "ab"))
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    evaluated = [line for output in outputs for line in output.splitlines()]
    assert len(evaluated) == len(set(evaluated)) == 12
    assert all(outputs)
    scores = run(tmp_path / "c", 12, storage=url, evaluate=never)
    assert sorted(evaluated) == sorted(f"{one.genotype} {one.widths}" for one in scores)


def test_what_another_worker_is_at_is_left_to_it(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    evaluated: list[Arch] = []

    def inner(arch: Arch) -> Score:
        if not evaluated:
            evaluated.append(arch)
            others = run(tmp_path / "b", 10, storage=url)  # a whole other worker meanwhile
            assert len(others) == 9
            assert name_of(arch) not in names(others)
        return score(arch)

    scores = run(tmp_path / "a", 10, storage=url, evaluate=inner)
    assert len(evaluated) == 1
    assert len(scores) == 10


@pytest.mark.parametrize("same", [True, False])
def test_who_comes_second_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """Another worker enters a trial between this one's look and its own entry: the same member, or the last trial."""
    url, evaluations = str(tmp_path / "shared"), 10 if same else 4
    run(tmp_path / "a", 3, storage=url)
    add_trial = optuna.Study.add_trial

    def late(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        monkeypatch.setattr(optuna.Study, "add_trial", add_trial)
        run(tmp_path / "b", 4, storage=url)  # draws the same member, as it sees the same trials
        if not same:
            trial.user_attrs["genotype"] = "another"
        add_trial(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", late)
    scores = run(tmp_path / "a", evaluations, storage=url)
    assert len(set(names(scores))) == len(scores) == evaluations
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(url))
    study = optuna.load_study(study_name="psvit", storage=storage)
    assert [trial.number for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL] == [4]
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2


# What is refused.


def test_wrong_config() -> None:
    refuses(
        lambda given: EvolutionConfig(**given),
        (
            ({"population": 1}, "--population 1"),
            ({"population": 2.5}, "--population 2.5"),
            ({"evaluations": 0}, "--evaluations 0"),
            ({"evaluations": True}, "--evaluations True"),
            ({"storage": ""}, "--storage"),
            ({"study_name": ""}, "--study-name"),
        ),
    )


def test_storages_that_fail(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no storage, and no end of line either")
    (tmp_path / "broken").write_text('{"op_code":\n{"op_code":0}\n')
    with sqlite3.connect(tmp_path / "database") as database:
        database.execute("create table things (name text)")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    cases = (
        ("postgresql://me:s3cret@127.0.0.1:1/db", "driver|refused"),  # no driver here, or nobody listens
        ("postgresql+nodriver://me:s3cret@127.0.0.1/db?password=s3cret", "nodriver"),
        ("redis://:s3cret@localhost", "redis"),
        ("nonsense://", "nonsense"),
        (f"sqlite:///{tmp_path}/missing/file.db", "unable to open"),
        (f"sqlite:///{tmp_path}/text", "not a database"),
        (f"{tmp_path}/missing/journal", "No such file"),
        (f"{tmp_path}", "directory"),
        (f"{tmp_path}/text", "no journal"),
        (f"journal://{tmp_path}/database", "no journal"),
        (f"journal://{tmp_path}/broken", "JSONDecodeError"),
    )
    refuses(
        lambda url: run(tmp_path / "run", storage=url),
        [(url, f"^(?!.*s3cret).*--storage .*({says}).*another one") for url, says in cases],
    )
    assert {path: path.read_bytes() for path in before} == before


def test_a_storage_that_fails_later(tmp_path: Path) -> None:
    def evaluate(arch: Arch) -> Score:
        (tmp_path / DATABASE).write_bytes(b"overwritten" * 1000)
        return score(arch)

    with pytest.raises(UserError, match=f"--storage sqlite:.*{DATABASE} fails"):
        run(tmp_path, storage=None, evaluate=evaluate)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot hold a search"):
        evolve(FEASIBLE, never, EvolutionConfig(), tmp_path / "file" / "run", 0)


def test_another_search_in_the_storage(tmp_path: Path) -> None:
    run(tmp_path, 3)
    for change, says in (
        ({"seed": 1}, "another seed"),
        ({"population": 5}, "another population"),
        ({"feasible": FeasibleSet(SPACE, Budget(macs=2.4e6), least=0.5)}, "another budget"),
        ({"feasible": FeasibleSet(SPACE, Budget(macs=2.5e6))}, "another least"),
        ({"feasible": FeasibleSet(replace(SPACE, max_share=1), Budget(macs=2.5e6), least=0.5)}, "another space"),
    ):
        with pytest.raises(UserError, match=f"study 'psvit' in .* is a search with {says}.*--study-name"):
            run(tmp_path, 3, evaluate=never, **change)
        assert len(run(tmp_path, 3, study_name=says, **change)) == 3
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'other.db'}", study_name="psvit")
    with pytest.raises(UserError, match="no search of psvit"):
        run(tmp_path, storage=f"sqlite:///{tmp_path / 'other.db'}")


@pytest.mark.filterwarnings("error")
def test_optuna_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verbosity = optuna.logging.get_verbosity()
    said: list[str] = []
    for storage in ("", None):
        run(tmp_path, 13, storage=storage, say=said.append)
    assert capfd.readouterr() == ("", "")
    assert [line.split(";")[0] for line in said] == [
        f"evolution {6 * i} of 13 members, {i} generations" for i in (1, 2)
    ] * 2
    assert optuna.logging.get_verbosity() == verbosity


def child(folder: str, evaluations: str, storage: str, dies: str = "0", seconds: str = "0") -> None:
    """A worker of its own: says what it evaluates, and dies in an evaluation if it is told to."""
    count = 0
    print("ready", flush=True)
    sys.stdin.readline()

    def evaluate(arch: Arch) -> Score:
        nonlocal count
        count += 1
        if count == int(dies):
            os._exit(9)
        time.sleep(float(seconds))
        print(arch.genotype, arch.widths, flush=True)
        return score(arch)

    run(Path(folder), int(evaluations), evaluate=evaluate, storage=None if storage == "none" else storage)


if __name__ == "__main__":
    child(*sys.argv[1:])
