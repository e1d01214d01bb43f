"""The history of chats: one SQLite file that the terminal, the server and its page write side by side."""

from .records import Chat, Hit, Message
from .store import History

__all__ = ["Chat", "History", "Hit", "Message"]
