"""One message for what Hydra or OmegaConf refuse: what was typed, what is wrong, what to type instead."""

from __future__ import annotations

import re
import traceback

from odist.cli.train_arguments import GROUPS
from odist.config.read import known_keys
from odist.config.suggest import choose, unknown_key

NO_SUCH_KEY = re.compile(r"^Could not override '(?P<key>[^']*)'")
MERGING = re.compile(r"^Error merging override (?P<override>.*)")
CONVERTED = re.compile(r"^Value '(?P<value>.*)' of type '.*' could not be converted to (?P<kind>\w+)", re.DOTALL)
AMBIGUOUS = re.compile(r"^Ambiguous value for argument '(?P<override>.*)'")
MULTIPLE = re.compile(r"^Multiple values for (?P<group>[\w/]+)\.")
DEEP = re.compile(r"^resnet-?(?P<depth>\d+)$", re.IGNORECASE)
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a word"}


def explain(error: BaseException) -> str | None:
    """The message for `error`, or None if the user did not cause it."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, AttributeError) and getattr(error, "full_key", None) == "hydra.sweeper.params":
        return (
            "hydra.sweeper.params: on the command line the search space is written as overrides, such as "
            "'optim.lr=tag(log,interval(0.001,0.1))'."
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error) if isinstance(error, ValueError) and _raised_in_hydra(error) else None
    text, cause = str(error), str(error.__cause__ or "")
    if match := NO_SUCH_KEY.match(text):
        return unknown_key(match["key"], [*known_keys(), *GROUPS])
    if match := MERGING.match(text):
        return _wrong_value(match["override"], cause)
    if match := AMBIGUOUS.match(text):
        return f"{match['override']}: several values. Add -m to train with each of them, or write a list as key=[a,b]."
    if match := MULTIPLE.match(text):
        return f"{match['group']} has a choice already: write {match['group']}=CHOICE without the plus sign."
    return _first_lines(f"{text}\n{cause}" if cause else text)


def _missing_choice(error: BaseException) -> str:
    file = str(getattr(error, "missing_cfg_file", None) or "")
    group, _, name = file.rpartition("/")
    options = [option for option in getattr(error, "options", None) or [] if not option.endswith("_schema")]
    if group == "preset":
        return f"There is no preset for task-data-scale = {name}. {choose(name, options)}"
    if group == "model" and (match := DEEP.match(name)):
        return f"{group}={name}: the depth is a key of its own. Type model=resnet model.depth={match['depth']}"
    if group.startswith("hydra/"):
        return f"{group}={name}: {choose(name, options)} More come with plug-ins: pip install 'odist[sweeps]'"
    if group and options:
        return f"{group}={name}: {choose(name, options)}"
    return _first_lines(str(error))


def _unreadable(error: BaseException) -> str:
    override = str(getattr(error, "override", ""))
    if "=" not in override:
        return f"{override}: not KEY=VALUE. Type for example algorithm={override}; all keys: odist train --help"
    key, _, value = override.partition("=")
    reason = str(error).splitlines()[0]
    return f"{override}: cannot be read ({reason}). Quote a value with special characters: '{key}=\"{value}\"'"


def _wrong_value(override: str, cause: str) -> str:
    if match := CONVERTED.match(cause):
        return f"{override}: expected {KINDS.get(match['kind'], match['kind'])}."
    if "is not a ListConfig" in cause:
        key = override.partition("=")[0]
        return f"{override}: expected a list, as in {key}=[a,b]."
    if "does not support deletion" in cause:
        return f"{override}: a key cannot be removed. Give it another value."
    if "is not a subclass of" in cause:
        key = override.partition("=")[0]
        return f"{override}: {key} is a node of several keys. Give one of them: {key}.KEY=VALUE"
    return _first_lines(f"{override}: {cause}")


def _raised_in_hydra(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "/hydra/" in frames[-1].filename


def _first_lines(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.strip().startswith(("object_type=", "reference_type="))]
    return "\n".join(kept[:12])
