"""Publishing against a loopback Hub: one commit, everything in it, and every way it can fail."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

import omnireg
from loopback_hub import READER, WRITER, Fault, Hub, connected, surroundings
from omnireg.demo import story
from omnireg.errors import CheckpointError, PublishError
from omnireg.hub import card, carry_out, plan_publication, pull
from omnireg.hub.files import State
from omnireg.recording import add as record
from omnireg.registry import Registry
from tests_support import Run

REPO = "acme/tiny-omni"


@pytest.fixture(params=[False, True], ids=["lfs", "xet"])
def either(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A Hub that takes files in either way."""
    with Hub(tmp_path / "hub", xet=request.param) as found:
        yield from connected(found, tmp_path, monkeypatch, xet=request.param)


HALVES = """
import torch
from mergekit.merge_methods import BasePolicy, InputContract, TensorGroup, merge_method
from omnireg import hookimpl

@merge_method(
    name="halves", pretty_name="Halves",
    contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=1),
)
def halves(group: TensorGroup) -> torch.Tensor:
    return group.base.tensor + (group.non_base[0].tensor - group.base.tensor) / 2

@hookimpl
def omnireg_register_strategies(register):
    register(halves)
"""


@pytest.fixture
def book(tmp_path: Path) -> Registry:
    """A registry with a merge of the tiny family, scored; image and base are on the Hub."""
    for name in ("base", "image", "audio"):
        (tmp_path / name).symlink_to(story.FAMILY / name)
    omnireg.merge(
        "merge_method: omni_ties\nbase_model: base\nmodels:\n  - model: image\n  - model: audio\n"
        "parameters: {density: 0.5}\nomnireg: {output: host, host: image}\n",
        "omni",
    )
    found = Registry()
    found.add_alias("base", "acme/base")
    found.add_alias("image", "acme/seeing@v1")
    found.add_score("omni", "MMLU-Pro", 31.5, metric="accuracy", n_shot=5, source="https://x.org/1")
    found.add_score("omni", "tiny", 0.9, metric="exact_match", n=100, stderr=0.03, n_shot=0)
    found.add_score("omni", "tiny", 0.8, metric="exact_match", n=100, n_shot=5)
    found.add_score("image", "tiny", 1.0, metric="exact_match", n=100, n_shot=0)
    return found


def published(hub: Hub, path: str = "README.md", repo: str = REPO) -> str:
    """Return a text file of the repository's head."""
    head = hub.repos[repo].branches["main"][-1]
    return hub.bytes_of(head.files[path]).decode()


def commits(hub: Hub, repo: str = REPO) -> int:
    """Return how many commits were made, the first one, which makes the repository, apart."""
    return len(hub.repos[repo].branches["main"]) - 1


# what is published


def test_one_commit_holds_everything(either: Hub, book: Registry) -> None:
    """Weights, side files, card, recipe, lineage and scores, privately, on either path."""
    plan = plan_publication(book, "omni", REPO)
    assert (plan.head, plan.private) == (None, True)
    assert REPO not in either.repos
    made = carry_out(book, plan)
    assert commits(either) == 1
    assert either.repos[REPO].private
    head = either.repos[REPO].branches["main"][-1]
    assert (made.commit, made.files) == (head.oid, len(plan.items))
    assert set(head.files) >= {
        "model.safetensors", "config.json", "tokenizer.json", "omnireg.json", "README.md",
        "recipe.yml", "omnireg.manifest.yaml", ".eval_results/mmlu-pro.yaml",
    }  # fmt: skip
    record = book.find("omni")
    assert Path("omni/model.safetensors").stat().st_size == head.files["model.safetensors"].size
    run = book.run_of("omni")
    assert run is not None
    assert published(either, "recipe.yml") == run.recipe_text
    assert [(p.repo, p.commit, p.url) for p in book.publications("omni")] == [
        (REPO, made.commit, made.url)
    ]
    assert str(record.fingerprint) in published(either, "omnireg.manifest.yaml")


