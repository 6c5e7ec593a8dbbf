"""Hints that mend a mistake: the nearest name, or a command. They don't import zoo, which takes seconds."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any


def nearest(word: str, known: Iterable[object], cutoff: float = 0.6) -> str:
    """Phrase which known word was probably meant; name all words, 12 at most, if none is near or there are few."""
    names = list(map(str, known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    hint = f"did you mean {near[0]!r}?" if near else ""
    if near and len(names) > 12:
        return hint
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{hint} expected one of {', '.join(names[:12])}{more}".strip()


def describe_error(error: BaseException) -> str:
    """Return an error's message, with the command that mends it where there is one."""
    link: BaseException | None = error
    while link is not None:  # the remedy may be of an error that this one was raised from
        if (remedy := getattr(link, "remedy", None)) is not None:
            return f"{error}; {_HINTS[remedy.kind](**remedy.facts)}"
        link = link.__cause__
    return str(error)


def _fit_predictor(*, model: str = "MODEL", tag: str = "", block: int = 0, options: Any = (), **_: Any) -> str:
    flags = "".join(f" --{name} {options[name]}" for name in ("arch", "width") if name in options)
    tower = f"{model}.{tag}" if tag else model
    return f"fit one with: patchrank fit predictor --model {tower} --block {block}{flags} --dataset NAME"


def _fit_prompts(*, dataset: str = "NAME", recipe: dict[str, Any] | None = None, **_: Any) -> str:
    kind = {"tokens": "vt", "count": 16} | (recipe or {})
    flags = f"--tokens {kind['tokens']} --num-tokens {kind['count']} --output FILE"
    return f"tune some with: patchrank fit prompts --model MODEL --dataset {dataset} {flags}"


def _fit_recovery(*, datasets: Any = (), **_: Any) -> str:
    names = " ".join(dataset["name"] for dataset in datasets) or "NAME"
    return f"train one with: patchrank fit recovery --model MODEL --dataset {names} --output FILE"


_HINTS: dict[str, Callable[..., str]] = {
    "predictor": _fit_predictor,
    "prompts": _fit_prompts,
    "recovery": _fit_recovery,
    "budgets": lambda method="rankmerge": f"fit some with: patchrank fit budgets --method {method} --images DIR",
    "schedule": lambda: "search one with: patchrank fit schedule",
    "exported model": lambda: "write it anew with: patchrank export --output FILE",
    "setup": lambda: "choose again, which takes what is cached: patchrank choose --output FILE",
    "weights": lambda: "to time or export a model without weights, add --random-weights",
    "model": lambda: "see all with: patchrank list",
    "keep rate": lambda model, method, keep: (
        f"or measure it with: patchrank compare --model {model} --methods {method} --keeps {keep:g}"
    ),
}
