"""What happens where a phase needs every client, and some of them are missing."""

from collections.abc import Mapping, Sequence

from fedta_app.errors import RunError
from server_app.state import ServerState

_MOST_NAMED = 10  # clients that share a reason, in a message


def settle_missing(state: ServerState, asked: Sequence[int], kind: str, needs: str) -> None:
    """Refuse to go on without clients that were asked, or note in summary.json that they lack.

    Which of the two is the key `missing-clients`.

    Parameters
    ----------
    asked : sequence of int
        Partition ids.
    kind : str
        What the clients should have sent: an entry of `missing-clients` in summary.json.
    needs : str
        The beginning of the sentence, as in "the head needs the sums of every client".

    Raises
    ------
    RunError
        When a client is missing and the configuration does not allow it.
    """
    costs = state.exchange.costs
    missing = {client: costs.missing[client] for client in asked if client in costs.missing}
    if not missing:
        return
    if state.config.missing_clients == "refuse":
        # With shared images, of which a missing client may be the one that counts them, it may not.
        may = not state.config.shared_fraction
        go_on = " (missing-clients = 'go-on' goes on without them)" if may else ""
        raise RunError(
            f"{needs}, and {len(missing)} of {len(asked)} are missing: {_who(missing)}{go_on}"
        )
    noted = state.notes.setdefault("missing-clients", {}).setdefault(kind, {})
    noted |= {str(client): why for client, why in missing.items()}


def forget_missing(state: ServerState, kind: str) -> None:
    """Forget who is missing in something that is about to be made anew."""
    noted = state.notes.get("missing-clients", {})
    noted.pop(kind, None)
    if not noted:
        state.notes.pop("missing-clients", None)


def _who(missing: Mapping[int, str]) -> str:
    """Return which clients are missing and why; those with the same reason are named together."""
    by_reason: dict[str, list[int]] = {}
    for client, why in missing.items():
        by_reason.setdefault(why, []).append(client)
    return "; ".join(f"{_named(clients)} {why}" for why, clients in by_reason.items())


def _named(clients: Sequence[int]) -> str:
    if len(clients) == 1:
        return f"client {clients[0]}"
    named = [str(client) for client in clients[:_MOST_NAMED]]
    last = named.pop() if len(clients) <= _MOST_NAMED else f"{len(clients) - _MOST_NAMED} more"
    return f"clients {', '.join(named)} and {last}"
