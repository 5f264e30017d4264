"""What goes into the registry: a checkpoint as it lies on disk, and a run from start to end."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omnireg.backbones.alignment import LanguageModel, find_language_model
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnireg.errors import (
    CheckpointError,
    OmniregError,
    PlanError,
    RegistryError,
    did_you_mean,
    to_type,
)
from omnireg.hookspecs import HostLayout
from omnireg.package import Package, fingerprint_of, is_package
from omnireg.planning import Plan, Shape
from omnireg.planning.provenance import versions
from omnireg.plugins.host import PluginHost
from omnireg.registry import Checkpoint as Record
from omnireg.registry import Kind, Parent, Registry, Role


def record_checkpoint(
    book: Registry,
    checkpoint: Checkpoint,
    *,
    kind: str,
    name: str | None = None,
    modalities: Iterable[str] = (),
    parents: Iterable[Parent] = (),
) -> Record:
    """Record a checkpoint, or return what its bytes are already recorded as.

    Raises:
        RegistryError: the name belongs to other bytes, or the registry cannot be written.
    """
    return book.add_checkpoint(
        name or default_name(book, checkpoint),
        kind=kind,
        fingerprint=checkpoint.fingerprint,
        source=_source(checkpoint),
        modalities=modalities,
        parents=parents,
        files=_files(checkpoint),
    )


def _files(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return the digests of a checkpoint's files; None if they are not all here."""
    return None if checkpoint.remote else contents.digests(checkpoint.folder)


def add(
    book: Registry,
    ref: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    parents: Sequence[str] = (),
    modalities: Sequence[str] = (),
) -> Record:
    """Record a folder or a Hub checkpoint, with what its class and its files say of it.

    Args:
        book: where to record it.
        ref: a folder or ``org/name[@revision]``; of the latter only side files are downloaded.
        name: name in the registry.
        kind: told from the checkpoint when None.
        parents: ``REF`` or ``REF=ROLE``; those nobody recorded yet are recorded too.
        modalities: those of the class when empty.
    """
    if not ref.strip():
        raise CheckpointError("no checkpoint is named: give a folder, or a Hub id org/name")
    if is_package(Path(ref)):
        if kind not in (None, Kind.PACKAGE):
            raise RegistryError(f"{ref} is a package, not {kind}: leave --kind out")
        if parents or modalities:
            raise RegistryError(
                f"{ref} is a package and says itself what is in it: leave --parent and --modality"
                " out"
            )
        return _record_package(book, Package(ref), name)
    checkpoint = open_checkpoint(ref, weights=False)
    if not checkpoint.remote:
        _ = checkpoint.tensors  # a damaged file is refused before it is recorded
    layouts = PluginHost().layouts
    layout = layouts.get(checkpoint.architecture)
    if layout is None and kind is None and not checkpoint.remote:
        _check_text(checkpoint, layouts)
    senses = sorted(modalities) or sorted(layout.senses if layout else ())
    given = [_split(book, parent) for parent in parents]
    kind = kind or _kind_of(book, name, checkpoint)
    kind = kind or (Kind.FINETUNED if given or senses else Kind.BASE)
    usual = Role.MODEL if kind in (Kind.MERGED, Kind.PACKAGE) else Role.FINETUNED_FROM
    found = [Parent(_parent_name(book, of), role or usual) for of, role in given]
    return record_checkpoint(
        book, checkpoint, kind=kind, name=name, modalities=senses, parents=found
    )


def _kind_of(book: Registry, name: str | None, checkpoint: Checkpoint) -> str | None:
    """Return what the same bytes are recorded as under a name; the files beside may be new."""
    known = book.get(name) if name and book.exists() else None
    return known.kind if known and known.fingerprint == checkpoint.fingerprint else None


def _check_text(checkpoint: Checkpoint, layouts: Mapping[str, HostLayout]) -> None:
    """Refuse a checkpoint of an unknown class that is more than a text model.

    Raises:
        RegistryError: says how to record it.
    """
    try:
        find_language_model(checkpoint, layouts)
    except PlanError as exc:
        raise RegistryError(
            f"{exc}; to record it all the same, say what it is: --kind and --modality"
        ) from exc


def _split(book: Registry, parent: str) -> tuple[str, str | None]:
    """Return reference and role; a name or a folder may itself have an equals sign in it."""
    ref, equals, role = parent.rpartition("=")
    if equals and role in set(Role):
        return ref, role
    if equals and not Path(parent).exists() and not (book.exists() and book.get(parent)):
        raise RegistryError(
            f"parent {parent}: {role!r} is no role{did_you_mean(role, map(str, Role))}: use"
            f" {', '.join(Role)}"
        )
    return parent, None


