"""The ClientApp that Flower loads: it imports little, and passes messages to `client_app.app`."""

import importlib

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.resident import NoResidentError, answer, for_one_message


class Entry(ClientApp):
    """Answers in this process; or in one that stays, where this one is for a single message."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the reply to a message."""
        if for_one_message():
            try:
                return answer(message, context)
            except NoResidentError as error:
                print(f"warning: {error}; this process answers, and others will", flush=True)
        app: ClientApp = importlib.import_module("client_app.app").app
        return app(message, context)


app = Entry()
