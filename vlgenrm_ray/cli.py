"""The `vlgenrm` command line. Each command parses its arguments and calls one function of `entrypoints`.

Heavy packages are imported inside the commands, so `vlgenrm --help` is immediate.
"""

import sys
import warnings
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from vlgenrm_ray import __version__
from vlgenrm_ray.errors import VlGenRMError

app = typer.Typer(
    help="Train, evaluate and serve a vision-language generative reward model on Ray, and train policies with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(
    help="Measure speed as ratios within one run, and what forged answers gain.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")
experts_app = typer.Typer(help="Calibrate the vision experts of a recipe.", no_args_is_help=True)
app.add_typer(experts_app, name="experts")

Recipe = Annotated[Path, typer.Option("--config", help="Recipe (YAML); see jobs/recipes/.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS, else a local one.")]
DryRun = Annotated[
    bool, typer.Option(help="Print the resolved recipe, counts of its inputs, and its resources, then stop.")
]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Run folder; default: runs/<recipe's name>.")]


def main() -> None:
    """Run the command line. An error of this package is printed as one message, with exit code 1."""
    # Old names of settings are reported as warnings; a user needs their text, not the line of code.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app(standalone_mode=True)
    except VlGenRMError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command continues from here", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"),
    set_: Overrides = None,
    address: Address = None,
) -> None:
    """Train a reward model on the embedded world: two rounds of the whole loop, minutes on a laptop."""
    from vlgenrm_ray.entrypoints import shipped_recipe, train_reward

    train_reward(shipped_recipe("shapes"), overrides=tuple(set_ or ()), run=run, address=address)


@app.command()
def run(
    config: Recipe,
    run: RunFolder = None,
    set_: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
    until: Annotated[
        str | None,
        typer.Option(help="Last stage to run: pool, responses, experts, preferences or heldout; default: all."),
    ] = None,
) -> None:
    """Train a reward model, or continue a run: curation, then rounds of critiques, selection, training, evaluation."""
    from vlgenrm_ray.entrypoints import train_reward
    from vlgenrm_ray.pipeline import PreparationStage

    if until is not None and until not in get_args(PreparationStage):
        raise typer.BadParameter(f"{until!r}: choose one of {', '.join(get_args(PreparationStage))}")
    stage = cast("PreparationStage | None", until)
    train_reward(config, overrides=tuple(set_ or ()), run=run, address=address, dry_run=dry_run, until=stage)


@app.command()
def plan(
    config: Recipe,
    sample: Annotated[Path, typer.Option("--from", help="Run folder of a finished small run of the recipe.")],
    gpus: Annotated[float | None, typer.Option(help="GPUs of the cluster; default: the recipe's actors.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the pool; default: pool.count.")] = None,
    price: Annotated[float, typer.Option(min=0.0, help="Dollars for a GPU and hour.")] = 3.0,
    set_: Overrides = None,
) -> None:
    """Forecast rows, tokens, time and dollars of a reward-model run per stage, from a small run of the recipe."""
    from vlgenrm_ray.entrypoints import print_forecast

    print_forecast(config, sample=sample, overrides=tuple(set_ or ()), num_gpus=gpus, num_rows=rows, price=price)


@app.command()
def policy(
    config: Recipe,
    run: RunFolder = None,
    set_: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Train a policy against its rewards by GRPO or PPO, or continue a training."""
    from vlgenrm_ray.entrypoints import train_policy

    train_policy(config, overrides=tuple(set_ or ()), run=run, address=address, dry_run=dry_run)


@app.command()
def curves(
    out: Annotated[Path, typer.Argument(help="Picture to draw: .svg, .png or .pdf.")],
    runs: Annotated[list[str], typer.Argument(metavar="LABEL=RUN[,RUN...]", help="Runs of a label: its seeds.")],
) -> None:
    """Draw training curves of policies: reward, held-out value, KL divergence, length. Thick lines are means."""
    from vlgenrm_ray.entrypoints import draw_curves

    draw_curves(out, runs)


@app.command("co-train")
def co_train(
    config: Recipe,
    run: RunFolder = None,
    set_: Overrides = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Train reward model and policy in turn, each with the other's newest model, or continue such a run."""
    from vlgenrm_ray.entrypoints import co_train as co_train_models

    co_train_models(config, overrides=tuple(set_ or ()), run=run, address=address, dry_run=dry_run)


@app.command("circle", hidden=True)
def co_train_by_old_name(
    config: Recipe,
    run: RunFolder = None,
    set_: Overrides = None,
    address: Address = None,
    dry_run: bool = False,
) -> None:
    """Run `co-train`, the new name of this command."""
    typer.secho("warning: `vlgenrm circle` is now `vlgenrm co-train`; the old name will be removed", err=True)
    co_train(config, run, set_, address, dry_run)


@app.command()
def ablate(
    config: Recipe,
    run: RunFolder = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run these cells: a name, or a pattern such as 'labels=*'. Repeatable.")
    ] = None,
    set_: Overrides = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option(help="Print the cells and the stages they share, then stop.")] = False,
) -> None:
    """Measure how much each part of the method adds to the judge, cell by cell, or continue such a run."""
    from vlgenrm_ray.entrypoints import ablate as ablate_method

    ablate_method(
        config, overrides=tuple(set_ or ()), run=run, only=tuple(only or ()), address=address, dry_run=dry_run
    )