def _parent_name(book: Registry, ref: str) -> str:
    try:
        return find_record(book, ref).name
    except RegistryError as unknown:
        try:
            return add(book, ref).name
        except CheckpointError as exc:
            raise RegistryError(f"parent {ref}: {unknown}; and {exc}") from exc


def find_record(book: Registry, name: str) -> Record:
    """Return the record that a NAME means.

    A registry name; else a folder, if it starts with ``.`` or ``/``; else a fingerprint prefix.

    Raises:
        RegistryError: nothing is recorded under it, or several checkpoints are.
    """
    folder = Path(name)
    if name.startswith((".", "/")) and folder.is_dir() and book.get(name) is None:
        found = book.by_fingerprint(fingerprint_of(folder.resolve()))
        if not found:
            raise RegistryError(f"{name} is not recorded; type: {to_type('add', name)}")
        here = [record for record in found if record.source == str(folder.resolve())]
        return (here or found)[0]
    return book.find(name)


def files_of(record: Record) -> Path:
    """Return the folder that holds a recorded checkpoint; one on the Hub is fetched.

    Raises:
        CheckpointError: the files are gone, were never named, or are no longer what was recorded.
    """
    adding = to_type("add", "FOLDER", "--name", record.name)
    if not record.source:
        raise CheckpointError(f"nobody recorded where {record.name} is; type: {adding}")
    place = Path(record.source)
    if place.is_absolute() and not place.is_dir():
        raise CheckpointError(
            f"{record.name} was recorded at {place}, which is gone; if it was moved: {adding}"
        )
    if not place.is_absolute():
        place = open_checkpoint(record.source).folder
    found = fingerprint_of(place)
    if record.fingerprint and found != record.fingerprint:
        raise CheckpointError(
            f"{place} holds other weights ({found[:12]}) than were recorded as {record.name}"
            f" ({record.fingerprint[:12]}); record them under another name, with its parents if"
            f" they are still true: {_adding(record, place)}"
        )
    return place


def _adding(record: Record, place: Path) -> str:
    """Return what records other weights in the place of a checkpoint."""
    if record.kind is Kind.PACKAGE:
        return to_type("add", place)
    parents = [f"--parent={parent.name}={parent.role}" for parent in record.parents]
    return to_type("add", place, "--kind", record.kind, *parents)


def default_name(book: Registry, checkpoint: Checkpoint) -> str:
    """Return the name these bytes already have, else the Hub id or the folder's name."""
    known = _known(book, checkpoint)
    if known:
        return known
    name = checkpoint.ref if is_hub_id(checkpoint) else checkpoint.folder.name
    try:
        book.check_name_free(name, fingerprint=checkpoint.fingerprint)
    except RegistryError:
        return f"{name}#{checkpoint.fingerprint[:8]}"
    return name


def _known(book: Registry, checkpoint: Checkpoint) -> str | None:
    try:
        found = book.by_fingerprint(checkpoint.fingerprint)
    except RegistryError:  # no registry yet
        return None
    source = _source(checkpoint)
    here = [record.name for record in found if record.source == source]
    return here[0] if here else next((record.name for record in found), None)


