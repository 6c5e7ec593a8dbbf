"""Publish a model, for timm or for sentence-transformers: weights, where they are from, a card, and the upload."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download, try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from harness.datasets.images import EXTENSIONS, upright_rgb
from harness.measure.cost import gflops
from harness.models.towers import OPEN_CLIP, TIMM, TRANSFORMERS, create_pretrained, split_method, split_name
from harness.records.record import DENSE, RECOVERY, Record, lacking
from harness.report.folder import markdown
from harness.report.tables import conditions_of, group_records, sections
from zoo.core.files import digest, fingerprint, read_facts, write_whole
from zoo.core.learned import CosineHead
from zoo.loading.adopt import reduce
from zoo.loading.clip import clip_transform, image_transform, load_text, open_clip_text, tokenizer
from zoo.loading.learned_files import find_predictor
from zoo.loading.open_clip import FOLDER, HUB
from zoo.loading.recovery_file import RecoveryFile, add_recovery
from zoo.loading.sizes import MODELS, SIZES, unknown_model
from zoo.loading.weights import find_clip, read_weights
from zoo.towers.vit import TimmHost

TIMM_FORMAT, SENTENCE = "timm", "sentence-transformers"
FORMATS = (TIMM_FORMAT, SENTENCE)
FILES = ("README.md", "config.json", "model.safetensors")
TEXT, CODE = "text.safetensors", "modeling_patchrank.py"  # the former where there is a text tower that doesn't ship
SENTENCE_FILES = ("config_sentence_transformers.json", CODE, "modules.json", TEXT)  # beside the others
SENTENCE_CODE = '''"""What sentence-transformers and the Auto classes of transformers open this folder with."""

from transformers import PretrainedConfig

try:
    from harness.apps.push import SentenceTower, TowerProcessor
except ImportError as error:
    raise ImportError("this model needs: pip install clip-patchrank") from error


class TowerConfig(PretrainedConfig):
    model_type = "patchrank"
'''
FREE = ("apache-2.0", "bsd-3-clause", "mit")
UNKNOWN = "unknown"
PROVENANCE = "provenance"  # its key in config.json
_HUBS_LICENSES = (*FREE, UNKNOWN, "cc-by-nc-4.0")  # others it knows by license_name


class SentenceTower(nn.Module):
    """An image tower, and a text tower where one belongs to it, of a folder that ``write_folder`` wrote.

    It makes `embed`'s vectors, and has the interface of a first module of sentence-transformers, whose classes differ
    from release to release, and that of a CLIP of transformers.
    """

    save_in_root = True
    config: Any = None  # transformers'

    def __init__(
        self, visual: TimmHost, size: str = "", tag: str = "", weights: dict[str, Tensor] | None = None
    ) -> None:
        """Take an image tower; its text tower has a size and tag of ours, and ``weights`` unless these ship."""
        super().__init__()
        self.visual, self.size, self.tag = visual, size, tag
        self.text: Any = None
        self.transform: Any = image_transform(visual)
        if size:
            self.transform = clip_transform(visual)
            self.text, self.logit_scale, context = (
                load_text() if weights is None else open_clip_text(size, tag, weights)
            )
            self.words = tokenizer(context)

    @classmethod
    def load(cls, folder: str) -> Self:
        """Load what ``save`` wrote."""
        visual: Any = timm.create_model(f"{FOLDER}{folder}", pretrained=True)
        text = json.loads(Path(folder, "config.json").read_text("utf-8")).get("text", {})
        ships = not text or SIZES[text["size"]].open_clip is None
        return cls(visual, **text, weights=None if ships else load_file(Path(folder, TEXT))).eval()

    @classmethod
    def from_pretrained(cls, name: str, *_: Any, config: Any = None, revision: str | None = None, **__: Any) -> Self:
        """Load a folder or a repository of the hub for transformers."""
        tower = cls.load(name if Path(name).is_dir() else snapshot_download(name, revision=revision))
        tower.config = config
        return tower

    @staticmethod
    def register_for_auto_class(auto_class: Any = None) -> None:
        """Do nothing when transformers asks for it."""

    def save(self, folder: str, facts: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write the towers' weights and settings; ``facts`` join them in config.json."""
        text = {"text": {"size": self.size, "tag": self.tag}} if self.size else {}
        parts = {"AutoConfig": "TowerConfig", "AutoModel": "SentenceTower", "AutoProcessor": "TowerProcessor"}
        about = {
            "architectures": ["SentenceTower"],
            "auto_map": {auto: f"{Path(CODE).stem}.{name}" for auto, name in parts.items()},
            "vision_config": {"image_size": self.visual.input_size},
        }
        save_for_hf(self.visual, folder, model_config={**(facts or {}), **about, **text}, safe_serialization=True)
        if self.size and SIZES[self.size].open_clip is not None:
            tensors = {"logit_scale": torch.tensor(self.logit_scale), **self.text.model.state_dict()}
            save_file(tensors, Path(folder, TEXT))

    @property
    def modalities(self) -> list[str]:
        """What can be embedded."""
        return ["image"] if self.text is None else ["text", "image"]

    def get_embedding_dimension(self) -> int:
        """Return the number of a vector's components."""
        return self.visual.num_classes or self.visual.num_features

    get_sentence_embedding_dimension = get_embedding_dimension  # its name in older releases

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Turn PIL images, or texts, into a tensor for ``forward``; sentence-transformers mixes no batch of both.

        Raises:
            ValueError: something else, or texts where there is no text tower or whose words it never saw.
        """
        if all(isinstance(one, Image.Image) for one in inputs):
            return {"pixel_values": torch.stack([self.transform(upright_rgb(one.copy())) for one in inputs])}
        for one in inputs:
            if not isinstance(one, str) or Path(one).suffix.lower() in EXTENSIONS:
                raise ValueError(f"{one!r:.80}: expected PIL images, or texts; open pictures with PIL.Image.open")
        if self.text is None:
            raise ValueError(f"{inputs[0]!r:.80}: this model has no text tower; expected PIL images")
        return {"input_ids": self.words([f"{prompt or ''}{one}" for one in inputs])}

    tokenize = preprocess  # its name in older releases

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (n, D) of unit length."""
        embed = self.get_image_features if "pixel_values" in features else self.get_text_features
        return {**features, "sentence_embedding": F.normalize(embed(**features).float(), dim=-1)}

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """Return features of prepared pictures, (n, D)."""
        return self.visual(pixel_values)

    def get_text_features(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Return features of tokenized texts, (n, D)."""
        features: Tensor = self.text(input_ids)
        return features

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


class TowerProcessor:
    """Prepare pictures and texts for a `SentenceTower`, as a processor of transformers does."""

    def __init__(self, tower: SentenceTower) -> None:
        self.tower = tower.to("meta")  # its weights aren't needed

    @classmethod
    def from_pretrained(cls, name: str, *_: Any, **more: Any) -> Self:
        """Load what belongs to a folder or a repository."""
        return cls(SentenceTower.from_pretrained(name, **more))

    register_for_auto_class = SentenceTower.register_for_auto_class

    def __call__(self, *, images: Sequence[Any] | None = None, text: Any = None, **_: Any) -> dict[str, Tensor]:
        """Return ``pixel_values`` (n, C, H, W), ``input_ids`` (m, L), or both."""
        parts = [self.tower.preprocess([one] if isinstance(one, str) else one) for one in (images, text) if one]
        return {name: tensor for part in parts for name, tensor in part.items()}


@dataclass(frozen=True, kw_only=True)
class Publishable:
    """A model in evaluation mode with its weights, and where these are from.

    Attributes:
        provenance: metadata of the files that the weights came from, as JSON values, in ``predictor``, ``prompts`` and
            ``recovery``; hashes of these files, in ``digests``, and the tower's fingerprint before a recovery, in
            ``weights``. Empty where nobody wrote that down.
    """

    vit: TimmHost
    arch: str  # timm name, without a tag
    tag: str  # of its tower's weights
    provenance: dict[str, Any]

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

    @property
    def predicted(self) -> bool:
        """Whether a predictor ranks its patches."""
        return self.vit.reducer is not None and self.vit.reducer.config.predictor_block(self.vit.depth) is not None

    def find_rows(self, records: Sequence[Record], path: Path) -> list[Record]:
        """Return what was measured of this model and of its dense tower; ValueError if ``path`` has nothing of it."""
        weights = self.provenance.get("weights") or _tower_fingerprint(self.vit)
        settings = {} if self.vit.reducer is None else self.vit.reducer.config.plain()
        settings |= self.provenance.get("digests", {})
        wanted = (self.arch, self.tag, weights, RECOVERY in self.provenance, bool(self.classes))
        mine = [
            one
            for one in records
            if (one.model, one.tag, one.weights_sha256, one.recovered, one.shots > 0) == wanted
            and settings.items() <= one.method_config.items()
        ]
        if not mine:
            raise ValueError(
                f"{str(path)!r} has no record of {self.arch}.{self.tag} with these weights ({weights}) and settings; "
                "measure it with `compare`, or leave --records out"
            )
        same = {conditions_of(one) for one in mine}
        dense = [one for one in records if one.method == DENSE and conditions_of(one) in same and one not in mine]
        return [*dense, *mine]


def _tower_fingerprint(vit: TimmHost) -> str:
    """Return the fingerprint of a tower as records keep it: without what was tuned."""
    tower: TimmHost = reduce(vit, method=None)
    tower.prompts = None
    if isinstance(tower.head, CosineHead):
        tower.head = tower.head.projection
    return fingerprint(tower)


def load_publishable(
    name: str, predictor: Path | None = None, prompts: Path | None = None, recovery: Path | None = None
) -> Publishable:
    """Load a model by one of our names, or from ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.

    Raises:
        ValueError: unknown name, or files that don't fit.
        FileNotFoundError: weights, predictor, prompts or recovery are missing.
    """
    name = name.removeprefix(TIMM)
    if name.startswith((FOLDER, HUB)):
        if predictor or prompts or recovery:
            raise ValueError(f"model {name!r} carries its weights: leave out predictor, prompts and recovery")
        return _load_saved(name)
    arch = name.partition(".")[0]
    if arch not in MODELS:
        if timm.is_model(arch) or name.startswith((OPEN_CLIP, TRANSFORMERS)):
            raise ValueError(
                f"model {name!r}: push takes names of `list`, {FOLDER}FOLDER and {HUB}OWNER/NAME; save another tower "
                "of timm by timm.models.save_for_hf(zoo.reduce(TOWER, method=METHOD, keep=RATE), FOLDER)"
            )
        raise unknown_model(name, f", or {FOLDER}FOLDER, {HUB}OWNER/NAME")
    tower, tag = split_name(split_method(name)[0])
    files = {"predictor": predictor, "prompts": prompts}
    addition = None if recovery is None else RecoveryFile.read(recovery)
    options: dict[str, Any] = {what: str(path) for what, path in files.items() if path is not None}
    vit: Any = timm.create_model(f"{arch}.{tag}", pretrained=True, **options)
    block = None if vit.reducer is None else vit.reducer.config.predictor_block(vit.depth)
    if block is not None and predictor is None:
        files["predictor"] = find_predictor(tower, tag, block).path
    weights = _tower_fingerprint(vit)
    if addition is not None:
        vit, files[RECOVERY] = add_recovery(vit, addition), addition.path
    used = {what: path for what, path in files.items() if path is not None}
    provenance: dict[str, Any] = {what: read_facts(path, what) for what, path in used.items()}
    provenance |= {"digests": {what: digest(path) for what, path in used.items()}, "weights": weights}
    return Publishable(vit=vit.eval(), arch=arch, tag=tag, provenance=provenance)


def _load_saved(name: str) -> Publishable:
    vit = create_pretrained(name)
    if not isinstance(vit, TimmHost):
        raise ValueError(
            f"model {name!r} is {type(vit).__name__}, none that zoo.reduce made; save it by timm.models.save_for_hf("
            "zoo.reduce(model, method=METHOD, keep=RATE), FOLDER)"
        )
    facts: Any = vit.pretrained_cfg
    config = Path(name.removeprefix(FOLDER), "config.json")
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        config = Path(str(try_to_load_from_cache(repo, config.name, revision=revision or None)))
    provenance = json.loads(config.read_text("utf-8")).get(PROVENANCE) or {}
    arch = str(vit.__dict__["_model_args"].get("base") or facts["architecture"]).partition(".")[0]
    return Publishable(vit=vit.eval(), arch=arch, tag=str(facts.get("tag") or ""), provenance=provenance)


def model_card(
    model: Publishable, repo: str, records: Sequence[Record] = (), sentence: SentenceTower | None = None
) -> str:
    """Write the card of a model for ``OWNER/NAME`` on the hub; it says only what is recorded or computed.

    ``records`` are as of `Publishable.find_rows`; ``sentence`` is what sentence-transformers opens, None in timm's
    format.
    """
    known = MODELS.get(model.arch)
    weights = None if known is None else SIZES[known.size].weights
    facts, uncounted = _count_facts(model)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True)
    environment.filters["json"] = lambda value: json.dumps(value, sort_keys=True)
    return environment.get_template("model_card.md").render(
        model=model,
        repo=repo,
        sentence=sentence,
        hub_licenses=_HUBS_LICENSES,
        free=FREE,
        clip=known is not None or "_clip_" in model.arch,
        base=f"timm/{weights}.{model.tag}" if weights else None,
        embedded=known is not None and weights is None,
        facts=facts,
        uncounted=uncounted,
        table=markdown([one.wide(summary=True) for one in sections(group_records(records))]).strip() if records else "",
        records=records,
        **{what: model.provenance.get(what) for what in ("predictor", "prompts", RECOVERY)},
    )


def _count_facts(model: Publishable) -> tuple[dict[str, str], str]:
    """Return the rows of the card's first table, and which operators GFLOPs lack."""
    vit = model.vit
    config: Any = vit.pretrained_cfg
    size = tuple(config["input_size"])
    like = next(vit.parameters())
    with torch.inference_mode():
        trace = vit.trace(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    patches = trace.grid[0] * trace.grid[1]
    cost = gflops(vit, size[1:], size[0])
    facts = {"input": " x ".join(map(str, size))}
    dense = ""
    if vit.reducer is not None:
        about = (sys.modules[type(vit.reducer).__module__].__doc__ or "").strip().partition("\n")[0]
        dense = f" (dense: {gflops(reduce(vit, method=None), size[1:], size[0]).gflops:.2f})"
        facts |= {
            "method": f"{model.method}. {about}",
            "settings": f"`{json.dumps(vit.reducer.config.plain())}`",
            "keep rate": f"{100 * trace.final_tokens / patches:.1f} %",
        }
    classes = len(model.classes)
    facts |= {
        "patch tokens": f"{trace.final_tokens} of {patches} at the end",
        "tokens leaving each block": ", ".join(map(str, trace.tokens_per_block)),
        "GFLOPs per image": f"{cost.gflops:.2f}{dense}",
        "parameters": f"{cost.params:,}",
        "output": f"logits of {classes} classes" if classes else f"{vit.num_classes} features",
    }
    return facts, lacking(cost.unsupported)


def write_folder(
    model: Publishable, folder: Path, repo: str, records: Sequence[Record] = (), format: str = TIMM_FORMAT
) -> str:
    """Write weights, config and card, which ``local-dir:`` loads, and return the card.

    In the format of sentence-transformers these are joined by what ``SentenceTransformer`` opens.

    Raises:
        ValueError: the folder has other files, which an upload would take along; or the model's output is no vector.
        FileNotFoundError: the weights of its text tower are missing.
    """
    allowed = (*FILES, *SENTENCE_FILES) if format == SENTENCE else FILES
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strange := sorted(others.difference(allowed)):
        raise ValueError(f"folder {str(folder)!r} holds {strange[0]!r}: give a new or empty one")
    sentence = None if format == TIMM_FORMAT else _sentence_tower(model)
    card = model_card(model, repo, records, sentence)
    config = {PROVENANCE: model.provenance} if model.provenance else {}
    if sentence is None:
        save_for_hf(model.vit, str(folder), model_config=config, safe_serialization=True)
    else:
        sentence.save(str(folder), config)
        about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
        modules = [{"idx": 0, "name": "0", "path": "", "type": f"{Path(CODE).stem}.{SentenceTower.__name__}"}]
        write_whole(folder / "config_sentence_transformers.json", json.dumps(about, indent=2).encode())
        write_whole(folder / "modules.json", json.dumps(modules, indent=2).encode())
        write_whole(folder / CODE, SENTENCE_CODE.encode())
    write_whole(folder / "README.md", card.encode())
    return card


def _sentence_tower(model: Publishable) -> SentenceTower:
    """Join an image tower and the text tower of its weights, if there is one."""
    if model.classes:
        raise ValueError(f"--format {SENTENCE}: {model.arch} was tuned to tell classes apart; it gives no vectors")
    known = MODELS.get(model.arch)
    if known is None or model.vit.num_classes != SIZES[known.size].features:
        return SentenceTower(model.vit)
    weights = None
    if SIZES[known.size].open_clip is not None:
        both = read_weights(find_clip(known.size, model.tag))
        weights = {name: value for name, value in both.items() if not name.startswith("visual.")}
    return SentenceTower(model.vit, known.size, model.tag, weights)


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Upload our files of the folder as one commit to a repository, maybe a new one; return its address.

    Raises:
        ConnectionError: no token, no network, or the hub refuses.
    """
    from huggingface_hub import HfApi  # here, so that a test's stand-in is found

    try:
        api = HfApi(library_name="clip-patchrank")
        api.create_repo(repo, private=private, exist_ok=True)
        files = [name for name in (*FILES, *SENTENCE_FILES) if (folder / name).is_file()]
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Upload model and card"
        )
    except Exception as error:  # the client raises what its transport does, release by release
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConnectionError(
            f"can't upload to {repo!r}: {reason} (log in with 'hf auth login' or set HF_TOKEN, "
            "where the hub can be reached; or write the files with --folder DIR and upload them "
            f"from elsewhere with 'hf upload {repo} DIR')"
        ) from error
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raise ValueError for what is no repository's name."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo, re.ASCII):
        raise ValueError(f"--to {repo!r}: expected OWNER/NAME, of letters, digits and - _ .")


def check_license(model: Publishable, accepted: str | None, *, uploads: bool) -> None:
    """Raise ValueError for a confirmed licence that isn't the weights', or one to confirm before an upload."""
    if accepted not in (None, model.license):
        raise ValueError(f"--accept-license {accepted!r}: the weights {model.tag!r} are under {model.license!r}")
    if uploads and model.license not in FREE and accepted is None:
        raise ValueError(
            f"the weights {model.tag!r} are under {model.license!r}, which may forbid publishing what is derived "
            f"from them: read it, and if you may, add --accept-license {model.license}"
        )
