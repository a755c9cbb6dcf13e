"""What a configuration may do, decided by whoever starts it and never by the configuration itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Permissions given on the command line."""

    allow_targets: tuple[str, ...] = ()
    """Dotted prefixes (``my_lib.models``) or files (``my_model.py``) that ``_target_`` may name as well."""
    trust_remote_code: bool = False
    """Whether ``trust_remote_code: true`` with a pinned ``revision`` is accepted."""

    def allows(self, target: str) -> bool:
        """Whether a prefix given on the command line covers ``target``, at a whole name."""
        for prefix in self.allow_targets:
            base = prefix.rstrip(".:")
            if target == base or target.startswith((f"{base}.", f"{base}:")):
                return True
        return False


NOTHING_ALLOWED = Policy()