def test_the_card_says_what_it_is_made_of(hub: Hub, book: Registry) -> None:
    """Parents on the Hub, the relation, the recipe verbatim, a drawing, scores with retention."""
    carry_out(book, plan_publication(book, "omni", REPO, licence="apache-2.0"))
    data, text = card.split(published(hub))
    assert data["base_model"] == ["acme/seeing", "acme/base"]
    assert data["base_model_relation"] == "merge"
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "transformers"
    assert {"mergekit", "merge", "omnireg"} <= set(data["tags"])
    record = book.find("omni")
    assert data["omnireg"]["fingerprint"] == record.fingerprint
    run = book.run_of("omni")
    assert run is not None
    assert f"```yaml\n{run.recipe_text.rstrip()}\n```" in text
    assert "```mermaid\nflowchart" in text
    assert "| tiny | exact_match | 0.9 ± 0.03 | 1 (90% kept) |" in text
    assert "v1" in text
    assert "omnireg verify omni --rerun" in text
    assert str(Path.cwd()) not in published(hub) + published(hub, "omnireg.manifest.yaml")


def test_no_score_is_lost_to_the_grouping(hub: Hub, book: Registry) -> None:
    """Two shots of one benchmark are two values, read back; registered ones have a file."""
    carry_out(book, plan_publication(book, "omni", REPO))
    data, _ = card.split(published(hub))
    _, back = model_index_to_eval_results(data["model-index"])
    assert sorted(r.metric_value for r in back) == [0.8, 0.9]
    [entry] = yaml.safe_load(published(hub, ".eval_results/mmlu-pro.yaml"))
    assert entry["dataset"]["id"] == "TIGER-Lab/MMLU-Pro"
    assert entry["value"] == 31.5
    assert entry["source"]["url"] == "https://x.org/1"


def test_publishing_again_commits_nothing(hub: Hub, book: Registry) -> None:
    """The plan is empty; the publication is the one there was."""
    first = carry_out(book, plan_publication(book, "omni", REPO))
    again = plan_publication(book, "omni", REPO)
    assert again.changes == []
    made = carry_out(book, again)
    assert (made.commit, made.files, commits(hub)) == (first.commit, 0, 1)
    assert len(book.publications("omni")) == 1


def test_only_what_changed_is_sent(hub: Hub, book: Registry) -> None:
    """A new score changes the card and the lineage; weights stay where they are."""
    carry_out(book, plan_publication(book, "omni", REPO))
    sent = len(hub.asked("^PUT"))
    book.add_score("omni", "other", 3, metric="m")
    plan = plan_publication(book, "omni", REPO)
    changed = {"README.md", "omnireg.manifest.yaml", "omnireg.json"}
    assert {item.path for item in plan.changes} == changed
    assert "+" in plan.card_diff
    carry_out(book, plan)
    assert len(hub.asked("^PUT")) == sent
    assert commits(hub) == 2
    assert len(book.publications("omni")) == 2


def test_what_people_wrote_survives(hub: Hub, book: Registry) -> None:
    """Text around our section, and metadata that we do not set."""
    carry_out(book, plan_publication(book, "omni", REPO))
    data, text = card.split(published(hub))
    data["thumbnail"] = "cat.png"
    data["tags"].append("cats")
    head = yaml.safe_dump(data)
    mine = f"---\n{head}---\nOur intro.\n{text}\nOur outro.\n"
    hub.commit(REPO, {"README.md": mine.encode(), "cat.png.txt": b"x"})
    book.add_score("omni", "other", 3, metric="m")
    carry_out(book, plan_publication(book, "omni", REPO))
    data, text = card.split(published(hub))
    assert (data["thumbnail"], "cats" in data["tags"]) == ("cat.png", True)
    assert text.startswith("Our intro.")
    assert text.rstrip().endswith("Our outro.")
    assert text.count(card.BEGIN) == text.count(card.END) == 1
    assert "| other |" in text
    assert "cat.png.txt" in hub.repos[REPO].branches["main"][-1].files


