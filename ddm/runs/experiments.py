"""Runs experiments: make sets, evaluate, checkpoint, write files, resume.

`carry_out` runs a command from its settings to its last line of output. `Run` is the loop.
"""

import contextlib
import copy
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ddm import device, ranks, torchrun
from ddm.bars import bar
from ddm.data import loading
from ddm.data.images import ImageData
from ddm.errors import UserError
from ddm.evaluation import plausibility, protocol
from ddm.interrupt import Interrupts, Stopped
from ddm.maker import Diverged, Maker
from ddm.networks import description
from ddm.ranks import Ranks
from ddm.runs import cost, resume
from ddm.runs.boards import BOARDS
from ddm.runs.folder import NoFolder, RunFolder
from ddm.runs.progress import Progress
from ddm.runs.results import (
    accuracies,
    command_line,
    hardware,
    plain,
    requested_values,
    set_content,
    set_metadata,
    versions,
)
from ddm.runs.settings import RunSettings, StepSettings
from ddm.settings import declarations

CHECK_EVERY = 10  # iterations between the logged losses
CHECK_SECONDS = 1  # between checks of the losses on an accelerator: a check waits for it, and its queue runs empty
CHECKPOINT_SECONDS = 300  # the longest time between two checkpoints during condensation

# (data on the CPU, settings, ranks, say) -> a maker; raises UserError for invalid settings.
MakeMaker = Callable[[ImageData, RunSettings, Ranks, Callable[[str], None]], Maker]


def carry_out(
    requested: RunSettings,
    settings: RunSettings,
    recipe: str,
    code: str,
    make: MakeMaker,
    stem: str,
    size: str,
) -> None:
    """Run the remaining experiments of a command and write all files into save_path.

    `requested` are the user's settings; in `settings` names are checked and unset values are filled in. `recipe` is the
    command's name in results.json, `code` a digest of its objective's code. `stem` is for file names (see set_stem).
    `size` describes the sets in the last lines. Raises UserError for invalid settings, data or files, and Stopped after
    a signal.
    """
    if settings.device == "cpu":
        device.keep_freed_memory()
    first = torchrun.rank_and_world()[0] == 0
    with ExitStack() as stack:
        stack.enter_context(device.memory_named("lower --batch_train or --ipc, or choose a smaller --model"))
        boards = [name for name in BOARDS if settings.values()[name]]
        place = RunFolder(settings.save_path, stem, boards) if first else NoFolder()
        files = stack.enter_context(place)
        interrupts = stack.enter_context(Interrupts().installed())
        with interrupts.immediate():  # other ranks may never connect
            group = stack.enter_context(ranks.joined(settings.device))
            state = group.from_first(resume.find(settings, recipe, code) if first else None)
        finished = state is not None and state.concluded == [settings.num_exp, settings.num_eval]
        damaged = group.from_first(files.damaged(state.sets) if finished else None)
        if finished and damaged is None:
            if first:
                print(f"{settings.save_path} is finished; nothing to do")
                conclude(settings, files, state.evaluations, size, print)
            return
        with interrupts.immediate():
            # One rank of each host goes first: it may download data or make a store.
            data, digest = group.first_of_host(lambda: loading.load_split(settings))
            maker = make(data, resume.with_chosen(settings, state), group, files.say)
            resume.check_data(state, digest, data, maker.plan.counts)
        if damaged and first:
            print(f"warning: {damaged} is damaged or missing and is written again", file=sys.stderr)
        counts, first_exp = list(maker.plan.counts), settings.first_exp
        state = state or Progress(recipe=recipe, code=code, data=digest, counts=counts, experiment=first_exp)
        state.requested = plain(settings.values())  # num_exp and num_eval may have grown, and must not shrink again
        try:
            Run(requested, settings, maker, files, interrupts, state).all_experiments(size)
        except Stopped:
            files.wait()  # finish writing the checkpoint
            raise


