"""From a preset or a user's YAML and `key=value` to a checked `ExperimentConfig`.

Hydra's compose API merges the files. It stops at the first unknown key, so overrides
are handed to it as additions (`++key=value`) and the schema judges all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.config.problems import config_errors
from loralab.config.schema import ExperimentConfig, PEFTConfig
from loralab.errors import ConfigError, nearest

PRESETS = Path(__file__).parent / "presets"
GROUPS = ("model", "data", "prompts", "peft", "training", "evaluation")


@cache
def presets(group: str) -> dict[str, Path]:
    """Map the names of a group's presets to their files."""
    return {path.stem: path for path in sorted((PRESETS / group).glob("*.yaml"))}


def describe(path: Path) -> str:
    """Return the first comment of a preset: what it is, in a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and "@package" not in line:
            return line[2:]
    return ""


def find_experiment(experiment: str) -> Path:
    """Return the YAML file that `experiment` names: a preset, or a file's path.

    Raises:
        ConfigError: it is neither.
    """
    if experiment.endswith((".yaml", ".yml")):
        path = Path(experiment).expanduser()
        if not path.is_file():
            raise ConfigError("no such file", where=experiment)
        if path.suffix == ".yml":
            raise ConfigError(
                "Hydra reads only .yaml", where=experiment, fix="rename the file"
            )
        return path.resolve()
    known = presets("experiment")
    if experiment not in known:
        raise ConfigError(
            f"no experiment {experiment!r}; {nearest(experiment, known)}",
            fix="name a preset, or a path that ends in .yaml",
        )
    return known[experiment]


def _as_overrides(text: str) -> list[str]:
    """Turn the user's ``group=option`` or ``key=value`` into Hydra's grammar.

    A PEFT method without a preset, such as another package's, is chosen like one that
    has a preset: with the params that it has by default.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    if not equals or not bare:
        raise ConfigError(
            f"{text!r} is not key=value", fix="write for example training.seed=1"
        )
    if bare != key:
        raise ConfigError(
            f"{text!r}: a key is set, not added or deleted", fix=f"write {bare}={value}"
        )
    try:
        OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"{text!r} cannot be read: {str(error).splitlines()[0]}",
            fix="quote values with brackets, commas or spaces: key='\"a, b\"'",
        ) from None
    if bare not in GROUPS or value.startswith("{"):
        return [f"++{text}"]
    if value in presets(bare):
        return [text]
    kind = PEFTConfig.kind
    if bare == "peft" and registry.known(kind, value):
        return ["~peft", f"++peft.name={value}"]
    methods = registry.names(kind) if bare == "peft" else ()
    legal = {*presets(bare), *methods}
    raise ConfigError(f"no {bare} {value!r}; {nearest(value, legal)}", where=bare)


def _compose_raw(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Merge the files and overrides with Hydra; nothing is judged yet."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    own = path.is_relative_to(PRESETS)
    root = PRESETS if own else path.parent
    name = str(path.relative_to(root).with_suffix(""))
    search = [] if own else [f'hydra.searchpath=["file://{PRESETS.as_posix()}"]']
    given = [one for text in overrides for one in _as_overrides(text)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(root), version_base="1.3"):
            composed = hydra_compose(name, overrides=[*search, *given])
        if re.search(r"\$\{\s*oc\.env\b", OmegaConf.to_yaml(composed)):
            raise ConfigError(
                "an experiment may not read the environment",
                where=path.name,
                why="its values are written into the run, and a secret with them",
            )
        raw = OmegaConf.to_container(composed, resolve=True)
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        UnicodeDecodeError,
    ) as error:
        raise _merge_error(error, path.name) from None
    if not isinstance(raw, dict):
        raise ConfigError("an experiment is a mapping", where=path.name)
    return {str(key): value for key, value in raw.items()}


def _merge_error(error: Exception, where: str) -> ConfigError:
    """Return the error of files that cannot be merged, with a fix where we know one."""
    found = re.match(r"Could not (?:override|delete) '(\w+)'\. No match", str(error))
    if not found:
        return ConfigError(_first_lines(error), where=where)
    group = found[1]
    return ConfigError(
        f"{group}=NAME chooses another preset, and this experiment has none",
        where=where,
        fix=f"write '- /{group}: NAME' among its defaults, before '- _self_'; or set "
        f"keys, {group}.KEY=VALUE",
    )


def _first_lines(error: BaseException) -> str:
    """Return what a library's error says, without its traceback and chatter."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:4]) or type(error).__name__


def validate(raw: Mapping[str, Any], where: str = "") -> ExperimentConfig:
    """Judge a plain mapping by the schema.

    Raises:
        ConfigErrors: every problem at once, each with key, value, reason and fix.
    """
    from pydantic import ValidationError

    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        raise config_errors(error, raw, where) from None


def compose(experiment: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the checked configuration of an experiment.

    Args:
        experiment: The name of a preset, or the path of a YAML file, which may begin
            from a preset (``defaults: [experiment/sms-spam, _self_]``).
        overrides: ``group=option`` (``model=smollm2``) or ``key=value`` in Hydra's
            grammar (``training.seed=1``, ``data.columns.text=body``).

    Raises:
        ConfigError: the experiment or a group's option does not exist.
        ConfigErrors: unknown keys, wrong types, unknown names, all at once.
    """
    path = find_experiment(experiment)
    raw = _compose_raw(path, overrides)
    raw.setdefault("name", path.stem)
    return validate(raw, path.name)


def load_resolved(path: Path) -> ExperimentConfig:
    """Read the ``config.yaml`` of a run back.

    Raises:
        ConfigError: the file is missing, not YAML, or no longer fits the schema.
    """
    return validate(read_plain(path), str(path))


def read_plain(path: Path) -> dict[str, Any]:
    """Return what a ``config.yaml`` says, whether or not it fits the schema of today.

    Raises:
        ConfigError: the file is missing, or no mapping in YAML.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(_first_lines(error), where=str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError("an experiment is a mapping", where=str(path))
    return raw
