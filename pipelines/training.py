"""The training pipeline: from corpora to a gated, served champion."""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.deploy import deploy
from components.evaluate import evaluate
from components.extract_features import extract_features
from components.find_champion import find_champion
from components.ingest import ingest
from components.split import split
from components.train import train
from components.validate import validate
from kubevox.config import Config
from kubevox.provenance import canonical_json

__all__ = ["arguments", "build_pipeline", "training_pipeline"]

NAME = "kubevox-training"
ACCEPTED = "promote"
ACCELERATOR = "nvidia.com/gpu"


def build_pipeline(features_on_gpu: bool = False) -> GraphComponent:
    """The pipeline; what its steps ask of a cluster is fixed when it is compiled.

    Args:
        features_on_gpu: whether each ``extract_features`` task requests a GPU. KFP's local runner pays no heed.
    """

    @dsl.pipeline(name=NAME, description="From labelled recordings to a gated model behind a KServe endpoint.")
    def training_pipeline(
        task: str,
        data: str,
        validation: str,
        split_config: str,
        features: str,
        plan: str,
        limits: str,
        model: str,
        train_config: str,
        baseline_model: str,
        baseline_train: str,
        evaluation: str,
        gate: str,
        deployment: str,
        store: str,
        tracking: str,
        experiment: str,
        registered_model: str,
    ) -> None:
        """Train, judge and deploy one model.

        1. Ingest the corpora as an immutable dataset version.
        2. Validate every utterance; quarantine what fails.
        3. Split by speaker, with a certificate.
        4. Extract features, shard by shard.
        5. Train the challenger, and the baseline that it is shown beside.
        6. Find the champion in the registry.
        7. Evaluate on the test split; the gate gives its verdict.
        8. If accepted, deploy: register, serve, compare, promote.

        Every section of the configuration comes as canonical JSON, so that a change to one invalidates no other stage.
        """
        ingested = ingest(data=data, store=store).set_display_name("Ingest corpora").set_caching_options(False)
        validated = validate(dataset=ingested.output, task=task, config=validation, store=store).set_display_name(
            "Validate utterances"
        )
        divided = split(
            dataset=ingested.output,
            validation=validated.outputs["Output"],
            task=task,
            config=split_config,
            store=store,
        ).set_display_name("Split by speaker")

        with dsl.ParallelFor(divided.outputs["Output"], name="each-shard") as item:
            extracted = extract_features(
                shard=item.shard, split=item.split, features=features, plan=plan, store=store
            ).set_display_name("Extract features")
            if features_on_gpu:
                extracted.set_accelerator_type(ACCELERATOR).set_accelerator_limit(1)
        # One Collected a consumer: KFP changes the object when it is used.
        challenger = train(
            split=divided.outputs["split"],
            blocks=dsl.Collected(extracted.output),
            model=model,
            config=train_config,
            features=features,
            limits=limits,
            store=store,
            tracking=tracking,
            experiment=experiment,
        ).set_display_name("Train challenger")
        baseline = train(
            split=divided.outputs["split"],
            blocks=dsl.Collected(extracted.output),
            model=baseline_model,
            config=baseline_train,
            features=features,
            limits=limits,
            store=store,
            tracking=tracking,
            experiment=experiment,
        ).set_display_name("Train baseline")

        champion = (
            find_champion(name=registered_model, tracking=tracking)
            .set_display_name("Find champion")
            .set_caching_options(False)
        )
        judged = evaluate(
            bundle=challenger.outputs["Output"],
            baseline=baseline.outputs["Output"],
            champion=champion.output,
            blocks=dsl.Collected(extracted.output),
            split=divided.outputs["split"],
            features=features,
            config=evaluation,
            gate=gate,
            store=store,
            tracking=tracking,
            run_id=challenger.outputs["run_id"],
        ).set_display_name("Evaluate and judge")

        with dsl.If(judged.outputs["Output"] == ACCEPTED, name="accepted"):
            deploy(
                bundle=challenger.outputs["Output"],
                evaluation=judged.outputs["evaluation"],
                run_id=challenger.outputs["run_id"],
                name=registered_model,
                config=deployment,
                store=store,
                tracking=tracking,
            ).set_display_name("Deploy champion").set_caching_options(False)

    return training_pipeline


training_pipeline = build_pipeline()


def arguments(config: Config, store: str, tracking: str) -> dict[str, str]:
    """The pipeline's parameters for a configuration.

    Args:
        config: the run's configuration.
        store: the store's absolute URI.
        tracking: MLflow's absolute URI.
    """
    baseline = config.baseline
    return {
        "task": config.run_task.to_json(),
        "data": config.data.to_json(),
        "validation": config.validation.to_json(),
        "split_config": config.split.to_json(),
        "features": config.used_features.to_json(),
        "plan": canonical_json(config.feature_plan),
        "limits": config.data.limits.to_json(),
        "model": config.model.to_json(),
        "train_config": config.train.to_json(),
        "baseline_model": baseline.model.to_json() if baseline else "null",
        "baseline_train": baseline.train.to_json() if baseline else "null",
        "evaluation": config.evaluate.to_json(),
        "gate": config.gate.to_json(),
        "deployment": config.deploy.to_json(),
        "store": store,
        "tracking": tracking,
        "experiment": config.experiment,
        "registered_model": config.registered_model,
    }
