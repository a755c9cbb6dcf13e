"""Values that must never be shown: tokens and keys, usually from the environment."""

import re

MASK = "***"

_SECRET_VARIABLE = re.compile(r"TOKEN(?!IZ)|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
# Configuration keys are stricter than variables: `pad_token`, `num_label_tokens` and `tokenizer` are no secrets.
_SECRET_KEY = re.compile(
    r"^token$|(?:^|_)(?:password|passwd|passphrase|secret|credentials?)$"
    r"|(?:^|_)(?:api|access|auth|secret|private|bearer|hf|hub|wandb)_?(?:key|token)$",
    re.IGNORECASE,
)


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable's name says that its value is a secret."""
    return _SECRET_VARIABLE.search(name) is not None


def is_secret_key(name: str) -> bool:
    """Whether a configuration key's name says that its value is a secret."""
    return _SECRET_KEY.search(name) is not None


class Secret(str):
    """A string whose text is ``***`` wherever it is printed, joined, serialised or pickled.

    Only :meth:`reveal` gives the value, for the one call that needs it. Code that forgets to call it sends ``***``:
    a failed login instead of a leaked token.
    """

    __slots__ = ("_value",)
    _value: str

    def __new__(cls, value: str) -> "Secret":
        secret = super().__new__(cls, MASK)
        secret._value = value
        return secret

    def reveal(self) -> str:
        """The value itself."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type["Secret"], tuple[str]]:
        return (Secret, (MASK,))
