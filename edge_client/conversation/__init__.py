"""Conversations: chats whose turns read only what is new."""

from edge_client.conversation.chat import OTHER_POLICIES, Conversation, OnOverflow
from edge_client.conversation.turns import Message, Turn

__all__ = ["OTHER_POLICIES", "Conversation", "Message", "OnOverflow", "Turn"]
