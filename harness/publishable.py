"""What is known of a model that is to be published: its origin, its licence, its measurements."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import try_to_load_from_cache

import zoo
from harness.conditions import DENSE
from harness.measure.rows import as_json, predictors_digest
from harness.records import Record, conditions
from harness.towers import create_pretrained, split_method, split_name
from zoo.files import digest_of, read_facts
from zoo.load_open_clip import FOLDER, HUB
from zoo.predictor_file import PredictorFile, given_predictors
from zoo.prompts import CosineHead
from zoo.reducer import METHODS, configure, expected
from zoo.registry import MODELS
from zoo.vit import ReducedViT
from zoo.weights import find_predictor, fingerprint

FREE = ("apache-2.0", "bsd-3-clause", "mit")
UNKNOWN = "unknown"
PROVENANCE = "provenance"  # its key in config.json


@dataclass(frozen=True, kw_only=True)
class Publishable:
    """A model with its weights, and where these are from.

    Attributes:
        vit: the model, in evaluation mode.
        arch: timm name, without a tag.
        tag: weight tag of its tower.
        provenance: JSON values: metadata of the files that the weights came from, in
            ``predictors`` (one entry each) and ``prompts``, and hashes of these files in
            ``digests``. Empty where nobody wrote that down.
    """

    vit: ReducedViT
    arch: str
    tag: str
    provenance: dict[str, Any]

    @property
    def dense(self) -> ReducedViT:
        """The model without its reduction; shares its modules."""
        return zoo.reduce(self.vit, method=None)

    @property
    def method(self) -> str:
        """Registered method, or ``dense``."""
        return DENSE if self.vit.reducer is None else self.vit.reducer.method

    @property
    def license(self) -> str:
        """Licence of the tower's weights, ``unknown`` if nobody said."""
        facts: Any = self.vit.pretrained_cfg
        return str(facts.get("license") or UNKNOWN)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that tuned text features tell apart; none without them."""
        facts: Any = self.vit.pretrained_cfg
        tuned = isinstance(self.vit.head, CosineHead)
        return tuple(facts.get("label_names") or ()) if tuned else ()

    def settings(self) -> dict[str, Any]:
        """Return the method's settings as records keep them, its predictor left out."""
        return {} if self.vit.reducer is None else as_json(self.vit.reducer.config)

    def weights(self) -> str:
        """Return the fingerprint of the tower as records keep it: without what was tuned."""
        tower = self.dense
        tower.prompts = None
        if isinstance(tower.head, CosineHead):
            tower.head = tower.head.projection  # type: ignore[assignment]
        return fingerprint(tower)

    def rows(self, records: Sequence[Record], path: Path) -> list[Record]:
        """Choose what was measured of this model, and of its dense tower beside it.

        Args:
            records: of a run.
            path: their file, for the message.

        Raises:
            ValueError: there is none of this model with these weights and settings.
        """
        weights, settings = self.weights(), self.settings()
        mine = [record for record in records if self._is_of(record, weights, settings)]
        if not mine:
            there = ", ".join(sorted({record.model for record in records})) or "nothing"
            command = self.command()
            mend = f"measure it with: {command}" if command else "leave --records out"
            raise ValueError(
                f"{str(path)!r} has no record of {self.arch}.{self.tag} with these weights "
                f"({weights}) and settings; it has {there}; {mend}"
            )
        told = {conditions(record) for record in mine}
        beside = [r for r in records if r.method == DENSE and conditions(r) in told]
        return [*(r for r in beside if r not in mine), *mine]

    def _is_of(self, record: Record, weights: str, settings: dict[str, Any]) -> bool:
        config = record.method_config
        known = self.provenance.get("digests") or {}
        return (
            (record.model, record.tag, record.weights_sha256) == (self.arch, self.tag, weights)
            and all(config.get(key) == value for key, value in {**settings, **known}.items())
            and (record.shots > 0) == bool(self.classes)
        )

    def command(self) -> str | None:
        """Return the command that measures this model; None if none has its settings."""
        known = MODELS.get(self.arch)
        if known is None:
            return None
        keeps = "" if known.method is None else f" --keeps {known.percent / 100:g}"
        if known.method is not None:
            keep = {"keep": known.percent / 100}
            usual = as_json(configure(known.method, keep, len(self.vit.blocks)))
            free = ("arch", "width")  # told by the predictor
            if any(usual[k] != v for k, v in self.settings().items() if k not in free):
                return None
        dataset, shots = "NAME", ""
        if self.classes:
            prompts = self.provenance.get("prompts")
            if not prompts:
                return None
            dataset, recipe = prompts["dataset"], prompts["recipe"]
            shots = f" --shots {prompts['provenance'].get('shots')} --tokens {recipe.get('tokens')}"
        return (
            f"python -m harness compare --models clip_vit_{known.size}.{self.tag} --methods "
            f"{self.method}{keeps} --datasets {dataset}{shots} --output results"
        )