@app.command()
def score(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument()],
    response: Annotated[str, typer.Argument()],
    model: Annotated[str, typer.Option(help="GenRM: a model folder, a hub name, or pack:vlm.")] = "pack:vlm",
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engine are used.")] = None,
    critiques: Annotated[int | None, typer.Option("-k", help="Critiques; default: the recipe's.")] = None,
) -> None:
    """Print the reward of one response and its critiques."""
    from vlgenrm_ray.entrypoints import score as score_one

    score_one(image, question, response, model=model, path=config, num_critiques=critiques)


@app.command()
def evaluate(
    config: Recipe,
    model: Annotated[str, typer.Option(help="GenRM: a model folder, a hub name, or pack:vlm.")],
    run: Annotated[Path, typer.Option("--run", help="Folder for pairs and judgements.")],
    set_: Overrides = None,
    address: Address = None,
) -> None:
    """Judge the recipe's held-out pairs with any model; print accuracy, calibration and blind baselines."""
    from vlgenrm_ray.entrypoints import evaluate as evaluate_model

    evaluate_model(config, model=model, overrides=tuple(set_ or ()), run=run, address=address)


@app.command()
def calibrate(
    config: Recipe,
    model: Annotated[str, typer.Option(help="GenRM: a model folder; the calibration is written into it.")],
    run: Annotated[Path, typer.Option("--run", help="Folder for pairs and judgements.")],
    set_: Overrides = None,
    address: Address = None,
) -> None:
    """Calibrate a judge's rewards on the recipe's held-out pairs; report on others (--set heldout.seed=...)."""
    from vlgenrm_ray.entrypoints import calibrate as calibrate_judge

    calibrate_judge(config, model=model, overrides=tuple(set_ or ()), run=run, address=address)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="GenRM: a model folder, a hub name, or pack:vlm.")] = "pack:vlm",
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engine are used.")] = None,
    set_: Overrides = None,
    replicas: Annotated[
        str | None, typer.Option(help="Engines: a number, or `auto` (by queue depth); default: the recipe's.")
    ] = None,
    image_root: Annotated[list[str] | None, typer.Option(help="Folder of images that requests may name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    address: Address = None,
) -> None:
    """Serve a judge over HTTP. Tokens come from VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN."""
    from vlgenrm_ray.entrypoints import serve as serve_judge

    if replicas not in (None, "auto") and not (replicas.isdigit() and int(replicas)):
        raise typer.BadParameter(f"{replicas!r}: a number above 0, or auto", param_hint="--replicas")
    serve_judge(
        model,
        path=config,
        overrides=tuple(set_ or ()),
        replicas=replicas,
        image_roots=tuple(image_root or ()),
        host=host,
        port=port,
        address=address,
    )


@app.command()
def trace(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    id: Annotated[str, typer.Argument(help="Id of any record of the run.")],
) -> None:
    """Print the history of one record: question, responses, findings, pairs, critiques, examples, and every drop."""
    from vlgenrm_ray.report.trace import trace as trace_record

    typer.echo(trace_record(run, id))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: RUN/report.html.")] = None,
    live: Annotated[bool, typer.Option(help="Write it again every 10 s until the runs are finished.")] = False,
) -> None:
    """Write one HTML page about a run: rows, rounds, benchmarks, curves and examples. Needs no network to be read."""
    from vlgenrm_ray.report import html
    from vlgenrm_ray.report.html import ablation_page

    if len(runs) == 1 and ablation_page.is_ablation(runs[0]):
        typer.echo(ablation_page.write_page(runs[0], out))
    elif live:
        typer.echo(html.write_live(runs, out, on_write=lambda path: typer.echo(f"written {path}", err=True)))
    else:
        typer.echo(html.write_report(runs, out))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    what: Annotated[str, typer.Option(help="preferences, critiques or examples.")] = "preferences",
    format: Annotated[str, typer.Option(help="trl, llamafactory, ms-swift, or an import path.")] = "trl",
    round: Annotated[int | None, typer.Option(help="Round of critiques and examples; default: the latest.")] = None,
    copy_images: Annotated[bool, typer.Option(help="Copy the images to OUT/images.")] = False,
) -> None:
    """Export a run's preferences, critiques or training examples as a data set for another trainer."""
    from vlgenrm_ray.report.exports import export as export_records

    path, num_rows = export_records(run, what, format, out, round=round, copy_images=copy_images)
    typer.echo(f"{num_rows} rows in {path}")