def test_stale_weights_are_deleted(hub: Hub, book: Registry) -> None:
    """A shard of an older version would be taken for one of this."""
    hub.commit(REPO, {"model-00002-of-00002.safetensors": b"old", "notes.txt": b"mine"})
    plan = plan_publication(book, "omni", REPO)
    states = {item.path: item.state for item in plan.items}
    assert states["model-00002-of-00002.safetensors"] is State.DELETED
    assert "notes.txt" not in states
    carry_out(book, plan)
    files = hub.repos[REPO].branches["main"][-1].files
    assert "model-00002-of-00002.safetensors" not in files
    assert "notes.txt" in files


def test_packages_are_published(hub: Hub, book: Registry) -> None:
    """Every file by its path; with the base by reference only the difference."""
    text = (
        "merge_method: mmer\nbase_model: base\nmodels:\n  - model: image\n  - model: audio\n"
        "omnireg: {output: package, base: reference}\n"
    )
    omnireg.merge(text, "pkg")
    carry_out(book, plan_publication(book, "pkg", REPO))
    files = hub.repos[REPO].branches["main"][-1].files
    assert "hosts/image/shell.safetensors" in files
    assert not [path for path in files if path.startswith("base/")]
    assert 'omnireg.load("omni")' in published(hub)


def test_a_single_file_plugin_goes_along(hub: Hub, book: Registry, run: Run) -> None:
    """What nobody else has is refused, unless the very file is published beside the weights."""
    file = Path("halves.py")
    file.write_text(HALVES)
    Path("h.yml").write_text(
        "merge_method: halves\nbase_model: base\nmodels:\n  - model: image\n  - model: audio\n"
    )
    assert run("merge", "h.yml", "half", "--plugin", file).code == 0
    refused = run("publish", "half", REPO, "--yes")
    assert refused.code == 1
    assert "publish it along: --plugin" in refused.err
    assert REPO not in hub.repos
    done = run("publish", "half", REPO, "--yes", "--plugin", file)
    assert done.code == 0, done.err
    assert published(hub, "plugins/halves.py") == HALVES
    assert "sha256:" in published(hub, "omnireg.manifest.yaml")
    file.write_text(HALVES + "# changed\n")
    changed = run("publish", "half", "acme/other", "--yes", "--plugin", file)
    assert "is not the plugin that half was merged with" in changed.err
    assert "cannot read plugin" in run("publish", "half", REPO, "--plugin", "none.py").err
    assert "was not merged with" in run("publish", "omni", REPO, "--plugin", file).err


def test_branches_and_pull_requests(hub: Hub, book: Registry) -> None:
    """A branch is made where it is missing; a pull request leaves main alone."""
    hub.repo(REPO)
    carry_out(book, plan_publication(book, "omni", REPO, branch="next"))
    assert "model.safetensors" in hub.repos[REPO].branches["next"][-1].files
    assert commits(hub) == 0
    made = carry_out(book, plan_publication(book, "omni", REPO), create_pr=True)
    assert made.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert commits(hub) == 0


def test_a_branch_is_made_where_nothing_changed(hub: Hub, book: Registry, run: Run) -> None:
    """It is what was asked for, though there is nothing to commit."""
    carry_out(book, plan_publication(book, "omni", REPO))
    head = hub.repos[REPO].branches["main"][-1].oid
    done = run("publish", "omni", REPO, "--branch", "v1", "--yes")
    assert done.code == 0, done.err
    assert "nothing was committed; the branch v1 was made" in done.out
    assert hub.repos[REPO].branches["v1"][-1].oid == head
    assert "was made" not in run("publish", "omni", REPO, "--branch", "v1", "--yes").out