def load_publishable(
    name: str, predictor: Sequence[Path] = (), prompts: Path | None = None
) -> Publishable:
    """Load a model by name or from where ``save_for_hf`` put it.

    Args:
        name: one of our names, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        predictor: files of patchrank's predictors; none for those that are found by themselves.
        prompts: file of learned tokens.

    Raises:
        ValueError: unknown name, or files that don't fit.
        FileNotFoundError: weights, predictor or prompts are missing.
    """
    if name.startswith((FOLDER, HUB)):
        if predictor or prompts:
            raise ValueError(f"model {name!r} carries its weights: leave out predictor and prompts")
        return _saved(name)
    arch = name.partition(".")[0]
    if arch not in MODELS:
        raise ValueError(
            f"model {name!r}: {expected(arch, MODELS)}, or {FOLDER}FOLDER, {HUB}OWNER/NAME"
        )
    tower, tag = split_name(split_method(name)[0])
    options: dict[str, Any] = {} if prompts is None else {"prompts": str(prompts)}
    if predictor:
        options["predictor"] = [str(path) for path in predictor]
    vit: Any = timm.create_model(f"{arch}.{tag}", pretrained=True, **options)
    files = _predictors(vit, tower, tag, predictor)
    provenance: dict[str, Any] = {"digests": {}}  # named as in the settings of records
    if files:
        provenance["predictors"] = [read_facts(file.path, "predictor") for file in files]
        provenance["digests"]["predictor"] = predictors_digest(files)
    if prompts is not None:
        provenance["prompts"] = read_facts(prompts, "prompts")
        provenance["digests"]["prompts"] = digest_of(prompts)
    return Publishable(vit=vit.eval(), arch=arch, tag=tag, provenance=provenance)


def _predictors(
    vit: ReducedViT, tower: str, tag: str, given: Sequence[Path]
) -> Sequence[PredictorFile]:
    reducer = vit.reducer
    if reducer is None:
        return ()
    blocks = METHODS[reducer.method].predictor_blocks(reducer.config, len(vit.blocks))
    if given:
        return sorted(given_predictors(given), key=lambda file: file.block)
    return [find_predictor(tower, tag, block) for block in blocks]


def _saved(name: str) -> Publishable:
    folder = Path(name.removeprefix(FOLDER))
    if name.startswith(FOLDER) and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model {name!r}: no config.json there; timm.models.save_for_hf(model, FOLDER) or "
            "python -m harness push --folder FOLDER writes one"
        )
    vit = create_pretrained(name)
    if not isinstance(vit, ReducedViT):
        raise ValueError(f"model {name!r} is {type(vit).__name__}; zoo.reduce makes it one of ours")
    facts: Any = vit.pretrained_cfg
    config = folder / "config.json"
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        config = Path(str(try_to_load_from_cache(repo, "config.json", revision=revision or None)))
    told = json.loads(config.read_text("utf-8")).get(PROVENANCE) or {}
    arch = str(vit.__dict__["_model_args"].get("base") or facts["architecture"]).partition(".")[0]
    return Publishable(vit=vit.eval(), arch=arch, tag=str(facts.get("tag") or ""), provenance=told)
