"""A command line out of a dataclass: each field is an option, with its type, default, limits and help."""

import argparse
import dataclasses
import math
import typing

from support.errors import BadInput

# What an evaluation of a trained model still asks of the reader; all else is in its drm.json.
OF_EVALUATION = "eval_only dataset data_root model beta device precision workers out overwrite".split()
OF_PREDICTION = "predict model beta device workers out overwrite".split()


def option(default, help, low=-math.inf, high=math.inf, choices=None, group=None):
    """A field of a config. `group` heads the options from this one on, in --help."""
    about = {"help": help, "low": low, "high": high, "choices": choices, "group": group}
    return dataclasses.field(default=default, metadata=about)


def kind_of(field):
    """-> (type of a value, whether there may be several)."""
    if typing.get_origin(field.type) is tuple:
        return typing.get_args(field.type)[0], True
    return field.type, False


def flag(name):
    return "--" + name.replace("_", "-")


def checked(value, field):
    """-> value as the type of its field. Raises BadInput: the option, the value and what is allowed."""
    (kind, _), about = kind_of(field), field.metadata
    if about["choices"] and value not in about["choices"]:
        raise BadInput(f"{flag(field.name)} {value}: unknown; allowed: {', '.join(about['choices'])}")
    if kind is str:
        ok, allowed = isinstance(value, str) and value != "", "a text"
    elif kind is bool:
        ok, allowed = isinstance(value, bool), "True or False"
    else:  # a whole number will do for a float; True is no number, and NaN is in no range
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        ok = is_number and about["low"] <= value <= about["high"] and kind(value) == value
        what = "a whole number" if kind is int else "a number"
        allowed = f"{what} from {about['low']:g} to {about['high']:g}"
    if not ok:
        raise BadInput(f"{flag(field.name)} {value}: must be {allowed}")
    return kind(value)


def check_values(config, recipe):
    """Every field of a config, from the recipe where it is None, as its type. Raises BadInput."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        value = recipe.get(field.name) if value is None else value
        if kind_of(field)[1]:
            several = isinstance(value, (tuple, list)) and (value or field.default == ())
            values = value if several else (value,)
            value = tuple(checked(v, field) for v in values)
        elif value is not None or field.default is not None or field.name in recipe:
            value = checked(value, field)
        object.__setattr__(config, field.name, value)


def complete(config, recipes):
    """Fill what is None in a config from the recipe of its data set. Raises BadInput for nonsense."""
    recipe = dict(recipes.get(config.dataset, {})) if isinstance(config.dataset, str) else {}
    for name, options in (("eval_only", OF_EVALUATION), ("predict", OF_PREDICTION)):
        if getattr(config, name):
            check_saved_model(config, flag(name), options)
    if config.model is not None and config.pretrained is None:
        recipe.pop("pretrained", None)  # the tag in the recipe belongs to the model in the recipe
    check_values(config, recipe)
    for name in ("method", "sweep", "alpha", "core_targets", "template"):
        object.__setattr__(config, name, tuple(dict.fromkeys(getattr(config, name))))
    check_together(config)
    if config.out is None:
        name = "predict" if config.predict else config.dataset + "-eval" * config.eval_only
        object.__setattr__(config, "out", f"runs/{name}")


def check_saved_model(config, by, options):
    """--eval-only and --predict take what decided the training from the model. Raises BadInput for others."""
    if not str(config.model).startswith("local-dir:"):
        raise BadInput(f"{by} --model {config.model}: allowed: local-dir:FOLDER, which a run left")
    for field in dataclasses.fields(config):
        if field.name not in options and getattr(config, field.name) != field.default:
            allowed = ", ".join(flag(name) for name in options[1:])
            why = "the model has its own, of its one seed"
            raise BadInput(f"{by} {flag(field.name)}: {why}; allowed beside it: {allowed}")


def check_together(config):
    """Values that are good alone and not together. Raises BadInput."""
    if config.resume and config.overwrite:
        raise BadInput("--resume --overwrite: the one keeps what the other replaces; allowed: one of them")
    if config.resume and config.save_every == -1:
        raise BadInput("--resume --save-every -1: nothing is kept to go on from; allowed: 0 or more")
    for template in config.template:
        if template.count("{}") != 1:
            raise BadInput(f"--template {template}: must hold one {{}}, for the name of the class")
    template = config.concept_template
    if template.count("{text}") != 1 or template.count("{name}") > 1:
        allowed = "one {text}, for a description, and at most one {name}, for the name of its class"
        raise BadInput(f"--concept-template {template}: must hold {allowed}")
    if config.accumulate > 1 and (config.loss == "flyp" or "flyp" in config.method):
        parts = f"--accumulate {config.accumulate}"
        raise BadInput(f"{parts}: only 1 with a contrastive loss, which needs the whole batch at once")
    for name, values in (("--sweep", (config.lam, *config.sweep)), ("--alpha", config.alpha)):
        if len({f"{value:g}" for value in values}) < len(set(values)):  # as tables and folders show them
            raise BadInput(f"{name} {' '.join(map(repr, values))}: allowed: values that differ in six digits")


def refuse(message):
    raise BadInput(message)


def command_line(config_class, argv, program, description, of_recipe=None):
    """Words of a command line -> config. `of_recipe`: defaults where a recipe decides. Raises BadInput."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(program, None, description, formatter_class=form, allow_abbrev=False)
    parser.error = refuse  # in one line, without the usage
    group = parser
    for field in dataclasses.fields(config_class):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        kind, several = kind_of(field)
        if kind is bool:
            form = {"action": "store_true"}
        else:
            metavar = {str: "NAME", int: "N", float: "X"}[kind]
            form = {"type": kind, "nargs": "+" if several else None, "metavar": metavar}
        form |= {"default": argparse.SUPPRESS, "help": help_of(field, of_recipe)}
        group.add_argument(flag(field.name), **form)
    return config_class(**vars(parser.parse_args(argv)))


def help_of(field, recipe):
    """One short line: what it is, what is allowed, and the default."""
    default = field.default if field.default is not None else (recipe or {}).get(field.name)
    notes = []
    if field.metadata["choices"] and ":" not in field.metadata["help"]:
        notes.append("|".join(field.metadata["choices"]))
    if default is not None and default is not False and default != ():
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        notes.append(f"default {shown}" + (" for toy" if field.default is None else ""))
    return (field.metadata["help"] + (f" [{'; '.join(notes)}]" if notes else "")).replace("%", "%%")
