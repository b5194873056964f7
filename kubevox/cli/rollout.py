"""``kubevox rollout``: roll a bundle out, or rehearse it, and see it happen."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubevox.cli.options import DEFAULT_CONFIG, SetOption, load
from kubevox.cli.rollout_view import View, view_for
from kubevox.cli.serve import ConfigOption, champion_of
from kubevox.errors import ConfigError, DeploymentError, RegistryError

if TYPE_CHECKING:
    from kubevox.config import Config
    from kubevox.deployment.backend import Backend, ServedVersion

__all__ = ["rollout"]

_AS_EXPECTED, _FAILED, _TAKEN_BACK = 0, 1, 3


def rollout(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    bundle: Annotated[str | None, typer.Option("--bundle", help="The challenger: a bundle that was evaluated.")] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", help="Its evaluation; by default the one that MLflow knows.")
    ] = None,
    rehearse: Annotated[
        str | None,
        typer.Option(
            "--rehearse",
            help="Challengers made for it, with commas: good, crash, errors, slow, worse, or all.",
        ),
    ] = None,
    requests_per_s: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Of the clients in a rehearsal, beside what the rollout sends.")
    ] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an event.")] = False,
) -> None:
    """Give a challenger a growing share of the traffic, watch it, and promote it or take it back.

    With --bundle in earnest: the bundle becomes the champion, or it does not, and the exit code is 3. It takes place
    in `kubevox serve` where that runs.

    With --rehearse beside the champion, but in a temporary folder, with a store, a registry and servers of its own. The
    exit code is 0 where every challenger ended as it had to.
    """
    if (bundle is None) == (rehearse is None):
        raise ConfigError("name a challenger with --bundle URI, or a rehearsal with --rehearse all; one of the two")
    settings = load(config, set_)
    with view_for(sys.stdout, as_json) as view:
        if rehearse is not None:
            code = _rehearse(settings, rehearse, requests_per_s, view)
        else:
            code = _roll_out(settings, str(bundle), evaluation, view)
    sys.exit(code)


def _rehearse(settings: Config, names: str, requests_per_s: float, view: View) -> int:
    from kubevox.deployment.backend import ServedVersion
    from kubevox.deployment.local import platform_folder
    from kubevox.deployment.rehearsal import SCENARIOS, rehearse
    from kubevox.evaluation.run import load_evaluation

    chosen = list(SCENARIOS) if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in SCENARIOS:
            raise ConfigError(
                f"--rehearse {name}: there is no such rehearsal; there are {', '.join(SCENARIOS)} and all"
            )
    champion = champion_of(settings)
    if not (judged := champion.tags.get("evaluation_uri")):
        raise DeploymentError(
            f"{settings.registered_model} version {champion.version} has no evaluation, so its split is not known; "
            f"train again: make run TASK={settings.task.name}"
        )
    split_uri = load_evaluation(judged).split_uri
    pages = platform_folder(settings.task.name, settings.tracking.uri, settings.store).path.parents[1] / "rehearsals"
    view.begin(
        f"rehearsal: version {champion.version} of {settings.task.name} is brought up on a platform of its own; what "
        "is in production stays as it is"
    )
    ended = []
    with tempfile.TemporaryDirectory(prefix="kubevox-rehearsal-") as folder:
        for rehearsed in rehearse(
            ServedVersion(champion.version, champion.bundle_uri),
            split_uri,
            [SCENARIOS[name] for name in dict.fromkeys(chosen)],
            settings.deploy,
            settings.serving,
            Path(folder),
            requests_per_s=requests_per_s,
            on_begin=lambda scenario, version, clients: view.begin(f"{version}: {scenario.description}", clients),
            on_event=view.event,
        ):
            pages.mkdir(parents=True, exist_ok=True)
            page = pages / f"{settings.task.name}-{rehearsed.scenario.name}.html"
            page.write_text(rehearsed.page, encoding="utf-8")
            view.rehearsed(rehearsed, str(page))
            ended.append(rehearsed)
    view.summary(ended)
    return _AS_EXPECTED if all(one.as_expected for one in ended) else _FAILED


def _roll_out(settings: Config, bundle: str, evaluation: str | None, view: View) -> int:
    from kubevox import storage
    from kubevox.deployment.rollout import deploy

    bundle, store, tracking = storage.absolute(bundle), storage.absolute(settings.store), settings.tracking.uri
    run_id, known = _run_of(settings, bundle)
    if evaluation is None and known is None:
        raise DeploymentError(f"bundle {bundle}: MLflow knows no evaluation of it; name one with --evaluation URI")
    view.begin(f"{settings.registered_model}: {bundle}")
    outcome = deploy(
        bundle,
        storage.absolute(evaluation or str(known)),
        run_id,
        settings.registered_model,
        settings.deploy,
        store,
        tracking,
        backend=_backend(settings),
        on_event=view.event,
    )
    view.rolled_out(outcome)
    return _AS_EXPECTED if outcome.outcome == "promoted" else _TAKEN_BACK


def _run_of(settings: Config, bundle: str) -> tuple[str, str | None]:
    """The MLflow run that trained a bundle, and the bundle's evaluation, where it was evaluated.

    Raises:
        RegistryError: there is no such run, or MLflow does not answer.
    """
    tracking = settings.tracking.uri
    if tracking.startswith("sqlite:///") and not Path(tracking.removeprefix("sqlite:///")).exists():
        raise RegistryError(f"tracking.uri {tracking}: there is nothing; train first: make run")
    from mlflow.exceptions import MlflowException

    from kubevox.training.tracking import mlflow_client

    client = mlflow_client(tracking)
    try:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.bundle_uri = '{bundle}'", order_by=["attributes.start_time DESC"])
    except MlflowException as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"tracking.uri {tracking}: MLflow refused: {line[:300]}") from None
    if not runs:
        raise RegistryError(f"bundle {bundle}: no run of {tracking} has trained it; is that the configuration's store?")
    judged = [run for run in runs if run.data.tags.get("evaluation_uri")]
    best = (judged or list(runs))[0]
    return best.info.run_id, best.data.tags.get("evaluation_uri")


def _backend(settings: Config) -> Backend | None:
    """The local platform, whose servers get the configuration's options; None: the back end that the section names."""
    if settings.deploy.backend != "local":
        return None
    from kubevox.deployment.backend import ServedVersion
    from kubevox.deployment.local import LocalBackend, platform_folder, server_command
    from kubevox.registry import Registry

    champion = Registry(settings.tracking.uri).champion(settings.registered_model)
    stable: ServedVersion | None = None
    if champion is not None:
        stable = ServedVersion(champion.version, champion.bundle_uri)
    return LocalBackend(
        settings.task.name,
        platform_folder(settings.task.name, settings.tracking.uri, settings.store).path.parents[1],
        settings.deploy.start_timeout_s,
        settings.deploy.request_timeout_s,
        server_command(options=settings.serving, log_store=settings.store),
        stable=stable,
    )