def is_hub_id(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint was named by its Hub id and not by a folder."""
    return not Path(checkpoint.ref).expanduser().exists()


def _source(checkpoint: Checkpoint) -> str:
    return checkpoint.ref if is_hub_id(checkpoint) else str(checkpoint.folder)


def start(book: Registry, name: str, out: Path, plan: Plan, text: str, seed: int) -> int:
    """Record that a merge begins, before it does."""
    origin = plan.strategy.origin
    return book.start_run(
        name,
        out=out.resolve(),
        recipe_text=text,
        recipe_digest=plan.recipe.digest,
        strategy=plan.strategy.name,
        engine=str(plan.engine),
        strategy_distribution=origin.distribution,
        strategy_version=origin.version,
        seed=seed,
        parameters=plan.recipe.parameters,
        versions=versions(),
        machine=platform.node(),
    )


def finish(
    book: Registry, run_id: int, name: str, plan: Plan, out: Path, fingerprint: str
) -> Record:
    """Record the inputs, the result with its parents, and that the run is done.

    Raises:
        RegistryError: the result is on disk but could not be recorded; says what to type.
    """
    try:
        names = _record_inputs(book, plan)
        return book.finish_run(
            run_id,
            name=name,
            kind=Kind.PACKAGE if plan.shape is Shape.PACKAGE else Kind.MERGED,
            fingerprint=fingerprint,
            source=str(out.resolve()),
            modalities=plan.modalities,
            parents=[Parent(names[ref], role, weight) for ref, role, weight in plan.parents],
            strategy=plan.strategy.name,
            files=contents.digests(out),
        )
    except RegistryError as exc:
        raise _not_recorded(out, exc) from exc


def record_extraction(
    book: Registry, package: Package, modality: str, out: Path, name: str
) -> Record:
    """Record a model taken out of a package, and the package if nobody has.

    Raises:
        RegistryError: the model is on disk but could not be recorded; says what to type.
    """
    try:
        known = book.by_fingerprint(package.fingerprint) if book.exists() else []
        parent = known[0].name if known else _record_package(book, package).name
        layout = PluginHost().layouts.get(package.model_of(modality).architecture)
        return book.add_checkpoint(
            name,
            kind=Kind.MERGED,
            fingerprint=Checkpoint(str(out), out.resolve()).fingerprint,
            source=str(out.resolve()),
            modalities=sorted(layout.senses if layout else ()),
            parents=[Parent(parent, Role.PACKAGE)],
            strategy=package.strategy,
            files=contents.digests(out),
        )
    except RegistryError as exc:
        raise _not_recorded(out, exc) from exc


def record_addition(book: Registry, package: Package, out: Path, name: str, ref: str) -> Record:
    """Record a package that one model was added to, and both parents if nobody has.

    Raises:
        RegistryError: the package is on disk but could not be recorded; says what to type.
    """
    try:
        known = book.by_fingerprint(package.fingerprint) if book.exists() else []
        parent = known[0].name if known else _record_package(book, package).name
        model = add(book, ref)
        made = Package(out)
        return book.add_checkpoint(
            name,
            kind=Kind.PACKAGE,
            fingerprint=made.fingerprint,
            source=str(out.resolve()),
            modalities=sorted(made.modalities),
            parents=[Parent(parent, Role.PACKAGE), Parent(model.name, Role.MODEL)],
            strategy=package.strategy,
            files=contents.digests(out),
        )
    except RegistryError as exc:
        raise _not_recorded(out, exc) from exc


def _not_recorded(out: Path, exc: RegistryError) -> RegistryError:
    return RegistryError(
        f"{out} is complete but could not be recorded: {exc}; then run the same command again,"
        " which records it"
    )


def _record_package(book: Registry, package: Package, name: str | None = None) -> Record:
    """Record a package, with those parents that are recorded themselves."""
    known = {
        model.ref: book.by_fingerprint(model.fingerprint) if book.exists() else []
        for model in package.models.values()
    }
    return book.add_checkpoint(
        name or package.folder.resolve().name,
        kind=Kind.PACKAGE,
        fingerprint=package.fingerprint,
        source=str(package.folder.resolve()),
        modalities=sorted(package.modalities),
        parents=[Parent(found[0].name, Role.MODEL) for found in known.values() if found],
        strategy=package.strategy,
        files=contents.digests(package.folder),
    )


def _record_inputs(book: Registry, plan: Plan) -> dict[str, str]:
    """Record every input nobody recorded yet, models as fine-tuned from the base."""
    models = {i.ref: i.model for i in plan.inputs}
    if plan.host:
        models.setdefault(plan.host.checkpoint.ref, plan.host)
    base = plan.recipe.base_model
    names: dict[str, str] = {}
    for ref in sorted(models, key=lambda ref: ref != base):
        known = _known(book, models[ref].checkpoint)
        names[ref] = known or _record_input(book, models[ref], base=names.get(base or ""))
    return names


def _record_input(book: Registry, model: LanguageModel, base: str | None) -> str:
    parents = [Parent(base, Role.FINETUNED_FROM)] if base else []
    kind = Kind.FINETUNED if base or model.is_host else Kind.BASE
    record = record_checkpoint(
        book,
        model.checkpoint,
        kind=kind,
        modalities=sorted(model.layout.senses),
        parents=parents,
    )
    return record.name


def fail(book: Registry, run_id: int, exc: BaseException) -> None:
    """Record why a run stopped; the error itself is the caller's to raise."""
    match exc:
        case OmniregError():
            reason = str(exc)
        case KeyboardInterrupt():
            reason = "interrupted"
        case GeneratorExit():
            reason = "stopped, since a merge beside it was"
        case _:
            reason = f"{type(exc).__name__}: {exc}"
    try:
        book.fail_run(run_id, reason)
    except RegistryError:
        # The first error is the one to show; the run stays `running`, which is the truth.
        return