def conclude(
    settings: RunSettings, files: RunFolder, evaluations: list[dict], size: str, say: Callable[[str], None]
) -> None:
    """Print the accuracies and file paths of a finished run."""
    last = max(entry["iteration"] for entry in evaluations)
    say(f"=== {settings.num_exp} experiment(s) of {size}, accuracy on the {settings.eval_split} set ===")
    for kind in dict.fromkeys(entry["images"] for entry in reversed(evaluations)):
        for model, accs in accuracies(evaluations, kind, 0 if kind == "random real" else last).items():
            say(f"{kind + ',':<12} {model}: {protocol.describe(accs)}")
    grid = files.grid_path(settings.first_exp + settings.num_exp - 1, last)
    if grid.exists():
        say(f"images  {grid}")
    say(f"set     {files.set_path}")
    say(f"results {files.results_path}")


class Run:
    """A run: its maker, its files and its progress."""

    def __init__(
        self,
        requested: RunSettings,
        settings: RunSettings,
        maker: Maker,
        files: RunFolder | NoFolder,
        interrupts: Interrupts,
        state: Progress,
    ):
        self.requested, self.settings, self.maker = requested, settings, maker
        self.files, self.interrupts, self.state = files, interrupts, state
        self.ranks: Ranks = maker.plan.ranks
        self.machine = maker.plan.machine
        self.started = self.saved = self.checked = time.perf_counter()
        self.seconds_before = state.seconds
        stepped = isinstance(settings, StepSettings)
        self.eval_every = settings.eval_every if stepped else 0
        self.checkpoint_every = settings.checkpoint_every if stepped else 1
        self.in_progress = False  # whether the maker has started the experiment of `state`
        self.cost_printed = not self.ranks.first
        self.step_times: list[float] = []  # seconds of this process's steps; the first ones compile
        self.unfinished_times: list[float] = []  # of the steps that the device may not have finished
        self.network_times: dict[str, list[float]] = {}  # architecture -> seconds of this process's networks

    # --- experiments -----------------------------------------------------------------------------------------------

    def all_experiments(self, size: str) -> None:
        settings, files, state, maker = self.settings, self.files, self.state, self.maker
        with self.interrupts.immediate():  # before anything is written: it may raise UserError
            began = time.perf_counter()
            maker.prepare(settings.num_exp - len(state.sets))
            preparation = time.perf_counter() - began
            state.step_seconds += preparation
            state.preparation_seconds += preparation
        self.evaluator = protocol.Evaluator(maker.data, settings, self.machine)
        files.open(state.log_bytes, state.metrics_bytes)
        if state.written:
            files.say(f"resuming from the checkpoint of experiment {state.experiment}, iteration {state.iteration}")
            self.record_precision()
        else:
            self.introduce()
            files.log(f"preparation: {preparation:.0f} s")
            self.checkpoint()  # the run can resume from here on
            files.wait()
        before = len(state.sets)
        for number in range(settings.num_exp):
            experiment = settings.first_exp + number
            if number < before:  # finished; more networks may be requested now
                self.evaluate_baseline(experiment)
                self.evaluate(state.sets[number], maker.kind, experiment, maker.iterations)
            else:
                state.sets.append(self.one_experiment(experiment).cpu())
                state.experiment, state.iteration = experiment + 1, 0
                state.images = state.velocity = state.networks = None
                self.in_progress = False
            if number + 1 >= before:  # earlier, the sets of the file would have different numbers of networks
                self.save_results()
            self.checkpoint()
        if self.ranks.first:
            self.check_range()
            conclude(settings, files, state.evaluations, size, files.say)
            accs = self.headline(self.accuracies())
            files.hyper_parameters(plain(maker.arguments()), protocol.summary(accs))
        state.concluded = [settings.num_exp, settings.num_eval]
        self.checkpoint()
        files.wait()

    def record_precision(self) -> None:
        """Record and print that the first part of the run was computed in another precision."""
        state, before, now = self.state, self.state.chosen["precision"], self.machine.precision
        if before != now:
            until = {"precision": before, "experiment": state.experiment, "iteration": state.iteration}
            state.earlier_precisions.append(until)
            self.files.say(f"--precision was {before}, is {now}: rounding differs from here on")

    def introduce(self) -> None:
        """Write the first lines of training.log: command, data, network, evaluation."""
        settings, data, files = self.settings, self.maker.data, self.files
        files.log(f"command: {shlex.join(command_line())}")
        files.log(f"arguments: {plain(self.maker.arguments())}")
        others = f", {self.ranks.world} ranks" if self.ranks.world > 1 else ""
        factor = self.maker.plan.factor
        others += f"; stored images of {factor} x {factor}" if factor > 1 else ""
        files.say(
            f"{settings.dataset}: {len(data.x_train)} training images, {data.num_classes} classes; "
            f"{description(settings.model, data.im_size)} on {self.machine.device}{others}; writing to "
            f"{settings.save_path}"
        )
        sizes = sorted(map(len, data.indices))
        if sizes[0] < sizes[-1]:
            repeated = " and equal weights; batches repeat images of smaller classes" if self.maker.iterations else ""
            files.say(f"classes have {sizes[0]} to {sizes[-1]} training images{repeated}")
        files.say(f"evaluation: {protocol.protocol(settings, self.machine, data)}")
        for line in self.maker.cautions():
            files.warn(line)
        for line in data.warning_lines:  # loading printed them
            files.log(line)

    def one_experiment(self, experiment: int) -> Tensor:
        """Make and evaluate one set; return its images [N, C, H, W], normalised, in class order."""
        state, maker = self.state, self.maker
        saved = None if state.images is None else (state.images, state.velocity, state.networks)
        maker.start(experiment, saved)
        self.in_progress = True
        if saved is None:
            self.save_grid(maker.images(), 0)
        self.evaluate_baseline(experiment)
        self.evaluate_if_due()
        with bar(
            range(state.iteration + 1, maker.iterations + 1),
            desc=f"exp {experiment}",
            unit="it",
            initial=state.iteration,
            total=maker.iterations,
            show=self.ranks.first and maker.iterations > 0,
        ) as steps:
            last = time.perf_counter()
            for iteration in steps:
                maker.step(iteration)
                state.iteration, state.steps = iteration, state.steps + 1
                received = self.interrupts.received or 0
                stop, save, check = self.ranks.largest(received, self.checkpoint_is_due(), self.check_is_due())
                if stop:  # it may have come to another rank
                    self.interrupts.received = stop
                due = self.evaluation_is_due()
                checked = due or save or stop or check
                if checked:
                    steps.set_postfix_str(self.check(), refresh=False)
                seconds = time.perf_counter() - last
                state.step_seconds += seconds
                if not self.cost_printed:
                    self.unfinished_times.append(seconds)
                    if checked or not self.asynchronous:
                        number, passed = len(self.unfinished_times), sum(self.unfinished_times)
                        self.step_times += [passed / number] * number
                        self.unfinished_times = []
                        self.print_cost(experiment)
                if due or save or stop:
                    self.checkpoint()
                    if stop:
                        self.files.wait()
                        self.interrupts.check()
                    self.evaluate_if_due()
                last = time.perf_counter()
        return maker.images()

    # --- the expected duration -----------------------------------------------------------------------------------

    @property
    def asynchronous(self) -> bool:
        """Whether a step may end before its work: an accelerator has finished only after a check of the losses."""
        return torch.device(self.machine.device).type != "cpu"

    @property
    def slow_steps(self) -> int:
        """How many of the first steps may compile or be captured as a graph, up to a wait for the device."""
        return CHECK_EVERY if self.asynchronous else 2

    def cost_is_due(self) -> bool:
        return not self.cost_printed and time.perf_counter() - self.started >= cost.AFTER_SECONDS

    def print_cost(self, experiment: int, training: tuple[str, float] | None = None) -> None:
        """After the first minute, print once how long the rest of the command will take.

        `training` is the network in training and its expected seconds, if there is one.
        """
        if not self.cost_is_due():
            return
        settings, state, maker = self.settings, self.state, self.maker
        if self.ranks.world > 1 and maker.iterations and not (self.step_times or state.steps):
            return  # ranks step together, so that one of them can't make a trial: wait for the first steps
        left = (settings.num_exp - len(state.sets)) * maker.iterations - state.iteration
        if left and self.machine.compile == "on" and 0 < len(self.step_times) <= self.slow_steps:
            return  # a step that compiles says nothing about the others
        self.cost_printed = True
        steps = cost.Work(left, self.seconds_per_step(experiment) if left else 0)
        seconds = [self.seconds_per_network(model, experiment, training) for model in self.evaluator.models]
        networks = cost.Work(-(-self.networks_left() // self.ranks.world), statistics.fmean(seconds))
        self.files.say(cost.line(settings, steps, networks))

    def networks_left(self) -> int:
        """How many evaluation networks the command has yet to train. Evaluations of earlier iterations get no more."""
        settings, state, last = self.settings, self.state, self.maker.iterations
        done = {
            (e["experiment"], e["iteration"], e["images"], e["model"]): len(e.get("accuracies", ()))
            for e in state.evaluations
        }
        due = [(0, "random real")] * bool(self.eval_every)
        due += [(i, self.maker.kind) for i in range(last + 1) if self.evaluation_is_due(i)]
        return sum(
            settings.num_eval - done.get((experiment, i, kind, model), 0)
            for experiment in range(settings.first_exp, settings.first_exp + settings.num_exp)
            for i, kind in due
            if i in (0, last) or (experiment, i) >= (state.experiment, state.iteration)
            for model in self.evaluator.models
        )

    def seconds_per_step(self, experiment: int) -> float:
        """Measured on this process's steps; before the first, on a trial that leaves the experiment at its start."""
        first = self.slow_steps
        if len(self.step_times) <= first and self.state.iteration == 0 and self.ranks.world == 1:
            self.maker.start(experiment, None)
            with contextlib.suppress(Diverged):  # the experiment itself will report it
                for iteration in range(1, min(first + 1, self.maker.iterations) + 1):
                    began = time.perf_counter()
                    self.maker.step(iteration)
                    self.maker.check()  # waits for the device
                    self.step_times.append(time.perf_counter() - began)
            self.maker.start(experiment, None)
        times = self.step_times[first:] or self.step_times
        earlier = self.state.stepping_seconds / self.state.steps if self.state.steps else 0.0
        return statistics.median(times) if times else earlier

    def seconds_per_network(self, model: str, experiment: int, training: tuple[str, float] | None) -> float:
        """Measured on this process's networks; before the first network, on two epochs of training."""
        if training and training[0] == model:
            return training[1]
        times = self.network_times.get(model)
        if times:
            return statistics.fmean(times)
        images = self.maker.baseline(experiment)  # as many as in the set, and available at any time
        return self.evaluator.network_seconds(model, *self.maker.training_set(experiment, images))

    def watch(self, model: str, experiment: int, n: int, numbers: Sequence[int]) -> protocol.Watch:
        """A progress bar over the epochs of networks trained together on n images; prints the cost when it is due."""
        text = f"exp {experiment} {self.evaluator.title(model, numbers)}"

        def watched(epochs: Iterable[int]) -> Iterator[int]:
            began = 0.0
            for epoch in bar(epochs, desc=text, unit="epoch", leave=False, show=self.ranks.first):
                yield epoch
                if not began:
                    protocol.wait_for(self.machine.device)
                    began = time.perf_counter()  # after the first epoch, which may compile
                elif self.cost_is_due():
                    protocol.wait_for(self.machine.device)
                    passed = (time.perf_counter() - began) / epoch / len(numbers)
                    self.print_cost(experiment, (model, self.evaluator.from_epochs(passed, n)))

        return watched

    def check_is_due(self) -> bool:
        """Whether to check the losses after the current iteration: on the CPU at each one that is logged."""
        if self.state.iteration % CHECK_EVERY:
            return False
        return not self.asynchronous or time.perf_counter() - self.checked >= CHECK_SECONDS

    def check(self) -> str:
        """Log the losses of every CHECK_EVERY-th iteration since the last check; return the latest as text.

        Raises UserError if a loss is not finite, after writing the images before that iteration.
        """
        state, files, text = self.state, self.files, ""
        try:
            reports = self.maker.check()
        except Diverged as diverged:
            raise self.diverged(diverged) from None
        self.checked = time.perf_counter()
        for report in reports:
            if report.skipped:
                state.skipped.append([state.experiment, report.iteration])
                where = f"experiment {state.experiment}, iteration {report.iteration}"
                files.say(f"{where}: {report.skipped}; the step is skipped")
                continue
            text = report.text
            if report.iteration % CHECK_EVERY == 0 or report.iteration == self.maker.iterations:
                loss = sum(report.terms.values())
                files.log(f"exp {state.experiment} iter {report.iteration}: loss {loss:.6g} ({text})")
                files.metrics("loss", state.experiment, report.iteration, {"total": loss, **report.terms})
        return text

    def diverged(self, error: Diverged) -> UserError:
        """Write the images before the iteration that diverged; return the error to raise."""
        experiment, before = self.state.experiment, error.iteration - 1
        where = f"experiment {experiment}, iteration {error.iteration}"
        args = self.arguments() | {"first_exp": experiment, "num_exp": 1, "Iteration": before}
        more = {"unfinished": [before, self.maker.iterations], "velocity": error.velocity}
        more |= {"experiment": experiment, "iteration": before}
        name = f"last_finite_{{}}_exp{experiment}_iter{before}"
        path = self.save_set([error.images], args, more, {}, name) or self.settings.save_path
        message = (
            f"{where}: {error}; the images before it are in {path}; lower --lr_img or the weight of the term, or use "
            "--on_nonfinite skip"
        )
        self.files.log(f"error: {message}")
        return UserError(message)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluation_is_due(self, iteration: int | None = None) -> bool:
        """Whether the set is evaluated after an iteration (default: the current one)."""
        iteration, every = self.state.iteration if iteration is None else iteration, self.eval_every
        return iteration == self.maker.iterations or bool(every and iteration and iteration % every == 0)

    def evaluate_if_due(self) -> None:
        state, maker = self.state, self.maker
        if self.evaluation_is_due():
            images = maker.images()
            if state.iteration:
                self.save_grid(images, state.iteration)
            self.evaluate(images, maker.kind, state.experiment, state.iteration)
            if not state.sets and state.iteration < maker.iterations:
                self.save_results()  # usable while the first experiment goes on

    def evaluate_baseline(self, experiment: int) -> None:
        if self.eval_every:
            self.evaluate(self.maker.baseline(experiment), "random real", experiment, 0)

    def save_grid(self, images: Tensor, iteration: int) -> None:
        if len(images):
            pixels = self.maker.data.normalisation.pixels(images)
            self.files.save_grid(pixels, self.maker.plan.counts, self.state.experiment, iteration)

    def evaluate(self, images: Tensor, kind: str, experiment: int, iteration: int) -> None:
        """Evaluate images [N, C, H, W] on the remaining networks; checkpoint after each rank's networks at once.

        The accuracies of these networks are recorded once all ranks have finished.
        """
        settings = self.settings
        training_set: protocol.TrainingSet | None = None
        for model in self.evaluator.models:
            entry = self.entry(experiment, iteration, kind, model)
            while left := range(len(entry.get("accuracies", ())), settings.num_eval):
                with self.interrupts.immediate():
                    if training_set is None:
                        content = self.maker.training_set(experiment, images)
                        training_set = protocol.TrainingSet(*content, experiment, iteration)
                    n, local = len(training_set.labels), []
                    share = -(-len(left) // self.ranks.world)
                    share = min(self.ranks.gather(self.evaluator.at_once(model, n, share)))
                    numbers = left[self.ranks.rank * share : (self.ranks.rank + 1) * share]
                    if numbers:
                        began = time.perf_counter()
                        watch = partial(self.watch, model, experiment, n)
                        local = self.evaluator.trained(model, training_set, numbers, self.files.log, watch)
                        seconds = (time.perf_counter() - began) / len(numbers)
                        self.network_times.setdefault(model, []).extend([seconds] * len(numbers))
                    trained = [one for part in self.ranks.gather(local) for one in part]
                protocol.record(entry, trained)
                if entry["n"] == settings.num_eval:
                    accs = entry["accuracies"]
                    self.files.say(f"exp {experiment} iter {iteration} {kind}, {model}: {protocol.describe(accs)}")
                    values = {f"{model}, {kind}": entry["mean"]}
                    self.files.metrics("accuracy", experiment, iteration, values)
                    self.warn(entry, "chance", plausibility.at_chance(accs, self.maker.data))
                    if iteration < self.maker.iterations:  # the last images are checked at the end
                        self.warn(
                            entry, "range", plausibility.far_outside(images.detach(), self.maker.data.normalisation)
                        )
                self.checkpoint()

    def warn(self, entry: dict, kind: str, line: str | None) -> None:
        """Warn once per experiment. The entry of the evaluation records it, so that a resumed run is silent."""
        others = [e for e in self.state.evaluations if e["experiment"] == entry["experiment"]]
        if line and not any(kind in e.get("warnings", ()) for e in others):
            entry["warnings"] = entry.get("warnings", {}) | {kind: line}
            self.files.warn(f"exp {entry['experiment']} iter {entry['iteration']} {entry['images']}: {line}")

    def check_range(self) -> None:
        """Warn of sets far outside the data's range, else print a note if an export would clip them."""
        images, normalisation = torch.cat(self.state.sets), self.maker.data.normalisation
        line = plausibility.far_outside(images, normalisation)
        cost = plausibility.clipping_cost(images, normalisation)
        if line:
            self.files.warn(f"the sets: {line}")
        elif cost:
            self.files.say(f"note: {cost}")

    def entry(self, experiment: int, iteration: int, kind: str, model: str) -> dict:
        """The record of an evaluation; it is created if missing."""
        key = {"experiment": experiment, "iteration": iteration, "images": kind, "model": model}
        for entry in self.state.evaluations:
            if key.items() <= entry.items():
                return entry
        # condensing_seconds: for all experiments so far, without evaluations
        self.state.evaluations.append(key | {"condensing_seconds": self.state.step_seconds})
        return self.state.evaluations[-1]

    # --- files -------------------------------------------------------------------------------------------------------

    def checkpoint_is_due(self) -> bool:
        due = self.state.iteration % self.checkpoint_every == 0
        return due or time.perf_counter() - self.saved > CHECKPOINT_SECONDS

    def checkpoint(self) -> None:
        """Pass a copy of the state to the checkpoint writer."""
        state, maker = self.state, self.maker
        self.saved = time.perf_counter()
        if self.in_progress:
            state.images, state.velocity, state.networks = maker.state()
        state.seconds, state.versions, state.peak_memory = self.seconds(), versions(), self.peak_memory()
        declared = declarations(type(self.settings))
        arguments = maker.plan.settings.values()
        state.chosen = {name: arguments[name] for name, setting in declared.items() if setting.chosen}
        snapshot = copy.copy(state)
        snapshot.sets, snapshot.skipped = list(state.sets), list(state.skipped)
        snapshot.evaluations = copy.deepcopy(state.evaluations)
        self.files.save_checkpoint(snapshot)

    def peak_memory(self) -> int:
        """In bytes, the largest of this process and of those that the run resumes; 0 where it can't be measured."""
        return max(self.state.peak_memory, device.peak_memory(self.machine.device) or 0)

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def saved_iteration(self) -> int:
        """The iteration of the saved sets: the last, or the current one while the first experiment goes on."""
        return self.maker.iterations if self.state.sets else self.state.iteration

    def accuracies(self) -> dict[str, list[float]]:
        """The accuracies of the saved sets of all experiments, by network."""
        return accuracies(self.state.evaluations, self.maker.kind, self.saved_iteration)

    def headline(self, accs_by_model: dict[str, list[float]]) -> list[float]:
        return accs_by_model[protocol.headline_model(self.settings.model, accs_by_model)]

    def arguments(self) -> dict:
        """All settings with their final values, and the command's name."""
        return plain(self.maker.arguments()) | {"recipe": self.state.recipe}

    def chunks_of_ranks(self) -> dict:
        """The --class_chunk of every rank, if there are several: memory may run out on some only."""
        if self.ranks.world == 1:
            return {}
        return {"class_chunks": self.ranks.gather(self.arguments().get("class_chunk"))}

    def save_results(self) -> None:
        """Write results.json and the sets of the finished experiments, or the current set if there are none."""
        accs, sets = self.accuracies(), self.state.sets or [self.maker.images().cpu()]
        args, more, iterations = self.arguments(), {}, [self.saved_iteration, self.maker.iterations]
        args["num_exp"] = len(sets)  # the arguments describe the sets in the file
        if iterations[0] < iterations[1]:
            args["Iteration"], more["unfinished"] = iterations[0], iterations
        self.save_set(sets, args, more, accs)
        self.files.save_results(self.record(args, accs) | more)

    def save_set(self, stored: list[Tensor], args: dict, more: dict, accs: dict, name: str = "res_{}") -> Path | None:
        """Write a set's file; `args` are its arguments, `more` are other entries."""
        plan, metadata = self.maker.plan, set_metadata(args, self.requested, self.maker.data) | more
        return self.files.save_set(*set_content(stored, plan.labels().cpu(), plan.factor, metadata), accs, name)

    def record(self, args: dict, accs_by_model: dict[str, list[float]]) -> dict:
        """The content of results.json; `args` are the arguments of the saved sets. Accuracies are in [0, 1].

        mean, std, n and accuracies are those of the condensation network, or of the first network of a pool without it.
        """
        settings, state, maker = self.settings, self.state, self.maker
        random_real = accuracies(state.evaluations, "random real", 0)
        return {
            "command": command_line(),
            "args": args,
            "asked": requested_values(self.requested),
            "protocol": protocol.protocol(settings, self.machine, maker.data),
            **protocol.summary(self.headline(accs_by_model)),
            "models": {model: protocol.summary(accs) for model, accs in accs_by_model.items()},
            "random_real": {model: protocol.summary(accs) for model, accs in random_real.items()},
            "evaluations": state.evaluations,
            "skipped": state.skipped,
            "images_per_class": list(maker.plan.counts),
            "ranks": self.ranks.world,
            **self.chunks_of_ranks(),
            **({"earlier_precisions": state.earlier_precisions} if state.earlier_precisions else {}),
            "seconds": self.seconds(),
            "preparation_seconds": state.preparation_seconds,
            "iterations_per_second": state.steps / state.stepping_seconds if state.steps else None,
            "peak_memory_bytes": self.peak_memory() or None,
            "hardware": hardware(self.machine),
            "versions": versions(),
        }
