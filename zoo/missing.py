"""What is said where a model's weights can't be had."""

from pickle import UnpicklingError

from safetensors import SafetensorError

# Whatever timm, open_clip and torch raise over a file that isn't what it should be.
UNUSABLE = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError),
    *(SafetensorError, UnpicklingError),
)


def unusable(name: str, error: BaseException, otherwise: str) -> OSError | ValueError:
    """Say in one line why a model's weights couldn't be had, and what to do.

    Args:
        name: the model.
        error: one of ``UNUSABLE``.
        otherwise: a way that needs no hub.
    """
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return FileNotFoundError(
                f"no weights of {name}: not in the Hugging Face cache, and the hub can't be "
                f"reached ({reason}); run once where it can, or copy the cache, or {otherwise}"
            )
        link = link.__cause__ or link.__context__
    return ValueError(f"the weights of {name} can't be used: {reason}")