@app.command()
def label(
    data: Annotated[str, typer.Argument(help="File, folder or pattern of images and questions, of any format.")],
    trainer: Annotated[str, typer.Option(help="easyr1, ms-swift, openrlhf, roll, slime, trl or verl.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    images: Annotated[str | None, typer.Option(help="Column of the images; default: recognised.")] = None,
    question: Annotated[str | None, typer.Option(help="Column of the questions; default: recognised.")] = None,
    reference: Annotated[str | None, typer.Option(help="Column of right answers; default: recognised.")] = None,
    image_folder: Annotated[str | None, typer.Option(help="Folder of relative image paths.")] = None,
    embed: Annotated[bool, typer.Option(help="Put the images themselves into the labels.")] = False,
) -> None:
    """Write a data set with the labels that a trainer passes on to the served judge: question and images."""
    from vlgenrm_ray.report.trainer_labels import write_labels

    result = write_labels(
        data,
        trainer,
        out,
        image_column=images,
        question_column=question,
        reference_column=reference,
        image_folder=image_folder,
        embed=embed,
    )
    typer.echo(f"{result.num_rows} rows in {result.path}  ({trainer}: {result.hint})")
    if result.dropped:
        counts = ", ".join(f"{number} {reason}" for reason, number in result.dropped.items())
        typer.echo(f"left out: {counts}; the first: {result.first_problem}", err=True)


@app.command()
def benchmark(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Benchmarks, or import paths module:Name.")],
    data: Annotated[list[Path], typer.Option(help="Questions with labels; once per benchmark, in their order.")],
    model: Annotated[str, typer.Option(help="Measure a model folder, a hub name, or pack:vlm.")] = "",
    url: Annotated[str, typer.Option(help="Measure a served judge; its token is VLGENRM_API_TOKEN.")] = "",
    judge: Annotated[str, typer.Option(help="Measure a BenchmarkModel of your own: package.module:Name.")] = "",
    answers: Annotated[
        list[Path] | None, typer.Option(help="Score stored answers; once per benchmark. Starts no engine.")
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Score the answered questions if others are not.")] = False,
    images: Annotated[
        list[str] | None, typer.Option(help="Folder of images; once per benchmark or for all. Default: that of --data.")
    ] = None,
    role: Annotated[str, typer.Option(help="judge, pairwise_judge or policy; default: the benchmark's.")] = "",
    blind: Annotated[bool, typer.Option(help="Show no image: what the texts alone give away.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engine are used.")] = None,
    set_: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder to continue from; default: a temporary one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    address: Address = None,
) -> None:
    """Score a model on benchmarks by their official rules, beside other programs' rules and ours with intervals."""
    from vlgenrm_ray import benchmark_entrypoints

    if sum(map(bool, (model, url, judge, answers))) != 1:
        raise typer.BadParameter("give exactly one of --model, --url, --judge and --answers")
    if role not in ("", "judge", "pairwise_judge", "policy"):
        raise typer.BadParameter(f"{role!r}: judge, pairwise_judge or policy", param_hint="--role")
    if answers:
        benchmark_entrypoints.score_stored_answers(names, data, answers, allow_missing=allow_missing, out=out)
        return
    benchmark_entrypoints.run_benchmarks(
        names,
        data,
        images=tuple(images or ()),
        model=model,
        url=url,
        judge=judge,
        role=role,
        path=config,
        overrides=tuple(set_ or ()),
        blind=blind,
        run=run,
        out=out,
        address=address,
    )


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="File, folder or pattern of a data set; local, or a URI of a store.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the source: columns.question=ask, schema=trl, ...")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what a data set is, what its rows become, what would be dropped, and the settings to use it."""
    from vlgenrm_ray.entrypoints import inspect as inspect_source

    inspect_source(path, overrides=tuple(set_ or ()), as_json=json)


@app.command("best-of-n")
def best_of_n(
    run: Annotated[Path, typer.Option("--run", help="Folder of candidates and rewards, to continue from.")],
    data: Annotated[
        Path | None,
        typer.Option(help="JSON Lines: image, question, candidates, scores. Default: shapes and its truth."),
    ] = None,
    model: Annotated[str, typer.Option(help="Judge: a model folder, a hub name, or pack:vlm.")] = "",
    url: Annotated[str, typer.Option(help="Judge: a served one; its token is VLGENRM_API_TOKEN.")] = "",
    judge: Annotated[str, typer.Option(help="Judge: a BenchmarkModel of your own, package.module:Name.")] = "",
    policy: Annotated[str, typer.Option(help="Shapes: model that answers.")] = "pack:vlm",
    n: Annotated[int, typer.Option("-n", min=1, max=64, help="Shapes: candidates per question.")] = 64,
    questions: Annotated[int, typer.Option(min=1, help="Shapes: number of questions.")] = 64,
    images: Annotated[str | None, typer.Option(help="Folder of images; default: that of --data.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engines are used.")] = None,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    address: Address = None,
) -> None:
    """Measure the true score of a judge's pick among n candidates, n = 1 ... 64, and its regret to an oracle."""

    if sum(map(bool, (model, url, judge))) != 1:
        raise typer.BadParameter("give exactly one of --model, --url and --judge")
    from vlgenrm_ray import benchmark_entrypoints

    benchmark_entrypoints.best_of_n(
        data=data,
        policy=policy,
        n=n,
        num_questions=questions,
        images=(images,) if images else (),
        model=model,
        url=url,
        judge=judge,
        path=config,
        overrides=tuple(set_ or ()),
        run=run,
        out=out,
        address=address,
    )


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", help="Recipe to check against the cluster.")] = None,
    set_: Overrides = None,
    address: Address = None,
    gpu_smoke: Annotated[
        bool, typer.Option("--gpu-smoke", help="Run every part on the embedded models; print what works.")
    ] = False,
    run: Annotated[Path, typer.Option("--run", help="New folder for --gpu-smoke.")] = Path("runs/gpu-smoke"),
) -> None:
    """Check versions, engines, GPUs, disk, memory, ports and the needs of a recipe; print remedies."""
    from vlgenrm_ray.entrypoints import run_doctor, run_gpu_smoke

    if gpu_smoke:
        raise typer.Exit(run_gpu_smoke(run, address=address))
    raise typer.Exit(run_doctor(config, overrides=tuple(set_ or ()), address=address))


@app.command()
def settings(
    recipe: Annotated[str, typer.Argument(help="Kind of recipe: reward, policy, co_training or ablation.")] = "reward",
    markdown: Annotated[bool, typer.Option(help="Print the reference of all recipes (jobs/SETTINGS.md).")] = False,
    schema: Annotated[bool, typer.Option(help="Print the JSON schema of the recipe, for editors.")] = False,
) -> None:
    """Print all settings of a recipe with type, default and meaning."""
    from vlgenrm_ray import settings_reference

    if recipe not in settings_reference.RECIPES:
        known = ", ".join(settings_reference.RECIPES)
        raise typer.BadParameter(f"{recipe!r}: choose one of {known}", param_hint="RECIPE")
    if markdown:
        typer.echo(settings_reference.markdown(), nl=False)
    elif schema:
        typer.echo(settings_reference.json_schema(recipe), nl=False)
    else:
        for line in settings_reference.plain_lines(recipe):
            typer.echo(line)


@experts_app.command("calibrate")
def experts_calibrate(
    config: Recipe,
    truth: Annotated[
        Path, typer.Option(help="Labelled images: COCO JSON, a folder of YOLO labels, or POPE questions (JSON Lines).")
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if not beside the labels.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: <recipe>.calibration.yaml beside the recipe.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    target: Annotated[float, typer.Option(min=0.5, max=0.999, help="Share of right verdicts to aim at.")] = 0.93,
    seed: Annotated[int, typer.Option(min=0, help="Seed of claims and folds.")] = 0,
    set_: Overrides = None,
) -> None:
    """Fit the experts' thresholds on labelled images; print how often the verdicts are right on unseen ones."""
    from vlgenrm_ray.entrypoints import calibrate_experts

    calibrate_experts(
        config,
        truth=truth,
        images=images,
        out=out,
        folds=folds,
        target=target,
        seed=seed,
        overrides=tuple(set_ or ()),
    )


@bench_app.command("critiques")
def bench_critiques(
    run: Annotated[Path, typer.Option("--run", help="Run whose preferences are used as prompts.")],
    config: Annotated[Path | None, typer.Option("--config", help="Recipe; default: shapes.")] = None,
    set_: Overrides = None,
    pairs: Annotated[int, typer.Option(min=1, help="Preference pairs to critique.")] = 64,
) -> None:
    """Measure the critiques stage's actor against its bare engine on the same prompts."""
    from vlgenrm_ray.bench import critiques

    critiques.run(config, run_folder=run, overrides=tuple(set_ or ()), pairs=pairs)


@bench_app.command("serving")
def bench_serving(
    model: Annotated[str, typer.Option(help="GenRM: a model folder, a hub name, or pack:vlm.")] = "pack:vlm",
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engine are used.")] = None,
    set_: Overrides = None,
    parts: Annotated[str, typer.Option(help="Any of vllm,cache,critiques,overhead,soak; default: all but soak.")] = "",
    items: Annotated[int, typer.Option(min=8, help="Responses scored at each concurrency; a quarter at 1.")] = 256,
    turns: Annotated[int, typer.Option(min=1, help="Measurements of the service, and of vllm serve.")] = 2,
    soak: Annotated[float, typer.Option(min=0, help="Seconds of full load to measure memory growth.")] = 0.0,
    data: Annotated[Path | None, typer.Option(help="JSON Lines: image, question, response. Default: shapes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn shapes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Measure the service: against vllm serve, with and without its cache, K = 8 against K = 1, overhead, memory."""
    from vlgenrm_ray.bench import serving

    serving.run(
        model,
        path=config,
        overrides=tuple(set_ or ()),
        parts=tuple(filter(None, parts.split(","))),
        num_items=items,
        turns=turns,
        soak_s=soak,
        data=data,
        seed=seed,
        out=out,
    )


@bench_app.command("injections")
def bench_injections(
    model: Annotated[str, typer.Option(help="GenRM: a model folder, a hub name, or pack:vlm.")] = "pack:vlm",
    config: Annotated[Path | None, typer.Option("--config", help="Recipe whose judge and engine are used.")] = None,
    set_: Overrides = None,
    pairs: Annotated[int, typer.Option(min=2, help="Held-out pairs.")] = 96,
    data: Annotated[Path | None, typer.Option(help="JSON Lines: image, question, chosen, rejected.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn shapes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Measure how far forged verdicts and persuasion move the reward of wrong answers."""
    from vlgenrm_ray.bench import injections

    injections.run(model, path=config, overrides=tuple(set_ or ()), pairs=pairs, data=data, seed=seed, out=out)


@bench_app.command("policy")
def bench_policy(
    config: Annotated[Path | None, typer.Option("--config", help="Recipe; default: shapes_grpo.")] = None,
    set_: Overrides = None,
    parts: Annotated[str, typer.Option(help="Any of trl,phases,one_step_off; default: all.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each training, after a few to warm up.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Measurements of each training.")] = 2,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training; default: the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Measure policy training: against TRL's GRPOTrainer, time by phase, one-step-off against synchronous."""
    from vlgenrm_ray.bench import policy as policy_bench

    policy_bench.run(
        config,
        overrides=tuple(set_ or ()),
        parts=tuple(filter(None, parts.split(","))),
        steps=steps,
        turns=turns,
        seed=seed,
        out=out,
    )


@bench_app.command("scale")
def bench_scale(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Rows; repeatable. Default: 10000 and 100000.")] = None,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Measure pool, preferences and selection on generated rows: pace, driver's time and memory, growth."""
    from vlgenrm_ray.bench import scale

    scale.run(tuple(rows or (10_000, 100_000)), num_cpus=num_cpus, out=out)


@bench_app.command("guards")
def bench_guards(
    runs: Annotated[int, typer.Option(min=20, help="Simulated runs of each kind.")] = 400,
    evaluations: Annotated[int, typer.Option(min=2, help="Evaluations of a run.")] = 10,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 400,
    churn: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of outcomes drawn anew between evaluations.")
    ] = 0.5,
    fall: Annotated[list[float] | None, typer.Option(help="Further values of min_fall; repeatable.")] = None,
    window: Annotated[list[int] | None, typer.Option(min=1, help="Further values of window; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
) -> None:
    """Simulate the rule against reward hacking: false alarms on healthy runs, and power on hacked ones."""
    from vlgenrm_ray.bench import guards

    guards.run(
        num_runs=runs,
        num_evaluations=evaluations,
        num_questions=questions,
        churn=churn,
        min_falls=tuple(fall or ()),
        windows=tuple(window or ()),
        seed=seed,
        out=out,
    )


if __name__ == "__main__":
    main()
