"""A training run as a folder: started, logged, evaluated, checkpointed and resumed.

RUN/config.json        the resolved configuration
RUN/origins.json       what tells its model and what its rewards are made of from others (`t2i_rl.training.origins`)
RUN/run.json           who trained in it: command, commit, versions, host (`t2i_rl.training.run_record`)
RUN/prompts.json       what tells its prompts from others (`t2i_rl.training.prompt_record`)
RUN/pictures.json      what tells the pictures of its questions from others (`t2i_rl.training.picture_record`)
RUN/metrics.jsonl      one object a step (`t2i_rl.training.metrics_log`)
RUN/tensorboard/       the same numbers as events
RUN/samples/           of each evaluation: samples, and the verdicts on all (`t2i_rl.training.samples`)
RUN/samples.png        all of them, one row per evaluation
RUN/reward.png         the curves
RUN/lock               the process that trains in it (`t2i_rl.training.lock`)
RUN/checkpoints/       step-000020, ...; best.json names the best on held-out prompts

The pictures are ornaments: what a run has computed is written before they are drawn, and one that cannot be drawn
is warned of.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.registry import elsewhere
from rewards.reward import Reward
from t2i_rl.configuration.config import CONFIG, TrainConfig, completed, fixed, flat, read_config, to_json
from t2i_rl.configuration.places import rooted
from t2i_rl.errors import DivergenceError, Stopped, UserError, fitting
from t2i_rl.methods.baselines import Running
from t2i_rl.methods.method import Method
from t2i_rl.outputs import whole_folder, write_atomically
from t2i_rl.parallel.ranks import ALONE, Ranks
from t2i_rl.pictures.answers import answers_path, draw_answers
from t2i_rl.pictures.curves import draw_reward_curve
from t2i_rl.pictures.figures import ornament
from t2i_rl.pictures.strips import draw_progress
from t2i_rl.prompts.prompt import Prompt, balanced
from t2i_rl.prompts.questions import question_of
from t2i_rl.training import checkpoints, optimizer_files, picture_record
from t2i_rl.training.announcements import heldout_score, preamble
from t2i_rl.training.determinism import determinism
from t2i_rl.training.doubts import doubts
from t2i_rl.training.evaluation import evaluate
from t2i_rl.training.going_on import last_step, resumable
from t2i_rl.training.handed_over import taught
from t2i_rl.training.lock import owned
from t2i_rl.training.metrics_log import Metrics, MetricsLog, Numbers
from t2i_rl.training.model_card import CARD, card
from t2i_rl.training.origins import RECORD as ORIGINS
from t2i_rl.training.preparing import heldout_of, prepare
from t2i_rl.training.prompt_record import RECORD, as_record
from t2i_rl.training.run_folder import BEST, CHECKPOINTS, is_run, latest
from t2i_rl.training.run_record import record, surroundings
from t2i_rl.training.samples import SAMPLES, kept, save_samples
from t2i_rl.training.stopping import Stopping
from t2i_rl.training.trackers import Package
from t2i_rl.training.trainer import Trainer

PICTURES = "samples.png"  # written last: an evaluated run that has it is finished


def start(
    config: TrainConfig,
    said: str = "",
    ranks: Ranks = ALONE,
    reward: Callable[..., Any] | Reward | None = None,
    method: Method | None = None,
) -> Path:
    """Train from the model that the configuration names; nothing is written before everything is loaded.

    An error before the first step is done leaves no folder behind.

    said: where the settings are from, which is shown before anything is loaded.
    ranks: the processes that share the run; the first of them writes all but its share of the checkpoints.
    reward, method: from Python, in place of those that the configuration names: they are known by their names from now
        on, in this process. A reward may be a function of images, prompts and metadata (`rewards.own`).
    """
    config = taught(config, reward, method)
    if ranks.first and config.out.exists():
        raise UserError(
            f"the run folder {config.out} exists: continue it with --resume {config.out} (from Python resume(run)), or "
            "choose another out"
        )
    config = rooted(config)
    with determinism(config.deterministic):
        trainer, heldout, judges, origins = prepare(config, config.model, ranks, said)
        for line in preamble(trainer, heldout):
            print(line, flush=True)
        if not ranks.first:
            return _train(trainer, heldout, judges, done=0)
        with whole_folder(config.out) as aside:
            (aside / CHECKPOINTS).mkdir()
            write_atomically(aside / CONFIG, to_json(trainer.config))
            write_atomically(aside / RECORD, as_record(trainer.prompts, heldout, trainer.left_out))
            if trainer.limit is not None:  # its prompts are questions
                shown = picture_record.as_record(trainer.prompts, heldout)
                write_atomically(aside / picture_record.RECORD, shown)
            write_atomically(aside / ORIGINS, origins.as_record())
            record(aside, trainer.config.device, ranks.world)
        with owned(config.out):
            try:
                return _train(trainer, heldout, judges, done=0)
            except Exception:
                if not last_step(config.out):
                    shutil.rmtree(config.out, ignore_errors=True)
                raise


def resume(
    run: Path,
    steps: int | None = None,
    device: str | None = None,
    ranks: Ranks = ALONE,
    reward: str | Callable[..., Any] | Reward | None = None,
    method: Method | None = None,
) -> Path:
    """Continue from the newest checkpoint; a run that was stopped before its first one begins anew.

    Of the settings only those of `config.FREE` may differ from the run's own, and where its reward is served. Raises
    UserError while another process trains in the folder.

    reward: by its name, or what `start` was given; method: likewise.
    """
    if not is_run(run):
        raise UserError(f"{run} is not a run folder: give the one that was the --out of the run")
    with owned(run) if ranks.first else nullcontext():
        ranks.meet()
        config = read_config(run / CONFIG)
        steps = config.steps if steps is None else steps
        config = replace(config, out=run, steps=steps, device=device or config.device)
        if isinstance(reward, str):
            config, reward = replace(config, reward=reward), None
        return _go_on(taught(config, reward, method), ranks)


def _go_on(config: TrainConfig, ranks: Ranks) -> Path:
    run = config.out
    newest = latest(run / CHECKPOINTS)
    ranks.meet()  # all have looked, before the first one writes
    if newest is None:
        if (run / BEST).exists():
            raise UserError(f"the checkpoints of {run} are gone: put one back, or start a new run with another --out")
        with determinism(config.deterministic):
            trainer, heldout, judges, _ = prepare(config, config.model, ranks)
            _write_config(trainer)
            return _train(trainer, heldout, judges, done=0)
    found = checkpoints.read(newest, ranks=ranks)
    before = completed(found.settings)
    for name, now in fixed(config).items():
        if before.get(name) != now:
            raise UserError(
                f"{run / CONFIG} has {name} {now!r}, but {newest} was trained with {before.get(name)!r}: "
                "put it back, or start a new run with --model"
            )
    unfinished = config.evaluation.every and not (run / PICTURES).exists()
    if found.step == config.steps and unfinished:  # stopped after its last checkpoint
        ranks.meet()  # all have seen that
        if ranks.first:
            write_atomically(run / CONFIG, to_json(config))
            with resumable(run), MetricsLog(run, config.steps, found.step) as tracker:
                _finish(config, heldout_of(config), tracker)
        ranks.meet()
        if (run / PICTURES).exists():
            return run
    if found.step >= config.steps:
        raise UserError(f"{run} has done {found.step} steps: give a larger --steps to go on")
    with determinism(config.deterministic):
        trainer, heldout, judges, _ = prepare(config, elsewhere(config.model, newest), ranks)
        optimizer_files.load(newest, trainer.weights, trainer.optimizer)
        trainer.history = {prompt: Running(**seen) for prompt, seen in found.history.items()}
        _write_config(trainer)
        if ranks.first:
            record(run, trainer.config.device, ranks.world)
        return _train(trainer, heldout, judges, found.step)


def _write_config(trainer: Trainer) -> None:
    if trainer.ranks.first:
        write_atomically(trainer.config.out / CONFIG, to_json(trainer.config))


def _train(trainer: Trainer, heldout: Sequence[Prompt], judges: Mapping[str, Reward], done: int) -> Path:
    """The steps after `done`. Raises Stopped, after a checkpoint, where a signal asks to stop before the last one, and
    DivergenceError for a strict run that does not learn.
    """
    config, policy, run, ranks = trainer.config, trainer.policy, trainer.config.out, trainer.ranks
    judged = balanced(heldout, config.evaluation.images_per_tag)
    shown = {*kept(judged)}
    sampling, seed = config.evaluation.sampling, config.seed
    (_, judge), *further = judges.items()
    ranks.meet()  # the folder is there
    if ranks.first:
        (run / PICTURES).unlink(missing_ok=True)

    def measured(step: int) -> dict[str, float]:
        with fitting("an evaluation", "a smaller evaluation.batch"):
            batch, asking, limit = config.evaluation.batch, trainer.collector.asking, trainer.limit
            what = f"judging {len(judged)} held-out {trainer.noun} (evaluation.images-per-tag)"
            watched = partial(tracker.following, what=what, total=len(ranks.share(len(judged))))
            more = dict(further), shown, watched
            found = evaluate(policy, judged, judge, sampling, seed, batch, 1, ranks, asking, limit, *more)
        if step == 0:
            tracker.say(heldout_score(config, found, trainer.noun))
        if ranks.first:
            save_samples(run / SAMPLES, step, judged, found)
        per_tag = {f"heldout/{tag}": score for tag, score in found.per_tag.items()}
        return {"heldout": found.overall, **per_tag, **{f"also/{name}": score for name, score in found.also.items()}}

    def numbers() -> Numbers:
        trackers = [Package(name, run, flat(config)) for name in config.track]
        return MetricsLog(run, config.steps, done, trackers)

    doubted: Mapping[str, str] = {}
    told, keep = 0, config.checkpoint.keep_last
    with resumable(run), numbers() if ranks.first else Numbers(run, done) as tracker, Stopping() as stopping:
        every = config.evaluation.every
        if done == 0 and every:
            tracker.log({"step": 0, **measured(0)})
        for step in range(done + 1, config.steps + 1):
            metrics = trainer.step(step)
            last = step == config.steps
            if every and (last or step % every == 0):
                metrics |= measured(step)
            tracker.log(metrics)
            before, doubted = doubted, doubts(tracker.kept, config.dtype, config.update.optimizer_steps)
            for said in (said for name, said in doubted.items() if name not in before):
                tracker.say(f"warning: step {step}: {said}")
            if doubted and config.strict:
                why = next(iter(doubted.values()))
                left = "its last checkpoint is as it was" if latest(run / CHECKPOINTS) else "it has no checkpoint yet"
                raise DivergenceError(f"step {step}: {why}; a strict run ends here, {left}")
            best = best_step(tracker.kept)
            stop = any(ranks.each(stopping.asked))  # looked at once: what stops here is saved here
            if last or stop or step == best or step % config.checkpoint.every == 0:
                history = {prompt: asdict(seen) for prompt, seen in trainer.history.items()}
                write = partial(_write, trainer, step, tracker.kept)
                saved = checkpoints.save(run / CHECKPOINTS, step, write, fixed(config), history, ranks)
                if not told:
                    told = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
                    tracker.say(f"a checkpoint takes {told / 1e6:,.1f} MB; the best and {keep} more stay")
                if ranks.first:
                    _keep_best(config, best)
            if stop and not last:
                raise Stopped(f"stopped after step {step}, as it was asked to: t2i-rl train --resume {run} goes on")
        if ranks.first:
            _finish(config, heldout, tracker)
    return run


def _write(trainer: Trainer, step: int, rows: Sequence[Metrics], folder: Path) -> None:
    """What this process has to save of a checkpoint."""
    if trainer.ranks.first:
        trainer.policy.save(folder)
        here = surroundings(trainer.config.device, trainer.ranks.world)
        text = card(trainer.config, trainer.policy, step, rows, here)
        (folder / CARD).write_text(text, encoding="utf-8")
    optimizer_files.save(folder, trainer.weights, trainer.optimizer)


def _finish(config: TrainConfig, heldout: Sequence[Prompt], tracker: Numbers) -> None:
    """What comes after the last checkpoint: the best one by name, and the pictures, one of which may fail."""
    run, rows = config.out, tracker.kept
    _keep_best(config, best_step(rows))  # once more, for a run that was killed before it
    evaluated = [int(row["step"]) for row in rows if "heldout" in row]
    judged = balanced(heldout, config.evaluation.images_per_tag)
    shown = [judged[index] for index in kept(judged)]
    with ornament("reward.png"):
        draw_reward_curve(run, rows)
    if not evaluated:
        return
    with ornament(PICTURES):
        if any(answers_path(run / SAMPLES, step).exists() for step in evaluated):
            asked = [question_of(prompt, config.question.pictures) for prompt in shown]
            draw_answers(run / SAMPLES, evaluated, asked, run / PICTURES)
        else:
            draw_progress(run / SAMPLES, evaluated, [prompt.text for prompt in shown], run / PICTURES)


def _keep_best(config: TrainConfig, best: int | None) -> None:
    """Name the best checkpoint, and delete those that are neither it nor among the newest."""
    write_atomically(config.out / BEST, json.dumps({"step": best}) + "\n")
    checkpoints.prune(config.out / CHECKPOINTS, config.checkpoint.keep_last, best)


def best_step(metrics: Sequence[Metrics]) -> int | None:
    """The trained step with the highest held-out score, the earliest of equals; None before the first."""
    judged = [row for row in metrics if "heldout" in row and row["step"] > 0]
    return int(max(judged, key=lambda row: row["heldout"])["step"]) if judged else None