def test_licences_follow_from_the_parents(hub: Hub, book: Registry) -> None:
    """Read off the parents' cards; a difference and a ban on derived works are told."""
    assert "no parent's licence is known" in plan_publication(book, "omni", REPO).warnings[0]
    hub.commit("acme/base", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    plan = plan_publication(book, "omni", REPO)
    assert plan.warnings == ()
    assert "+license: apache-2.0" in plan.card_diff
    assert card.derive_licence({"a": "mit", "b": "mit"}) == ("mit", [])
    licence, warnings = card.derive_licence({"a": "mit", "b": "cc-by-nc-nd-4.0"})
    assert licence == "other"
    assert "forbids derived works" in warnings[0]
    assert "differ" in warnings[1]


# the command


def test_the_command_shows_asks_and_publishes(hub: Hub, book: Registry, run: Run) -> None:
    """A dry run changes nothing; without anybody to ask it needs --yes; a token is never shown."""
    dry = run("publish", "omni", REPO, "--dry-run")
    assert dry.code == 0, dry.err
    assert "model.safetensors" in dry.out
    assert "which will be made" in dry.out
    assert "+base_model:" in dry.out
    assert REPO not in hub.repos
    assert run("publish", "omni", REPO).code == 2
    assert REPO not in hub.repos
    done = run("publish", "omni", REPO, "--yes", "--public")
    assert done.code == 0, done.err
    assert not hub.repos[REPO].private
    assert "nothing was committed" in run("publish", "omni", REPO, "--yes").out
    everything = dry.out + dry.err + done.out + done.err + published(hub)
    everything += Path("registry.db").read_bytes().decode("latin1")
    assert WRITER not in everything
    for command in (("publish", "omni", "no name", "--yes"), ("publish", "nobody", REPO, "--yes")):
        slip = run(*command)
        assert slip.code == 1
        assert "Traceback" not in slip.err


# faults


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("where", ["whoami", "models/acme", "preupload", "batch", "/commit/"])
def test_a_hub_that_is_down_is_told(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch, status: int, where: str
) -> None:
    """At any request: nothing is published, nothing recorded; running again works."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.repo(REPO, private=True)
    hub.faults.append(Fault(where, status, times=100))
    with pytest.raises(PublishError, match=str(status)) as caught:
        carry_out(book, plan_publication(book, "omni", REPO))
    assert WRITER not in str(caught.value)
    assert commits(hub) == 0
    assert book.publications("omni") == []
    hub.faults.clear()
    carry_out(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 1


def test_a_lost_answer_is_a_success(either: Hub, book: Registry) -> None:
    """The commit landed: it is found, and not made twice."""
    hub = either
    hub.faults.append(Fault("/commit/", "lost"))
    made = carry_out(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 1
    assert made.commit == hub.repos[REPO].branches["main"][-1].oid
    assert [p.commit for p in book.publications("omni")] == [made.commit]
    assert len(hub.asked("POST .*/commit/")) == 1


@pytest.mark.parametrize(
    ("where", "status"),
    # the storage client retries a 503 for two minutes by itself
    [("preupload", 503), ("xet-write-token", 403), ("/commit/", 503)],
)
def test_an_upload_through_xet_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, book: Registry, where: str, status: int
) -> None:
    """Nothing is published; running again works, and sends the same once more or not at all."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Hub(tmp_path / "xet", xet=True) as made:
        for hub in connected(made, tmp_path, monkeypatch, xet=True):
            hub.repo(REPO)
            hub.faults.append(Fault(where, status, times=100))
            with pytest.raises(PublishError) as caught:
                carry_out(book, plan_publication(book, "omni", REPO))
            assert WRITER not in str(caught.value)
            assert commits(hub) == 0
            assert book.publications("omni") == []
            hub.faults.clear()
            carry_out(book, plan_publication(book, "omni", REPO))
            assert commits(hub) == 1


def test_a_cut_connection_publishes_nothing(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says that running again does not send anything twice."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault("/commit/", "cut", times=100))
    with pytest.raises(PublishError, match="not sent twice"):
        carry_out(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 0
    hub.faults.clear()
    sent = len(hub.asked("^PUT"))
    carry_out(book, plan_publication(book, "omni", REPO))
    assert len(hub.asked("^PUT")) == sent
    assert commits(hub) == 1


def test_a_stalled_server_is_given_up(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many seconds as were allowed."""
    monkeypatch.setenv("OMNIREG_HUB_TIMEOUT", "0.5")
    hub.faults.append(Fault("whoami", "stall", times=100, seconds=2))
    with pytest.raises(PublishError, match=r"did not answer for 0\.5 s"):
        plan_publication(book, "omni", REPO)


def test_somebody_elses_commit_is_not_overwritten(hub: Hub, book: Registry, run: Run) -> None:
    """A stale plan is refused; the command makes a new one and goes on."""
    hub.repo(REPO)
    plan = plan_publication(book, "omni", REPO)
    hub.commit(REPO, {"notes.txt": b"theirs"})
    with pytest.raises(PublishError, match="meanwhile"):
        carry_out(book, plan)
    assert commits(hub) == 1
    hub.meanwhile = lambda: hub.commit(REPO, {"more.txt": b"theirs"})  # type: ignore[assignment]
    done = run("publish", "omni", REPO, "--yes")
    assert done.code == 0, done.err
    files = hub.repos[REPO].branches["main"][-1].files
    assert {"notes.txt", "more.txt", "model.safetensors"} <= set(files)
    assert commits(hub) == 3


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "no token"), ("hf_wrong", "not valid"), (READER, "may not write")],
)
def test_tokens(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    """None, a wrong one, one without rights: each is told, none is shown."""
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=said) as caught:
        carry_out(book, plan_publication(book, "omni", REPO))
    assert str(token) not in str(caught.value)
    assert REPO not in hub.repos


def test_a_dry_run_takes_no_token(
    hub: Hub, book: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is an account: of what anybody may see, and says so."""
    monkeypatch.delenv("HF_TOKEN")
    dry = run("publish", "omni", REPO, "--dry-run")
    assert dry.code == 0, dry.err
    assert "which will be made" in dry.out
    assert "may be there and private; log in with hf auth login" in dry.out + dry.err
    refused = run("publish", "omni", REPO, "--yes")
    assert refused.code == 1
    assert "no token for the Hub" in refused.err
    assert REPO not in hub.repos


def test_a_killed_publish_goes_on(either: Hub, book: Registry, tmp_path: Path) -> None:
    """SIGKILL between uploading and committing: what was sent is not sent again."""
    hub = either
    program = (
        "import os, signal, huggingface_hub._commit_api as api\n"
        "from omnireg.hub import plan_publication, carry_out\n"
        "from omnireg.registry import Registry\n"
        "def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        "api._prepare_commit_payload = die\n"
        f"book = Registry()\ncarry_out(book, plan_publication(book, 'omni', '{REPO}'))\n"
    )
    env = {**os.environ, **surroundings(hub, tmp_path), "HF_HUB_DISABLE_XET": str(int(not hub.xet))}
    done = subprocess.run([sys.executable, "-c", program], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert commits(hub) == 0
    sent = len(hub.asked("^PUT"))
    assert sent == (0 if hub.xet else 1)
    carry_out(book, plan_publication(book, "omni", REPO))
    assert len(hub.asked("^PUT")) == sent
    assert commits(hub) == 1
    assert len(book.publications("omni")) == 1


def test_pickles_are_not_published(hub: Hub, book: Registry) -> None:
    """By name or by content; the voices that a class has in no other form are, with a warning."""
    for name, data in (("evil.PT", b"x"), ("notes.dat", pickle.dumps({"a": 1}))):
        file = Path("omni", name)
        file.write_bytes(data)
        with pytest.raises(PublishError, match="pickled"):
            plan_publication(book, "omni", REPO)
        file.unlink()
    Path("omni/spk_dict.pt").write_bytes(pickle.dumps({"Ethan": 1}))
    record(book, "./omni", name="omni")
    plan = plan_publication(book, "omni", REPO)
    assert any("spk_dict.pt is published though it is pickled" in line for line in plan.warnings)
    carry_out(book, plan)
    assert "spk_dict.pt" in hub.repos[REPO].branches["main"][-1].files
    with pytest.raises(PublishError, match="--allow-pickle"):
        pull(book, REPO, to=Path("back"))
    assert pull(book, REPO, to=Path("back"), allow_pickle=True).files == len(plan.items) + 1


def test_files_that_were_edited_are_published_as_they_are(hub: Hub, book: Registry) -> None:
    """Once they are recorded so; what the folder says of itself holds true there."""
    Path("omni/generation_config.json").write_text('{"max_new_tokens": 5}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json was changed"):
        plan_publication(book, "omni", REPO)
    record(book, "./omni", name="omni")
    carry_out(book, plan_publication(book, "omni", REPO))
    assert pull(Registry("other.db"), REPO, to=Path("back")).fingerprint
    assert Path("back/generation_config.json").read_text() == '{"max_new_tokens": 5}'


def test_what_is_not_what_was_recorded_stays_here(hub: Hub, book: Registry) -> None:
    """Changed weights, a missing folder, a pickle: refused before the Hub hears of it."""
    Path("omni/evil.bin").write_bytes(b"pickle")
    with pytest.raises(PublishError, match="pickled"):
        plan_publication(book, "omni", REPO)
    Path("omni/evil.bin").unlink()
    weights = Path("omni/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="were recorded as"):
        plan_publication(book, "omni", REPO)
    Path("omni").rename("elsewhere")
    with pytest.raises(CheckpointError, match="which is gone"):
        plan_publication(book, "omni", REPO)
    assert hub.asked("POST") == []


def test_what_is_no_repository_is_said_first(book: Registry, run: Run) -> None:
    """Without a token, and without a Hub."""
    for repo in ("acme", "acme/a b", "a/b/c"):
        for command in (("publish", "omni", repo), ("pull", repo)):
            done = run(*command)
            assert done.code == 1
            assert "write ORG/NAME" in done.err


def test_cards_that_cannot_be_read(hub: Hub, book: Registry) -> None:
    """A repository whose card is broken is left alone."""
    bomb = "a: &a [x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 30)}]\n" for a, b in pairwise("abcdefg")
    )
    for text in ("{: [\n", bomb, "a: " + "[" * 500, "tags: 1\n---\n\xff"):
        hub.commit(REPO, {"README.md": f"---\n{text}\n---\nhello\n".encode("latin1")})
        with pytest.raises(PublishError, match=r"acme/tiny-omni.*(cannot be read|UTF-8)"):
            plan_publication(book, "omni", REPO)
    hub.commit(REPO, {"README.md": b"---\ntags: 1\n---\nhello\n"})
    hub.commit("acme/base", {"README.md": f"---\n{bomb}license: mit\n---\n".encode()})
    plan = plan_publication(book, "omni", REPO)
    assert "no parent's licence is known" in plan.warnings[0]
    assert "- '1'" in plan.card_diff
    assert card.split("no metadata") == ({}, "no metadata")
    assert card.split("---\nunclosed") == ({}, "---\nunclosed")


def test_hf_finds_the_extension(
    hub: Hub, book: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``hf omnireg …`` is the same command, with its arguments and its exit code."""
    programs = Path(sys.executable).parent
    place = tmp_path / "home" / ".local/share/hf/extensions/hf-omnireg"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(
        json.dumps(
            {
                "owner": "acme", "repo": "hf-omnireg", "repo_id": "acme/hf-omnireg",
                "short_name": "omnireg", "executable_path": str(programs / "hf-omnireg"),
                "type": "python", "installed_at": "2026-11-25T00:00:00+00:00",
            }
        )
    )  # fmt: skip
    env = {**os.environ, **surroundings(hub, tmp_path), "HOME": str(tmp_path / "home")}

    def hf(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [str(programs / "hf"), "omnireg", *arguments]
        return subprocess.run(line, env=env, check=False, capture_output=True, text=True)

    dry = hf("publish", "omni", REPO, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "model.safetensors" in dry.stdout
    assert hf("publish", "nobody", REPO, "--yes").returncode == 1
    assert hf("publish").returncode == 2


# inputs on the Hub


def test_a_plan_of_inputs_on_the_hub_fetches_headers_alone(
    hub: Hub, tmp_path: Path, run: Run
) -> None:
    """The plan is that of local copies; weights come when they are merged, if everything fits."""
    for name in ("base", "image", "audio"):
        files = {f.name: f.read_bytes() for f in (story.FAMILY / name).iterdir()}
        hub.commit(f"acme/{name}", files)
        (tmp_path / name).symlink_to(story.FAMILY / name)
    text = (
        "merge_method: omni_ties\nbase_model: {0}base\nmodels:\n  - model: {0}image\n"
        "  - model: {0}audio\nomnireg: {{output: host, host: {0}image}}\n"
    )
    Path("far.yml").write_text(text.format("acme/"))
    Path("near.yml").write_text(text.format(""))
    far, near = (json.loads(run("plan", f, "--json").out) for f in ("far.yml", "near.yml"))
    assert far["tensors"] == near["tensors"]
    assert far["output"] == near["output"]
    known = [item["fingerprint"] for item in far["inputs"]]
    assert None not in known
    fetched = hub.asked(r"^GET .*safetensors")
    assert len(fetched) == 3
    assert all(request.endswith("bytes") for request in fetched)
    run("plan", "far.yml")
    assert len(hub.asked(r"^GET .*safetensors")) == 3
    Path("odd.yml").write_text(text.format("acme/").replace("acme/audio", "acme/none"))
    assert run("merge", "odd.yml", "x").code == 1
    assert len(hub.asked(r"^GET .*safetensors")) == 3
    assert run("merge", "far.yml", "far").code == 0
    assert run("merge", "near.yml", "near").code == 0
    weights = [Path(name, "model.safetensors").read_bytes() for name in ("far", "near")]
    assert weights[0] == weights[1]
    with Registry() as book:
        found = {p.name for p in book.find("far").parents}
    assert {"acme/base", "acme/image"} <= found | {"base", "image"}


# reading back


def _told(book: Registry, name: str) -> Any:
    """Return lineage and scores without what is told apart by time and place."""
    family = book.lineage(name, direction="up")
    scores = [
        {k: v for k, v in s.to_json().items() if k != "created_at"}
        for node in family.nodes for s in book.scores(node.name)
    ]  # fmt: skip
    nodes = {(n.name, str(n.kind), n.fingerprint) for n in family.nodes}
    edges = {(e.child, e.parent, str(e.role), e.weight) for e in family.edges}
    return nodes, edges, sorted(scores, key=str)


def test_what_was_published_is_read_back(either: Hub, book: Registry, tmp_path: Path) -> None:
    """Into an empty registry: the same lineage, fingerprints and scores, without weights."""
    made = carry_out(book, plan_publication(book, "omni", REPO))
    other = Registry(tmp_path / "other.db")
    found = pull(other, REPO, metadata_only=True)
    assert found.fingerprint == book.find("omni").fingerprint
    assert set(found.recorded) == {"omni", "base", "image", "audio"}
    assert _told(other, "omni") == _told(book, "omni")
    assert other.check() == []
    assert [(p.repo, p.commit) for p in other.publications("omni")] == [(REPO, made.commit)]
    assert not either.asked("GET .*safetensors$")
    # a local copy is the same checkpoint
    assert [c.name for c in other.by_fingerprint(str(found.fingerprint))] == ["omni"]
    again = pull(other, REPO, metadata_only=True)
    assert again.recorded == ()
    assert len(other.publications("omni")) == 1
    assert _told(other, "omni") == _told(book, "omni")


def test_files_are_fetched(hub: Hub, book: Registry, tmp_path: Path, run: Run) -> None:
    """Byte for byte, into a new folder, where they can be verified."""
    carry_out(book, plan_publication(book, "omni", REPO))
    done = run("--registry", tmp_path / "other.db", "pull", REPO, "--to", "back")
    assert done.code == 0, done.err
    assert (
        Path("back/model.safetensors").read_bytes() == Path("omni/model.safetensors").read_bytes()
    )
    assert not Path("back/.cache").exists()
    assert run("--registry", tmp_path / "other.db", "verify", "omni").code == 0
    # what it was made of is known by its bytes, wherever it lies
    other = ("--registry", tmp_path / "other.db")
    for name in ("base", "image", "audio"):
        assert run(*other, "add", name, "--name", name).code == 0
    again = run(*other, "verify", "omni", "--rerun")
    assert again.code == 0, again.err
    assert run("pull", REPO, "--to", "back").code == 0
    Path("back/mine.txt").touch()
    assert "already exists" in run("pull", REPO, "--to", "back").err
    Path("other.db").unlink()
    assert [path.name for path in Path().glob("back*")] == ["back"]


def test_repositories_that_we_never_published(hub: Hub, tmp_path: Path) -> None:
    """Parents are followed by their cards, cycles and strangers do no harm."""
    hub.commit("meta/base", {"model.safetensors": b"b", "README.md": b"---\nlicense: mit\n---\n"})
    hub.commit("a/sees", {
        "model.safetensors": b"s",
        "README.md": b"---\nbase_model: meta/base\nbase_model_relation: finetune\n---\n",
    })  # fmt: skip
    text = (
        "---\nbase_model: [a/sees, gone/away, b/merge]\nbase_model_relation: merge\nmodel-index:\n"
        "- name: m\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: D}\n"
        "    metrics: [{type: acc, value: 0.5}, {type: f1, value: bad}]\n---\n"
    )
    hub.commit("b/merge", {"model.safetensors": b"m", "README.md": text.encode()})
    book = Registry(tmp_path / "empty.db")
    found = pull(book, "b/merge", metadata_only=True)
    assert set(found.recorded) == {"b/merge", "a/sees", "meta/base"}
    family = book.lineage("b/merge", direction="up")
    assert {(e.child, e.parent, str(e.role)) for e in family.edges} == {
        ("b/merge", "a/sees", "model"), ("a/sees", "meta/base", "finetuned_from"),
    }  # fmt: skip
    assert [(s.benchmark, s.value) for s in book.scores("b/merge")] == [("D", 0.5)]
    shallow = Registry(tmp_path / "shallow.db")
    assert pull(shallow, "a/sees", metadata_only=True, depth=0).recorded == ("a/sees",)


def test_a_repository_cannot_do_harm(hub: Hub, book: Registry, tmp_path: Path, run: Run) -> None:
    """Files that leave the folder, pickles, claims about other weights, deletions: none goes in."""
    carry_out(book, plan_publication(book, "omni", REPO))
    before = _told(book, "omni")
    hub.commit("evil/paths", {"../../outside.txt": b"x", "model.safetensors": b"w"})
    with pytest.raises(PublishError, match="leave the folder"):
        pull(book, "evil/paths", to=tmp_path / "in" / "here")
    assert not (tmp_path / "in").exists()
    hub.commit("evil/pickle", {"pytorch_model.bin": b"x"})
    with pytest.raises(PublishError, match="--allow-pickle"):
        pull(book, "evil/pickle")
    claims = yaml.safe_load(published(hub, "omnireg.manifest.yaml"))
    for entry in claims["checkpoints"]:
        if entry["name"] == "omni":
            entry["source"] = "evil/claims"
    hub.commit("evil/claims", {
        "model.safetensors": b"other", "omnireg.manifest.yaml": yaml.safe_dump(claims).encode(),
    })  # fmt: skip
    with pytest.raises(PublishError, match="the Hub says"):
        pull(book, "evil/claims", metadata_only=True)
    claims["checkpoints"] = [
        {"name": "mine", "kind": "merged", "source": "evil/rows"},
        {"name": "image", "absent": True},
        {"name": "base", "kind": "merged", "notes": "taken over"},
    ]
    claims["scores"] = [{"checkpoint": "base", "benchmark": "tiny", "metric": "m", "value": 99}]
    hub.commit("evil/rows", {"omnireg.manifest.yaml": yaml.safe_dump(claims).encode()})
    assert pull(book, "evil/rows", metadata_only=True).recorded == ("mine",)
    assert _told(book, "omni") == before
    claims["checkpoints"][2]["fingerprint"] = "0" * 64
    hub.commit("evil/rows", {"omnireg.manifest.yaml": yaml.safe_dump(claims).encode()})
    slip = run("pull", "evil/rows", "--metadata-only")
    assert "into another registry" in slip.err
    for repo in ("no/where", "not a name"):
        slip = run("pull", repo)
        assert (slip.code, slip.out) == (1, "")
        assert "Traceback" not in slip.err
    hub.faults.append(Fault("safetensors", "cut", times=100))
    with pytest.raises(PublishError):
        pull(Registry(tmp_path / "x.db"), REPO, to=tmp_path / "half")
    assert not list(tmp_path.glob("*half*"))
    assert not (tmp_path / "x.db").exists()
