"""Messages for a word that is not among the known ones: the one that was meant, the nearest, and all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# What other software, or another habit, calls a key: last part of the name, in small letters without marks.
SYNONYMS = {
    **dict.fromkeys(("learningrate", "rate", "eta", "stepsize"), "optim.lr"),
    **dict.fromkeys(("wd", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("gradclip", "gradientclip", "clip", "clipping", "maxgradnorm", "maxnorm"), "optim.clip_norm"),
    **dict.fromkeys(("scheduler", "lrscheduler", "lrschedule"), "optim.schedule"),
    **dict.fromkeys(("warmupsteps", "warmupexamples"), "optim.warmup"),
    "warmupratio": "optim.warmup_share",
    "gamma": "optim.decay",
    "epsilon": "optim.eps",
    **dict.fromkeys(("optimizer", "optimiser", "opt"), "optim"),
    **dict.fromkeys(("batchsize", "bs", "minibatch", "trainbatchsize", "perdevicetrainbatchsize"), "train.batch"),
    **dict.fromkeys(("epochs", "epoch", "numepochs", "maxepochs", "numtrainepochs"), "train.passes"),
    **dict.fromkeys(("steps", "maxsteps", "numsteps", "iterations", "maxiters", "examples"), "train.max_examples"),
    **dict.fromkeys(("evalevery", "evalinterval", "evalsteps", "validateevery"), "train.evaluate_every"),
    **dict.fromkeys(("evalbatch", "evalbatchsize"), "train.evaluate_batch"),
    **dict.fromkeys(("saveevery", "savesteps", "saveinterval", "checkpointinterval"), "train.checkpoint_every"),
    **dict.fromkeys(("checkpoint", "pretrained", "weights", "init", "warmstart"), "train.init_from"),
    "savetotallimit": "train.keep_checkpoints",
    **dict.fromkeys(("loginterval", "loggingsteps", "logsteps"), "train.log_every"),
    **dict.fromkeys(("numworkers", "dataloaderworkers", "dataloadernumworkers"), "train.prefetch"),
    **dict.fromkeys(("output", "outputdir", "out", "outdir", "savedir", "logdir", "folder", "resume"), "run.dir"),
    **dict.fromkeys(("verbose", "quiet", "bar", "progressbar"), "run.progress"),
    **dict.fromkeys(("wandb", "tensorboard", "mlflow", "logger", "tracker", "reportto"), "run.sinks"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "launch.device"),
    **dict.fromkeys(("numprocesses", "nproc", "nprocpernode", "worldsize", "ranks"), "launch.processes"),
    **dict.fromkeys(("numthreads", "cores", "cpus"), "launch.threads"),
    **dict.fromkeys(("ngroups", "nummodels", "models", "replicas"), "num_groups"),
    **dict.fromkeys(("randomseed", "randomstate"), "seed"),
    **dict.fromkeys(("datapath", "datadir", "dataroot"), "data.path"),
    **dict.fromkeys(("dataset", "problem"), "task"),
    **dict.fromkeys(("arch", "architecture", "network", "net"), "model"),
    **dict.fromkeys(("method", "algo"), "algorithm"),
    **dict.fromkeys(("distillationweight", "alpha", "lambda"), "algorithm.distill_weight"),
    **dict.fromkeys(("distillationloss", "loss"), "algorithm.distill_loss"),
    "burnin": "algorithm.burn_in",
    **dict.fromkeys(("syncevery", "innersteps", "localsteps"), "algorithm.average_every"),
    **dict.fromkeys(("outerlearningrate", "outerrate"), "algorithm.outer_lr"),
    "staleness": "algorithm.delay",
    **dict.fromkeys(("reloadevery", "exchangeevery", "syncinterval"), "exchange.interval"),
    **dict.fromkeys(("sequencelength", "seqlen", "context", "contextlength", "blocksize", "bptt"), "task.unroll"),
    **dict.fromkeys(("imagesize", "imgsize", "resolution"), "task.size"),
    **dict.fromkeys(("amp", "mixedprecision", "fp16", "precision", "halfprecision", "bf16"), "train.precision"),
    **dict.fromkeys(("nlayer", "nlayers", "numlayers"), "model.layers"),
    **dict.fromkeys(("nhead", "nheads", "numheads"), "model.heads"),
    **dict.fromkeys(("dmodel", "nembd", "hiddensize"), "model.width"),
}
IN_EXAMPLES = (
    "train.max_examples",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.log_every",
    "optim.warmup",
)
# The same for values.
VALUES = {
    **dict.fromkeys(("gpu", "gpus", "nvidia", "cuda:0"), "cuda"),
    **dict.fromkeys(("language", "text"), "lm"),
    "images": "imagenet",
    **dict.fromkeys(("click", "clicks", "ctr", "table"), "criteo"),
    "real": "prepared",
}


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The one of `choices` that was probably meant by `word`, if any."""
    if VALUES.get(word.lower()) in choices:
        return VALUES[word.lower()]
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return near[0]
    containing = [name for name in choices if len(word) >= 3 and word.lower() in name.lower()]
    return containing[0] if len(containing) == 1 else None


def choose(word: str, choices: Iterable[str]) -> str:
    """The sentence that names the one of `choices` that was probably meant, and all of them."""
    names = list(choices)
    near = nearest(word, names)
    hint = f"Did you mean {near}? " if near else ""
    return f"{hint}Choices: {', '.join(names)}."


def key_meant(key: str, keys: Iterable[str]) -> str | None:
    """The key that other software calls `key`, or the only one whose last part is that of `key`."""
    names = list(keys)
    last = key.rsplit(".", 1)[-1]
    meant = SYNONYMS.get(re.sub(r"[^a-z0-9]", "", last.lower()))
    if meant in names:
        return meant
    same = [name for name in names if name.rsplit(".", 1)[-1] == last]
    return same[0] if len(same) == 1 else None


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """The message for a key that the schema has not: the one that was meant, or the nearest by whole and last part."""
    names = list(keys)
    last = key.rsplit(".", 1)[-1]
    if meant := key_meant(key, names):
        counts = re.search(r"step|iter", last.lower()) and meant in IN_EXAMPLES
        unit = " It counts examples: steps x train.batch x workers." if counts else ""
        return f"There is no key {key}. Did you mean {meant}?{unit} All keys: odist train --help"
    near = difflib.get_close_matches(key, names, n=4, cutoff=0.6)
    near += [name for name in names if difflib.SequenceMatcher(None, last, name.rsplit(".", 1)[-1]).ratio() > 0.75]
    closest = list(dict.fromkeys(near))[:5]
    siblings = [name for name in names if name.rpartition(".")[0] == key.rpartition(".")[0]]
    rest = f"Nearest: {', '.join(closest)}." if closest else f"Keys here: {', '.join(siblings or names)}."
    return f"There is no key {key}. {rest} All keys: odist train --help"
