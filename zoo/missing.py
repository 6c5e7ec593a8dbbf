"""What is said where a model's weights can't be had."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models import PretrainedCfg

# Whatever timm, open_clip and torch raise over a file that isn't what it should be.
UNUSABLE = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError),
    *(SafetensorError, UnpicklingError),
)
_LONGEST_REASON = 240
_OTHERWISE = (
    "put a file of these weights at {own}, or pass pretrained_cfg_overlay=dict(file=PATH), or pass "
    "local-dir:FOLDER, saved by timm's save_for_hf"
)


class MissingWeightsError(FileNotFoundError):
    """A model's weights are neither here nor to be had; the message says all that there is to."""


class UnusableWeightsError(ValueError):
    """A model's weights don't fit it or can't be read; the message says all that there is to."""


def unusable(
    name: str, error: BaseException, otherwise: str, file: str = ""
) -> MissingWeightsError | UnusableWeightsError:
    """Say in one line why a model's weights couldn't be had, and what to do.

    Args:
        name: the model.
        error: one of ``UNUSABLE``.
        otherwise: a way that needs no hub.
        file: which file of which repository was wanted.
    """
    links = list(_chain(error))
    if not any(isinstance(link, OSError) for link in links):
        reason = _in_one_line(error)
        return UnusableWeightsError(f"the weights of {name} can't be used: {reason}")
    answered = [link for link in links if isinstance(link, HfHubHTTPError)]
    hub = "the hub doesn't give it" if answered else "the hub can't be reached"
    reason = _in_one_line(answered[0] if answered else links[-1])
    wanted = f" (wanted: {file})" if file else ""
    return MissingWeightsError(
        f"no weights of {name}: not in the Hugging Face cache{wanted}, and {hub} ({reason}); "
        f"run once where it can, or copy the cache, or {otherwise}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Go from an error to what led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _in_one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), _LONGEST_REASON) or type(error).__name__


@contextmanager
def loading(name: str, cfg: PretrainedCfg, own: str) -> Iterator[None]:
    """Say in one line why timm couldn't load weights within the body.

    Args:
        name: the model with its tag.
        cfg: where its weights are.
        own: where the user may lay a file of them.

    Raises:
        MissingWeightsError: they are neither cached nor to be had from the hub.
        UnusableWeightsError: they don't fit the model or can't be read.
    """
    if cfg.source == "hf-hub":
        name = f"hf-hub:{cfg.hf_hub_id}"
    elif cfg.source == "local-dir":
        name = f"local-dir:{cfg.file}"
    try:
        yield
    except UNUSABLE as error:
        if not _is_about_weights(error):
            raise
        file = f"{cfg.hf_hub_id}/{cfg.hf_hub_filename or 'model.safetensors'}"
        raise unusable(name, error, _OTHERWISE.format(own=own), file) from error


def _is_about_weights(error: BaseException) -> bool:
    """Tell errors of files from those of arguments and devices, which speak for themselves."""
    if isinstance(error, RuntimeError):
        return "state_dict" in str(error) or "checkpoint" in str(error)
    return isinstance(error, OSError) or not isinstance(error, (ValueError, TypeError))
