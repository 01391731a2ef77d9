"""How keys are refused that do not go with another."""

from collections.abc import Mapping

from fedta_app.errors import ConfigError
from fedta_app.keys import Keys


def refuse(config: Keys, said: str, refused: Mapping[str, tuple[bool, str]]) -> None:
    """Raise ConfigError for the first key that is refused, with its value and the reason.

    Parameters
    ----------
    said : str
        The beginning of the sentence, as in "dp-noise = 1 is not allowed with ".
    refused : mapping of str to (bool, str)
        By key: whether it is refused, and why.
    """
    for name, (found, why) in refused.items():
        if found:
            value = getattr(config, name.replace("-", "_"))
            value = repr(value) if isinstance(value, str) else str(value).lower()
            raise ConfigError(f"{said}{name} = {value}: {why}")
