"""Publishing against a loopback Hub: one commit, everything in it, and every way it can fail."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.repocard_data import model_index_to_eval_results

import omnireg
from hub import READER, WRITER, Fault, Hub
from omnireg.demo import story
from omnireg.errors import CheckpointError, PublishError
from omnireg.hub import card, plan_publication, publish
from omnireg.hub.publishing import State
from omnireg.registry import Registry
from tests_support import Run

REPO = "acme/tiny-omni"


def surroundings(hub: Hub, folder: Path) -> dict[str, str]:
    """Return environment variables under which the client talks to the loopback Hub."""
    return {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": WRITER,
        "HF_XET_CACHE": str(folder / "xet-cache"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_XET_TELEMETRY_ENABLED": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "0",
        "OMNIREG_HUB_TIMEOUT": "5",
    }  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that takes files the classic way."""
    with Hub(tmp_path / "hub") as found:
        yield from _connected(found, tmp_path, monkeypatch, xet=False)


@pytest.fixture(params=[False, True], ids=["lfs", "xet"])
def either(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A Hub that takes files in either way."""
    with Hub(tmp_path / "hub", xet=request.param) as found:
        yield from _connected(found, tmp_path, monkeypatch, xet=request.param)


def _connected(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, *, xet: bool
) -> Iterator[Hub]:
    for name, value in surroundings(hub, folder).items():
        monkeypatch.setenv(name, value)
    # read when the client was imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http._retry_wait", 0, raising=False)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()


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
    made = publish(book, plan)
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
    publish(book, plan_publication(book, "omni", REPO, licence="apache-2.0"))
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
    publish(book, plan_publication(book, "omni", REPO))
    data, _ = card.split(published(hub))
    _, back = model_index_to_eval_results(data["model-index"])
    assert sorted(r.metric_value for r in back) == [0.8, 0.9]
    [entry] = yaml.safe_load(published(hub, ".eval_results/mmlu-pro.yaml"))
    assert entry["dataset"]["id"] == "TIGER-Lab/MMLU-Pro"
    assert entry["value"] == 31.5
    assert entry["source"]["url"] == "https://x.org/1"


def test_publishing_again_commits_nothing(hub: Hub, book: Registry) -> None:
    """The plan is empty; the publication is the one there was."""
    first = publish(book, plan_publication(book, "omni", REPO))
    again = plan_publication(book, "omni", REPO)
    assert again.changes == []
    made = publish(book, again)
    assert (made.commit, made.files, commits(hub)) == (first.commit, 0, 1)
    assert len(book.publications("omni")) == 1


def test_only_what_changed_is_sent(hub: Hub, book: Registry) -> None:
    """A new score changes the card and the lineage; weights stay where they are."""
    publish(book, plan_publication(book, "omni", REPO))
    sent = len(hub.asked("^PUT"))
    book.add_score("omni", "other", 3, metric="m")
    plan = plan_publication(book, "omni", REPO)
    assert {item.path for item in plan.changes} == {"README.md", "omnireg.manifest.yaml"}
    assert "+" in plan.card_diff
    publish(book, plan)
    assert len(hub.asked("^PUT")) == sent
    assert commits(hub) == 2
    assert len(book.publications("omni")) == 2


def test_what_people_wrote_survives(hub: Hub, book: Registry) -> None:
    """Text around our section, and metadata that we do not set."""
    publish(book, plan_publication(book, "omni", REPO))
    data, text = card.split(published(hub))
    data["thumbnail"] = "cat.png"
    data["tags"].append("cats")
    head = yaml.safe_dump(data)
    mine = f"---\n{head}---\nOur intro.\n{text}\nOur outro.\n"
    hub.commit(REPO, {"README.md": mine.encode(), "cat.png.txt": b"x"})
    book.add_score("omni", "other", 3, metric="m")
    publish(book, plan_publication(book, "omni", REPO))
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
    publish(book, plan)
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
    publish(book, plan_publication(book, "pkg", REPO))
    files = hub.repos[REPO].branches["main"][-1].files
    assert "hosts/image/shell.safetensors" in files
    assert not [path for path in files if path.startswith("base/")]
    assert 'omnireg.load("omni")' in published(hub)


def test_branches_and_pull_requests(hub: Hub, book: Registry) -> None:
    """A branch is made where it is missing; a pull request leaves main alone."""
    hub.repo(REPO)
    publish(book, plan_publication(book, "omni", REPO, branch="next"))
    assert "model.safetensors" in hub.repos[REPO].branches["next"][-1].files
    assert commits(hub) == 0
    made = publish(book, plan_publication(book, "omni", REPO), create_pr=True)
    assert made.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert commits(hub) == 0


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
        publish(book, plan_publication(book, "omni", REPO))
    assert WRITER not in str(caught.value)
    assert commits(hub) == 0
    assert book.publications("omni") == []
    hub.faults.clear()
    publish(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 1


def test_a_lost_answer_is_a_success(hub: Hub, book: Registry) -> None:
    """The commit landed: it is found, and not made twice."""
    hub.faults.append(Fault("/commit/", "lost"))
    made = publish(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 1
    assert made.commit == hub.repos[REPO].branches["main"][-1].oid
    assert [p.commit for p in book.publications("omni")] == [made.commit]
    assert len(hub.asked("POST .*/commit/")) == 1


def test_a_cut_connection_publishes_nothing(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says that running again does not send anything twice."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault("/commit/", "cut", times=100))
    with pytest.raises(PublishError, match="not sent twice"):
        publish(book, plan_publication(book, "omni", REPO))
    assert commits(hub) == 0
    hub.faults.clear()
    sent = len(hub.asked("^PUT"))
    publish(book, plan_publication(book, "omni", REPO))
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
        publish(book, plan)
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
        publish(book, plan_publication(book, "omni", REPO))
    assert str(token) not in str(caught.value)
    assert REPO not in hub.repos


def test_a_killed_publish_goes_on(hub: Hub, book: Registry, tmp_path: Path) -> None:
    """SIGKILL between uploading and committing: what was sent is not sent again."""
    program = (
        "import os, signal, huggingface_hub._commit_api as api\n"
        "from omnireg.hub import plan_publication, publish\n"
        "from omnireg.registry import Registry\n"
        "def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        "api._prepare_commit_payload = die\n"
        f"book = Registry()\npublish(book, plan_publication(book, 'omni', '{REPO}'))\n"
    )
    env = {**os.environ, **surroundings(hub, tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert commits(hub) == 0
    sent = len(hub.asked("^PUT"))
    assert sent == 1
    publish(book, plan_publication(book, "omni", REPO))
    assert len(hub.asked("^PUT")) == sent
    assert commits(hub) == 1
    assert len(book.publications("omni")) == 1


def test_what_is_not_what_was_recorded_stays_here(hub: Hub, book: Registry) -> None:
    """Changed weights, a missing folder, a pickle: refused before the Hub hears of it."""
    Path("omni/evil.bin").write_bytes(b"pickle")
    with pytest.raises(PublishError, match="pickled"):
        plan_publication(book, "omni", REPO)
    Path("omni/evil.bin").unlink()
    weights = Path("omni/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="was recorded as"):
        plan_publication(book, "omni", REPO)
    Path("omni").rename("elsewhere")
    with pytest.raises(CheckpointError, match="are not here"):
        plan_publication(book, "omni", REPO)
    assert hub.asked("POST") == []


def test_cards_that_cannot_be_read(hub: Hub, book: Registry) -> None:
    """A repository whose card is broken is left alone."""
    hub.commit(REPO, {"README.md": b"---\n{: [\n---\nhello\n"})
    with pytest.raises(PublishError, match="cannot be read"):
        plan_publication(book, "omni", REPO)
    assert card.split("no metadata") == ({}, "no metadata")
    assert card.split("---\nunclosed") == ({}, "---\nunclosed")
